"""What can be measured of a checkpoint for the paper's claims, by name, and how a call decodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.ranges import Count, Range, Rows, check

if TYPE_CHECKING:
    from dcoder_cli.benchmarks.benchmark import Suite

PAPER_TOP_P = 0.95  # DiffuCoder B.2
HELD_OUT, KINDS = "held out", "held out by kind"  # sets of tasks; the second is the micro benchmark's


@dataclass(frozen=True)
class StudySettings:
    """How the models of a study are decoded.

    Attributes:
        task: benchmark; `limit` its first tasks.
        data: the benchmark's file, if it is not where it is looked for.
        max_new_tokens, steps: of an answer; steps None = one a token.
        rule: unmasking rule.
        cold, hot: temperatures.
        top_p: the same at every temperature, so that a comparison of temperatures compares nothing else. None, the whole
            distribution, is what stage 4 samples from, and leaves no ties to break (ours; the paper's 0.95 is measured
            beside it).
        many: samples a task where pass@k is measured; they are decoded in fast mode.
    """

    task: str = "micro"
    limit: Count | None = None
    data: str | None = None
    max_new_tokens: Count = 256
    steps: Count | None = None
    rule: str = "entropy"
    cold: Annotated[float, Range(0)] = 0.2  # DiffuCoder B.2
    hot: Annotated[float, Range(0)] = 1.2  # DiffuCoder 4.3 and 5
    top_p: Annotated[float, Range(above=0, most=1)] | None = None
    many: Count = 10
    batch_size: Rows = 16  # ours: on one core 105 small-scale answers take 10.6 s, and 17.7 s in a batch of 128

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class View:
    """One way to decode the tasks; `tie_break` decides among equally sure candidates."""

    temperature: float
    top_p: float | None
    tie_break: Literal["model", "topk"]
    steps: int
    samples: int = 1

    def __str__(self) -> str:
        top_p = "no top-p" if self.top_p is None else f"top-p {self.top_p:g}"
        many = f", {self.samples} samples" if self.samples > 1 else f", {self.steps} steps, ties {self.tie_break}"
        return f"T {self.temperature:g}, {top_p}{many}"


def views(settings: StudySettings) -> dict[str, View]:
    """The views of a call by name.

    "cold" and "hot" are the call's own; "half" is "cold" in half the steps; "plain" and "filtered" are the cold
    temperature without and with the paper's top-p; "paper ..." is the paper's protocol: its top-p, and ties as the public
    code breaks them (torch.topk's order, which nothing specifies). "many ..." are `many` samples a task.
    """
    steps = settings.steps or settings.max_new_tokens
    cold, hot, top_p = settings.cold, settings.hot, settings.top_p
    return {
        "cold": View(cold, top_p, "model", steps),
        "hot": View(hot, top_p, "model", steps),
        "half": View(cold, top_p, "model", steps // 2),
        "plain": View(cold, None, "model", steps),
        "filtered": View(cold, PAPER_TOP_P, "model", steps),
        "paper cold": View(cold, PAPER_TOP_P, "topk", steps),
        "paper hot": View(hot, PAPER_TOP_P, "topk", steps),
        "many cold": View(cold, top_p, "model", steps, settings.many),
        "many hot": View(hot, top_p, "model", steps, settings.many),
    }


@dataclass(frozen=True)
class Quantity:
    """One measured thing of one checkpoint.

    Attributes:
        role: the checkpoint.
        what: "pass@1" (a share of the samples, by task), "pass@many" (1 where one of them passes), "global@1" and
            "local@1" (AR-ness, by task), "tied" (share of steps that a tie decided), "loss" (held-out, nats a token),
            "sink" (first-step confidence next to the prompt minus elsewhere, by prompt), or "error TRUTH ESTIMATOR"
            (log2 of the mean squared error of a token's log-probability in the variance lab, lambda = 1).
        view: name in `views`, "" where nothing is decoded.
        tasks: HELD_OUT or KINDS.
    """

    role: str
    what: str
    view: str = ""
    tasks: str = HELD_OUT

    @property
    def needs(self) -> str | None:
        """The data it needs beside the checkpoint: "pretrain", "rl" or None."""
        return "pretrain" if self.what == "loss" else "rl" if self.what.startswith("error ") else None

    @property
    def judged(self) -> bool:
        """Whether model-written code is run for it."""
        return bool(self.view) or self.needs == "rl"


def has_kinds(settings: StudySettings) -> bool:
    """Whether the benchmark has a second set of tasks, held out by kind."""
    return settings.task == "micro"


def load_suite(settings: StudySettings, tasks: str) -> Suite:
    """The tasks of a set.

    Raises:
        UserError: no such benchmark or data.
    """
    from dcoder_cli.benchmarks import suites

    task = "micro-kinds" if tasks == KINDS else settings.task
    return suites.load(task, None, settings.data, settings.limit)


def check_settings(settings: StudySettings, context: int | None) -> None:
    """Refuse now what the measurements would refuse after the training.

    Args:
        context: of the models that will be trained; None where they are given.

    Raises:
        UserError: no such benchmark or data, or settings that the sampler or a measurement refuses.
    """
    from dcoder_cli.decoding.requests import Settings

    load_suite(settings, HELD_OUT)
    length = settings.max_new_tokens
    if length < 2:
        raise UserError(f"--max-new-tokens {length} must be at least 2: the claims halve the steps of an answer")
    if context is not None and length > context // 2:
        raise UserError(f"--max-new-tokens {length} leaves no room for the questions; use {context // 2} or fewer")
    for view in views(settings).values():
        Settings(
            max_new_tokens=length,
            steps=view.steps,
            rule=settings.rule,
            temperature=view.temperature,
            top_p=view.top_p,
            tie_break=view.tie_break,
        )


def at_cpu_size(settings: StudySettings) -> StudySettings:
    """The settings at small scale: 105 micro tasks, 40 tokens, temperature 1 where the samples should differ; ours."""
    if settings.task != "micro":
        raise UserError(f"--task {settings.task} asks for real checkpoints; name them with --model ROLE=PATH")
    return replace(settings, limit=105 if settings.limit is None else settings.limit, max_new_tokens=40, hot=1.0)

"""A benchmark put to a model: prompts as ids, answers decoded, solutions cut out, judged. The one way of all that score.

`dcoder eval` writes samples as they come and goes on after a stop (evaluation.py); `arness --task`, `quickstart` and
`reproduce` keep them in memory (`answer`). Texts, solutions and limits are the same for the same settings and draws.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import scoring
from dcoder_cli.benchmarks.benchmark import Item, Row, Suite
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.benchmarks.passk import Estimate, pass_at_k_mean
from dcoder_cli.benchmarks.protocols import Ask, Protocol, choose
from dcoder_cli.benchmarks.samples import Key
from dcoder_cli.decoding import spread
from dcoder_cli.decoding.requests import Encoded, Settings, encode_prompt
from dcoder_cli.decoding.sampler import decode
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.decoding.watching import Observer
from dcoder_cli.model.backbone import Model

Share = tuple[float, float, float]
# Where a sample's random numbers come from: its task's id and its number, so that they are the same whatever else is
# asked; or its place in the call, as for a file of prompts, which decoding orders are measured with.
Draws = Literal["task", "place"]


@dataclass(frozen=True)
class Prompted:
    """A task as it is put to a model; `prompt` is made once for all samples."""

    item: Item
    ask: Ask
    prompt: Encoded


@dataclass(frozen=True)
class Sampling:
    """One sample to decode: `number` counts within its task, `seed` is its row's own."""

    prompted: Prompted
    number: int
    seed: int

    @property
    def key(self) -> Key:
        """Its key in the files of an evaluation."""
        return self.prompted.item.task_id, self.number

    @property
    def name(self) -> str:
        """Its name in trajectories."""
        return f"{self.prompted.item.task_id} {self.number}"


@dataclass(frozen=True)
class Asked:
    """A suite as it is put to one model by a protocol, in the order of the suite's items."""

    suite: Suite
    protocol: Protocol
    tasks: tuple[Prompted, ...]

    @property
    def prompts(self) -> list[Encoded]:
        """A prompt a task."""
        return [task.prompt for task in self.tasks]

    def draws(self, n: int, by: Draws = "task") -> list[Sampling]:
        """`n` samples of each task, one task's after another's."""
        found = [Sampling(task, number, 0) for task in self.tasks for number in range(n)]
        return [
            replace(one, seed=zlib.crc32(one.name.encode()) if by == "task" else place)
            for place, one in enumerate(found)
        ]

    def solution(self, draw: Sampling, text: str) -> str:
        """The program (for questions the answer) in the text of a sample."""
        return self.protocol.solution(draw.prompted.item, text, draw.prompted.ask.prefill)

    def finished(self, draw: Sampling, trajectory: Trajectory) -> bool:
        """Whether the answer came to an end: of turn, or a stop. A gap has the tokens put there; nothing ends it."""
        item = draw.prompted.item
        stopped = any(stop in trajectory.text for stop in self.protocol.stops(item))
        return bool(trajectory.settings["finished"] or stopped or item.kind == "infill")


def ask(model: Model, suite: Suite, protocol: Protocol | None = None) -> Asked:
    """The suite's prompts for a model; the protocol is by default the checkpoint's.

    Raises:
        UserError: the model has no tokenizer, no chat template for a chat, or the protocol has no prompt for a task.
    """
    chosen = protocol or choose(model)
    asks = [(item, chosen.ask(item, suite)) for item in suite.items]
    return Asked(suite, chosen, tuple(Prompted(item, one, encode(model, one, item.task_id)) for item, one in asks))


def encode(model: Model, ask: Ask, name: str = "0") -> Encoded:
    """The prompt as ids; `name` is its name in errors.

    Raises:
        UserError: the model has no tokenizer, or no chat template for a chat.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise UserError(f"model {model.name!r} has no tokenizer, and benchmarks are text; add one to its folder")
    found = encode_prompt(model, ask.prompt, name)
    bos = tokenizer.bos_token_id
    if ask.bos and bos is not None and found.prefix[:1] != (bos,):
        return replace(found, prefix=(bos, *found.prefix))
    return found


def decode_draws(
    model: Model,
    draws: Sequence[Sampling],
    settings: Settings,
    batch_size: int,
    infill_lengths: Sequence[int] | None = None,
    observer: Observer | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """A trajectory for each sample, in order, named by `Sampling.name`. Arguments are those of `sampler.decode`."""
    return decode(
        model,
        [draw.prompted.prompt for draw in draws],
        settings,
        ids=[draw.name for draw in draws],
        seeds=[draw.seed for draw in draws],
        batch_size=batch_size,
        infill_lengths=infill_lengths,
        observer=observer,
        on_done=on_done,
    )


@dataclass(frozen=True)
class Answered:
    """All samples of a suite, a task's after another's: how they were decoded, and their rows of judged.jsonl."""

    suite: Suite
    n: int
    trajectories: list[Trajectory]
    judged: list[Row]
    tier: str

    def estimate(self, k: int) -> Estimate:
        """pass@k by the main score as a share of the tasks, with its 95% interval."""
        counted = list(scoring.rights(self.judged, self.suite.metrics[-1]).values())
        return pass_at_k_mean([total for total, _ in counted], [good for _, good in counted], k)

    def passes(self) -> dict[str, Share]:
        """pass@1 .. pass@n by the main score, as shares with the ends of their 95% intervals.

        Raises:
            WorkFailed: nothing could be judged.
        """
        found = scoring.scores(self.suite, self.judged)[self.suite.metrics[-1]]
        return {name: (value["score"] / 100, value["low"] / 100, value["high"] / 100) for name, value in found.items()}


def answer(
    model: Model,
    asked: Asked,
    settings: Settings,
    judging: Judging,
    n: int = 1,
    batch_size: int = 8,
    by: Draws = "task",
    observer: Observer | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> Answered:
    """`n` samples of each task, judged while the next ones are decoded; several processes share them and all get all.

    Raises:
        UserError: infilling tasks, whose length is searched (`dcoder eval` does); a prompt without room for an answer.
        WorkFailed: several samples in a row could not be judged.
    """
    check_whole(asked.suite)
    draws = {draw.name: draw for draw in asked.draws(n, by)}
    pending: dict[str, Future[Row]] = {}

    def judge(trajectory: Trajectory) -> None:
        draw = draws[trajectory.id]
        solution = asked.solution(draw, trajectory.text)
        pending[trajectory.id] = judging.submit(draw.prompted.item, draw.number, solution)
        if on_done is not None:
            on_done(trajectory)

    ordered = list(draws.values())
    found = spread.decode(
        model, [draw.prompted.prompt for draw in ordered], settings, ids=list(draws), seeds=[draw.seed for draw in ordered],
        batch_size=batch_size, observer=observer, on_done=judge,
    )  # fmt: skip
    mine = [place for place, name in enumerate(draws) if name in pending]
    rows = spread.together(len(ordered), mine, [pending[ordered[place].name].result() for place in mine])
    return Answered(asked.suite, n, found, rows, judging.tier)


def check_whole(suite: Suite) -> None:
    """Raises UserError for infilling: a gap has no tokens to the left-to-right order of a whole answer."""
    if suite.kind == "infill":
        raise UserError(f"--task {suite.task} fills gaps, whose length is searched; measure tasks that write answers")

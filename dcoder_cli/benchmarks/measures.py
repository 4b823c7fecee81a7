"""What the paper's claims are measured with: pass@1, decoding order, held-out loss, first-step confidence.

Every measurement of a checkpoint is kept in the family's folder, so that a stopped call, or another claim that needs the
same numbers, does not decode again.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_json
from dcoder_cli.benchmarks.family import Family

Values = dict[str, float]  # by task, prompt or row
LAB_DRAWS = 16  # of each estimator in the variance lab; ours


@dataclass(frozen=True)
class Settings:
    """How models are decoded.

    Attributes:
        task: benchmark; `limit` its first tasks.
        data: the benchmark's file, if it is not where it is looked for.
        max_new_tokens, steps: of an answer; steps None = one a token.
        rule: unmasking rule.
        cold, hot: temperatures, and top_p at the cold one (DiffuCoder B.2).
        many: samples a task where pass@k is measured; they are decoded in fast mode.
    """

    task: str = "micro"
    limit: int | None = None
    data: str | None = None
    max_new_tokens: int = 256
    steps: int | None = None
    rule: str = "entropy"
    cold: float = 0.2
    hot: float = 1.2
    top_p: float = 0.95
    many: int = 10
    batch_size: int = 128


class Measures:
    """The measurements of one family."""

    def __init__(self, family: Family, settings: Settings, announce: Callable[[str], None], unsafe: bool = False):
        from dcoder_cli.benchmarks import suites

        self.family, self.settings, self.announce, self.unsafe = family, settings, announce, unsafe
        self.suite = suites.load(settings.task, None, settings.data, settings.limit)
        self.path = family.folder / "measures.json"
        self.kept: dict[str, Values] = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}
        self._loaded: tuple[str, Any] | None = None

    def passed(self, role: str, half: bool = False) -> Values:
        """By task: 1 if the answer at the cold temperature passes; `half` = at half the denoising steps."""
        return self._decoded(role, "half" if half else "cold", 1)["passed"]

    def share(self, role: str, hot: bool = True) -> Values:
        """By task: share of `many` samples that pass (pass@1)."""
        return self._decoded(role, "hot" if hot else "cold", self.settings.many)["passed"]

    def any(self, role: str, hot: bool = True) -> Values:
        """By task: 1 if one of `many` samples passes (pass@many)."""
        return {task: float(value > 0) for task, value in self.share(role, hot).items()}

    def order(self, role: str, hot: bool = False) -> Values:
        """By task: global AR-ness@1 of the exactly decoded answer."""
        return self._decoded(role, "hot" if hot else "cold", 1)["global"]

    def known(self, role: str) -> dict[str, float]:
        """The scores of a checkpoint that were measured, as means over tasks: shares, and global AR-ness@1."""
        many = self.settings.many
        names = {
            "pass@1": f"{role} cold x1 passed",
            "pass@1, half the steps": f"{role} half x1 passed",
            "pass@1, hot": f"{role} hot x{many} passed",
            f"pass@{many}, hot": f"{role} hot x{many} passed",
            "global@1": f"{role} cold x1 global",
        }
        result = {}
        for label, name in names.items():
            if name in self.kept:
                values = list(self.kept[name].values())
                if label.startswith(f"pass@{many},") and many > 1:
                    values = [float(value > 0) for value in values]
                result[label] = sum(values) / len(values)
        return result

    def loss(self, role: str) -> Values:
        """By row: the held-out loss in nats a token, under "mean"."""
        return self._once(f"{role} loss", lambda: {"mean": self._loss(role)})

    def sink(self, role: str) -> Values:
        """By prompt: mean confidence of the first step on the tenth of the places next to the prompt, minus the rest."""
        return self._once(f"{role} sink", lambda: self._sink(role))

    def lab(self, role: str) -> Values:
        """By estimator: mean squared error of a token's log-probability at the paper's lambda = 1 (nats^2)."""
        return self._once(f"{role} lab", lambda: self._lab(role))

    # ---- how

    def _once(self, name: str, make: Callable[[], Values]) -> Values:
        if name not in self.kept:
            self.announce(f"seed {self.family.seed}: {name}")
            self.kept[name] = make()
            self.family.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.kept)
        return self.kept[name]

    def _model(self, role: str) -> Any:
        from dcoder_cli.model.backbone import load

        path = self.family.models[role]
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None
            gc.collect()
            self._loaded = (path, load(path))
        return self._loaded[1]

    def _decoded(self, role: str, kind: str, samples: int) -> dict[str, Values]:
        name = f"{role} {kind} x{samples}"
        wanted = ("passed", "global") if samples == 1 else ("passed",)
        if any(f"{name} {what}" not in self.kept for what in wanted):
            self.announce(f"seed {self.family.seed}: {name}")
            for what, values in self._decode(role, kind, samples).items():
                self.kept[f"{name} {what}"] = values
            self.family.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.kept)
        return {what: self.kept[f"{name} {what}"] for what in wanted}

    def _decode(self, role: str, kind: str, samples: int) -> dict[str, Values]:
        from dcoder_cli.analysis.arness import arness
        from dcoder_cli.benchmarks import orders, scoring
        from dcoder_cli.benchmarks.judging import Judging
        from dcoder_cli.diffusion.sampler import generate

        model, settings = self._model(role), self.settings
        asked = orders.ask(model, self.suite)
        steps = settings.steps or settings.max_new_tokens
        options: dict[str, Any] = (
            {"steps": steps // 2 if kind == "half" else steps} if samples == 1 else {"mode": "fast"}
        )
        hot = kind == "hot"
        decoded = generate(
            model,
            [prompt for prompt in asked.prompts for _ in range(samples)],
            max_new_tokens=settings.max_new_tokens,
            rule=settings.rule,
            temperature=settings.hot if hot else settings.cold,
            top_p=None if hot else settings.top_p,
            seed=self.family.seed,
            batch_size=settings.batch_size,
            **options,
        )
        with Judging(self.suite, unsafe=self.unsafe) as judging:
            rows = [future.result() for future in asked.submit(decoded, samples, judging)]
        result = {"passed": scoring.per_task(rows, self.suite.metrics[-1])}
        if samples == 1:
            per_sample = arness(decoded, local_k=1, global_k=1)["per_sample"]
            result["global"] = {
                item.task_id: row["global"][0] for item, row in zip(self.suite.items, per_sample, strict=True)
            }
        return result

    def _loss(self, role: str) -> float:
        from dcoder_cli.training.evaluation import heldout_loss

        assert self.family.pretrain is not None
        return heldout_loss(self._model(role), self.family.pretrain)

    def _lab(self, role: str) -> Values:
        from dcoder_cli.training.grpo_config import GrpoConfig
        from dcoder_cli.training.variance import measure

        assert self.family.rl is not None
        settings = self.settings
        rollout = {"max_new_tokens": settings.max_new_tokens, "temperature": settings.hot, "rule": settings.rule}
        config = build(
            GrpoConfig,
            {"seed": self.family.seed, "rollout": {**rollout, "mode": "fast", "batch_size": settings.batch_size}},
        )
        lab = measure(
            self.family.models[role],
            self.family.rl,
            config,
            draws=LAB_DRAWS,
            pairs=(1,),
            gradients=False,
            unsafe=self.unsafe,
        )
        return {row.estimator: row.bias**2 + row.variance for row in lab.rows}

    def _sink(self, role: str) -> Values:
        from dcoder_cli.analysis.entropy_sink import first_step_profile
        from dcoder_cli.benchmarks import orders
        from dcoder_cli.diffusion import requests

        model, length = self._model(role), self.settings.max_new_tokens
        asked = orders.ask(model, self.suite)
        found = requests.encode(model, asked.prompts, requests.Settings(max_new_tokens=length), None, None)
        near = max(1, length // 10)
        result = {}
        for item, request in zip(self.suite.items, found, strict=True):
            values = first_step_profile(model, [request.prefix], length)["confidence"]
            result[item.task_id] = sum(values[:near]) / near - sum(values[near:]) / (length - near)
        return result


def check_settings(settings: Settings, context: int | None) -> None:
    """Refuse now what the measurements would refuse after the training.

    Args:
        context: of the models that will be trained; None where they are given.

    Raises:
        UserError: no such benchmark or data, or settings that the sampler or a measurement refuses.
    """
    from dcoder_cli.benchmarks import suites
    from dcoder_cli.diffusion.requests import Settings as Sampling

    suites.load(settings.task, None, settings.data, settings.limit)
    length, steps = settings.max_new_tokens, settings.steps
    if length < 2:
        raise UserError(f"--max-new-tokens {length} must be at least 2: the claims halve the steps of an answer")
    if context is not None and length > context // 2:
        raise UserError(f"--max-new-tokens {length} leaves no room for the questions; use {context // 2} or fewer")
    Sampling(max_new_tokens=length, steps=steps, rule=settings.rule, temperature=settings.cold, top_p=settings.top_p)
    Sampling(max_new_tokens=length, steps=(steps or length) // 2, rule=settings.rule, temperature=settings.hot)


def at_desk_size(settings: Settings) -> Settings:
    """The settings at desk size: 105 micro tasks, 40 tokens, temperature 1 where the samples should differ; ours."""
    if settings.task != "micro":
        raise UserError(f"--task {settings.task} asks for real checkpoints; name them with --model ROLE=PATH")
    return replace(settings, limit=105 if settings.limit is None else settings.limit, max_new_tokens=40, hot=1.0)

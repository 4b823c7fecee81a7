"""Measuring a replicate of checkpoints: pass@1, decoding order, held-out loss, first-step confidence, the variance lab.

Each measurement is kept in the replicate's folder under all that decides it, so that a stopped call, or another claim that
needs the same numbers, does not decode again, and other settings never mix.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.config import build
from dcoder_cli.base.files import write_json
from dcoder_cli.base.schema import Format
from dcoder_cli.experiments.effects import Values
from dcoder_cli.experiments.quantities import HELD_OUT, Quantity, StudySettings, View, has_kinds, load_suite, views
from dcoder_cli.experiments.seeds import Replicate

if TYPE_CHECKING:
    from dcoder_cli.benchmarks.benchmark import Suite

LAB_DRAWS = 16  # of each estimator in the variance lab; ours


class Measures:
    """The measurements of one replicate."""

    def __init__(
        self, replicate: Replicate, settings: StudySettings, announce: Callable[[str], None], unsafe: bool = False
    ):
        self.replicate, self.settings, self.announce, self.unsafe = replicate, settings, announce, unsafe
        self.views = views(settings)
        self._kept: dict[str, dict[str, dict[str, Values]]] = {}  # role -> what decides it -> what -> values
        self._suites: dict[str, Suite] = {}
        self._loaded: tuple[str, Any] | None = None

    def has(self, quantity: Quantity) -> bool:
        """Whether the replicate has what it is measured on."""
        needs = quantity.needs
        return (
            quantity.role in self.replicate.models
            and (needs is None or getattr(self.replicate, needs) is not None)
            and (quantity.tasks == HELD_OUT or has_kinds(self.settings))
        )

    def value(self, quantity: Quantity) -> Values:
        """Measured, or as it was measured before. Empty where it is unknown: "tied" of another system's decodings."""
        role, what = quantity.role, quantity.what
        if quantity.view:
            found = self._decoded(role, quantity)
            if what == "pass@many":
                return {task: float(share > 0) for task, share in found["pass@1"].items()}
            return found[what]
        if what == "loss":
            return self._once(role, what, {}, lambda: {what: {"mean": self._loss(role)}})[what]
        if what == "sink":
            return self._once(role, what, self._asked(HELD_OUT), lambda: {what: self._sink(role)})[what]
        config = self._lab_config()
        about = {"draws": LAB_DRAWS, "rollout": asdict(config.rollout)}
        errors = self._once(role, "variance lab", about, lambda: self._lab(role, config))
        truth, estimator = what.removeprefix("error ").split(" ")
        return {"log2": math.log2(max(errors[truth][estimator], 1e-12))}

    def measure(self, quantities: Iterable[Quantity]) -> None:
        """All that can be measured of them, a checkpoint's one after another, so that each is loaded once."""
        order = list(self.replicate.models)
        for quantity in sorted(filter(self.has, quantities), key=lambda one: order.index(one.role)):
            self.value(quantity)

    # ---- how

    def _once(
        self, role: str, name: str, about: dict[str, Any], make: Callable[[], dict[str, Values]]
    ) -> dict[str, Values]:
        """What `make` measures, kept under all that decides it."""
        path = self.replicate.folder / "measures" / f"{role}.json"
        if role not in self._kept:
            self._kept[role] = _kept(path) if path.is_file() else {}
        kept, key = self._kept[role], f"{name} {json.dumps(about, sort_keys=True)}"
        if key not in kept:
            self.announce(f"seed {self.replicate.seed}: measure {role}, {name}")
            kept[key] = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, kept)
        return kept[key]

    def _asked(self, tasks: str) -> dict[str, Any]:
        """What decides a measurement on tasks, beside its view: the tasks and how long the answers are."""
        settings = asdict(self.settings)
        names = ("task", "limit", "data", "max_new_tokens", "rule", "batch_size")
        return {"tasks": tasks, **{name: settings[name] for name in names}}

    def _suite(self, tasks: str) -> Suite:
        if tasks not in self._suites:
            self._suites[tasks] = load_suite(self.settings, tasks)
        return self._suites[tasks]

    def _model(self, role: str) -> Any:
        from dcoder_cli.model.loading import load

        path = self.replicate.models[role]
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None
            gc.collect()
            self._loaded = (path, load(path))
        return self._loaded[1]

    def _decoded(self, role: str, quantity: Quantity) -> dict[str, Values]:
        view, tasks = self.views[quantity.view], quantity.tasks
        about = {**self._asked(tasks), **asdict(view)}
        return self._once(role, f"{tasks}, {view}", about, lambda: self._decode(role, view, tasks))

    def _decode(self, role: str, view: View, tasks: str) -> dict[str, Values]:
        from dcoder_cli.analysis.arness import arness
        from dcoder_cli.benchmarks import answers, scoring
        from dcoder_cli.benchmarks.judging import Judging

        model, settings, suite = self._model(role), self.settings, self._suite(tasks)
        asked = answers.ask(model, suite)
        with Judging(suite, unsafe=self.unsafe) as judging:
            done = answers.answer(
                model, asked, self._sampling(view), judging, view.samples, settings.batch_size, by="place"
            )
        decoded, rows = done.trajectories, done.judged
        passed = scoring.per_task(rows, suite.metrics[-1])
        if view.samples > 1:
            return {"pass@1": passed}
        order = arness(decoded, local_k=1, global_k=1)
        by_task = {item.task_id: row for item, row in zip(suite.items, order["per_sample"], strict=True)}
        return {
            "pass@1": passed,
            "global@1": {task: row["global"][0] for task, row in by_task.items()},
            "local@1": {task: row["local"][0] for task, row in by_task.items() if row["local"][0] is not None},
            "tied": {task: row["tied_share"] for task, row in by_task.items() if row["tied_share"] is not None},
        }

    def _sampling(self, view: View) -> Any:
        """The sampler's settings of a view: several samples a task are decoded in fast mode."""
        from dcoder_cli.decoding.requests import Settings

        alone = view.samples == 1
        return Settings(
            max_new_tokens=self.settings.max_new_tokens,
            steps=view.steps if alone else None,
            rule=self.settings.rule,
            temperature=view.temperature,
            top_p=view.top_p,
            tie_break=view.tie_break,
            mode="exact" if alone else "fast",
            seed=self.replicate.seed,
        )

    def _loss(self, role: str) -> float:
        from dcoder_cli.training.evaluation import heldout_loss

        assert self.replicate.pretrain is not None
        return heldout_loss(self._model(role), self.replicate.pretrain)

    def _lab_config(self) -> Any:
        """Stage 4's rollouts as these models are decoded: what the lab's completions come from."""
        from dcoder_cli.training.grpo.config import GrpoConfig

        settings = self.settings
        rollout: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "rule": settings.rule}
        rollout |= {"temperature": settings.hot}
        rollout |= {"mode": "fast", "batch_size": settings.batch_size, "top_p": settings.top_p}
        return build(GrpoConfig, {"seed": self.replicate.seed, "rollout": rollout})

    def _lab(self, role: str, config: Any) -> dict[str, Values]:
        """By truth and estimator: mean squared error of a token's log-probability at the paper's lambda = 1, nats^2."""
        from dcoder_cli.training.grpo.variance import TRUTHS, measure

        assert self.replicate.rl is not None
        lab = measure(
            self.replicate.models[role],
            self.replicate.rl,
            config,
            draws=LAB_DRAWS,
            pairs=(1,),
            gradients=False,
            unsafe=self.unsafe,
        )
        return {truth: {row.estimator: row.error[truth] for row in lab.rows} for truth in TRUTHS}

    def _sink(self, role: str) -> Values:
        """By prompt: mean confidence of the first step on the tenth of the places next to the prompt, minus the rest."""
        from dcoder_cli.analysis.entropy_sink import first_step_profile
        from dcoder_cli.benchmarks import answers

        model, length, suite = self._model(role), self.settings.max_new_tokens, self._suite(HELD_OUT)
        prompts = answers.ask(model, suite).prompts
        near = max(1, length // 10)
        result = {}
        for item, prompt in zip(suite.items, prompts, strict=True):
            values = first_step_profile(model, [list(prompt.prefix)], length)["confidence"]
            result[item.task_id] = sum(values[:near]) / near - sum(values[near:]) / (length - near)
        return result


def _kept(path: Path) -> dict[str, dict[str, Values]]:
    """Measurements by what decides them. Raises UserError where one is none."""
    values = jsonl.document(path, "measurements")
    MEASURED.check({"kept": values}, f"measurements {str(path)!r}")
    return values


@dataclass(frozen=True)
class Measured:
    """measures/ROLE.json, below a name of ours."""

    kept: dict[str, dict[str, dict[str, Any]]]


MEASURED = Format("measurements", Measured, "remove the file, and they are made again")

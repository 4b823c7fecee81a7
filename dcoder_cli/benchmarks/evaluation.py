"""One evaluation: a model on a suite with one setting of the sampler, decoded, judged and scored into a folder.

Samples are written one by one and judged while the next batch is decoded, so a killed run goes on where it stopped.
Each sample draws its own random numbers (seed, task, number of the sample): the same one whatever ran before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dcoder_cli.base import config
from dcoder_cli.base.files import write_json
from dcoder_cli.base.provenance import environment
from dcoder_cli.benchmarks import answers, scoring
from dcoder_cli.benchmarks.answers import Asked, Sampling
from dcoder_cli.benchmarks.benchmark import Row, Suite
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.benchmarks.protocols import Protocol
from dcoder_cli.benchmarks.samples import Key, Store, check, sampled
from dcoder_cli.data.holes import INFILL_LENGTHS
from dcoder_cli.decoding import ranks
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.memory.foresee import Decodings

_CHUNK = 8  # batches of infills decoded by one call: bounds the memory for decodings that are written already


@dataclass(frozen=True)
class Setup:
    """What is run.

    Attributes:
        chosen: of the sampler, the protocol's under what the user chose; the samples' files record these.
        n: samples a task.
        infill_lengths: candidates for the length of a gap.
        departures: settings that are not the protocol's, name -> {"protocol", "here"}.
    """

    suite: Suite
    protocol: Protocol
    chosen: Mapping[str, Any]
    n: int = 1
    seed: int = 0
    infill_lengths: tuple[int, ...] = INFILL_LENGTHS
    departures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The sampler's, whole. Raises UserError for settings that do not fit together."""
        return config.build(Settings, self.chosen, {"seed": self.seed}, where="the settings of eval")

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for samples to be joined: all but n and --limit."""
        found: dict[str, Any] = {
            "task": self.suite.task, "subset": self.suite.subset, "data_sha256": self.suite.sha256,
            "protocol": self.protocol.title, "settings": {**self.chosen, "seed": self.seed},
        }  # fmt: skip
        if self.suite.kind == "infill":
            found["settings"]["infill_lengths"] = list(self.infill_lengths)
        return found

    @property
    def keys(self) -> list[Key]:
        """Every sample, in the order of the files."""
        return [(item.task_id, sample) for item in self.suite.items for sample in range(self.n)]


@dataclass(frozen=True)
class Result:
    """Scores and everything else of results.json, and the judged rows they come from."""

    record: dict[str, Any]
    judged: tuple[Row, ...]

    def score(self, metric: str, k: int = 1) -> float:
        """A score in percent."""
        return float(self.record["scores"][metric][f"pass@{k}"]["score"])


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that was run: where it stands among the others of a sweep, and its result."""

    model: str
    task: str
    subset: str
    instruct: bool
    temperature: float
    speed: int
    folder: Path
    result: Result

    @property
    def metrics(self) -> list[str]:
        """Names of its scores."""
        return list(self.result.record["scores"])


def evaluate(
    model: Model,
    setup: Setup,
    folder: Path,
    judging: Judging,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Decode what the folder does not hold yet, judge it, score all, and write samples, judged and results.

    Args:
        batch_size: rows decoded together.
        progress: called with the number of samples that have just been done (those of an earlier run at once).

    Raises:
        UserError: settings or prompts that do not fit the model; the folder holds samples of something else.
        WorkFailed: several samples in a row could not be judged.
    """
    asked = answers.ask(model, setup.suite, setup.protocol)
    draws = sorted(asked.draws(setup.n), key=lambda draw: draw.prompted.prompt.length)  # short rows first
    draws = draws[ranks.rank() :: ranks.world_size()]
    tell = progress or (lambda _: None)
    if ranks.rank() != 0:
        ranks.wait()
    with Store(folder, _identity(model, setup), ranks.rank(), ranks.world_size()) as store:
        if ranks.rank() == 0:
            ranks.wait()  # the folder is there and fits; now the others may
        pending: dict[Key, Future[Row]] = {}

        def submit(draw: Sampling) -> None:
            pending[draw.key] = judging.submit(draw.prompted.item, draw.number, store.samples[draw.key]["solution"])

        def collect(wait: bool = False) -> None:
            for key in [key for key, future in pending.items() if wait or future.done()]:
                store.add("judged", pending.pop(key).result())

        for draw in draws:
            known = store.judged.get(draw.key, {}).get("status", "infrastructure")
            if draw.key in store.samples and known == "infrastructure":
                submit(draw)
        waiting = [draw for draw in draws if draw.key not in store.samples]
        tell(len(draws) - len(waiting))
        for draw, row in _decoded(model, setup, asked, waiting, batch_size):
            store.add("samples", row)
            submit(draw)
            collect()
            tell(1)
        collect(wait=True)
        ranks.wait()
        if ranks.rank() == 0:
            store.merge(setup.keys)
        ranks.wait()
        if ranks.rank() != 0:
            store.samples, store.judged = {}, {}
            store.read()
    result = summarize(setup.suite, store.samples, store.judged, judging.tier, setup.keys)
    result.record.update(
        model=model.name, weights=model.weights_id, protocol=setup.protocol.title, n=setup.n, settings=setup.identity["settings"],
        departures=dict(setup.departures),
        processes=ranks.world_size(), device=str(model.device), dtype=str(model.dtype).removeprefix("torch."),
    )  # fmt: skip
    if ranks.rank() == 0:
        write_json(folder / "results.json", result.record)
    return result


def planned(model: Model, setup: Setup, folder: Path) -> Decodings:
    """What `evaluate` would decode, its folder looked at. Raises UserError as it does, for all but weights and judge."""
    asked = answers.ask(model, setup.suite, setup.protocol)
    done = sampled(folder) if check(folder, _identity(model, setup)) else set()
    room = model.max_length - _new_tokens(setup)
    fitting = [draw for draw in asked.draws(setup.n) if draw.prompted.prompt.length <= room]
    left = [draw for draw in fitting if draw.key not in done]
    longest = max((draw.prompted.prompt.length for draw in fitting), default=0)
    settings = replace(setup.settings, max_new_tokens=_new_tokens(setup))
    return Decodings(model, settings, len(left), longest, len(fitting) - len(left), len(setup.keys) - len(fitting))


def _identity(model: Model, setup: Setup) -> dict[str, Any]:
    return {"model": model.name, "weights": model.weights_id, **setup.identity}


def _new_tokens(setup: Setup) -> int:
    """The longest answer: a gap's length is chosen among several."""
    return max(setup.infill_lengths) if setup.suite.kind == "infill" else setup.settings.max_new_tokens


def summarize(
    suite: Suite, samples: Mapping[Key, Row], judged: Mapping[Key, Row], tier: str, keys: Sequence[Key]
) -> Result:
    """Scores, counts and rates of the samples named by `keys`; what the folder holds besides is left out."""
    chosen = {key: samples[key] for key in keys if key in samples}
    rows = tuple(judged[key] for key in keys if key in judged)
    tiers = sorted({row["tier"] for row in rows if row.get("tier")})
    record = {
        "task": suite.task,
        "subset": suite.subset,
        "tasks": len({row["task_id"] for row in rows}),
        "tasks_of_benchmark": suite.total,
        "scores": scoring.scores(suite, rows),
        "counts": scoring.counts(chosen, rows),
        "rates": scoring.rates(chosen.values()),
        "data": {"version": suite.version, "origin": suite.origin, "sha256": suite.sha256, **_window(suite)},
        "sandbox_tier": "+".join(tiers) or tier or None,
        "low_trust": any(row.get("low_trust") for row in rows),
        "environment": environment(),
    }
    return Result(record, rows)


def _window(suite: Suite) -> dict[str, str]:
    """The dates that were chosen by, as results.json has them."""
    return {name: str(day) for name, day in zip(("since", "until"), suite.window, strict=True) if day is not None}


def _decoded(
    model: Model, setup: Setup, asked: Asked, draws: Sequence[Sampling], batch_size: int
) -> Iterator[tuple[Sampling, Row]]:
    """Samples with their rows of samples.jsonl, batch by batch; those that do not fit the model's context come first."""
    infill = setup.suite.kind == "infill"
    settings = setup.settings
    new_tokens = _new_tokens(setup)
    fitting = []
    for draw in draws:
        if draw.prompted.prompt.length + new_tokens > model.max_length:
            yield draw, _row(asked, draw, None)
        else:
            fitting.append(draw)
    size = batch_size if not infill else batch_size * _CHUNK  # infills of a call are chosen among lengths together
    for start in range(0, len(fitting), size):
        part = fitting[start : start + size]
        lengths = setup.infill_lengths if infill else None
        found = answers.decode_draws(model, part, settings, batch_size, lengths)
        for draw, trajectory in zip(part, found, strict=True):
            yield draw, _row(asked, draw, trajectory)


def _row(asked: Asked, draw: Sampling, trajectory: Trajectory | None) -> Row:
    text = "" if trajectory is None else trajectory.text
    row = {
        "task_id": draw.prompted.item.task_id, "sample": draw.number,
        "solution": asked.solution(draw, text), "text": text,
    }  # fmt: skip
    if trajectory is None:
        return {**row, "prompt_too_long": True, "tokens": 0, "forwards": 0, "seconds": 0.0}
    settings = trajectory.settings
    return {
        **row, "finished": asked.finished(draw, trajectory), "tokens": len(trajectory.tokens),
        "forwards": settings["forwards"], "seconds": round(settings["seconds"] / settings["batch"], 5),
    }  # fmt: skip

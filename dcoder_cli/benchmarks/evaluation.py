"""One evaluation: a model on a suite with one setting of the sampler, decoded, judged and scored into a folder.

Samples are written one by one and judged while the next batch is decoded, so a killed run goes on where it stopped.
Each sample draws its own random numbers (seed, task, number of the sample): the same one whatever ran before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_json
from dcoder_cli.base.provenance import environment
from dcoder_cli.benchmarks import ranks, scoring
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.benchmarks.protocols import INFILL_LENGTHS, Ask, Protocol
from dcoder_cli.benchmarks.samples import Key, Row, Store
from dcoder_cli.benchmarks.suites import Item, Suite
from dcoder_cli.decoding.requests import Infill, Prompt
from dcoder_cli.decoding.sampler import generate
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model import chat
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.text import encode_after

_CHUNK = 8  # batches decoded by one call of `generate`: bounds the memory for decodings that are written already


@dataclass(frozen=True)
class Setup:
    """What is run.

    Attributes:
        settings: the sampler's, complete: the protocol's under what the user chose.
        n: samples a task.
        infill_lengths: candidates for the length of a gap.
        departures: settings that are not the protocol's, name -> {"protocol", "here"}.
    """

    suite: Suite
    protocol: Protocol
    settings: Mapping[str, Any]
    n: int = 1
    seed: int = 0
    infill_lengths: tuple[int, ...] = INFILL_LENGTHS
    departures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for samples to be joined: all but n and --limit."""
        found: dict[str, Any] = {
            "task": self.suite.task, "subset": self.suite.subset, "data_sha256": self.suite.sha256,
            "protocol": self.protocol.title, "settings": {**self.settings, "seed": self.seed},
        }  # fmt: skip
        if self.suite.items[0].kind == "infill":
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
class _Job:
    item: Item
    sample: int
    ask: Ask
    prompt: Prompt
    length: int

    @property
    def key(self) -> Key:
        return self.item.task_id, self.sample


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
    if setup.n > 1 and setup.settings.get("temperature", 0.0) == 0.0:
        raise UserError(
            f"--n {setup.n} at temperature 0 would make each sample {setup.n} times; give --temperatures 0.2"
        )
    jobs = _jobs(model, setup)[ranks.rank() :: ranks.world_size()]
    tell = progress or (lambda _: None)
    if ranks.rank() != 0:
        ranks.wait()
    with Store(folder, {"model": model.name, **setup.identity}, ranks.rank(), ranks.world_size()) as store:
        if ranks.rank() == 0:
            ranks.wait()  # the folder is there and fits; now the others may
        pending: dict[Key, Future[Row]] = {}

        def submit(job: _Job) -> None:
            pending[job.key] = judging.submit(job.item, job.sample, store.samples[job.key]["solution"])

        def collect(wait: bool = False) -> None:
            for key in [key for key, future in pending.items() if wait or future.done()]:
                store.add("judged", pending.pop(key).result())

        for job in jobs:
            known = store.judged.get(job.key, {}).get("status", "infrastructure")
            if job.key in store.samples and known == "infrastructure":
                submit(job)
        waiting = [job for job in jobs if job.key not in store.samples]
        tell(len(jobs) - len(waiting))
        for job, row in _decoded(model, setup, waiting, batch_size):
            store.add("samples", row)
            submit(job)
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
        model=model.name, protocol=setup.protocol.title, n=setup.n, settings=setup.identity["settings"],
        departures=dict(setup.departures),
        processes=ranks.world_size(), device=str(model.device), dtype=str(model.dtype).removeprefix("torch."),
    )  # fmt: skip
    if ranks.rank() == 0:
        write_json(folder / "results.json", result.record)
    return result


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
        "data": {"version": suite.version, "origin": suite.origin, "sha256": suite.sha256},
        "sandbox_tier": "+".join(tiers) or tier or None,
        "low_trust": any(row.get("low_trust") for row in rows),
        "environment": environment(),
    }
    return Result(record, rows)


def _jobs(model: Model, setup: Setup) -> list[_Job]:
    """Every sample with its prompt as ids, short rows first, samples of one task together."""
    jobs = []
    for item in setup.suite.items:
        ask = setup.protocol.ask(item, setup.suite)
        prompt, length = encode(model, ask)
        jobs += [_Job(item, sample, ask, prompt, length) for sample in range(setup.n)]
    return sorted(jobs, key=lambda job: job.length)


def encode(model: Model, ask: Ask) -> tuple[Prompt, int]:
    """The prompt as ids, and how many they are.

    Raises:
        UserError: the model has no tokenizer, or no chat template for a chat.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise UserError(f"model {model.name!r} has no tokenizer, and benchmarks are text; add one to its folder")
    prompt = ask.prompt
    if isinstance(prompt, Infill):
        before, after = _ids(tokenizer, prompt.prefix), encode_after(tokenizer, "\n", str(prompt.suffix))
        return Infill(before, after), len(before) + len(after)
    if isinstance(prompt, str):
        ids = _ids(tokenizer, prompt)
        if ask.bos and tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
            ids = [tokenizer.bos_token_id, *ids]
        return ids, len(ids)
    ids = chat.encode(tokenizer, prompt, model.name, "the protocol's chat").ids  # type: ignore[arg-type]
    return ids, len(ids)


def _ids(tokenizer: Any, prompt: Any) -> list[int]:
    return list(tokenizer(prompt)["input_ids"])


def _decoded(model: Model, setup: Setup, jobs: Sequence[_Job], batch_size: int) -> Iterator[tuple[_Job, Row]]:
    """Jobs with their rows of samples.jsonl, batch by batch; those that do not fit the model's context come first."""
    infill = setup.suite.items[0].kind == "infill"
    new_tokens = max(setup.infill_lengths) if infill else int(setup.settings["max_new_tokens"])
    fitting = []
    for job in jobs:
        if job.length + new_tokens > model.max_length:
            yield job, _row(setup, job, None)
        else:
            fitting.append(job)
    size = batch_size if not infill else batch_size * _CHUNK  # infills of a call are chosen among lengths together
    for start in range(0, len(fitting), size):
        part = fitting[start : start + size]
        found = generate(
            model,
            [job.prompt for job in part],
            **setup.settings,
            seed=setup.seed,
            seeds=[zlib.crc32(f"{job.item.task_id} {job.sample}".encode()) for job in part],
            ids=[f"{job.item.task_id} {job.sample}" for job in part],
            batch_size=batch_size,
            infill_lengths=setup.infill_lengths if infill else None,
        )
        for job, trajectory in zip(part, found, strict=True):
            yield job, _row(setup, job, trajectory)


def _row(setup: Setup, job: _Job, trajectory: Trajectory | None) -> Row:
    text = "" if trajectory is None else trajectory.text
    row = {
        "task_id": job.item.task_id, "sample": job.sample,
        "solution": setup.protocol.solution(job.item, text, job.ask.prefill), "text": text,
    }  # fmt: skip
    if trajectory is None:
        return {**row, "prompt_too_long": True, "tokens": 0, "forwards": 0, "seconds": 0.0}
    settings = trajectory.settings
    stopped = any(stop in text for stop in setup.protocol.stops(job.item.kind))
    # a gap has as many tokens as were put there: nothing has to end it
    finished = settings["finished"] or stopped or job.item.kind == "infill"
    return {
        **row, "finished": finished, "tokens": len(trajectory.tokens), "forwards": settings["forwards"],
        "seconds": round(settings["seconds"] / settings["batch"], 5),
    }  # fmt: skip

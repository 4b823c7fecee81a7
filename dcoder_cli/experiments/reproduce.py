"""`dcoder reproduce`: the paper's claims on replicates of checkpoints, with effects, intervals and verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dcoder_cli import __version__
from dcoder_cli.base import presets
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_folder, require_space, write_json
from dcoder_cli.base.machine import cores
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.base.ranges import Count, Range, Scale, check_number
from dcoder_cli.base.schema import Format
from dcoder_cli.data.manifest import read_manifest
from dcoder_cli.execution.judge import resolve_tier
from dcoder_cli.experiments import processes, stages
from dcoder_cli.experiments import seeds as replicates
from dcoder_cli.experiments.claims import Claim
from dcoder_cli.experiments.findings import check
from dcoder_cli.experiments.measures import LAB_DRAWS, Measures
from dcoder_cli.experiments.outcome import Outcome
from dcoder_cli.experiments.quantities import Quantity, StudySettings, check_settings, views
from dcoder_cli.experiments.reproduce_report import write_report
from dcoder_cli.experiments.scores import quantities_of, scores

_SETTINGS = "settings.json"
_SHARED_MIB, _REPLICATE_MIB = 50, 150  # of disk, measured at small scale: what all replicates share, and each


@dataclass(frozen=True)
class ReproduceCall:
    """What is asked for.

    Attributes:
        out: folder; a stopped call goes on in it.
        claims: what to check.
        settings: how models are decoded.
        seeds: replicates trained at small scale, where no `models` are given.
        step_scale: factor on their training steps.
        models: role -> checkpoint; a single replicate.
        pretrain, rl: data of given checkpoints.
        unsafe: agree to run model-written code without a sandbox where none holds.
        jobs: parts of replicates trained at a time, each in a process of its own (see processes.py); None = one for each
            core. What is trained does not depend on it, but for rounding in another number of threads.
    """

    out: Path
    claims: Sequence[Claim]
    settings: StudySettings
    seeds: int = 3
    step_scale: float = 1.0
    models: Mapping[str, str] = field(default_factory=dict)
    pretrain: str | None = None
    rl: str | None = None
    unsafe: bool = False
    jobs: int | None = None


def reproduce(call: ReproduceCall, announce: Callable[[str], None]) -> Outcome:
    """Train or take replicates, check the claims, write `reproduce.json` and `report.html`.

    Args:
        announce: told what begins.

    Raises:
        UserError: wrong input.
    """
    began = time.perf_counter()
    ready = _ready(call)
    out, scale, made, wanted = call.out, call.step_scale, ready.made, ready.wanted
    _note(out, ready.asked, ready.ran_with)
    if not call.models:
        replicates.prepare(out, scale, announce)
        if ready.jobs > 1:
            processes.train_and_measure(
                out, call.seeds, scale, wanted, call.settings, call.unsafe, ready.jobs, announce
            )  # fmt: skip
        made = [
            replicates.trained(out, seed, scale, announce, roles=ready.roles, unsafe=call.unsafe)
            for seed in range(call.seeds)
        ]
    measures = [Measures(one, call.settings, announce, call.unsafe) for one in made]
    for one in measures:
        one.measure(wanted)
    outcome = Outcome(
        check(call.claims, measures), scores(wanted, measures), tuple(one.seed for one in made), call.settings,
        ready.ran_with, time.perf_counter() - began,
    )  # fmt: skip
    write_json(out / "reproduce.json", outcome.to_json())
    write_report(out, outcome, made)
    return outcome


def plan(call: ReproduceCall) -> RunPlan:
    """What `reproduce` would do, once its input is checked; nothing is written. Raises UserError as it does."""
    ready = _ready(call)
    found = RunPlan("reproduce", asdict(call.settings))
    names = [claim.name for claim in call.claims]
    found.add("claims", names, ", ".join(names))
    if call.models:
        found.add("models", dict(call.models), ", ".join(f"{role} = {name}" for role, name in call.models.items()))
    else:
        parts = replicates.parts(ready.roles)
        left = sum(not replicates.is_trained(call.out, seed, part) for seed in range(call.seeds) for part in parts)
        whole = call.seeds * len(parts)
        found.add(
            "training", {"seeds": call.seeds, "parts": whole, "left": left},
            f"{call.seeds} seeds x {len(parts)} models ({', '.join(parts)}); {whole - left} of {whole} are done",
        )  # fmt: skip
        found.add_disk(call.out, _disk(call.seeds), f"{call.seeds} seeds")
    several = {(quantity.role, quantity.view, quantity.tasks) for quantity in ready.wanted}
    found.add("measurements", len(several) * (1 if call.models else call.seeds))
    found.add("processes", ready.jobs)
    found.add("out", str(call.out), f"{call.out}: {'goes on' if _before(call.out) else 'new'}")
    return found


@dataclass(frozen=True)
class _Ready:
    """A call whose input is checked."""

    made: list[replicates.Replicate]
    wanted: list[Quantity]
    jobs: int
    asked: dict[str, Any]
    ran_with: dict[str, Any]

    @property
    def roles(self) -> list[str]:
        """The checkpoints that the measurements need."""
        return list(dict.fromkeys(quantity.role for quantity in self.wanted))


def _ready(call: ReproduceCall) -> _Ready:
    Range(1, 10_000).check("--seeds", call.seeds)
    check_number("--step-scale", call.step_scale, Scale)
    check_number("--jobs", call.jobs, Count)
    models, settings = dict(call.models), call.settings
    made = [replicates.given(models, call.pretrain, call.rl, call.out)] if models else []
    check_settings(settings, context=None if models else replicates.CONTEXT)
    for folder in filter(None, (call.pretrain, call.rl)):
        read_manifest(folder)
    wanted = quantities_of(call.claims, settings)
    if any(quantity.judged for quantity in wanted):
        resolve_tier(unsafe=call.unsafe)
    asked = {
        "settings": vars(settings), "models": {role: _identity(name) for role, name in models.items()},
        "step_scale": call.step_scale, "pretrain": call.pretrain, "rl": call.rl,
        "views": {name: asdict(view) for name, view in views(settings).items()}, "lab_draws": LAB_DRAWS,
        "preset": None if models else {**presets.load("cpu-tiny"), "longest": [stages.LONGEST, stages.LOOKS]},
    }  # fmt: skip
    if not models and not call.out.exists():
        require_space(call.out, _disk(call.seeds), f"{call.seeds} seeds")
    count = 1 if models else min(cores() if call.jobs is None else call.jobs, processes.MOST * call.seeds)
    ran_with = _ran_with(count)
    _check_same(call.out, asked)
    return _Ready(made, wanted, count, asked, ran_with)


def _disk(seeds: int) -> int:
    return (_SHARED_MIB + _REPLICATE_MIB * seeds) * 2**20


def _ran_with(jobs: int) -> dict[str, Any]:
    """What the rounding of a call depends on beside its settings."""
    import torch

    threads = torch.get_num_threads() if jobs == 1 else max(1, cores() // jobs)
    return {"jobs": jobs, "threads": threads, "torch": torch.__version__, "dcoder": __version__}


def _identity(name: str) -> str:
    """A checkpoint's folder and its weights as they are now: `last` moves on, and its old scores are not the new ones.

    Raises:
        UserError: there is no such checkpoint.
    """
    from dcoder_cli.model.checkpoint import find, weight_files

    folder = find(name).resolve()
    written = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in weight_files(folder)]
    return f"{folder}: {', '.join(written)}"


def _check_same(out: Path, asked: dict[str, Any]) -> None:
    """Raises UserError for a folder that was begun with other settings, or is not of `dcoder reproduce`."""
    check_folder(out)
    before = _before(out)
    if before is not None:
        other = [name for name, value in asked.items() if before.get(name) != value]
        if other:
            raise UserError(f"--out {str(out)!r} was begun with other {', '.join(other)}; choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {str(out)!r} exists already and is not of `dcoder reproduce`; choose another folder")


def _note(out: Path, asked: dict[str, Any], ran_with: dict[str, Any]) -> None:
    """Note the settings, and what each call ran with, which may change: it decides the last digits of what it trains."""
    known = (_before(out) or {}).get("ran_with", [])
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / _SETTINGS, {**asked, "ran_with": known if ran_with in known else [*known, ran_with]})


def _before(out: Path) -> dict[str, Any] | None:
    """What a call has noted in a folder; None where there was none."""
    note = out / _SETTINGS
    return _STARTED.document(note) if note.is_file() else None


@dataclass(frozen=True)
class Started:
    """What a folder's note must hold, beside what is asked for and compared as it stands."""

    ran_with: list[dict[str, Any]] = field(default_factory=list)


_STARTED = Format("settings of a study", Started, "choose another --out")

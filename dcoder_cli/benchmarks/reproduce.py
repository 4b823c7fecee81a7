"""`dcoder reproduce`: the paper's claims on families of checkpoints, with effects, intervals and verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from dcoder_cli.analysis.report import Report
from dcoder_cli.analysis.statistics import t_quantile
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import require_space, write_json
from dcoder_cli.base.machine import cores
from dcoder_cli.benchmarks import family as families
from dcoder_cli.benchmarks import parallel
from dcoder_cli.benchmarks.claims import FEW, Claim, Finding, check, roles_of
from dcoder_cli.benchmarks.measures import Measures, Settings, check_settings
from dcoder_cli.data.shards import read_manifest
from dcoder_cli.execution.judge import resolve_tier

_SHARED_MIB, _FAMILY_MIB = 50, 150  # of disk, measured at desk size: what all families share, and each


@dataclass(frozen=True)
class Outcome:
    """All findings, the scores behind them (role -> score -> by seed), the settings, and the wall time of this call."""

    findings: list[Finding]
    scores: dict[str, dict[str, list[float]]]
    seeds: tuple[int, ...]
    settings: Settings
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For --json and reproduce.json."""
        return {
            "claims": [
                {
                    "name": one.claim.name, "statement": one.claim.statement, "source": one.claim.source,
                    "unit": one.claim.unit, "effect": one.effect, "low": one.low, "high": one.high,
                    "over": one.over, "by_seed": list(one.by_seed), "verdict": one.verdict, "why": one.why,
                }
                for one in self.findings
            ],
            "scores": self.scores,
            "seeds": list(self.seeds),
            "settings": vars(self.settings),
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


def reproduce(
    out: Path,
    claims: Sequence[Claim],
    settings: Settings,
    seeds: int,
    effort: float,
    models: dict[str, str],
    pretrain: str | None,
    rl: str | None,
    announce: Callable[[str], None],
    unsafe: bool = False,
    jobs: int | None = None,
) -> Outcome:
    """Train or take families, check the claims, write `reproduce.json` and `report.html`.

    Args:
        out: folder; a stopped call goes on in it.
        claims: what to check.
        settings: how models are decoded.
        seeds: families trained at desk size, where no `models` are given.
        effort: factor on their training steps.
        models: role -> checkpoint; a single family.
        pretrain, rl: data of given checkpoints.
        announce: told what begins.
        unsafe: agree to run model-written code without a sandbox where none holds.
        jobs: parts of families trained at a time, each in a process of its own (see parallel.py); None = one for each
            core. What is trained does not depend on it, but for rounding in another number of threads.

    Raises:
        UserError: wrong input.
    """
    began = time.perf_counter()
    if seeds < 1 or not 0 < effort < float("inf"):
        raise UserError(f"--seeds {seeds} must be at least 1 and --effort {effort} a number above 0")
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs} must be at least 1")
    made = [families.given(models, pretrain, rl, out)] if models else []
    check_settings(settings, context=None if models else families.CONTEXT)
    for folder in filter(None, (pretrain, rl)):
        read_manifest(folder)
    if any(claim.judged for claim in claims):
        resolve_tier(unsafe=unsafe)
    asked = {
        "settings": vars(settings), "models": {role: _identity(name) for role, name in models.items()},
        "effort": effort, "pretrain": pretrain, "rl": rl,
    }  # fmt: skip
    if not models and not out.exists():
        require_space(out, (_SHARED_MIB + _FAMILY_MIB * seeds) * 2**20, f"{seeds} families")
    _same_call(out, asked)
    if not models:
        families.prepare(out, effort, announce)
        count = min(cores() if jobs is None else jobs, parallel.MOST * seeds)
        if count > 1:
            parallel.train_and_measure(out, seeds, effort, claims, settings, unsafe, count, announce)
        roles = roles_of(claims)
        made = [families.trained(out, seed, effort, announce, roles=roles, unsafe=unsafe) for seed in range(seeds)]
    measures = [Measures(one, settings, announce, unsafe) for one in made]
    findings = [check(claim, measures) for claim in claims]
    outcome = Outcome(
        findings, _scores(measures), tuple(one.seed for one in made), settings, time.perf_counter() - began
    )
    write_json(out / "reproduce.json", outcome.to_json())
    _report(out, outcome, made)
    return outcome


def _identity(name: str) -> str:
    """A checkpoint's folder and its weights as they are now: `last` moves on, and its old scores are not the new ones.

    Raises:
        UserError: there is no such checkpoint.
    """
    from dcoder_cli.model.checkpoint import find, weight_files

    folder = find(name).resolve()
    written = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in weight_files(folder)]
    return f"{folder}: {', '.join(written)}"


def _same_call(out: Path, asked: dict[str, Any]) -> None:
    """Note the settings, or check that a folder that is gone on in was begun with the same."""
    import json

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {str(out)!r} is a file; give a folder")
    note = out / "settings.json"
    if note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))
        other = [name for name, value in asked.items() if before.get(name) != value]
        if other:
            raise UserError(f"--out {str(out)!r} was begun with other {', '.join(other)}; choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {str(out)!r} exists already and is not of `dcoder reproduce`; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, asked)


def _scores(measures: Sequence[Measures]) -> dict[str, dict[str, list[float]]]:
    by_seed = [{role: one.known(role) for role in one.family.models} for one in measures]
    scores = {
        role: {
            name: [round(seed[role][name], 4) for seed in by_seed]
            for name in first
            if all(name in seed[role] for seed in by_seed)
        }
        for role, first in by_seed[0].items()
    }
    return {role: own for role, own in scores.items() if own}


def score_rows(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Names of the columns and a row a checkpoint: mean over seeds, with its 95% t interval where there are several."""
    names = list(dict.fromkeys(name for own in outcome.scores.values() for name in own))
    rows = [[role, *(_share(own.get(name, [])) for name in names)] for role, own in outcome.scores.items()]
    return ["checkpoint", *names], rows


def _share(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = 100 * sum(values) / len(values)
    if len(values) < FEW:
        return f"{mean:.1f}"
    reach = t_quantile(len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {100 * reach:.1f}"


def row_of(one: Finding) -> list[str]:
    """Claim, effect with interval, seeds, verdict, as shown."""
    if one.effect is None:
        return [one.claim.statement, f"– ({one.why})", "", one.verdict]
    interval = "" if one.low is None else f" [{one.low:+.2f}, {one.high:+.2f}]{'*' if one.over == 'tasks' else ''}"
    by_seed = " ".join(f"{value:+.2f}" for value in one.by_seed)
    return [one.claim.statement, f"{one.effect:+.2f}{interval} {one.claim.unit}", by_seed, one.verdict]


def _report(out: Path, outcome: Outcome, made: Sequence[families.Family]) -> None:
    report = Report("dcoder reproduce", "DiffuCoder's claims as checks; a positive effect speaks for the claim")
    rows = [[one.claim.name, *row_of(one), one.claim.source] for one in outcome.findings]
    report.add_table(["name", "claim", "effect, 95% interval", "by seed", "verdict", "paper"], rows)
    report.add_text(
        "Intervals are Student's over the seeds' means; those with * resample tasks, since the seeds are too few, and "
        "hold for these models only. Shown: the interval lies above 0. Contrary: below. Otherwise not shown, which is no proof of the opposite."
    )
    report.add_heading("Scores")
    report.add_table(
        *score_rows(outcome),
        "Percent, means over seeds, with 95% t intervals from 5 seeds on; hot: at the hot temperature",
    )
    report.add_heading("Settings").add_settings(vars(outcome.settings))
    for one in made:
        report.add_settings(dict(one.models), f"Checkpoints of seed {one.seed}")
    report.write(out / "report.html")

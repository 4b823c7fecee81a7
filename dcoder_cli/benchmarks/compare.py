"""What several evaluations say together: means over benchmarks, the drop of fewer steps, one model against another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dcoder_cli.benchmarks import scoring, suites
from dcoder_cli.benchmarks.evaluation import Evaluation
from dcoder_cli.benchmarks.passk import paired_difference


def difference(before: Evaluation, after: Evaluation, metric: str) -> dict[str, Any]:
    """`after` - `before` in pass@1 on the tasks that both have, in percent, with its paired 95% interval (passk.py)."""
    first, second = (scoring.per_task(run.result.judged, metric) for run in (before, after))
    common = [task_id for task_id in first if task_id in second]
    counted = [scoring.rights(run.result.judged, metric).values() for run in (before, after)]
    samples = min((total for values in counted for total, _ in values), default=1)
    estimate = paired_difference([first[name] for name in common], [second[name] for name in common], samples)
    return {
        "metric": metric,
        "tasks": len(common),
        "difference": round(100 * estimate.mean, 3),
        "low": round(100 * estimate.low, 3),
        "high": round(100 * estimate.high, 3),
        "interval": estimate.interval,
    }


def speeds(runs: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """For each run with fewer steps: its scores against those of the slowest speed of the same model and temperature."""
    found = []
    for run in runs:
        alike = [
            other
            for other in runs
            if (other.model, other.task, other.temperature) == (run.model, run.task, run.temperature)
        ]
        slowest = min(alike, key=lambda other: other.speed)
        if slowest is run:
            continue
        before, after = (one.result.record["rates"]["tokens_per_second"] for one in (slowest, run))
        for metric in run.metrics:
            found.append(
                {
                    "model": run.model,
                    "temperature": run.temperature,
                    "speed": run.speed,
                    "against": slowest.speed,
                    **difference(slowest, run, metric),
                    "times_tokens_per_second": round(after / before, 3) if before and after else None,
                }
            )
    return found


def models(runs: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Every later model against every earlier one on the same task, temperature and speed.

    Where protocols have other temperatures and none was chosen, models meet at their own.
    """
    found = []
    for place, run in enumerate(runs):
        for before in runs[:place]:
            same = (before.task, before.speed) == (run.task, run.speed) and before.model != run.model
            if same and _nth(runs, before) == _nth(runs, run):
                for metric in run.metrics:
                    found.append(
                        {
                            "model": run.model,
                            "against": before.model,
                            "temperature": run.temperature,
                            "speed": run.speed,
                            **difference(before, run, metric),
                        }
                    )
    return found


def _nth(runs: Sequence[Evaluation], run: Evaluation) -> int:
    """The place of a run's temperature among those of its model."""
    mine = [one.temperature for one in runs if (one.model, one.task, one.speed) == (run.model, run.task, run.speed)]
    return mine.index(run.temperature)


def means(task: str, runs: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The mean of the main scores of a task's two parts, where it has one (EvalPlus: DiffuCoder section 3).

    The interval treats the two as independent: its half-widths are those of the parts, added in squares and halved
    (MOVER, Zou and Donner 2008).
    """
    name = suites.find(task).mean
    if not name:
        return []
    first, second = suites.parts(task)
    found = []
    seconds = [run for run in runs if run.task == second]
    for run in (one for one in runs if one.task == first):
        other = next(
            one for one in seconds
            if (one.model, one.speed, _nth(runs, one)) == (run.model, run.speed, _nth(runs, run))
        )  # fmt: skip
        parts = [one.result.record["scores"][one.metrics[-1]]["pass@1"] for one in (run, other)]
        mean = sum(part["score"] for part in parts) / 2
        low = math.hypot(*(part["score"] - part["low"] for part in parts)) / 2
        high = math.hypot(*(part["high"] - part["score"] for part in parts)) / 2
        found.append(
            {
                "model": run.model,
                "temperature": run.temperature,
                "speed": run.speed,
                name: {
                    "score": round(mean, 3),
                    "low": round(mean - low, 3),
                    "high": round(mean + high, 3),
                    "interval": "mover",
                },
            }
        )
    return found

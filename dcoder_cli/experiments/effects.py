"""From one number a seed to a verdict: intervals, p-values with Holm's correction, standardised effects.

A replicate of checkpoints trained from its own seed is one observation. What is said of the method rests on how replicates
differ, so from FEW seeds on intervals and p-values are Student's over the seeds' means. A bootstrap over the tasks of
fewer replicates holds for these models only: it may suggest, never show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dcoder_cli.benchmarks.passk import bootstrap

FEW = 5  # Student's quantile is 4.3 at 3 seeds and 12.7 at 2: too few to say anything; ours
LEVEL = 0.05  # of the family of primary claims, two-sided
Values = dict[str, float]  # by task, prompt or row
Verdict = Literal[
    "shown", "contrary", "suggestive", "suggestive against", "not shown", "not comparable", "not measured"
]


@dataclass(frozen=True)
class Effect:
    """A mean over seeds.

    Attributes:
        mean: over the seeds' means.
        by_seed: these.
        low, high: its 95% interval; None where there is none: one number, or numbers that are all equal, whose spread of
            0 says nothing about how far the mean can be off.
        over: what the interval is over, "seeds" (Student's t) or "tasks" (bootstrap); "" without one.
        p: two-sided t-test of mean 0 over the seeds; None unless the interval is over seeds.
        d_z: mean / standard deviation over the seeds (Cohen's d for paired values); None where p is.
        hedges_g: d_z times 1 - 3 / (4 (n - 1) - 1), which takes out its bias in small samples (Hedges 1981).
    """

    mean: float
    by_seed: tuple[float, ...]
    low: float | None = None
    high: float | None = None
    over: Literal["seeds", "tasks", ""] = ""
    p: float | None = None
    d_z: float | None = None
    hedges_g: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {**vars(self), "by_seed": list(self.by_seed)}


def effect_of(seeds: Sequence[Values]) -> Effect:
    """The effect over replicates, each given as values by task (or one number under one name)."""
    means = tuple(float(np.mean(list(values.values()))) for values in seeds)
    tasks = sorted(set.intersection(*(set(values) for values in seeds)))
    if len(means) > 1 and (len(means) >= FEW or len(tasks) == 1):
        return over_seeds(means)
    scores = [float(np.mean([values[task] for values in seeds])) for task in tasks]
    if len(tasks) > 1 and max(scores) - min(scores) > 1e-12:
        found = bootstrap(scores)
        return Effect(float(np.mean(means)), means, found.low, found.high, "tasks")
    return Effect(float(np.mean(means)), means)


def over_seeds(values: Sequence[float]) -> Effect:
    """Mean of two or more numbers with Student's interval, t-test against 0 and standardised effect."""
    from scipy import stats

    count, mean, spread = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    if spread < 1e-12 * max(1.0, abs(mean)):  # equal but for rounding: a test would call them infinitely sure
        return Effect(mean, tuple(values))
    error = spread / count**0.5
    reach = float(stats.t.ppf(1 - LEVEL / 2, count - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    d_z, degrees = mean / spread, count - 1
    # Two seeds have one degree of freedom, at which the approximation 1 - 3 / (4 df - 1) is 0; it is meant for more.
    return Effect(
        mean, tuple(values), mean - reach, mean + reach, "seeds", p, d_z,
        d_z * (1 - 3 / (4 * degrees - 1)) if degrees > 1 else None,
    )  # fmt: skip


def holm(found: Mapping[str, float | None], count: int) -> dict[str, float]:
    """Holm's adjusted p-values: the i-th smallest times (count - i + 1), never below the one before, at most 1.

    Args:
        found: p by claim; one without a p counts as 1.
        count: claims named in advance, measured or not: leaving some out must not make the others easier to show.
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, (name, p) in enumerate(sorted(found.items(), key=lambda item: 1.0 if item[1] is None else item[1])):
        highest = max(highest, min(1.0, (1.0 if p is None else p) * (count - place)))
        adjusted[name] = highest
    return adjusted


def verdict_of(effect: Effect, adjusted: float | None) -> Verdict:
    """What may be said.

    Args:
        adjusted: Holm's p of a primary claim; None for an exploratory one.
    """
    if adjusted is not None and effect.over == "seeds" and len(effect.by_seed) >= FEW:
        if adjusted >= LEVEL:
            return "not shown"
        return "shown" if effect.mean > 0 else "contrary"
    if effect.low is None or effect.high is None:
        return "not shown"
    return "suggestive" if effect.low > 0 else "suggestive against" if effect.high < 0 else "not shown"

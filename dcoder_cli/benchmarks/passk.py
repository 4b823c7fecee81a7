"""pass@k, its intervals, and the comparison of two systems on the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dcoder_cli.analysis.statistics import LEVEL, normal_quantile, t_quantile
from dcoder_cli.base.errors import UserError

_RESAMPLES = 10_000  # ours: the 95% interval's ends vary by less than 0.1 points at 164 problems
_CHUNK = 500  # resamples drawn at a time, to bound memory


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% interval, and how that was made: "wilson", "wilson-effective", .."""

    mean: float
    low: float
    high: float
    interval: str


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that of `k` samples drawn from `n`, of which `c` are right, at least one is right.

    1 - prod over i = n-c+1 .. n of (1 - k/i), the stable form of 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, fig. 3).

    Raises:
        UserError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise UserError(f"pass@{k} of {n} samples with {c} right is not defined; k must be 1 to {n}")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def pass_at_k_mean(totals: Sequence[int], rights: Sequence[int], k: int) -> Estimate:
    """Mean pass@k over problems, `totals[i]` samples with `rights[i]` right each, with the interval of `share`."""
    return share([pass_at_k(n, c, k) for n, c in zip(totals, rights, strict=True)], sum(totals))


def share(scores: Sequence[float], samples: int | None = None) -> Estimate:
    """The mean of one score in [0, 1] a problem, with a 95% interval over problems that is right at 0 and 1 too.

    Where each score is 0 or 1 it is Wilson's ("wilson"). Else a problem is a cluster of samples, and it is Wilson's at
    the effective number of problems ("wilson-effective"; Franco et al. 2019, for surveys): as many zeros and ones as
    have a mean that varies as much, p (1 - p) / variance of the mean, times (normal / Student's quantile)^2 since the
    variance is estimated (Korn and Graubard 1998). Ours: the variance is taken with one problem added that is always
    right and one that never is, since problems that happen to be alike show none. Coverage is simulated in
    tests/test_intervals.py: at least 0.94 but for 20 problems with a share near 1 (0.89, which is Wilson's own).

    Args:
        scores: one a problem.
        samples: those of all problems together, which bounds the effective number; None: one a problem.

    Raises:
        UserError: there is no score.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise UserError("no problem has a score")
    mean, count = float(values.mean()), float(values.size)
    if bool(np.isin(values, (0.0, 1.0)).all()):
        return Estimate(mean, *wilson(mean, count), "wilson")
    more = np.concatenate([values, [0.0, 1.0]])
    effective = count * more.mean() * (1 - more.mean()) / more.var(ddof=1)
    effective = min(float(effective), float(samples if samples is not None else count))
    effective *= (normal_quantile() / t_quantile(max(values.size - 1, 1))) ** 2
    return Estimate(mean, *wilson(mean, effective), "wilson-effective")


def wilson(share: float, count: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` draws, which need not be whole (scipy's takes whole ones only)."""
    z = normal_quantile(level)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return (0.0 if share == 0 else max(middle - reach, 0.0)), (1.0 if share == 1 else min(middle + reach, 1.0))


def bootstrap(scores: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one score a problem, with the 95% percentile interval over resampled problems."""
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise UserError("no problem has a score")
    low, high = np.quantile(_resampled_means(values, seed), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), "bootstrap")


def paired_difference(first: Sequence[float], second: Sequence[float], samples: int = 1) -> Estimate:
    """`second` - `first`, scores in [0, 1] of the same problems, with the 95% interval of Bonett and Price (2012).

    Theirs, for right and wrong: one problem is added that only the first solves and one that only the second solves;
    then it is the mean difference and its standard error, here with Student's quantile. So it is no point where all
    differences are equal. Ours, for several samples a problem, whose scores are finer: the added two differ by
    1 / sqrt(samples) instead of 1. Coverage in tests/test_intervals.py: at least 0.93.

    Args:
        samples: samples a problem, of the system with fewer.

    Raises:
        UserError: not the same problems, or none.
    """
    if len(first) != len(second):
        raise UserError(f"{len(first)} and {len(second)} scores; a paired comparison needs the same problems")
    if not len(first):
        raise UserError("no problem has a score")
    found = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    finest = 1 / math.sqrt(samples)
    more = np.concatenate([found, [-finest, finest]])
    middle = float(more.mean())
    reach = t_quantile(more.size - 1) * float(more.std(ddof=1)) / math.sqrt(more.size)
    return Estimate(float(found.mean()), max(middle - reach, -1.0), min(middle + reach, 1.0), "bonett-price")


def _resampled_means(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    random = np.random.default_rng(seed)
    chunks = []
    for start in range(0, _RESAMPLES, _CHUNK):
        size = (min(_CHUNK, _RESAMPLES - start), values.size)
        chunks.append(values[random.integers(0, values.size, size)].mean(axis=1))
    return np.concatenate(chunks)

"""pass@k, its intervals, and the comparison of two systems on the same problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dcoder_cli.base.errors import UserError

_RESAMPLES = 10_000  # ours: the 95% interval's ends vary by less than 0.1 points at 164 problems
_CHUNK = 500  # resamples drawn at a time, to bound memory


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


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


def pass_at_k_mean(totals: Sequence[int], rights: Sequence[int], k: int, seed: int = 0) -> Estimate:
    """Mean pass@k over problems, `totals[i]` samples with `rights[i]` right each; resampled over problems."""
    scores = [pass_at_k(n, c, k) for n, c in zip(totals, rights, strict=True)]
    return bootstrap(scores, seed)


def bootstrap(scores: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one score a problem, with the 95% percentile interval over resampled problems."""
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise UserError("no problem has a score")
    low, high = np.quantile(_resampled_means(values, seed), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Estimate:
    """`second` - `first` on the same problems, with the 95% interval of a paired bootstrap."""
    if len(first) != len(second):
        raise UserError(f"{len(first)} and {len(second)} scores; a paired comparison needs the same problems")
    return bootstrap([after - before for before, after in zip(first, second, strict=True)], seed)


def _resampled_means(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    random = np.random.default_rng(seed)
    chunks = []
    for start in range(0, _RESAMPLES, _CHUNK):
        size = (min(_CHUNK, _RESAMPLES - start), values.size)
        chunks.append(values[random.integers(0, values.size, size)].mean(axis=1))
    return np.concatenate(chunks)

"""Mean, variance and confidence interval of a per-sample number, and the quantiles that intervals need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


def summary(values_NK: NDArray[np.float64], groups: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Column-wise statistics of per-sample values; NaN means "not defined for this sample" and is left out.

    The interval is mean +- t * SE. With `groups` (for example the prompt of each sample) SE is
    cluster-robust: SE^2 = G/(G-1) * sum over groups of (sum of residuals in the group)^2 / n^2, with G-1
    degrees of freedom, since samples of one prompt resemble each other and are not independent
    evidence. With every group of size one it is the usual s^2/n.

    Args:
        values_NK: N samples, K columns.
        groups: N labels; None: every sample stands alone.

    Returns:
        lists of K entries: `mean`, `variance` (n-1), `low`, `high` (95%, cut to [0, 1]), `n`. A value
        that is not defined is None: no sample, an interval of one group, or of samples that are all equal, whose
        spread of 0 says nothing about how far the mean can be off.
    """
    labels = np.asarray([str(index) for index in range(len(values_NK))] if groups is None else list(groups))
    columns: dict[str, list[Any]] = {"mean": [], "variance": [], "low": [], "high": [], "n": []}
    for column_N in values_NK.T:
        kept = ~np.isnan(column_N)
        row = _column(column_N[kept], labels[kept])
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _column(values: NDArray[np.float64], labels: NDArray[np.str_]) -> dict[str, Any]:
    count = len(values)
    if not count:
        return {"mean": None, "variance": None, "low": None, "high": None, "n": 0}
    mean = float(values.mean())
    _, group_of = np.unique(labels, return_inverse=True)
    residuals_G = np.bincount(group_of, weights=values - mean)
    groups = len(residuals_G)
    low = high = None
    if groups > 1 and np.ptp(values) > 1e-12:
        error = float(np.sqrt(groups / (groups - 1) * np.square(residuals_G).sum()) / count)
        reach = t_quantile(groups - 1) * error
        low, high = max(mean - reach, 0.0), min(mean + reach, 1.0)
    variance = float(values.var(ddof=1)) if count > 1 else None
    return {"mean": mean, "variance": variance, "low": low, "high": high, "n": count}


def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t: P(|T| <= q) = level."""
    from scipy.special import stdtrit  # a tenth of the import time of scipy.stats

    return float(stdtrit(degrees, 0.5 + level / 2))


def normal_quantile(level: float = LEVEL) -> float:
    """The two-sided quantile of the normal distribution: P(|Z| <= q) = level."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2))

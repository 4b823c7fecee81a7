"""Mean, variance and confidence interval of a per-sample number, with numpy alone."""

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
        that is not defined (no sample, an interval of one group) is None.
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
    if groups > 1:
        error = float(np.sqrt(groups / (groups - 1) * np.square(residuals_G).sum()) / count)
        reach = t_quantile(groups - 1) * error
        low, high = max(mean - reach, 0.0), min(mean + reach, 1.0)
    variance = float(values.var(ddof=1)) if count > 1 else None
    return {"mean": mean, "variance": variance, "low": low, "high": high, "n": count}


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t: P(|T| <= q) = level.

    With t = sqrt(df) tan(a) the density in `a` is proportional to cos(a)^(df-1), so the distribution
    function is one cumulated sum. Accurate to 4 digits (checked against tables); above 300 degrees the
    normal quantile with its first correction is closer.
    """
    from statistics import NormalDist

    if degrees > 300:
        z = NormalDist().inv_cdf(0.5 + level / 2)
        return z + (z**3 + z) / (4 * degrees)
    angle = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angle) ** (degrees - 1)
    cumulated = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.sqrt(degrees) * np.tan(np.interp(level, cumulated / cumulated[-1], angle)))

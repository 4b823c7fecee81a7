"""Intervals of shares, pass@k and paired differences: known values, the edges, and how often they cover."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from helpers import thinned
from scipy import stats
from scipy.special import betaln

from dcoder_cli.analysis.statistics import normal_quantile, summary, t_quantile
from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import passk

RUNS = 300  # a setting: a coverage of 0.95 is found within 0.025, two standard errors


def test_wilsons_interval_is_scipys() -> None:
    for right, count in ((0, 105), (3, 105), (52, 105), (20, 20), (1, 1)):
        want = stats.binomtest(right, count).proportion_ci(method="wilson")
        found = passk.share([1.0] * right + [0.0] * (count - right))
        assert (found.low, found.high, found.interval) == (pytest.approx(want.low), pytest.approx(want.high), "wilson")
    assert t_quantile(4) == stats.t.ppf(0.975, 4) and normal_quantile(0.9) == pytest.approx(1.6448536)


def test_all_wrong_and_all_right_are_no_certainty() -> None:
    """A percentile bootstrap gave [0, 0] for 0 of 105 and [1, 1] for 20 of 20."""
    for n in (1, 10):
        none, every = (
            passk.pass_at_k_mean([n] * count, rights, 1) for count, rights in ((105, [0] * 105), (20, [n] * 20))
        )
        assert (none.mean, none.low, every.mean, every.high) == (0, 0, 1, 1)
        assert none.high == pytest.approx(0.0353, abs=1e-4) and every.low == pytest.approx(0.8389, abs=1e-4)
    half = passk.pass_at_k_mean([2] * 50, [1] * 50, 1)  # every task one of two: no spread, and 100 samples at most
    assert half.low == pytest.approx(0.402, abs=2e-3) and half.interval == "wilson-effective"
    same = passk.paired_difference([0.0] * 105, [0.0] * 105)
    assert same.mean == 0 and same.low == -same.high == pytest.approx(-0.0259, abs=1e-3)
    better = passk.paired_difference([0.0] * 20, [1.0] * 20)
    assert better.mean == 1 and 0.7 < better.low < 0.8 and better.high == 1


def test_clusters_count_as_what_they_are_worth() -> None:
    """Tasks that are always or never right are worth one sample each, tasks that are all alike n."""
    alike = passk.pass_at_k_mean([10] * 100, [5] * 100, 1)
    apart = passk.pass_at_k_mean([10] * 100, [10, 0] * 49 + [9, 1], 1)
    one = passk.pass_at_k_mean([1] * 100, [1, 0] * 50, 1)
    assert apart.high - apart.low == pytest.approx(one.high - one.low, rel=0.02)
    assert alike.high - alike.low == pytest.approx((one.high - one.low) / math.sqrt(10), rel=0.05)


def test_pairs_beat_unpaired_intervals_and_need_the_same_tasks() -> None:
    random = np.random.default_rng(1)
    first = (random.random(164) < 0.5).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:12]] = 1
    difference = passk.paired_difference(list(first), list(second))
    assert difference.mean == pytest.approx(12 / 164) and difference.low > 0
    assert difference.high - difference.low < 0.7 * (passk.share(list(first)).high - passk.share(list(first)).low)
    many = passk.paired_difference(list(first), list(second), samples=10)
    assert many.high - many.low < difference.high - difference.low
    for wrong in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(UserError):
            passk.paired_difference(*wrong)
    with pytest.raises(UserError, match="no problem"):
        passk.share([])


def test_samples_that_are_all_equal_have_no_t_interval() -> None:
    equal = summary(np.full((6, 1), 0.7), list("aabbcc"))
    assert (equal["mean"], equal["low"], equal["high"]) == ([pytest.approx(0.7)], [None], [None])


@pytest.mark.parametrize(
    ("tasks", "share", "n"), thinned(itertools.product([20, 105, 164], [0.01, 0.05, 0.5, 0.95], [1, 10]), 5)
)
def test_intervals_cover_what_they_claim(tasks: int, share: float, n: int) -> None:
    """Tasks' difficulties from Beta(share c, (1 - share) c) with c = 0.3, 1, 5; pass@1, pass@5 and a paired difference."""
    random = np.random.default_rng(tasks + n)
    inside: dict[str, list[bool]] = {}
    for spread in (0.3, 1.0, 5.0):
        a, b = share * spread, (1 - share) * spread
        for _ in range(RUNS):
            chance = random.beta(a, b, tasks)
            first, second = random.binomial(n, chance), random.binomial(n, chance)
            for k in (1, 5) if n > 1 else (1,):
                truth = 1 - math.exp(betaln(a, b + k) - betaln(a, b))
                found = passk.pass_at_k_mean([n] * tasks, first.tolist(), k)
                inside.setdefault(f"pass@{k}, {spread}", []).append(found.low <= truth <= found.high)
            found = passk.paired_difference(list(first / n), list(second / n), n)
            inside.setdefault(f"difference, {spread}", []).append(found.low <= 0 <= found.high)
    covered = {name: float(np.mean(values)) for name, values in inside.items()}
    at_least = 0.86 if tasks == 20 and share == 0.95 else 0.915
    assert min(covered.values()) >= at_least, covered

"""AR-ness against a literal reading of the paper's definitions, closed forms, ties, and the statistics beside it."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest

from dcoder_cli.analysis.arness import answer_length, arness, global_curve, local_curve, random_order
from dcoder_cli.analysis.statistics import summary, t_quantile
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding.trajectory import Trajectory


def sample(reveal_step: list[int], **fields: object) -> Trajectory:
    length = len(reveal_step)
    given = {"id": "s", "prompt": "", "tokens": [0] * length, "text": "", "prompt_length": 0} | fields
    nan = [math.nan] * length
    return Trajectory(reveal_step=reveal_step, confidence=nan, entropy=nan, **given)  # type: ignore[arg-type]


def brute_local(order: list[int], k: int) -> int:
    """Steps t with p_{t-i} = p_t - i for i = 1..k."""
    return sum(t >= k and all(order[t - i] == order[t] - i for i in range(1, k + 1)) for t in range(len(order)))


def brute_global(order: list[int], k: int) -> int:
    """Steps t with p_t among the k leftmost of the positions still masked."""
    masked, hits = sorted(order), 0
    for position in order:
        hits += position in masked[:k]
        masked.remove(position)
    return hits


def steps_of(order: list[int]) -> np.ndarray:
    steps = np.empty(len(order), dtype=np.int64)
    steps[order] = np.arange(len(order))
    return steps


def nearly_ordered(generator: random.Random) -> list[int]:
    """A random order of 1 to 24 tokens; most keep long left-to-right runs, or every k > 1 would be 0."""
    length = generator.randint(1, 24)
    pieces, left = [], list(range(length))
    while left:
        size = generator.randint(1, 8)
        pieces.append(left[:size])
        left = left[size:]
    if generator.random() < 0.8:
        generator.shuffle(pieces)
    order = [position for piece in pieces for position in piece]
    if generator.random() < 0.2:
        generator.shuffle(order)
    return order


def test_thousand_random_orders_equal_the_definitions() -> None:
    generator, counted = random.Random(0), 0
    for _ in range(1000):
        order = nearly_ordered(generator)
        total, steps = len(order), steps_of(order)
        local, paper, globe = local_curve(steps, 9), local_curve(steps, 9, "paper"), global_curve(steps, 4)
        for k in range(1, 10):
            hits = brute_local(order, k)
            counted += hits
            assert paper[k - 1] == pytest.approx(hits / total, abs=1e-12)
            if total > k:
                assert local[k - 1] == pytest.approx(hits / (total - k), abs=1e-12)
            else:
                assert math.isnan(local[k - 1])
        for k in range(1, 5):
            assert globe[k - 1] == pytest.approx(brute_global(order, k) / total, abs=1e-12)
    assert counted > 10_000


def test_left_to_right_is_one_and_right_to_left_is_known() -> None:
    result = arness([sample(list(range(512)))])
    assert result["local"]["mean"] == [1.0] * 9
    assert result["global"]["mean"] == [1.0] * 4
    paper = arness([sample(list(range(512)))], convention="paper")
    assert paper["local"]["mean"] == pytest.approx([1 - k / 512 for k in range(1, 10)])
    backwards = arness([sample(list(range(512))[::-1])])
    assert backwards["local"]["mean"] == [0.0] * 9
    assert backwards["global"]["mean"] == pytest.approx([k / 512 for k in range(1, 5)])


@pytest.mark.parametrize("length", [4, 12, 40])
def test_random_orders_have_the_expected_mean(length: int) -> None:
    """`random_order` derives the expectations; the mean of 4,000 orders lies within 3 standard errors of each."""
    generator = np.random.default_rng(length)
    trajectories = [sample(generator.permutation(length).tolist()) for _ in range(4000)]
    result, expected = arness(trajectories, local_k=3, global_k=4), random_order(length, 3, 4)
    for name, ks in (("local", 3), ("global", 4)):
        values = np.array([row[name] for row in result["per_sample"]], dtype=float)
        error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
        assert np.all(np.abs(values.mean(axis=0) - expected[name][:ks]) <= 3 * error + 1e-9)
    harmonic = [sum(1 / m for m in range(1, n + 1)) for n in range(length + 1)]
    assert expected["global"] == pytest.approx(
        [(k + k * (harmonic[length] - harmonic[k])) / length for k in (1, 2, 3, 4)]
    )
    assert expected["local"][1] == pytest.approx(1 / (length * (length - 1)))


def orders_within(steps: list[int]) -> list[list[int]]:
    """Every order that the steps allow, positions of one step in any order."""
    groups = [[p for p, step in enumerate(steps) if step == value] for value in sorted(set(steps))]
    choices = itertools.product(*(list(itertools.permutations(group)) for group in groups))
    return [[position for group in choice for position in group] for choice in choices]


def test_several_commits_are_the_exact_mean_over_orders_within_a_step() -> None:
    generator = random.Random(1)
    for _ in range(150):
        length = generator.randint(1, 7)
        if generator.random() < 0.5:
            steps = [generator.randint(0, 3) * 5 for _ in range(length)]
        else:  # runs that go on from step to step
            steps = sorted(generator.randint(0, 4) for _ in range(length))
        orders = orders_within(steps)
        local, globe = local_curve(np.array(steps), 6), global_curve(np.array(steps), 4)
        for k in range(1, 7):
            if length > k:
                mean = sum(brute_local(order, k) for order in orders) / len(orders) / (length - k)
                assert local[k - 1] == pytest.approx(mean, abs=1e-12), steps
        for k in range(1, 5):
            mean = sum(brute_global(order, k) for order in orders) / len(orders) / length
            assert globe[k - 1] == pytest.approx(mean, abs=1e-12), steps


def test_ties_read_left_to_right_are_an_upper_bound_for_blocks_in_order() -> None:
    pairs = [sample([step // 2 for step in range(12)])]
    best = arness(pairs, ties="left-to-right")
    assert best["local"]["mean"] == [1.0] * 9 and best["global"]["mean"] == [1.0] * 4
    mean = arness(pairs)
    assert mean["global"]["mean"][0] == pytest.approx(0.75)  # the second of a pair is leftmost, the first half the time
    # Six links inside a pair (chance 1/2), five from pair to pair (1/4).
    assert mean["local"]["mean"][0] == pytest.approx((6 / 2 + 5 / 4) / 11)
    assert mean["commits_per_step"] == 2.0


def test_all_in_one_step_measures_what_a_random_order_does() -> None:
    result, expected = arness([sample([0] * 30)]), random_order(30)
    assert result["local"]["mean"] == pytest.approx(expected["local"])
    assert result["global"]["mean"] == pytest.approx(expected["global"])


@pytest.mark.parametrize("ties", ["random", "left-to-right"])
@pytest.mark.parametrize("convention", ["defined", "paper"])
def test_monotone_in_k(ties: str, convention: str) -> None:
    generator = random.Random(2)
    for round_ in range(300):
        steps = steps_of(nearly_ordered(generator))
        if round_ % 2:
            steps = steps // generator.randint(1, 4)
        local = local_curve(steps, 9, convention, ties)  # type: ignore[arg-type]
        globe = global_curve(steps, 4, ties)  # type: ignore[arg-type]
        assert np.all(np.diff(local[~np.isnan(local)]) <= 1e-12)
        assert np.all(np.diff(globe) >= -1e-12)


def test_short_samples_are_left_out_where_undefined() -> None:
    result = arness([sample([0, 1, 2]), sample([2, 1, 0, 3, 4])], local_k=5)
    assert result["per_sample"][0]["local"] == [1.0, 1.0, None, None, None]
    assert result["local"]["n"] == [2, 2, 1, 1, 0]
    assert result["local"]["mean"][4] is None
    one = arness([sample([7])])
    assert one["global"]["mean"] == [1.0] * 4 and one["local"]["n"] == [0] * 9
    assert arness([sample([7])], convention="paper")["local"]["mean"] == [0.0] * 9


def test_until_end_drops_what_follows_the_end_of_turn() -> None:
    trajectory = sample([4, 5, 6, 0, 1, 2, 3], tokens=[5, 6, 9, 9, 9, 9, 9])
    assert answer_length(trajectory, [9]) == 3
    assert arness([trajectory], until="end", end_ids=[9])["global"]["mean"][0] == 1.0
    assert arness([trajectory])["global"]["mean"][0] < 0.6
    stated = sample([1, 0, 2], tokens=[5, 9, 9], settings={"end_ids": [9]})
    assert arness([stated], until="end")["per_sample"][0]["tokens"] == 2
    with pytest.raises(UserError, match="--end-id"):
        arness([trajectory], until="end")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UserError, match="0 trajectories"):
        arness([])
    with pytest.raises(UserError, match="local_k = 0"):
        arness([sample([0])], local_k=0)
    with pytest.raises(UserError, match="ties = 'none'"):
        arness([sample([0])], ties="none")  # type: ignore[arg-type]


def test_a_thousand_samples_of_512_tokens_take_seconds() -> None:
    generator = np.random.default_rng(0)
    trajectories = [sample(generator.permutation(512).tolist()) for _ in range(100)]
    start = time.process_time()
    arness(trajectories)
    assert (time.process_time() - start) * 10 < 30


def test_interval_matches_tables_and_covers() -> None:
    for degrees, value in ((1, 12.706), (2, 4.3027), (5, 2.5706), (30, 2.0423), (120, 1.9799), (1000, 1.9623)):
        assert t_quantile(degrees) == pytest.approx(value, abs=2e-3)
    values = np.array([[0.1], [0.4], [0.5], [0.8]])
    plain = summary(values)
    assert plain["mean"] == [pytest.approx(0.45)] and plain["variance"] == [pytest.approx(values.var(ddof=1))]
    reach = 3.1824 * math.sqrt(values.var(ddof=1) / 4)
    assert plain["low"][0] == pytest.approx(max(0.45 - reach, 0), abs=1e-3)
    # Copies of a sample of the same prompt are no new evidence: the interval must not shrink.
    copies = summary(np.repeat(values, 10, axis=0), [str(prompt) for prompt in range(4) for _ in range(10)])
    assert copies["high"][0] == pytest.approx(plain["high"][0])
    assert summary(values[:1])["low"] == [None]

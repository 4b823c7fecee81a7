"""The fast mode: windows against whole rows, caches that are never stale equal no cache, commit rules, early stop."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, thinned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcoder_cli import generate, load
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding.sampler import Infill
from dcoder_cli.diffusion import commits
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.key_values import KeyValues

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
SYSTEMS = ("dream", "llada")
RAGGED = [
    [7],
    [3, 4, 5],
    list(range(20, 42)),
    [9, 8],
    list(range(50, 60)),
    [11] * 5,
    [250, 3, 17],
    [1, 2, 3, 4, 5, 6, 7],
]


@pytest.fixture(scope="module", params=SYSTEMS)
def model(request: pytest.FixtureRequest) -> Model:
    """Three layers, random: shifted Qwen2 blocks (dream), unshifted Llama blocks (llada)."""
    return sharpened(load(GOLDEN / request.param, device="cpu"), 2.5)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One layer: its keys depend on the tokens alone, so those of a finished block can never be stale."""
    folder = tmp_path_factory.mktemp("shallow")
    return sharpened(load(make_model(folder / "model", num_hidden_layers=1), device="cpu"), 12.0)


def sharpened(model: Model, scale: float) -> Model:
    """A random model with less flat distributions, so that confidences spread between 0 and 1."""
    with torch.no_grad():
        model.network.lm_head.weight.mul_(scale)
    return model


def padded(prompts: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BL = torch.zeros(len(prompts), length, dtype=torch.int64)
    mask_BL = torch.zeros(len(prompts), length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids_BL[row, length - len(prompt) :] = torch.tensor(prompt)
        mask_BL[row, length - len(prompt) :] = 1
    return ids_BL, mask_BL


def decoded(model: Model, prompts: Any = RAGGED, **options: Any) -> list[tuple[list[int], list[int]]]:
    options = {"max_new_tokens": 16, "batch_size": 8, **options}
    return [(one.tokens, one.reveal_step) for one in generate(model, prompts, **options)]


# Windows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_fresh_window_equals_the_whole_row(system: str, attention: str) -> None:
    """Fill the cache, evaluate windows of the same tokens: every row of hidden states as in one evaluation.

    The windows begin at column 0, at the first token after padding, and inside; the first row of each is the one that a
    window without the column before it would get wrong.
    """
    model = load(GOLDEN / system, device="cpu", attention=attention)
    ids_BL, mask_BL = padded([list(range(30, 42)), [5, 6, 7], list(range(60, 69))], 12)
    with torch.no_grad():
        for ids, mask in ((ids_BL, mask_BL), (ids_BL[:1], None)):
            whole_BLD = model.hidden(ids, mask)
            for first, end in (
                ([0, 9, 3], [12, 12, 12]),
                ([4, 9, 5], [8, 11, 12]),
                ([6, 10, 6], [9, 12, 9]),
                ([9] * 3, [12] * 3),
            ):
                cache = KeyValues()
                filled_BLD = model.hidden_window(ids, mask, cache)
                window_BWD = model.hidden_window(ids, mask, cache, first[: len(ids)], end[: len(ids)])
                for row in range(len(ids)):
                    real = slice(0, None) if mask is None else mask[row].bool()
                    torch.testing.assert_close(filled_BLD[row][real], whole_BLD[row][real], rtol=1e-5, atol=1e-5)
                    span = slice(first[row], end[row])
                    torch.testing.assert_close(
                        window_BWD[row, : end[row] - first[row]], whole_BLD[row, span], rtol=1e-5, atol=1e-5
                    )


def test_a_window_sees_its_own_change_and_keeps_the_rest(model: Model) -> None:
    """Changed tokens inside the window count; changed tokens outside are not seen until the whole row is evaluated."""
    ids_BL, mask_BL = padded([list(range(30, 42)), [5, 6, 7, 8, 9]], 12)
    changed_BL = ids_BL.clone()
    changed_BL[:, 9] = 77
    with torch.no_grad():
        cache = KeyValues()
        model.hidden_window(ids_BL, mask_BL, cache)
        before = model.hidden_window(ids_BL, mask_BL, cache, [8, 8], [12, 12])
        inside = model.hidden_window(changed_BL, mask_BL, cache, [8, 8], [12, 12])
        assert not torch.allclose(inside, before, atol=1e-3)
        cache = KeyValues()
        model.hidden_window(ids_BL, mask_BL, cache)
        outside = model.hidden_window(changed_BL, mask_BL, cache, [10, 10], [12, 12])
        lead = 1 if model.shift else 0  # the column before the window is evaluated with it
        if not lead:
            torch.testing.assert_close(outside, before[:, 2:], rtol=1e-5, atol=1e-5)
        cache.keep([1])
        assert cache.rows == 1
        alone = model.hidden_window(changed_BL[1:], mask_BL[1:], cache, [10], [12])
        torch.testing.assert_close(alone, outside[1:], rtol=1e-5, atol=1e-5)


def test_attention_without_a_cached_kernel_is_refused() -> None:
    model = load(GOLDEN / "dream", device="cpu", attention="flex")
    with pytest.raises(UserError, match="flex"):
        generate(model, [[1, 2, 3]], max_new_tokens=4, mode="fast")


# Caches that cannot be stale


@pytest.mark.parametrize("commit", [{"steps": 16}, {"threshold": 0.5}, {"factor": 1.0}, {"entropy_bound": 0.5}])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_refreshing_at_every_step_equals_no_cache(model: Model, cache: Any, commit: dict[str, Any]) -> None:
    options = {"mode": "fast", "block_length": 8, **commit}
    plain = decoded(model, cache="none", **options)
    assert decoded(model, cache=cache, cache_refresh=1, **options) == plain
    assert decoded(model, cache=cache, block_length=1, mode="fast", **commit) == decoded(
        model, cache="none", block_length=1, mode="fast", **commit
    )


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_with_one_layer_cached_blocks_equal_exact_ones(shallow: Model, cache: Any) -> None:
    """Keys of one layer depend on tokens alone: outside the block nothing changes, so nothing is approximated."""
    for prompts in (RAGGED, [[7, 8, 9]], [Infill([5, 6], [8]), Infill([9] * 7, [3, 4, 5]), Infill([1], [2])]):
        for rule in ("entropy", "confidence"):
            exact = decoded(shallow, prompts, rule=rule, block_length=4)
            options = {"mode": "fast", "steps": 16, "block_length": 4, "early_stop": False}
            assert decoded(shallow, prompts, rule=rule, cache=cache, **options) == exact


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_block_over_the_whole_row_equals_exact(model: Model, cache: Any) -> None:
    """Nothing outside the window, three layers: the empty prompt leaves only the block.

    Equal masks alone are equally likely everywhere, so the order is left to a rule that needs no probabilities.
    """
    for rule in ("random", "left-to-right"):
        options = {"rule": rule, "temperature": 1.0}
        exact = decoded(model, [[]], **options)
        fast = {"mode": "fast", "steps": 16, "block_length": 16, "early_stop": False, "cache": cache}
        assert decoded(model, [[]], **fast, **options) == exact


@pytest.mark.parametrize("prompts", [[[1, 2, 3, 4]], [[1, 2, 3, 4], [5]], [Infill([1, 2], [3, 4]), Infill([1], [5])]])
def test_only_the_window_is_evaluated(model: Model, prompts: list[Any]) -> None:
    """Columns per evaluation: the whole row at a block's start, then block and suffix (prefix) or the block (dual)."""
    widths: list[int] = []
    hook = model.network.model.embed_tokens.register_forward_pre_hook(
        lambda _, inputs: widths.append(inputs[0].shape[1])
    )
    lead = 1 if model.shift else 0
    suffix = 2 if isinstance(prompts[0], Infill) else 0
    try:
        for cache, expected in (
            ("none", [12] * 8),
            ("prefix", [12, *[8 + suffix + lead] * 3, 12, *[4 + suffix + lead] * 3]),
            ("dual", [12, *[4 + lead] * 3, 12, *[4 + lead] * 3]),
        ):
            widths.clear()
            decoded(model, prompts, max_new_tokens=8, mode="fast", cache=cache, threshold=1.0, block_length=4)
            assert widths == expected
    finally:
        hook.remove()


def test_a_stale_cache_is_an_approximation(model: Model) -> None:
    """With three layers and blocks the cached runs differ from exact somewhere: the caches are really used."""
    options = {"mode": "fast", "steps": 16, "block_length": 8, "early_stop": False}
    plain = decoded(model, cache="none", **options)
    assert plain == decoded(model, block_length=8)
    hidden = {cache: _window_states(model, cache) for cache in ("none", "prefix", "dual")}
    assert not torch.allclose(hidden["prefix"], hidden["none"], atol=1e-6)
    assert not torch.allclose(hidden["dual"], hidden["prefix"], atol=1e-6)


def _window_states(model: Model, cache: Any) -> torch.Tensor:
    confidence = generate(model, RAGGED, max_new_tokens=16, mode="fast", cache=cache, threshold=1.0, block_length=8)
    return torch.tensor([value for one in confidence for value in one.confidence[:8]])


# Commit rules


@pytest.mark.parametrize("rule", ["entropy", "confidence", "margin", "random", "left-to-right"])
def test_threshold_one_without_cache_equals_exact(model: Model, rule: str) -> None:
    """One token a step, the rule's surest, at temperatures 0 and 1."""
    for temperature in (0.0, 1.0):
        common = {"rule": rule, "temperature": temperature, "block_length": 8}
        fast = decoded(model, mode="fast", cache="none", threshold=1.0, early_stop=False, **common)
        assert fast == decoded(model, **common)


@given(
    confidence=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12),
    threshold=st.floats(0, 1),
    factor=st.floats(0.01, 4),
    bound=st.floats(0, 3),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_commit_rules_against_their_definitions(
    confidence: list[float], threshold: float, factor: float, bound: float
) -> None:
    rows = [confidence, confidence[: len(confidence) // 2 + 1]]  # the second is shorter, and ends as the engine has it
    filled = torch.tensor([[*row, *[-1.0] * (len(confidence) - len(row))] for row in rows], dtype=torch.float64)
    entropy_RM = torch.where(filled < 0, torch.inf, -filled.clamp(min=1e-9).log())
    order_RM = torch.sort(filled, descending=True, stable=True).indices

    above_RM, none_R = commits.above_threshold(order_RM, filled, threshold)
    by_factor_RM, _ = commits.by_factor(order_RM, order_RM, filled, factor)
    for at, row in enumerate(rows):
        expected = {i for i, value in enumerate(row) if value > threshold}
        assert bool(none_R[at]) == (not expected)
        assert set(above_RM[at].nonzero()[:, 0].tolist()) == (expected or {int(order_RM[at, 0])})

        ranked = sorted(row, reverse=True)
        counts = [n for n in range(1, len(ranked) + 1) if (n + 1) * (1 - ranked[n - 1]) < factor]
        chosen = by_factor_RM[at].nonzero()[:, 0].tolist()
        assert sorted((row[i] for i in chosen), reverse=True) == ranked[: max(counts, default=1)]

    for orders in (order_RM, torch.arange(len(confidence)).repeat(2, 1)):  # also an order that is not by entropy
        kept_RM = commits.within_entropy_bound(orders, entropy_RM, bound)
        for at, row in enumerate(rows):
            order, kept = orders[at, : len(row)].tolist(), set(kept_RM[at].nonzero()[:, 0].tolist())
            assert kept == set(order[: len(kept)]) and kept

            def spread(count: int, order: list[int] = order, at: int = at) -> float:
                first = [float(entropy_RM[at, i]) for i in order[:count]]
                return math.fsum(first) - max(first)

            assert len(kept) == 1 or spread(len(kept)) <= bound + 1e-9
            assert len(kept) == len(row) or spread(len(kept) + 1) > bound - 1e-9


COMMITS: list[dict[str, Any]] = [
    {"threshold": 0.3},
    {"factor": 1.0},
    {"entropy_bound": 0.8},
    {"steps": 4},
    {"threshold": 0.5, "rule": "margin", "alg_temperature": 0.5},
]


# All of them and more are drawn in test_engine.py.
@pytest.mark.parametrize(
    ("temperature", "cache", "commit"), thinned(itertools.product([0.0, 1.0], ["none", "prefix", "dual"], COMMITS), 4)
)
def test_a_ragged_batch_equals_its_rows_alone(
    model: Model, cache: Any, commit: dict[str, Any], temperature: float
) -> None:
    """Also with rows that stop early, and spans at unequal columns."""
    options = {"mode": "fast", "cache": cache, "temperature": temperature, "block_length": 4, **commit}
    for prompts in (
        RAGGED,
        [Infill([5], [6, 7]), Infill([9] * 7, [1]), Infill([2, 3], [4] * 5), [8] * 4],
    ):
        together = generate(model, prompts, max_new_tokens=8, batch_size=len(prompts), **options)
        for row, one in enumerate(together):
            alone = generate(model, [prompts[row]], max_new_tokens=8, seeds=[row], **options)[0]
            assert (one.tokens, one.reveal_step) == (alone.tokens, alone.reveal_step)
            assert one.settings["forwards"] == alone.settings["forwards"]


def test_every_row_commits_at_every_step_of_its_own(model: Model) -> None:
    """No step without a commit, one forward a step, and the counts the settings report."""
    seen: dict[tuple[int, int], int] = {}

    def watch(step: int, row: int, places: list[int], tokens: list[int]) -> None:
        seen[row, step] = len(places)
        assert len(places) == len(tokens) > 0

    results = generate(
        model, RAGGED, max_new_tokens=16, mode="fast", threshold=0.3, block_length=8, early_stop=False, on_commit=watch
    )
    for row, one in enumerate(results):
        steps = sorted(step for index, step in seen if index == row)
        assert steps == list(range(len(steps))) == sorted(set(one.reveal_step))
        assert one.settings["forwards"] == len(steps) < 16
        assert one.settings["tokens_per_forward"] == round(16 / len(steps), 3)
        assert one.settings["tokens_per_second"] > 0
        assert (one.settings["mode"], one.settings["cache"], one.settings["commit"]) == ("fast", "dual", "threshold")
        assert one.settings["threshold"] == 0.3 and one.settings["block_length"] == 8
        assert max(one.reveal_step[:8]) < min(one.reveal_step[8:])  # blocks in order


# Early stop


def test_early_stop_ends_a_row_with_its_first_stop_token(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is the start of what decoding to the end gives, and costs no more. A tenth of all ids are stops here."""
    monkeypatch.setattr(model, "ids", replace(model.ids, stops=frozenset(range(0, 300, 10))))
    stopped = 0
    for seed in range(2):
        options = {"mode": "fast", "threshold": 0.3, "block_length": 4, "temperature": 1.5, "seed": seed}
        late = generate(model, RAGGED, max_new_tokens=24, early_stop=False, **options)
        soon = generate(model, RAGGED, max_new_tokens=24, **options)
        for one, other in zip(soon, late, strict=True):
            ends = [place for place, token in enumerate(other.tokens) if token in model.ids.stops]
            length = ends[0] + 1 if ends else 24
            assert len(other.tokens) == 24
            assert (one.tokens, one.reveal_step) == (other.tokens[:length], other.reveal_step[:length])
            assert one.settings["finished"] == bool(ends) == other.settings["finished"]
            assert one.settings["forwards"] <= other.settings["forwards"]
            assert -1 not in one.reveal_step and len(one.confidence) == len(one.entropy) == len(one.tokens)
            stopped += one.settings["forwards"] < other.settings["forwards"]
    assert stopped  # some rows really ended early


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "quick"}, "mode"),
        ({"threshold": 0.9}, "mode fast"),
        ({"mode": "fast", "threshold": 1.1}, "threshold"),
        ({"mode": "fast", "factor": 0.0}, "factor"),
        ({"mode": "fast", "entropy_bound": -0.1}, "entropy_bound"),
        ({"mode": "fast", "cache": "full"}, "cache"),
        ({"mode": "fast", "commit": "greedy"}, "commit"),
        ({"mode": "fast", "cache_refresh": 0}, "cache_refresh"),
        ({"mode": "fast", "cache": "none", "cache_refresh": 2}, "cache_refresh"),
        ({"mode": "fast", "threshold": 0.9, "factor": 1.0}, "factor"),
        ({"mode": "fast", "commit": "threshold", "steps": 4}, "steps"),
        ({"mode": "fast", "block_length": 5}, "block_length"),
        ({"mode": "fast", "compat": "dream"}, "compat"),
        ({"mode": "fast", "cfg_scale": 1.0}, "cfg_scale"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        generate(model, [[1, 2, 3]], max_new_tokens=16, **options)
    assert "\n" not in str(refusal.value)


def test_an_ar_model_has_no_fast_mode(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="AR model"):
        generate(load(make_model(tmp_path / "ar", ar=True), device="cpu"), [[1, 2]], max_new_tokens=4, mode="fast")


def test_decoding_with_a_cache_warns_of_nothing(model: Model) -> None:
    """The libraries' warnings come at every call and would fill the terminal; pytest's settings hide them here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, RAGGED[:2], max_new_tokens=8, mode="fast", cache="dual", block_length=4)

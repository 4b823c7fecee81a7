"""The exact mode against a plain slow sampler, ragged batches, blocks, guidance, infilling, the counts of a step."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, refused, thinned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcoder_cli import generate, load
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.decoding.sampler import Infill
from dcoder_cli.diffusion import unmasking
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.head import FEWEST

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
SYSTEMS = ("dream", "llada")
RULES = ("entropy", "confidence", "margin", "random", "left-to-right")
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


def sharpened(model: Model, scale: float = 2.5) -> Model:
    """A random model with less flat distributions."""
    with torch.no_grad():
        model.network.lm_head.weight.mul_(scale)
    return model


@pytest.fixture(scope="module", params=SYSTEMS)
def model(request: pytest.FixtureRequest) -> Model:
    """Three layers, random: shifted (dream) and unshifted (llada)."""
    return sharpened(load(GOLDEN / request.param, device="cpu"))


@pytest.fixture(scope="module")
def ar_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random AR model."""
    return sharpened(load(make_model(tmp_path_factory.mktemp("ar") / "model", ar=True), device="cpu"), 12.0)


# A plain sampler: one row, one token and one position at a time, the whole vocabulary sorted.


def reference(model: Model, prefix: list[int], suffix: list[int], asked: dict[str, Any], row: int = 0) -> list[Any]:
    """(tokens, reveal steps) of one row, computed the slow way from the documented rules."""
    want = {"steps": None, "rule": "entropy", "temperature": 0.0, "top_p": None, "top_k": None, "block_length": None,
            "cfg_scale": 0.0, "stop_penalty": 0.0, "min_new_tokens": 0, "alg_temperature": 0.0, "seed": 0, "tie_break": "model", **asked}  # fmt: skip
    length = want["max_new_tokens"]
    steps, block = want["steps"] or length, want["block_length"] or length
    per_block = steps // (length // block)
    tokens = [*prefix, *[model.ids.mask] * length, *suffix]
    reveal = [-1] * length
    source = generator(want["seed"], "sample", row)
    tie_source = generator(want["seed"], "ties", row)
    for step in range(steps):
        straws = torch.rand(length, generator=tie_source).tolist() if want["tie_break"] == "random" else []
        numbers = torch.rand(length, generator=source).tolist() if want["temperature"] > 0 else []
        ordering = want["rule"] == "random" or want["alg_temperature"] > 0
        lots = torch.rand(length, generator=source).tolist() if ordering else []
        start = step // per_block * block
        inner = step % per_block
        count = (inner + 1) * block // per_block - inner * block // per_block
        logits_LV = whole_logits(model, tokens, len(prefix), length, want["cfg_scale"])
        found = []
        for place in range(start, start + block):
            if reveal[place] >= 0:
                continue
            logits = logits_LV[len(prefix) + place].clone()
            logits[model.ids.mask] = -math.inf
            for stop in model.ids.stops:
                logits[stop] -= want["stop_penalty"]
                if place < want["min_new_tokens"]:
                    logits[stop] = -math.inf
            probabilities = filtered(logits, want)
            if want["temperature"] == 0:
                token = int(probabilities.argmax())
            else:
                reached, token, shares = 0.0, -1, probabilities.tolist()
                target = numbers[place] * sum(shares)
                while reached <= target and token < len(shares) - 1:
                    token += 1
                    reached += shares[token]
            lot = lots[place] if lots else 0.0
            score = sureness(want["rule"], probabilities, token, place, lot)
            if want["alg_temperature"] > 0:
                score = score / want["alg_temperature"] - math.log(-math.log(lots[place]))
            own = sureness(want["rule"], torch.softmax(logits.double(), dim=-1), token, place, lot)
            straw = straws[place] if straws else 0.0
            key = {"model": own, "left": 0.0, "right": place, "random": straw, "topk": 0.0}[want["tie_break"]]
            found.append((score, key, place, token))
        taken = sorted(found, key=lambda item: (-item[0], -item[1], item[2]))[:count]
        if want["tie_break"] == "topk":
            row_L = torch.full((len(tokens),), -math.inf)
            for score, _, place, _ in found:
                row_L[len(prefix) + place] = score
            columns = torch.topk(row_L, count).indices.tolist()
            taken = [item for column in columns for item in found if len(prefix) + item[2] == column]
        for _, _, place, token in taken:
            tokens[len(prefix) + place], reveal[place] = token, step
    return [tokens[len(prefix) : len(prefix) + length], reveal]


def sureness(rule: str, probabilities: torch.Tensor, token: int, place: int, lot: float) -> float:
    """The rule's score of one candidate."""
    shares = probabilities.tolist()
    if rule == "entropy":
        return sum(share * math.log(share + 1e-10) for share in shares)
    if rule == "confidence":
        return shares[token]
    if rule == "margin":
        best = sorted(shares)
        return best[-1] - best[-2]
    return lot if rule == "random" else -float(place)


@torch.no_grad()
def whole_logits(model: Model, tokens: list[int], start: int, length: int, scale: float) -> torch.Tensor:
    conditional = model.logits(torch.tensor([tokens], device=model.device))[0]
    if scale == 0:
        return conditional
    blind = [token if start <= place < start + length else model.ids.mask for place, token in enumerate(tokens)]
    unconditional = model.logits(torch.tensor([blind], device=model.device))[0]
    return unconditional + (scale + 1) * (conditional - unconditional)


def filtered(logits: torch.Tensor, want: dict[str, Any]) -> torch.Tensor:
    logits = logits.double()
    if want["temperature"] > 0:
        logits = logits / want["temperature"]
    if want["top_p"] is not None:
        order = torch.sort(logits, descending=True).indices.tolist()
        probabilities = torch.softmax(logits, dim=-1)
        before, shares = 0.0, probabilities.tolist()
        for rank, token in enumerate(order):
            if rank and before > want["top_p"]:
                logits[token] = -math.inf
            before += shares[token]
    if want["top_k"] is not None:
        for token in torch.sort(logits, descending=True).indices.tolist()[want["top_k"] :]:
            logits[token] = -math.inf
    return torch.softmax(logits, dim=-1)


CASES: list[dict[str, Any]] = [
    {},
    {"steps": 4},
    {"block_length": 4},
    {"block_length": 6, "steps": 6},
    {"cfg_scale": 1.5},
    {"stop_penalty": 3.0, "min_new_tokens": 5},
    {"top_p": 0.9},
    {"top_p": 0.5, "top_k": 20},
]


@pytest.mark.parametrize(("rule", "temperature"), thinned(itertools.product(RULES, [0.0, 0.8]), 3))
def test_exact_equals_a_plain_sampler(model: Model, rule: str, temperature: float) -> None:
    """Token for token and step for step: the head at candidates only, top-p without a full sort, no empty step."""
    for case, (prefix, suffix) in itertools.product(CASES, [([5, 6, 7], []), ([9], [4, 4])]):
        options = {"max_new_tokens": 12, "rule": rule, "temperature": temperature, "seed": 3, **case}
        prompt = Infill(prefix, suffix) if suffix else prefix
        ours = generate(model, [prompt], **options)[0]
        assert [ours.tokens, ours.reveal_step] == reference(model, prefix, suffix, options)


@pytest.mark.parametrize("rule", ["entropy", "confidence", "margin"])
def test_alg_temperature_equals_a_plain_sampler(model: Model, rule: str) -> None:
    options = {"max_new_tokens": 12, "rule": rule, "temperature": 0.7, "alg_temperature": 0.4, "steps": 6}
    ours = generate(model, [[5, 6]], **options)[0]
    assert [ours.tokens, ours.reveal_step] == reference(model, [5, 6], [], options)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([1, 2, 5, 256, 257, 900, 33_000]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([None, 1e-6, 0.3, 0.9, 0.999]),
    top_k=st.sampled_from([None, 1, 3, 50, 256, 300]),
    coarse=st.booleans(),
)
def test_kept_tokens_are_those_of_the_whole_row(
    seed: int, vocabulary: int, temperature: float, top_p: float | None, top_k: int | None, coarse: bool
) -> None:
    """Tokens, logits, choices and scores, where it says that it has seen enough; equal logits, flat and steep rows too."""
    source = torch.Generator().manual_seed(seed)
    logits = (
        torch.randn(6, vocabulary, generator=source, dtype=torch.float64)
        * torch.tensor([0.01, 0.5, 1, 2, 5, 9])[:, None]
    )
    if coarse:
        logits = logits.round()
    dense = unmasking.filter_logits(logits, temperature, top_p, top_k)
    kept = unmasking.kept_tokens(logits, temperature, top_p, top_k)
    assert (kept.ids_NK.diff(dim=-1) > 0).all()
    spread = torch.full_like(dense, -torch.inf).scatter(-1, kept.ids_NK, kept.logits_NK)
    enough = kept.enough_N
    assert vocabulary > 256 or enough.all()
    if not coarse and top_k is not None and top_k < 256:
        assert enough.all()  # however flat a row is
    assert enough[(dense > -torch.inf).sum(dim=-1) < 200].all()
    assert torch.equal(spread[enough], dense[enough])
    uniform = torch.rand(6, generator=source)
    whole, few = torch.softmax(dense, dim=-1), torch.softmax(kept.logits_NK, dim=-1)
    at = unmasking.choose_kept(kept, few, temperature, uniform)
    tokens = kept.ids_NK.gather(-1, at[:, None])[:, 0]
    assert torch.equal(tokens[enough], unmasking.choose(whole, temperature, uniform)[enough])
    for rule in ("entropy", "confidence", *(("margin",) if vocabulary > 1 else ())):
        found = unmasking.score(rule, few, at, at, None)
        expected = unmasking.score(rule, whole, tokens, tokens, None)
        torch.testing.assert_close(found[enough], expected[enough], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", [5, 300, 40_000, 33_001])
def test_the_largest_of_a_row(length: int) -> None:
    values = torch.randn(4, length, generator=torch.Generator().manual_seed(0)).round(decimals=3)
    top, at = unmasking._largest(values, min(256, length))
    assert torch.equal(top, torch.topk(values, min(256, length)).values) and torch.equal(values.gather(-1, at), top)
    assert all(len(set(row)) == len(row) for row in at.tolist())


def test_a_length_of_any_size_is_checked_at_once(model: Model) -> None:
    """A plan of so many steps would never be made."""
    for options in ({}, {"block_length": 10**8}, {"steps": 10**8}, {"mode": "fast"}):
        with pytest.raises(UserError, match="exceeds the model's context"):
            generate(model, [[5, 6]], max_new_tokens=2 * 10**9, **options)
    with pytest.raises(UserError, match=r"max_new_tokens = 10{22} must be at most"):
        generate(model, [[5, 6]], max_new_tokens=10**22)


def test_alg_temperature_draws_from_the_softmax_of_scores() -> None:
    """The first of a draw without replacement has probability softmax(score / alg_temperature)."""
    scores = torch.tensor([0.1, 0.5, 0.9, 0.3])
    source = torch.Generator().manual_seed(0)
    heated = unmasking.heated(scores.repeat(4000, 1), 0.5, torch.rand(4000, 4, generator=source))
    drawn = unmasking.ranking(heated)
    assert (drawn.sort(dim=1).values == torch.arange(4)).all()
    share = torch.bincount(drawn[:, 0], minlength=4) / 4000
    torch.testing.assert_close(share, torch.softmax(scores / 0.5, dim=-1), atol=0.03, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    top_p=st.floats(0.01, 1.0, exclude_max=True),
    vocabulary=st.sampled_from([5, 256, 257, 900]),
    scale=st.floats(0.1, 8.0),
)
def test_top_p_without_a_full_sort(seed: int, top_p: float, vocabulary: int, scale: float) -> None:
    """The same tokens survive as with a full sort, for sharp rows and for flat ones where 256 are not enough."""
    logits_NV = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale
    kept_NV = torch.isfinite(unmasking.filter_logits(logits_NV, 0.0, top_p, None))
    probabilities_NV, order_NV = torch.sort(torch.softmax(logits_NV, dim=-1), dim=-1, descending=True, stable=True)
    for row in range(3):
        before = torch.cat([torch.zeros(1), probabilities_NV[row].cumsum(0)[:-1]])
        clear = (before - top_p).abs() > 1e-6  # a sum at p itself may round either way
        expected = before <= top_p
        expected[0] = True
        assert (kept_NV[row][order_NV[row]] == expected)[clear].all()


@pytest.mark.parametrize(("rule", "temperature"), thinned(itertools.product(RULES, [0.0, 1.0]), 3))
def test_a_ragged_batch_equals_its_rows_alone(model: Model, rule: str, temperature: float) -> None:
    """Eight rows of unequal length, whole and in blocks, each with its own seed, in one batch, in threes and alone."""
    for case in (
        {},
        {"block_length": 4, "steps": 4, "cfg_scale": 0.5},
        {"alg_temperature": 0.5, "top_p": 0.9, "steps": 4},
    ):
        options = {"max_new_tokens": 8, "rule": rule, "temperature": temperature, **case}
        seeds = [11, 5, 8, 1, 2, 3, 3, 9]
        together = generate(model, RAGGED, seeds=seeds, batch_size=8, **options)
        threes = generate(model, RAGGED, seeds=seeds, batch_size=3, **options) if not case else together
        for row, one in enumerate(together):
            alone = generate(model, [RAGGED[row]], seeds=[seeds[row]], **options)[0]
            assert (one.tokens, one.reveal_step) == (alone.tokens, alone.reveal_step)
            assert (one.tokens, one.reveal_step) == (threes[row].tokens, threes[row].reveal_step)
            assert one.confidence == pytest.approx(alone.confidence, abs=1e-4)
            assert one.entropy == pytest.approx(alone.entropy, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ragged_batch_equals_its_rows_alone_ar(ar_model: Model, temperature: float) -> None:
    options = {"max_new_tokens": 12, "temperature": temperature, "top_p": 0.95, "min_new_tokens": 3}
    seeds = [11, 5, 8, 1, 2, 3, 3, 9]
    together = generate(ar_model, RAGGED, seeds=seeds, **options)
    for row, one in enumerate(together):
        alone = generate(ar_model, [RAGGED[row]], seeds=[seeds[row]], **options)[0]
        assert one.tokens == alone.tokens and one.reveal_step == list(range(len(one.tokens)))
        assert one.confidence == pytest.approx(alone.confidence, abs=1e-4)


def test_seeds_decide(model: Model) -> None:
    """The same seed gives the same text, another seed or row seed another."""
    options = {"max_new_tokens": 12, "temperature": 1.0}
    base = generate(model, [[5, 6]] * 3, seeds=[1, 1, 2], **options)
    assert base[0].tokens == base[1].tokens != base[2].tokens
    assert generate(model, [[5, 6]], seeds=[1], seed=1, **options)[0].tokens != base[0].tokens


@pytest.mark.parametrize("rule", RULES)
def test_as_many_steps_as_tokens_commit_exactly_one_a_step(model: Model, rule: str) -> None:
    for block in (None, 4):
        for one in generate(model, RAGGED, max_new_tokens=12, rule=rule, block_length=block):
            assert sorted(one.reveal_step) == list(range(12))
            assert one.settings["forwards"] == 12 and one.settings["tokens_per_forward"] == 1.0
            if block:
                assert [step // 4 for step in one.reveal_step] == [place // 4 for place in range(12)]
            if rule == "left-to-right":
                assert one.reveal_step == list(range(12))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_step_commits_what_its_schedule_says(model: Model, data: st.DataObject) -> None:
    """Any steps and blocks that fit: no step without a commit, one forward a step, blocks in order, nothing left."""
    block = data.draw(st.integers(1, 6))
    blocks = data.draw(st.integers(1, 3))
    steps = blocks * data.draw(st.integers(1, block))
    one = generate(model, [[3, 1]], max_new_tokens=block * blocks, steps=steps, block_length=block)[0]
    counts = [one.reveal_step.count(step) for step in range(steps)]
    assert min(counts) >= 1 and max(counts) - min(counts) <= 1 and sum(counts) == block * blocks
    assert one.settings["forwards"] == steps
    for later, sooner in itertools.pairwise(range(blocks - 1, -1, -1)):
        ahead = one.reveal_step[sooner * block : (sooner + 1) * block]
        assert max(ahead) < min(one.reveal_step[later * block : (later + 1) * block])
    assert model.ids.mask not in one.tokens


def test_the_head_sees_candidates_only(model: Model) -> None:
    """Rows of the LM head: one for each mask still in the block, none for prompts, committed tokens or later blocks.

    Where those are fewer than a product must have to be the same in any company, as many as that.
    """
    sizes: list[int] = []
    hook = model.network.lm_head.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    try:
        generate(model, RAGGED, max_new_tokens=8, block_length=4, batch_size=8)
    finally:
        hook.remove()
    assert sizes == [max(FEWEST, 8 * left) for left in (4, 3, 2, 1)] * 2


def test_end_tokens_held_back(model: Model) -> None:
    """min_new_tokens forbids stops in front only; a penalty lowers them everywhere; a huge one is a ban."""
    with torch.no_grad():
        bias = model.network.lm_head.weight.clone()
    try:
        with torch.no_grad():  # make stops the likeliest tokens everywhere
            for stop in model.ids.stops:
                model.network.lm_head.weight[stop] = 0
            others = [token for token in range(model.vocab_size) if token not in model.ids.stops]
            model.network.lm_head.weight[others] *= 1e-3
        stop = min(model.ids.stops)
        plain = generate(model, [[5, 6]], max_new_tokens=8, temperature=1.0, seed=2)[0]
        assert plain.settings["max_new_tokens"] == 8
        for count in (0, 3, 8):
            one = generate(model, [[5, 6]] * 4, max_new_tokens=8, min_new_tokens=count, stop_penalty=-50.0)
            for row in one:
                assert not set(row.tokens[:count]) & model.ids.stops
                assert set(row.tokens[count:]) <= model.ids.stops
                assert row.settings["finished"] == (count < 8)
        assert not set(generate(model, [[5, 6]], max_new_tokens=8, stop_penalty=50.0)[0].tokens) & {stop}
    finally:
        with torch.no_grad():
            model.network.lm_head.weight.copy_(bias)


# Infilling


def test_an_infill_sees_both_sides(model: Model) -> None:
    """The tokens after the hole matter, stay as they are, and are not part of the answer."""
    one = generate(model, [Infill([5, 6], [7, 8, 9])], max_new_tokens=6)[0]
    other = generate(model, [Infill([5, 6], [100, 101, 102])], max_new_tokens=6)[0]
    assert len(one.tokens) == 6 and one.prompt_length == 5
    assert one.confidence != other.confidence
    assert [one.tokens, one.reveal_step] == reference(model, [5, 6], [7, 8, 9], {"max_new_tokens": 6})


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_searched_span_by_first_step(model: Model, mode: Any) -> None:
    """The length with the best mean log-probability over its masks; then as if that length had been asked for."""
    prompts = [Infill([5, 6], [7]), Infill(list(range(30, 45)), [9, 9]), Infill([1], [2, 3, 4, 5])]
    lengths = [4, 6, 10]
    chosen = generate(model, prompts, infill_lengths=lengths, mode=mode, batch_size=2)
    for row, (prompt, one) in enumerate(zip(prompts, chosen, strict=True)):
        scores = {}
        for length in lengths:
            tokens = [*prompt.prefix, *[model.ids.mask] * length, *prompt.suffix]
            with torch.no_grad():
                logits_LV = model.logits(torch.tensor([tokens]))[0, len(prompt.prefix) :][:length]
            logits_LV[:, model.ids.mask] = -torch.inf
            scores[str(length)] = float(torch.log_softmax(logits_LV, -1).max(-1).values.mean())
        assert one.settings["infill_scores"] == pytest.approx(scores, abs=1e-4)
        best = max(lengths, key=lambda length: scores[str(length)])
        assert one.settings["max_new_tokens"] == best
        fixed = generate(model, [prompt], max_new_tokens=best, mode=mode, seeds=[row])[0]
        assert (one.tokens, one.reveal_step, one.id) == (fixed.tokens, fixed.reveal_step, str(row))
        assert mode == "fast" or len(one.tokens) == best


def test_a_searched_span_by_final_probability(model: Model) -> None:
    prompts = [Infill([5, 6], [7]), Infill(list(range(30, 45)), [9, 9])]
    lengths, done = [4, 6, 10], []
    chosen = generate(
        model, prompts, infill_lengths=lengths, infill_by="final", temperature=1.0, ids=["a", "b"], on_done=done.append
    )
    assert done == chosen and [one.id for one in chosen] == ["a", "b"]
    for row, one in enumerate(chosen):
        fixed = {
            length: generate(model, [prompts[row]], max_new_tokens=length, temperature=1.0, seeds=[row])[0]
            for length in lengths
        }
        means = {str(length): sum(map(math.log, t.confidence)) / length for length, t in fixed.items()}
        assert one.settings["infill_scores"] == pytest.approx(means, abs=1e-3)
        assert one.tokens == fixed[max(lengths, key=lambda length: means[str(length)])].tokens


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"steps": 17}, "steps = 17"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"block_length": 5}, "block_length = 5"),
        ({"block_length": 8, "steps": 5}, "steps = 5"),
        ({"max_new_tokens": 4096}, "exceeds"),
        ({"rule": "best"}, "best"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"min_new_tokens": 17}, "min_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"infill_lengths": [4]}, "infill"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        generate(model, [[1, 2, 3]], **{"max_new_tokens": 16, **options})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("lengths", "by"), [([], "final"), ([4, 4], "final"), ([0, 4], "final"), ([4], "best")])
def test_infill_lengths_that_do_not_fit_are_refused(model: Model, lengths: list[int], by: Any) -> None:
    with pytest.raises(UserError, match="infill"):
        generate(model, [Infill([1], [2])], infill_lengths=lengths, infill_by=by)


def test_an_ar_model_cannot_infill(ar_model: Model) -> None:
    with pytest.raises(UserError, match="AR model"):
        generate(ar_model, [Infill([1], [2])], max_new_tokens=4)


def test_settings_default_to_the_plainest() -> None:
    assert Settings().mode == "exact" and Settings().cache is None and Settings(mode="fast").commit == "threshold"


def test_the_command_refuses_in_one_line() -> None:
    model = str(GOLDEN / "dream")
    assert "mode fast" in refused("generate", "--model", model, "--threshold", "0.9", "x")
    assert "--infill-lengths" in refused("generate", "--model", model, "--infill-lengths", "8,a", "x")

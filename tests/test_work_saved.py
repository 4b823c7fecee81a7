"""What decoding leaves out, or does another way to be quicker, changes no number: compared bit for bit where one CPU computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model
from test_sampler import GOLDEN, RAGGED, sharpened

from dcoder_cli import generate, load
from dcoder_cli.decoding import heads, own, room
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.diffusion import unmasking
from dcoder_cli.model import grouped, last_block
from dcoder_cli.model.backbone import Model

WAYS: list[dict[str, Any]] = [
    {},
    {"compat": "dream", "steps": 7},
    {"rule": "confidence", "temperature": 0.7, "top_p": 0.9, "block_length": 6},
    {"cfg_scale": 0.8},
    {"mode": "fast", "block_length": 6},
    {"mode": "fast", "block_length": 6, "cache": "prefix", "temperature": 0.6},
    {"mode": "fast", "block_length": 6, "factor": 1.0, "cache_refresh": 2},
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A vocabulary of more than one piece of the head's product."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return load(make_model(folder, vocab_size=5000, initializer_range=0.3), device="cpu")


@pytest.mark.parametrize("width", [7, 256, 4096, 5000, 32_000, 32_001])
def test_the_largest_entry_is_argmaxs(width: int) -> None:
    """Also where several are equal, which the first wins, and where the largest lies behind the last whole block."""
    source = torch.Generator().manual_seed(width)
    values_NV = (torch.randn(40, width, generator=source) * 2).round()
    values_NV[0] = 0.0
    values_NV[1, -1] = 99.0
    values_NV[2, 0] = values_NV[2, -1] = 99.0
    assert torch.equal(unmasking.largest(values_NV), values_NV.argmax(dim=-1))
    assert torch.equal(unmasking.largest(values_NV[:, 1:]), values_NV[:, 1:].argmax(dim=-1))


@torch.no_grad()
def test_the_heads_kept_memory_holds_the_heads_numbers(wide: Model) -> None:
    source = torch.Generator().manual_seed(0)
    hidden_ND, blind_ND = (torch.randn(40, 32, generator=source) for _ in range(2))
    head = heads.CandidateHead(wide)
    plain, guided = (
        head.at(Settings(cfg_scale=scale), hidden_ND, given) for scale, given in ((0.0, None), (1.5, blind_ND))
    )
    for some in (slice(0, 40), slice(3, 9), torch.tensor([5, 1, 38, 2])):
        expected_nV, blind_nV = wide.head(hidden_ND[some]), wide.head(blind_ND[some])
        assert torch.equal(plain(some), expected_nV)
        assert torch.equal(guided(some), (expected_nV - blind_nV) * 2.5 + blind_nV)
    assert plain(slice(0, 2)).data_ptr() == plain(slice(2, 5)).data_ptr()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(slice(0, 9)), wide.head(hidden_ND[:9]))  # rounded as autocast has it
    hook = wide.network.lm_head.register_forward_hook(lambda *_: torch.zeros(3, 5000))
    try:
        assert not plain(slice(0, 3)).any()  # a head that is more than its matrix is asked
    finally:
        hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("blind", [False, True])
def test_a_candidates_logits_do_not_depend_on_its_company(tmp_path: Path, blind: bool) -> None:
    """Fewer than 4 or 16 rows are another kernel's, of another order of sums, by the CPU's kind."""
    model = load(make_model(tmp_path / "model", vocab_size=3000, hidden_size=512, intermediate_size=64), device="cpu")
    source = torch.Generator().manual_seed(0)
    hidden_ND, other_ND = torch.randn(40, 512, generator=source), torch.randn(40, 512, generator=source)
    given = (hidden_ND, other_ND if blind else None)
    ask = heads.CandidateHead(model).at(Settings(cfg_scale=1.5 if blind else 0.0), *given)
    whole_NV = ask(slice(0, 40)).clone()
    for count in range(1, 20):
        assert torch.equal(ask(slice(0, count)), whole_NV[:count]), count
    if not blind:  # fast mode is not guided
        fast = heads.CandidateHead(model).at(Settings(mode="fast"), *given)
        assert len(fast(slice(0, 1))) == 1 and torch.allclose(fast(slice(0, 3)), whole_NV[:3], atol=1e-4)


@torch.no_grad()
def test_rows_that_are_read_are_those_of_the_whole_block(wide: Model) -> None:
    ids_BL = torch.arange(5, 53).view(3, 16)
    whole_BLD = wide.network.model(input_ids=ids_BL, use_cache=False, is_causal=False).last_hidden_state
    for rows, columns in (([0, 0, 1, 2, 2, 2], [3, 15, 0, 1, 7, 15]), ([1], [4])):
        at = torch.tensor(rows), torch.tensor(columns)
        with last_block.read_only(wide.network, *at):
            some_BLD = wide.network.model(input_ids=ids_BL, use_cache=False, is_causal=False).last_hidden_state
        assert torch.equal(some_BLD[at], whole_BLD[at]) and not torch.equal(some_BLD, whole_BLD)
    after_BLD = wide.network.model(input_ids=ids_BL, use_cache=False, is_causal=False).last_hidden_state
    assert torch.equal(after_BLD, whole_BLD)


@pytest.mark.parametrize("settings", WAYS, ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()))
@pytest.mark.parametrize("system", ["dream", "llada"])
def test_a_last_block_evaluated_whole_changes_nothing(
    system: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the shift and without, in windows and out of them. Confidence to 1e-5: of few rows products may round otherwise."""
    model = sharpened(load(GOLDEN / system, device="cpu"))
    if system == "llada" and settings.get("compat"):
        settings = {**settings, "compat": "llada", "steps": 6}
    some = generate(model, RAGGED, max_new_tokens=12, **settings)
    monkeypatch.setattr(model.network.model.layers[-1], "_compiled_call_impl", model.network.model.layers[-1].forward)
    whole = generate(model, RAGGED, max_new_tokens=12, **settings)
    for one, other in zip(some, whole, strict=True):
        for name in ("tokens", "reveal_step", "tied", "tied_from"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert one.entropy == pytest.approx(other.entropy, abs=1e-5)


def test_own_numbers_are_the_same_asked_for_whole_or_in_part() -> None:
    raw_NV = torch.randn(300, 5000, generator=torch.Generator().manual_seed(0)) * 4
    tokens_N = raw_NV.argmax(dim=-1)
    assert 1 < room.part_size(raw_NV) < 300
    every, sure = own.measure(raw_NV, tokens_N), own.measure(raw_NV, tokens_N, whole=False)
    assert sure.best_N is None and sure.entropy_N is None and torch.equal(sure.confidence_N, every.confidence_N)
    chosen_K = torch.arange(0, 300, 2)
    some = own.measure_some(raw_NV, tokens_N, chosen_K)
    assert every.entropy_N is not None and some.entropy_N is not None and every.best_N is not None
    assert torch.equal(some.entropy_N, every.entropy_N[chosen_K])
    assert torch.equal(every.best_N, every.confidence_N)


def _attention_inputs(queries: int, columns: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(columns)
    shapes = ((3, 4, queries, 16), (3, 2, columns, 16), (3, 2, columns, 16))
    return [torch.randn(shape, generator=source).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(("queries", "columns"), [(2, 40), (7, 40), (40, 40)])
@pytest.mark.parametrize("masked", ["nothing", "pads", "an entry in four"])
def test_attention_of_grouped_queries_is_that_of_copied_keys(queries: int, columns: int, masked: str) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    mask = None
    if masked == "pads":
        mask = (torch.arange(columns) < torch.tensor([columns, 9, 20])[:, None])[:, None, None]
    elif masked != "nothing":
        mask = torch.rand(3, 1, queries, columns, generator=torch.Generator().manual_seed(0)) < 0.75
        mask[..., 0] = True
    block = torch.nn.Module()
    block.num_key_value_groups, block.is_causal = 2, False
    found = []
    for way in (grouped.attend, sdpa_attention_forward):
        inputs = _attention_inputs(queries, columns)
        made = way(block, *inputs, mask, scaling=0.25, is_causal=False)[0]
        found.append((made, torch.autograd.grad(made.square().sum(), inputs)))
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_an_older_kernel_gets_copied_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, block = _attention_inputs(7, 40), torch.nn.Module()
    block.num_key_value_groups, block.is_causal = 2, False
    expected = grouped.attend(block, *inputs, None, scaling=0.25, is_causal=False)[0]
    monkeypatch.setattr(grouped, "GROUPS_TAKEN", False)
    monkeypatch.setattr(grouped, "scaled_dot_product_attention", lambda *_, **__: pytest.fail("groups were passed on"))
    torch.testing.assert_close(grouped.attend(block, *inputs, None, scaling=0.25, is_causal=False)[0], expected)


@pytest.mark.parametrize("settings", [{}, {"mode": "fast", "block_length": 6, "cache": "dual"}])
def test_keys_are_not_copied_for_the_heads_that_share_them(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = load(make_model(tmp_path / "model", **shape), device="cpu")
    seen: list[tuple[int, bool]] = []
    kernel = grouped.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *rest: Any, attn_mask: Any, **others: Any) -> torch.Tensor:
        seen.append((key.shape[1], attn_mask is not None))
        return kernel(query, key, *rest, attn_mask=attn_mask, **others)

    monkeypatch.setattr(grouped, "scaled_dot_product_attention", watched)
    generate(model, [[5, 6, 7]], max_new_tokens=6, **settings)
    assert set(seen) == {(2, False)}  # and no mask where no row has pads
    seen.clear()
    generate(model, RAGGED, max_new_tokens=6, **settings)
    assert (2, True) in seen and {heads for heads, _ in seen} == {2}

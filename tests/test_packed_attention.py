"""Packed rows through flash's variable-length kernel and flex's block masks, against the dense mask, entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import make_model, make_shards, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.data.batches import RowOrder, RowRules
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.model.attention import allowed, annealed, backbone_arguments
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.block_masks import BLOCK, block_mask
from dcoder_cli.model.varlen import varlen
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.denoise import train
from dcoder_cli.training.feed import Feed
from dcoder_cli.training.objective import TokenLoss, token_losses

CPU = torch.device("cpu")
TWO_ROWS = {"steps": 3, "global_batch": 2, "precision": "fp32"}


def documents(lengths: list[int]) -> Tensor:
    """document_ids of one row."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def closed(spans: list[tuple[int, int]], length: int) -> Tensor:
    """An attention mask; each row is open from and to."""
    mask_BL = torch.zeros(len(spans), length, dtype=torch.bool)
    for row, (first, end) in enumerate(spans):
        mask_BL[row, first:end] = True
    return mask_BL


# --- flash attention, variable length -----------------------------------------------------------------------------


def test_segments_by_hand() -> None:
    """Row 0 has documents of 2 and 3 tokens and its last token is cut off; row 1 is one document."""
    found = varlen(closed([(0, 4), (0, 5)], 5), torch.stack([documents([2, 3]), documents([5])]))
    assert found.starts_S.tolist() == [0, 2, 4, 5, 10] and found.starts_S.dtype == torch.int32
    assert found.longest == 5
    assert varlen(closed([(1, 3)], 3), None).starts_S.tolist() == [0, 1, 3]
    assert varlen(None, documents([1, 1, 2])[None]).starts_S.tolist() == [0, 1, 2, 4]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_segments_are_the_dense_mask_of_the_tokens(data: st.DataObject) -> None:
    """Two real tokens are in one segment exactly where the dense mask lets them see each other; a pad is in none of theirs."""
    length = data.draw(st.integers(1, 20))
    rows = data.draw(st.integers(1, 3))
    ids_BL = torch.tensor([sorted(data.draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))) for _ in range(rows)])  # fmt: skip
    spans = [tuple(sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length))))) for _ in range(rows)]
    mask_BL = closed(spans, length) if data.draw(st.booleans()) else None  # type: ignore[arg-type]
    found = varlen(mask_BL, ids_BL)
    segment_BL = torch.bucketize(torch.arange(rows * length), found.starts_S[1:], right=True).view(rows, length)
    ours = segment_BL[:, :, None] == segment_BL[:, None, :]
    dense = allowed(length, CPU, attention_mask_BL=mask_BL, document_ids_BL=ids_BL)
    assert dense is not None
    real_BL = torch.ones_like(ids_BL, dtype=torch.bool) if mask_BL is None else mask_BL
    for row in range(rows):
        real_L = real_BL[row]
        assert torch.equal(ours[row][real_L], dense[row, 0][real_L])
    assert found.longest == int(found.starts_S.diff().max())


def plain_varlen(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    causal: bool, softmax_scale: float | None = None, **rest: Any,
) -> Tensor:  # fmt: skip
    """flash_attn_varlen_func's contract as a loop: tokens [T, H, D], one softmax a segment."""
    assert cu_seqlens_q.dtype == torch.int32 and cu_seqlens_q is cu_seqlens_k
    assert int(cu_seqlens_q[-1]) == len(q) and max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    parts = []
    for begin, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        one, two, three = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        two, three = (x.repeat_interleave(len(one) // len(x), dim=0) for x in (two, three))
        parts.append(F.scaled_dot_product_attention(one, two, three, is_causal=causal, scale=softmax_scale))
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.fixture
def flash_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Model], Model]:
    """A model on the CPU whose attention takes the way of flash_attention_2 through transformers, to the plain kernel."""
    flash = pytest.importorskip("transformers.modeling_flash_attention_utils")
    known = ("dropout_p", "window_size", "deterministic", "softcap", "s_aux", "learnable_sink", "block_table", "page_table", "cache_seqlens")  # fmt: skip
    supported = {**dict.fromkeys(known, False), "max_seqlen_q": True, "max_seqlen_k": True}
    arguments = partial(flash._process_flash_attention_kwargs, supports_mapping=supported)

    def refuse(*given: Any, **named: Any) -> Any:
        raise AssertionError("not the variable-length kernel")

    functions = ((refuse, plain_varlen, None, flash._pad_input, flash._unpad_input), (arguments, arguments))
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *given, **named: functions)

    def switch(model: Model) -> Model:
        model.implementation = model.network.config._attn_implementation = "flash_attention_2"
        return model

    return switch


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer)
    make_model(folder / "ar", ar=True, tokenizer=tokenizer)
    make_shards(folder / "pretrain", tokenizer)
    return folder


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_flash_computes_what_the_dense_mask_says(
    place: Path, flash_here: Callable[[Model], Model], packed: bool, cut: bool, causal: bool
) -> None:
    if not packed and not cut:
        return  # the plain kernel, no segments
    model = load(place / ("ar" if causal else "model"), device="cpu")
    ids_BL = torch.randint(3, 290, (2, 16), generator=torch.Generator().manual_seed(1))
    documents_BL = torch.stack([documents([5, 1, 10]), documents([16])]) if packed else None
    mask_BL = closed([(0, 13), (0, 16)], 16) if cut else None
    with torch.no_grad():
        expected_BLD = model.hidden(ids_BL, mask_BL, document_ids_BL=documents_BL)
        flash_here(model)
        segments = varlen(mask_BL, documents_BL)
        ours_BLD = model.hidden(ids_BL, mask_BL, document_ids_BL=documents_BL, segments=segments)
        found_BLD = model.hidden(ids_BL, mask_BL, document_ids_BL=documents_BL) if packed else ours_BLD
    real_BL = torch.ones(2, 16, dtype=torch.bool) if mask_BL is None else mask_BL
    torch.testing.assert_close(ours_BLD[real_BL], expected_BLD[real_BL], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_BLD, ours_BLD, rtol=0, atol=0)


def test_a_training_step_with_flash_has_the_losses_of_sdpa(place: Path, flash_here: Callable[[Model], Model]) -> None:
    """Rows cut and packed, from the loader to the gradients."""
    shards, gradients, losses = ShardSet.open(place / "pretrain"), [], []
    for attention in ("sdpa", "flash_attention_2"):
        config = build(
            StageConfig, {"global_batch": 4, "micro_batch": 2, "isolate_documents": True, "attention": attention}
        )
        rules = RowRules(0, 1, True, truncate_share=0.5)
        rows = Feed(shards, rules, config, 2, 3, RowOrder(len(shards), 0), range(4), CPU).step(0)
        assert any(example.batch.attention_mask_BL is not None for example in rows.examples)
        model = load(place / "model", device="cpu")
        if attention != "sdpa":
            flash_here(model)
            assert all(example.segments is not None for example in rows.examples)
        module = TokenLoss(model)
        found = [token_losses(module, one, None, False, True, CPU) for one in rows.examples]
        sum(weighted for weighted, _ in found).backward()  # type: ignore[no-untyped-call, union-attr]
        losses.append(torch.cat([losses_N for _, losses_N in found]))
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


def test_flash_has_no_annealed_masks(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no kernel for annealed attention"):
        backbone_arguments("flash_attention_2", 4, CPU, torch.float32, pattern_LL=torch.ones(4, 4, dtype=torch.bool))
    config = build(StageConfig, {**TWO_ROWS, "anneal_steps": 2, "attention": "flash_attention_2"})
    with pytest.raises(UserError, match="no kernel for annealed masks"):
        train(1, str(place / "model"), str(place / "pretrain"), str(tmp_path / "run"), config, device="cpu")
    assert not (tmp_path / "run").exists()


# --- flex attention -----------------------------------------------------------------------------------------------


def dense(mask: Any, length: int) -> Tensor:
    """A BlockMask's open entries [B, L, L], by its blocks: closed ones are closed, whole ones open, the others as its function says."""
    from torch.nn.attention.flex_attention import create_mask

    batch, blocks = mask.kv_num_blocks.shape[0], mask.kv_num_blocks.shape[2]
    inside = create_mask(mask.mask_mod, batch, 1, length, length, "cpu").expand(batch, 1, length, length)[:, 0]
    result = torch.zeros(batch, blocks * BLOCK, blocks * BLOCK, dtype=torch.bool)
    padded = F.pad(inside, (0, blocks * BLOCK - length, 0, blocks * BLOCK - length))
    for row in range(batch):
        for q in range(blocks):
            rows = slice(q * BLOCK, (q + 1) * BLOCK)
            for number in range(int(mask.kv_num_blocks[row, 0, q])):
                first = int(mask.kv_indices[row, 0, q, number]) * BLOCK
                result[row, rows, first : first + BLOCK] = padded[row, rows, first : first + BLOCK]
            for number in range(int(mask.full_kv_num_blocks[row, 0, q])):
                first = int(mask.full_kv_indices[row, 0, q, number]) * BLOCK
                assert not result[row, rows, first : first + BLOCK].any(), "a block is of one kind"
                assert max(rows.stop, first + BLOCK) <= length, "a whole block does not reach beyond the row"
                result[row, rows, first : first + BLOCK] = True
    return result[:, :length, :length]


@pytest.mark.parametrize("length", [16, 128, 300, 512])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("patterned", [False, True])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_block_masks_are_the_dense_mask(length: int, causal: bool, patterned: bool, cut: bool, packed: bool) -> None:
    pattern_LL = annealed(length, 0.3, torch.Generator().manual_seed(0)) if patterned else None
    if pattern_LL is not None and length > 256:
        pattern_LL[:256, 256:] = False  # blocks that are closed, and whole
        pattern_LL[:128, :128] = True
    third = length // 3
    documents_BL = torch.stack([documents([third, 1, length - third - 1]), documents([length])]) if packed else None
    mask_BL = closed([(length - third, length), (0, length // 2)], length) if cut else None
    given = {"causal": causal, "pattern_LL": pattern_LL, "attention_mask_BL": mask_BL, "document_ids_BL": documents_BL}
    expected = allowed(length, CPU, **given)  # type: ignore[arg-type]
    if expected is None:
        expected = torch.ones(1, 1, length, length, dtype=torch.bool)
    mask = block_mask(length, CPU, **given)  # type: ignore[arg-type]
    assert torch.equal(dense(mask, length), expected[:, 0])
    if length == 512 and not patterned and not cut:  # and no more is looked into than must be
        from torch.nn.attention.flex_attention import create_block_mask

        theirs = create_block_mask(
            lambda b, h, q, kv: expected[b, 0, q, kv], len(expected), None, length, length, "cpu"
        )
        assert torch.equal(mask.kv_num_blocks, theirs.kv_num_blocks)
        assert torch.equal(mask.full_kv_num_blocks, theirs.full_kv_num_blocks)


def test_flex_on_a_cpu_computes_packed_padded_and_annealed_rows(place: Path) -> None:
    """In float32 to 1e-5; PyTorch has no backward pass of it on a CPU. All masks at once, so that one kernel is compiled.

    Other documents, pads and patterns take the same kernel: nothing is compiled again.
    """
    from torch._dynamo.utils import counters

    plain, flex = (load(place / "model", device="cpu", attention=kind) for kind in ("sdpa", "flex"))
    source, graphs = torch.Generator().manual_seed(2), []
    for step in range(3):
        ids_BL = torch.randint(3, 290, (2, 16), generator=source)
        mask_BL = closed([(0, 11 + step), (0, 16)], 16)
        given = {
            "attention_mask_BL": mask_BL,
            "document_ids_BL": torch.stack([documents([4 + step, 12 - step]), documents([9, 3 - step, 4 + step])]),
            "pattern_LL": annealed(16, 0.3, source),
        }
        with torch.no_grad():
            expected_BLD, ours_BLD = (model.hidden(ids_BL, **given) for model in (plain, flex))  # type: ignore[arg-type]
        torch.testing.assert_close(ours_BLD[mask_BL], expected_BLD[mask_BL], rtol=1e-5, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[2]


def test_training_with_flex_on_a_cpu_is_refused(place: Path, tmp_path: Path) -> None:
    config = build(StageConfig, {**TWO_ROWS, "attention": "flex"})
    with pytest.raises(UserError, match="attention = flex has no backward pass on a CPU"):
        train(2, str(place / "model"), str(place / "pretrain"), str(tmp_path / "run"), config, device="cpu")
    assert not (tmp_path / "run").exists()

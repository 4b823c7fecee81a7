"""Masks for flex attention, as the blocks of 128 x 128 that its kernels skip, run whole or look into.

Which blocks are open is worked out from one number or two a block, not from the dense mask: 4 rows of 4,096 tokens have
4,096 blocks, and 67 million entries. Legend: B batch, L length, N blocks in a row, S their size. True means open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # PyTorch's own default (torch.nn.attention.flex_attention)

Mod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def block_mask(
    length: int,
    device: torch.device,
    causal: bool = False,
    pattern_LL: Tensor | None = None,
    attention_mask_BL: Tensor | None = None,
    document_ids_BL: Tensor | None = None,
) -> Any:
    """The mask of `attention.allowed` as a BlockMask, [B or 1, 1, L, L]. Nothing waits for the device.

    A block that is closed although two parts of the mask each open some of it may count as one to look into: that costs
    time and changes nothing.
    """
    from torch.nn.attention.flex_attention import BlockMask, and_masks, or_masks

    batch = max((one.shape[0] for one in (attention_mask_BL, document_ids_BL) if one is not None), default=1)
    blocks = -(-length // BLOCK)
    open_BNN = torch.ones(batch, blocks, blocks, dtype=torch.bool, device=device)
    whole_BNN = open_BNN.clone()
    if length % BLOCK:  # the last block reaches beyond the row
        whole_BNN[:, -1] = False
        whole_BNN[:, :, -1] = False
    parts: list[Mod] = []
    if causal:
        place_N = torch.arange(blocks, device=device)
        open_BNN &= place_N[None, :] <= place_N[:, None]
        whole_BNN &= place_N[None, :] < place_N[:, None]
        parts.append(lambda b, h, q, kv: kv <= q)
    if pattern_LL is not None:
        pattern = pattern_LL.to(device)
        opened = torch.zeros(blocks * BLOCK, blocks * BLOCK, dtype=torch.bool, device=device)
        opened[:length, :length] = pattern
        tiles = opened.view(blocks, BLOCK, blocks, BLOCK)
        open_BNN &= tiles.any(dim=3).any(dim=1)
        whole_BNN &= tiles.all(dim=3).all(dim=1)
        parts.append(lambda b, h, q, kv: pattern[q, kv])
    if document_ids_BL is not None:
        documents = document_ids_BL.to(device)
        first_BN, last_BN = _tiles(documents, blocks).aminmax(dim=2)
        open_BNN &= (first_BN[:, :, None] <= last_BN[:, None]) & (first_BN[:, None] <= last_BN[:, :, None])
        alone_BN = first_BN == last_BN
        whole_BNN &= alone_BN[:, :, None] & alone_BN[:, None] & (first_BN[:, :, None] == first_BN[:, None])
        parts.append(lambda b, h, q, kv: documents[b, q] == documents[b, kv])
    itself: Mod | None = None
    if attention_mask_BL is not None:
        real = attention_mask_BL.to(device, torch.bool)
        tiles_BNS = _tiles(real, blocks)
        open_BNN &= tiles_BNS.any(dim=2)[:, None]
        open_BNN |= torch.eye(blocks, dtype=torch.bool, device=device)  # a pad attends to itself at least
        whole_BNN &= tiles_BNS.all(dim=2)[:, None]
        parts.append(lambda b, h, q, kv: real[b, kv])
        itself = lambda b, h, q, kv: (q == kv) & ~real[b, q]  # noqa: E731 - a mask is a function of four
    mod: Mod | None = and_masks(*parts) if len(parts) > 1 else parts[0] if parts else None
    if mod is not None and itself is not None:
        mod = or_masks(mod, itself)
    part, whole = _ordered(open_BNN & ~whole_BNN), _ordered(open_BNN & whole_BNN)
    return BlockMask.from_kv_blocks(*part, *whole, BLOCK_SIZE=BLOCK, mask_mod=mod, seq_lengths=(length, length))


def _tiles(values_BL: Tensor, blocks: int) -> Tensor:
    """[B, N, S]; the last block is filled up with the row's last value."""
    missing = blocks * BLOCK - values_BL.shape[1]
    filled_BL = torch.cat([values_BL, values_BL[:, -1:].expand(-1, missing)], dim=1)
    return filled_BL.view(values_BL.shape[0], blocks, BLOCK)


def _ordered(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks are True for each query block, and all of them with those first; int32 [B, 1, N] and [B, 1, N, N]."""
    order_BNN = torch.argsort(blocks_BNN.to(torch.int8), dim=2, descending=True, stable=True)
    return blocks_BNN.sum(dim=2, dtype=torch.int32)[:, None], order_BNN.to(torch.int32)[:, None]

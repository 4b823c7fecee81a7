"""Attention of grouped queries on a CPU without copies of the keys and values that heads share.

transformers copies them once a query head wherever a mask is given, as CUDA's kernels need it. PyTorch's kernel for CPUs
takes them as they are, masked or not, and adds up the same numbers in the same order: outputs are equal to the bit, and a
window of 33 columns of eight rows against 128 takes a third of the time. Other devices, and releases of PyTorch whose kernel
does not take them, go transformers' way.

Shapes: B batch, H query heads, G key-value heads, Q queries, K keys, D of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "dcoder_grouped"  # what the blocks' config calls it


def _kernel_takes_groups() -> bool:
    """Whether this PyTorch's fused kernel for CPUs, which it calls 1, would be chosen; else it computes all scores at once."""
    query, key = torch.zeros(1, 2, 1, 8), torch.zeros(1, 1, 1, 8)
    return bool(torch._fused_sdp_choice(query, key, key, enable_gqa=True) == 1)


GROUPS_TAKEN = _kernel_takes_groups()


def register() -> None:
    """Make it known to transformers. It knows no mask of that name, so the blocks take ours as they are, or none."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: Any, query_BHQD: Tensor, key_BGKD: Tensor, value_BGKD: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **others: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """What transformers' `sdpa_attention_forward` gives, [B, Q, H, D], of blocks that look both ways or have a mask."""
    if query_BHQD.device.type != "cpu" or not GROUPS_TAKEN:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        made: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query_BHQD, key_BGKD, value_BGKD, attention_mask, dropout, scaling, is_causal, **others
        )
        return made
    assert not is_causal, "causal attention comes as a mask"
    made_BHQD = scaled_dot_product_attention(
        query_BHQD, key_BGKD, value_BGKD, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return made_BHQD.transpose(1, 2).contiguous(), None

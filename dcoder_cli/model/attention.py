"""Who may attend to whom: full, causal, annealed, left-padded and packed-document masks.

Shapes: B batch, L length. True means "may attend". The masks are handed to the blocks of
transformers in the form that the attention implementation takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import ATTENTIONS
from dcoder_cli.model import grouped
from dcoder_cli.model.block_masks import block_mask
from dcoder_cli.model.varlen import Varlen, varlen

IMPLEMENTATIONS = ATTENTIONS
_DRAWN_ROWS = 64  # of an annealed mask at once: at 4096, 41 ms of processor time in place of 71 (16, 256: no faster)


def annealed(length: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Attention mask between causal and full: lower triangle open, each upper entry open with probability `ratio`.

    One L x L mask shared by the batch (DiffuLLaMA's annealing; DiffuCoder B.1 runs it over 10,000 steps).

    Args:
        length: L.
        ratio: 0 = causal, 1 = full.
        generator: the purpose's own generator, on the CPU.

    Returns:
        bool [L, L].
    """
    open_LL = torch.ones(length, length, dtype=torch.bool).tril_()
    for rows_rL in torch.split(
        open_LL, _DRAWN_ROWS
    ):  # the numbers of one draw of L x L, which a CPU's caches would not hold
        rows_rL |= torch.rand(rows_rL.shape, generator=generator) < ratio
    return open_LL


def allowed(
    length: int,
    device: torch.device,
    causal: bool = False,
    pattern_LL: Tensor | None = None,
    attention_mask_BL: Tensor | None = None,
    document_ids_BL: Tensor | None = None,
) -> Tensor | None:
    """The mask as bool [B or 1, 1, L, L]; None where everything is open.

    Pads are closed as keys. As queries they are left open: what they compute is read by nobody, and a
    row with no open key would be NaN in a softmax. A row of only pads attends to itself throughout.
    """
    mask: Tensor | None = None
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    if pattern_LL is not None:
        opened = pattern_LL.to(device)[None, None]
        mask = opened if mask is None else mask & opened
    if document_ids_BL is not None:
        ids_BL = document_ids_BL.to(device)
        same = (ids_BL[:, None, :, None] == ids_BL[:, None, None, :]).expand(-1, 1, length, length)
        mask = same if mask is None else mask & same
    if attention_mask_BL is not None and has_pads(attention_mask_BL):
        real_BL = attention_mask_BL.to(device, torch.bool)
        keys = real_BL[:, None, None, :].expand(-1, 1, length, length)
        mask = keys if mask is None else mask & keys
        itself = torch.eye(length, dtype=torch.bool, device=device)[None, None] & ~real_BL[:, None, :, None]
        mask = mask | itself
    return mask


def has_pads(attention_mask_BL: Tensor) -> bool:
    """Whether a mask closes anything. One on an accelerator is taken to: to look, the host would wait for all that is under way."""
    return attention_mask_BL.device.type != "cpu" or not bool(attention_mask_BL.all())


def backbone_arguments(
    implementation: str,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
    causal: bool = False,
    pattern_LL: Tensor | None = None,
    attention_mask_BL: Tensor | None = None,
    document_ids_BL: Tensor | None = None,
    segments: Varlen | None = None,
) -> dict[str, Any]:
    """Keyword arguments for the transformers backbone that realise the mask.

    `segments`: the same pads and documents for flash attention, found on the CPU before; None = found here.

    Raises:
        UserError: flash attention was asked for a mask it has no kernel for.
    """
    if implementation == "flash_attention_2":
        return _flash_arguments(causal, pattern_LL, attention_mask_BL, document_ids_BL, segments)
    if implementation == "flex":
        if attention_mask_BL is not None and not has_pads(attention_mask_BL):
            attention_mask_BL = None
        mask = block_mask(length, device, causal, pattern_LL, attention_mask_BL, document_ids_BL)
        return {"attention_mask": mask, "is_causal": False}
    mask = allowed(length, device, causal, pattern_LL, attention_mask_BL, document_ids_BL)
    if mask is None and implementation == "sdpa":
        return {"attention_mask": None, "is_causal": False}
    if mask is None:  # transformers 5.0 would make a causal mask of none for the other implementations
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    if implementation == "eager":
        lowest = torch.finfo(dtype).min
        return {"attention_mask": torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, lowest), "is_causal": False}
    return {"attention_mask": mask, "is_causal": False}


def _flash_arguments(
    causal: bool,
    pattern_LL: Tensor | None,
    attention_mask_BL: Tensor | None,
    document_ids_BL: Tensor | None,
    segments: Varlen | None,
) -> dict[str, Any]:
    if pattern_LL is not None:
        raise UserError("flash_attention_2 has no kernel for annealed attention; use --set attention=flex or sdpa")
    if segments is None and document_ids_BL is not None:
        segments = varlen(attention_mask_BL, document_ids_BL)
    if segments is not None:
        return {"attention_mask": None, "is_causal": causal, **segments.arguments()}
    if attention_mask_BL is not None and not has_pads(attention_mask_BL):
        attention_mask_BL = None
    return {"attention_mask": attention_mask_BL, "is_causal": causal}


def positions(attention_mask_BL: Tensor) -> Tensor:
    """Position ids of left-padded rows: cumsum(mask) - 1, and 1 on pads (as Dream's public code has it). int64 [B, L]."""
    real_BL = attention_mask_BL.to(torch.int64)
    return (real_BL.cumsum(dim=1) - 1).masked_fill(real_BL == 0, 1)


def use(network: Any, implementation: str) -> None:
    """Let the blocks of a transformers module, or those that its config will make, compute attention so."""
    config = getattr(network, "config", network)
    name = {"flex": "flex_attention"}.get(implementation, implementation)
    if implementation == "sdpa" and not getattr(config, "is_causal", True):
        grouped.register()
        name = grouped.NAME
    config._attn_implementation = name


def flash_attention_available() -> bool:
    """Whether the flash-attn package can be imported (it needs a CUDA device to run)."""
    import importlib.util

    return importlib.util.find_spec("flash_attn") is not None

"""Packed rows for flash attention's variable-length kernel: the rows one after the other, and where each segment begins.

A segment is a run of tokens that attend within themselves only: one document of a row, or its pads. So documents do not
see each other, nor tokens pads, and there is no mask. Legend: B batch, L length, S segments of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Varlen:
    """Attributes: starts_S: int32, where each segment begins in the flattened rows, and B * L at the end; longest: tokens of the longest."""

    starts_S: Tensor
    longest: int

    def arguments(self) -> dict[str, Any]:
        """As the blocks of transformers take it."""
        return {
            "cu_seq_lens_q": self.starts_S, "cu_seq_lens_k": self.starts_S,
            "max_length_q": self.longest, "max_length_k": self.longest,
        }  # fmt: skip

    def pinned(self) -> Varlen:
        """In page-locked memory."""
        return replace(self, starts_S=self.starts_S.pin_memory())

    def to(self, device: torch.device) -> Varlen:
        """On `device`; the host does not wait for it where it comes from page-locked memory."""
        return replace(self, starts_S=self.starts_S.to(device, non_blocking=device.type == "cuda"))


def varlen(attention_mask_BL: Tensor | None, document_ids_BL: Tensor | None) -> Varlen:
    """The segments of rows with pads, packed documents or both; at least one of them is given.

    Each document of a row is one run, as `dcoder tokenize` packs them, and so are its tokens that are no pads. On an
    accelerator the host waits for the number of segments: call it with tensors on the CPU.
    """
    parts = [one for one in (attention_mask_BL, document_ids_BL) if one is not None]
    starts_BL = torch.zeros(parts[0].shape, dtype=torch.bool, device=parts[0].device)
    starts_BL[:, 0] = True
    for values_BL in parts:
        starts_BL[:, 1:] |= values_BL[:, 1:] != values_BL[:, :-1]
    begin_S = starts_BL.flatten().nonzero()[:, 0].to(torch.int32)
    starts_S = torch.cat([begin_S, begin_S.new_full((1,), starts_BL.numel())])
    return Varlen(starts_S, int(starts_S.diff().max()))

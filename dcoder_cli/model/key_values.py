"""Keys and values of whole rows, kept between evaluations, and the evaluation of a window of columns against them.

A masked diffusion model has no causal cache: every key depends on the whole row. Kept keys are therefore an
approximation once a token of the row has changed, except in the window that is evaluated anew (Fast-dLLM's idea).

Shapes: B rows, H key-value heads, L length, W columns of the window, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError


class KeyValues:
    """Keys and values of every layer, [B, H, L, D] each. Stands in for transformers' cache inside the blocks.

    The first evaluation fills it with whole rows; a later one replaces the columns of its window, then attends to all.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.window: slice | Tensor | None = None  # the columns being evaluated; None = whole rows

    @property
    def filled(self) -> bool:
        """Whether whole rows have been evaluated."""
        return bool(self.keys)

    @property
    def rows(self) -> int:
        """B."""
        return int(self.keys[0].shape[0])

    @property
    def columns(self) -> int:
        """L."""
        return int(self.keys[0].shape[2])

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by the attention of each layer with the window's keys and values; returns those of the whole rows."""
        if self.window is None:
            assert layer_idx == len(self.keys)
            self.keys.append(key)
            self.values.append(value)
        else:
            for kept, new in ((self.keys[layer_idx], key), (self.values[layer_idx], value)):
                if isinstance(self.window, slice):
                    kept[:, :, self.window] = new
                else:
                    kept.scatter_(2, self.window[:, None, :, None].expand_as(new), new)
        return self.keys[layer_idx], self.values[layer_idx]

    def get_seq_length(self, *_: Any) -> int:
        """Tokens before the rows: none. transformers 5.0 counts positions from it, where none are given."""
        return 0

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(list(rows), device=self.keys[0].device)
        self.keys = [kept.index_select(0, index) for kept in self.keys]
        self.values = [kept.index_select(0, index) for kept in self.values]


def columns(first: Sequence[int], end: Sequence[int], device: torch.device) -> slice | Tensor:
    """The columns [first, end) of each row: a slice where all rows agree, else indices [B, W].

    Rows with fewer columns repeat their last one, and a column -1 stands for column 0: both compute and write the
    same numbers twice.
    """
    if len(set(first)) == 1 and len(set(end)) == 1 and first[0] >= 0:
        return slice(first[0], end[0])
    width = max(stop - start for start, stop in zip(first, end, strict=True))
    return indices(first, end, width, device)


def indices(first: Sequence[int], end: Sequence[int], width: int, device: torch.device) -> Tensor:
    """The columns [first, end) of each row as `columns` fills them up, to so many. int64 [B, W]."""
    return torch.tensor(
        [
            [max(min(start + step, stop - 1), 0) for step in range(width)]
            for start, stop in zip(first, end, strict=True)
        ],
        device=device,
    )


def take(columns: slice | Tensor, table_BL: Tensor) -> Tensor:
    """Entries of a [B, L] table at the columns of a window. [B, W]."""
    return table_BL[:, columns] if isinstance(columns, slice) else table_BL.gather(1, columns)


def mask(
    implementation: str, attention_mask_BL: Tensor | None, length: int, dtype: torch.dtype, device: Any
) -> Tensor | None:
    """Which columns a window may attend to, [B or 1, 1, 1, L]: all but pads; None = all. Every row needs a token that is no pad.

    Raises:
        UserError: the attention implementation has no kernel for it.
    """
    if implementation not in ("sdpa", "eager"):
        raise UserError(f"cached decoding does not run with attention {implementation}; load the model with sdpa")
    if attention_mask_BL is None:
        if implementation == "sdpa":  # a mask, open or not, would keep kernels from grouped queries on a GPU
            return None
        open_BL = torch.ones(1, length, dtype=torch.bool, device=device)
    else:
        open_BL = attention_mask_BL.to(device, torch.bool)
    mask_B11L = open_BL[:, None, None, :]
    if implementation == "sdpa":
        return mask_B11L
    return torch.zeros_like(mask_B11L, dtype=dtype).masked_fill_(~mask_B11L, torch.finfo(dtype).min)

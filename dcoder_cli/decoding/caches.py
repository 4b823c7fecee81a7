"""Cached keys and values of a pool of rows.

    none      the whole row at every step
    prefix    what is left of the block is kept; the block and what follows are evaluated at every step
    dual      what is left and right of the block is kept; only the block is evaluated at every step

The kept part is evaluated anew at the start of each block (Fast-dLLM, arXiv 2505.22618), and within a block
every `cache_refresh` steps where that is asked. A shifted model's window starts one column before the block.

Shapes: S slots, R rows evaluated, H key-value heads, L columns, W columns of a window, D of a head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from dcoder_cli.model.key_values import KeyValues


class CachePool(KeyValues):
    """Keys and values of the rows of all slots, [S, H, L, D] a layer. Each evaluation is of some of them (`aim`)."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self._rows: slice | Tensor = slice(0, 0)
        self._width = 0
        self._kept = False

    def aim(self, rows: slice | Tensor, width: int, kept: bool) -> CachePool:
        """Name the slots of the next evaluation, `width` columns wide: windows of `kept` rows, or whole rows, to be kept."""
        self._rows, self._width, self._kept, self.window = rows, width, kept, None
        return self

    @property
    def room(self) -> int:
        """Columns that there is memory for."""
        return self.keys[-1].shape[2] if self.keys else 0

    @property
    def filled(self) -> bool:
        """Whether the rows aimed at were evaluated whole before."""
        return self._kept

    @property
    def columns(self) -> int:
        """Columns of the rows aimed at."""
        return self._width

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As `KeyValues.update`, of the rows aimed at."""
        if self.window is None:
            self._store(self.keys, key, layer_idx)
            self._store(self.values, value, layer_idx)
            return key, value
        return self._replace(self.keys[layer_idx], key), self._replace(self.values[layer_idx], value)

    def _store(self, tables: list[Tensor], new: Tensor, layer: int) -> None:
        if layer == len(tables):
            tables.append(new.new_zeros(self.slots, new.shape[1], self._width, new.shape[3]))
        if tables[layer].shape[2] < self._width:
            tables[layer] = pad(tables[layer], (0, 0, 0, self._width - tables[layer].shape[2]))
        tables[layer][self._rows, :, : self._width] = new

    def _replace(self, table: Tensor, new: Tensor) -> Tensor:
        """Write the window's columns; all columns of the rows, which are copied only where rows of other slots lie between."""
        assert self.window is not None
        if isinstance(self._rows, slice):
            rows = table[self._rows, :, : self._width]
            if isinstance(self.window, slice):
                rows[:, :, self.window] = new
            else:
                rows.scatter_(2, self.window[:, None, :, None].expand_as(new), new)
            return rows
        if isinstance(self.window, slice):
            table[self._rows, :, self.window] = new
        else:
            table[self._rows[:, None], :, self.window] = new.transpose(1, 2)
        return table[self._rows, :, : self._width]

"""One evaluation of the network for some of the engine's rows, as it is written. Recorded ones: graphs.py.

Shapes: R rows, L columns, W columns of a window, N candidates, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dcoder_cli.decoding.caches import CachePool
from dcoder_cli.decoding.canvas import index
from dcoder_cli.model import last_block
from dcoder_cli.model.backbone import Model


@dataclass(frozen=True)
class Together:
    """What is evaluated.

    Attributes:
        kind: "whole" rows, whole rows to be kept ("fill"), or a "window" of kept ones.
        slots: whose rows they are.
        ids_RL: their tokens; attention_RL: 1 on tokens, 0 on pads behind them; None where no row has pads.
        first, end: for each row the columns [first, end) of its window.
        row_N, column_N: of what the blocks evaluate, what will be read.
    """

    kind: str
    slots: Sequence[int]
    ids_RL: Tensor
    attention_RL: Tensor | None
    first: Sequence[int]
    end: Sequence[int]
    row_N: Tensor
    column_N: Tensor


class AsWritten:
    """Evaluates by calling the network."""

    def __init__(self, model: Model, caches: CachePool) -> None:
        self.model, self.caches = model, caches

    def __call__(self, asked: Together) -> Tensor:
        """Final hidden states [R, L or W, D]; row i predicts token i. They hold where they will be read."""
        with last_block.read_only(self.model.network, asked.row_N, asked.column_N):
            if asked.kind == "whole":
                return self.model.hidden(asked.ids_RL, asked.attention_RL)
            kept = asked.kind == "window"
            cache = self.caches.aim(index(asked.slots, self.model.device), asked.ids_RL.shape[1], kept)
            window = (asked.first, asked.end) if kept else (None, None)
            return self.model.hidden_window(asked.ids_RL, asked.attention_RL, cache, *window)

    def whole(self, ids_RL: Tensor, attention_RL: Tensor | None) -> Tensor:
        """Final hidden states [R, L, D] of whole rows, all of them."""
        return self.model.hidden(ids_RL, attention_RL)

"""Hidden states of a block's masks, with or without cached keys and values around the block.

    none      the whole row at every step
    prefix    what is left of the block is kept; the block and what follows are evaluated at every step
    dual      what is left and right of the block is kept; only the block is evaluated at every step

The kept part is evaluated anew at the start of each block (Fast-dLLM, arXiv 2505.22618), and within a block
every `cache_refresh` steps where that is asked. A shifted model's window starts one column before the block.

Shapes: B rows, L length, N candidates, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcoder_cli.decoding.exact import Rows
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.key_values import KeyValues


class BlockEvaluator:
    """Evaluates the rows of one block, step by step. Rows may leave the block between steps, never come back.

    Args:
        model: a diffusion model.
        rows: the batch.
        spans: for each row of the batch that has this block, the first and the end of the block's new tokens.
        cache: "none", "prefix" or "dual".
        refresh: steps after which the whole rows are evaluated again; None = only at the start of the block.
    """

    def __init__(
        self, model: Model, rows: Rows, spans: dict[int, tuple[int, int]], cache: str, refresh: int | None
    ) -> None:
        self.model, self.rows, self.spans, self.cache, self.refresh = model, rows, spans, cache, refresh
        self.kept = KeyValues()
        self.held: list[int] = []  # the rows in `kept`
        self.age = 0  # evaluations since the whole rows were

    def hidden(self, candidates: dict[int, Tensor]) -> Tensor:
        """Hidden states [N, D] that predict the candidates (row -> indices among its new tokens), rows in order."""
        active = list(candidates)
        everyone = len(active) == self.rows.ids_BL.shape[0]
        ids_BL = self.rows.ids_BL if everyone else self.rows.ids_BL[active]
        attention_BL = self.rows.attention_BL
        if attention_BL is not None and not everyone:
            attention_BL = attention_BL[active]
        hidden_BWD, first = self._evaluate(active, ids_BL, attention_BL)
        for row in active:
            self.rows.forwards[row] += 1
        device = hidden_BWD.device
        row_N = torch.cat([torch.full((len(candidates[row]),), place) for place, row in enumerate(active)]).to(device)
        place_N = torch.cat(
            [self.rows.places[row][candidates[row]] - start for row, start in zip(active, first, strict=True)]
        ).to(device)
        return hidden_BWD[row_N, place_N]

    def _evaluate(self, active: list[int], ids_BL: Tensor, attention_BL: Tensor | None) -> tuple[Tensor, list[int]]:
        """Hidden states of whole rows or windows, and for each row the token that the first of them predicts."""
        if self.cache == "none":
            return self.model.hidden(ids_BL, attention_BL), [0] * len(active)
        if not self.kept.filled or (self.refresh is not None and self.age >= self.refresh):
            self.kept, self.held, self.age = KeyValues(), active, 1
            return self.model.hidden_window(ids_BL, attention_BL, self.kept), [0] * len(active)
        if active != self.held:
            self.kept.keep([self.held.index(row) for row in active])
            self.held = active
        self.age += 1
        first = [self.spans[row][0] for row in active]
        length = ids_BL.shape[1]
        end = [self.spans[row][1] if self.cache == "dual" else length for row in active]
        return self.model.hidden_window(ids_BL, attention_BL, self.kept, first, end), first

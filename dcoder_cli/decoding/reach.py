"""Where a step may commit: the masks of each row's block, for rows of one evaluation that are judged together.

Shapes: R rows judged together, P places, M the most candidates of a row, N candidates of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.decoding.canvas import Canvas, index
from dcoder_cli.decoding.rows import Slot
from dcoder_cli.decoding.selection import Ragged


@dataclass(frozen=True)
class Reach:
    """Candidates, rows one after another and each row's from left to right.

    Attributes:
        rows: the rows. at: which of the evaluation they are; at_N: of each candidate's row.
        slot_R, first_R, step_R: slot, first new column and next step of each.
        inside_RP: candidates by place. table: as many of each row.
        place_N, column_N: where each is among the row's new tokens, and in the row.
        seen_N: where its hidden state is among the columns evaluated.
    """

    rows: list[Slot]
    at: slice | Tensor
    at_N: Tensor
    slot_R: Tensor
    first_R: Tensor
    step_R: Tensor
    inside_RP: Tensor
    table: Ragged
    place_N: Tensor
    column_N: Tensor
    seen_N: Tensor


def reach(canvas: Canvas, rows: list[Slot], places: Sequence[int], starts: Sequence[int]) -> Reach:
    """Candidates of the rows at some places of an evaluation; `starts`: the first column evaluated of each."""
    slot_R, first_R, low_R, high_R, start_R, step_R, at_R = torch.tensor(
        [
            [row.slot, row.first, row.block * row.width, (row.block + 1) * row.width, start, row.step, place]
            for row, start, place in zip(rows, starts, places, strict=True)
        ],
        device=canvas.device,
    ).T
    table = Ragged([row.left for row in rows], canvas.device)
    masked_RP = canvas.masked_SP[slot_R]
    place_P = torch.arange(masked_RP.shape[1], device=canvas.device)
    inside_RP = masked_RP & (place_P >= low_R[:, None]) & (place_P < high_R[:, None])
    places_RM = torch.sort((~inside_RP).to(torch.uint8), dim=-1, stable=True).indices[:, : table.most]
    place_N = table.flat(places_RM)
    column_N = first_R[table.row_N] + place_N
    return Reach(
        rows, index(places, canvas.device), at_R[table.row_N], slot_R, first_R, step_R, inside_RP, table, place_N, column_N,
        column_N - start_R[table.row_N],
    )  # fmt: skip

"""The rows being denoised, one a slot, as tensors on the device.

A row begins at column 0 and has its pads, if any, behind its last token. Its new tokens are its places: place p is column
`first + p`. Rows come and go; what a slot held is gone once another row is put there.

Shapes: S slots, R of them in one step, L columns, P places, K places written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dcoder_cli.decoding.requests import Request
from dcoder_cli.model.backbone import Model

_ROOM = 64  # columns and places are added so many at a time (ours)


class Canvas:
    """The state of up to S rows.

    Attributes:
        ids_SL: tokens, masks where nothing is committed yet, pads behind each row.
        masked_SP: which places are still masks.
        reveal_SP, tied_SP, tied_from_SP, confidence_SP, entropy_SP: as in Trajectory.
        since_SP: the first of the latest steps through all of which a place stood in a tie for its row's commit; -1 where
            it did not stand in one at the row's last step.
        lengths: of each slot the tokens of its row.
    """

    def __init__(self, model: Model, slots: int) -> None:
        assert model.ids.mask is not None
        self.device, self.mask = model.device, model.ids.mask
        # Pads are closed to attention, so any id will do.
        self.filler = model.ids.pad if model.ids.pad is not None else 0
        number = torch.float64 if model.dtype == torch.float64 else torch.float32
        self.lengths = [0] * slots

        def nothing(dtype: torch.dtype) -> Tensor:
            return torch.empty(slots, 0, dtype=dtype, device=self.device)

        self.ids_SL = nothing(torch.int64)
        self.masked_SP, self.tied_SP = nothing(torch.bool), nothing(torch.bool)
        self.reveal_SP, self.tied_from_SP, self.since_SP = (nothing(torch.int64) for _ in range(3))
        self.confidence_SP, self.entropy_SP = nothing(number), nothing(number)

    def put(self, slot: int, request: Request) -> None:
        """A request's row into a slot: prefix, masks, suffix."""
        self._make_room(request.length, request.new_tokens)
        tokens = [*request.prefix, *[self.mask] * request.new_tokens, *request.suffix]
        self.ids_SL[slot] = self.filler
        self.ids_SL[slot, : len(tokens)] = torch.tensor(tokens, device=self.device)
        self.masked_SP[slot] = False
        self.masked_SP[slot, : request.new_tokens] = True
        for table, value in (
            (self.tied_SP, False), (self.reveal_SP, -1), (self.tied_from_SP, -1), (self.since_SP, -1),
            (self.confidence_SP, 0.0), (self.entropy_SP, 0.0),
        ):  # fmt: skip
            table[slot] = value
        self.lengths[slot] = len(tokens)

    def rows(self, slots: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Tokens [R, L] of some rows, as wide as the longest of them, and 1 on tokens, 0 on pads; None where no row has pads."""
        lengths = [self.lengths[slot] for slot in slots]
        width = max(lengths)
        ids_RL = self.ids_SL[index(slots, self.device), :width]
        if min(lengths) == width:
            return ids_RL, None
        length_R1 = torch.tensor(lengths, device=self.device)[:, None]
        return ids_RL, (torch.arange(width, device=self.device) < length_R1).long()

    def write(
        self, slot_K: Tensor, column_K: Tensor, place_K: Tensor, tokens_K: Tensor, step_K: Tensor, confidence_K: Tensor,
        entropy_K: Tensor, tied_K: Tensor, taken_K: Tensor | None,
    ) -> None:  # fmt: skip
        """Commit tokens, where `taken_K` says so (None: all), with when, how surely, and whether by a tie.

        A token that is the mask itself, which the public samplers may draw, leaves its place masked.
        """
        keep_K = tokens_K != self.mask
        if taken_K is not None:
            keep_K &= taken_K
        self.ids_SL[slot_K, column_K] = torch.where(keep_K, tokens_K, self.ids_SL[slot_K, column_K])
        self.masked_SP[slot_K, place_K] &= ~keep_K
        for table, values_K in (
            (self.reveal_SP, step_K), (self.confidence_SP, confidence_K), (self.entropy_SP, entropy_K),
            (self.tied_SP, tied_K),
        ):  # fmt: skip
            table[slot_K, place_K] = torch.where(keep_K, values_K.to(table.dtype), table[slot_K, place_K])

    def read(self, slot: int, first: int, kept: int) -> dict[str, list[Any]]:
        """The columns of a trajectory, of a row's first `kept` places."""
        places = slice(0, kept)
        whole = torch.stack(
            [
                self.ids_SL[slot, first : first + kept], self.reveal_SP[slot, places], self.tied_from_SP[slot, places],
                self.tied_SP[slot, places].long(),
            ]
        ).tolist()  # fmt: skip
        sure = torch.stack([self.confidence_SP[slot, places], self.entropy_SP[slot, places]]).tolist()
        return {
            "tokens": whole[0], "reveal_step": whole[1], "confidence": sure[0], "entropy": sure[1],
            "tied": [bool(one) for one in whole[3]], "tied_from": whole[2],
        }  # fmt: skip

    def _make_room(self, columns: int, places: int) -> None:
        more = _more(columns, self.ids_SL.shape[1])
        if more:
            self.ids_SL = pad(self.ids_SL, (0, more), value=self.filler)
        more = _more(places, self.masked_SP.shape[1])
        if more:
            for name in (
                "masked_SP",
                "tied_SP",
                "reveal_SP",
                "tied_from_SP",
                "since_SP",
                "confidence_SP",
                "entropy_SP",
            ):
                setattr(self, name, pad(getattr(self, name), (0, more)))


def _more(wanted: int, there: int) -> int:
    return max(0, -(-wanted // _ROOM) * _ROOM - there) if wanted > there else 0


def index(slots: Sequence[int], device: torch.device) -> slice | Tensor:
    """Slots as an index into a table of them: a slice, which copies nothing, where they stand side by side."""
    if list(slots) == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))
    return torch.tensor(slots, device=device)

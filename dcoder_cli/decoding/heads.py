"""Logits of hidden states where they are asked for.

Shapes: n candidates of one chunk, N of all rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dcoder_cli.decoding.proposal import LogitsAt
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.head import enough, head_matrix, product


class CandidateHead:
    """A model's head. On a CPU its logits lie in memory that is kept from step to step, and so hold until the next call.

    In exact mode a candidate's logits do not depend on how many are asked with it; in fast mode few are not made more for that.

    New memory of that size costs a CPU a tenth of the product, and so does a product of the whole vocabulary at once. The
    numbers are the same: an entry is the sum of the same products in the same order.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._room: Tensor | None = None

    def at(self, settings: Settings, hidden_ND: Tensor, blind_ND: Tensor | None) -> LogitsAt:
        """Logits at some of these candidates, guided if there are hidden states without the prompt."""
        return (
            partial(self._plain, settings, hidden_ND)
            if blind_ND is None
            else partial(self._guided, settings, hidden_ND, blind_ND)
        )

    def _plain(self, settings: Settings, hidden_ND: Tensor, some: slice | Tensor) -> Tensor:
        hidden_nD = hidden_ND[some]
        return self._logits(_taken(settings, hidden_nD))[: len(hidden_nD)]

    def _guided(self, settings: Settings, hidden_ND: Tensor, blind_ND: Tensor, some: slice | Tensor) -> Tensor:
        blind_nD = blind_ND[some]
        unconditional_nV = self.model.head(_taken(settings, blind_nD))[: len(blind_nD)]
        conditional_nV = self._plain(settings, hidden_ND, some)
        return conditional_nV.sub_(unconditional_nV).mul_(settings.cfg_scale + 1).add_(unconditional_nV)

    def _logits(self, hidden_nD: Tensor) -> Tensor:
        weight_VD = self._weight(hidden_nD)
        if weight_VD is None:
            return self.model.head(hidden_nD)
        rows, vocabulary = len(hidden_nD), len(weight_VD)
        if self._room is None or self._room.numel() < rows * vocabulary or self._room.dtype != weight_VD.dtype:
            self._room = None  # before there is more
            self._room = hidden_nD.new_empty(rows * vocabulary)
        return product(hidden_nD, weight_VD, self._room[: rows * vocabulary].view(rows, vocabulary))

    def _weight(self, hidden_nD: Tensor) -> Tensor | None:
        """The head's matrix where it is nothing but a product in float32 or more on the CPU; else None."""
        weight_VD = head_matrix(self.model.network)
        if weight_VD is None or torch.is_autocast_enabled("cpu"):  # which knows no product into memory that is given
            return None
        weight_VD = weight_VD.detach()
        plain = type(weight_VD) is Tensor and weight_VD.device.type == "cpu" and weight_VD.dtype == hidden_nD.dtype
        return weight_VD if plain and weight_VD.dtype in (torch.float32, torch.float64) else None


def _taken(settings: Settings, hidden_nD: Tensor) -> Tensor:
    return enough(hidden_nD) if settings.mode == "exact" else hidden_nD

"""The last block where few of its rows are read: its MLP, which looks at each row alone, is evaluated for those only.

Shapes: B batch, L columns evaluated, N rows read, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dcoder_cli.model.head import FEWEST

if TYPE_CHECKING:
    from dcoder_cli.model.backbone import Model


@contextmanager
def read_only(network: Any, row_N: Tensor, column_N: Tensor) -> Iterator[None]:
    """Within, final hidden states hold at these rows and columns of what the blocks evaluate, and mean nothing elsewhere.

    Where gradients are wanted, equal places must follow each other. Everything is evaluated where the last block has no MLP by
    that name, is compiled with what it does, or will be evaluated again in the backward pass.
    """
    block, learns = network.model.layers[-1], torch.is_grad_enabled()
    mlp = getattr(block, "mlp", None)
    again = learns and network.training and _computed_again(network)
    few = len(row_N) < FEWEST
    if mlp is None or block._compiled_call_impl is not None or again or (learns and few):
        yield
        return
    if few and len(row_N):
        times = -(-FEWEST // len(row_N))
        row_N, column_N = row_N.repeat(times), column_N.repeat(times)
    whole: list[Tensor] = []

    def before(_: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        whole.append(given[0])
        return (given[0].flatten(0, 1).index_select(0, row_N * given[0].shape[1] + column_N),)

    def after(_: Any, __: Any, made_ND: Tensor) -> Tensor:
        batch, length, width = whole.pop().shape
        place_N = row_N * length + column_N
        if learns:  # a place that is given twice is taught once
            taught_N1 = F.pad(place_N[1:] != place_N[:-1], (1, 0), value=True)[:, None]
            made_ND = torch.where(taught_N1, made_ND, made_ND.detach())
        made_BLD = made_ND.new_zeros(batch * length, width)
        return made_BLD.index_copy(0, place_N, made_ND).view(batch, length, width)

    hooks = [mlp.register_forward_pre_hook(before), mlp.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _computed_again(network: Any) -> bool:
    """Whether blocks keep their inputs alone; the property's first name is that of before transformers 5.24."""
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(type(network), name):
            return bool(getattr(network, name))
    return False


def read_for(
    model: Model, place_N: Tensor, length: int, attention_mask_BL: Tensor | None
) -> AbstractContextManager[None]:
    """The same where the tokens at these places of the flattened rows will be predicted, in order."""
    source_N = model.sources(place_N, length, attention_mask_BL)
    return read_only(model.network, source_N // length, source_N % length)

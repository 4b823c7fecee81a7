"""The last block where few of its rows are read: its MLP, which looks at each row alone, is evaluated for those only.

Shapes: B batch, L columns evaluated, N rows read, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

_FEWEST = 4  # rows: fewer are another kernel's on a CPU, which adds up in another order


@contextmanager
def read_only(network: Any, row_N: Tensor, column_N: Tensor) -> Iterator[None]:
    """Within, final hidden states hold at these rows and columns of what the blocks evaluate, and mean nothing elsewhere.

    Everything is evaluated where the last block has no MLP by that name, or is compiled with what it does.
    """
    block = network.model.layers[-1]
    mlp = getattr(block, "mlp", None)
    if mlp is None or block._compiled_call_impl is not None:
        yield
        return
    if 0 < len(row_N) < _FEWEST:
        row_N, column_N = row_N.repeat(_FEWEST), column_N.repeat(_FEWEST)
    whole: list[Tensor] = []

    def before(_: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        whole.append(given[0])
        return (given[0][row_N, column_N],)

    def after(_: Any, __: Any, made_ND: Tensor) -> Tensor:
        made_BLD = made_ND.new_zeros(*whole.pop().shape[:2], made_ND.shape[-1])
        made_BLD[row_N, column_N] = made_ND
        return made_BLD

    hooks = [mlp.register_forward_pre_hook(before), mlp.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""The head of a network: whether its logits are a product with a matrix and nothing else, which can then be taken otherwise."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def head_matrix(network: Any) -> Tensor | None:
    """The matrix [V, D] by which hidden states become logits; None where a bias, a hook or another layer has a part in it."""
    head = network.lm_head
    plain = type(head) is nn.Linear and head.bias is None and not (head._forward_hooks or head._forward_pre_hooks)
    return head.weight if plain else None

"""The head of a network: whether its logits are a product with a matrix and nothing else, which can then be taken otherwise.

Shapes: n places, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Of the vocabulary at a time on a CPU. Ours, measured there with 1 to 256 places, 512 to 896 hidden and 32,000 to 152,064 words: from 4
# places on 1.1 to 1.4 times as fast as 4,096 at a time, and 1.3 to 1.7 times as all at once.
_WORDS = 1024
# Rows of a product: fewer are another kernel's on a CPU, which adds up in another order. 16 with MKL and AVX-512, 4 without, measured.
FEWEST = 16


def head_matrix(network: Any) -> Tensor | None:
    """The matrix [V, D] by which hidden states become logits; None where a bias, a hook or another layer has a part in it."""
    head = network.lm_head
    plain = type(head) is nn.Linear and head.bias is None and not (head._forward_hooks or head._forward_pre_hooks)
    return head.weight if plain else None


def enough(hidden_nD: Tensor) -> Tensor:
    """Hidden states, on a CPU again and again until they are `FEWEST`: a row's product is then the same in any company."""
    rows = len(hidden_nD)
    if hidden_nD.device.type != "cpu" or not 0 < rows < FEWEST:
        return hidden_nD
    return hidden_nD.repeat(-(-FEWEST // rows), 1)[:FEWEST]


def product(hidden_nD: Tensor, matrix_VD: Tensor, into_nV: Tensor) -> Tensor:
    """Logits of places, in memory that is given; the same numbers as one product, since each is a sum of its own."""
    if into_nV.device.type != "cpu":
        return torch.mm(hidden_nD, matrix_VD.T, out=into_nV)
    for start in range(0, len(matrix_VD), _WORDS):
        here = slice(start, start + _WORDS)
        torch.mm(hidden_nD, matrix_VD[here].T, out=into_nV[:, here])
    return into_nV

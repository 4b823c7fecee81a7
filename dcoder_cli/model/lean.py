"""Norms and gated MLPs whose backward pass keeps less: what it needs of what is cheap is computed again from their inputs.

Their outputs are the blocks' own to the bit, and their gradients the same sums. A norm keeps its input and a number a
row, in place of its input twice; an MLP keeps gate and up, and not SiLU(gate). By count (training/memory/pieces.py) a quarter
of what autograd keeps of a block of Qwen2.5-Coder-7B goes. Blocks that PyTorch compiles choose for themselves and are left alone.

Shapes: D hidden size, F the MLP's, any leading ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# The classes whose arithmetic is the one below. Others stay as they are.
_NORMS = {"Qwen2RMSNorm", "LlamaRMSNorm", "Qwen3RMSNorm"}
_MLPS = {"Qwen2MLP", "LlamaMLP", "Qwen3MLP"}


def keep_less(network: Any) -> None:
    """Train a network's norms and MLPs so from now on; what it computes without gradients, and its state dict, stay."""
    for module in network.model.modules():
        own = _forward_of(module)
        if own is not None:
            module.forward = MethodType(own, module)  # a method's copy belongs to the module's copy


@contextmanager
def as_written(network: Any) -> Iterator[None]:
    """Within, the network trains as transformers wrote it: what a bench times ours beside."""
    lean = [one for one in network.model.modules() if getattr(one.forward, "__func__", None) in (_norm, _mlp)]
    held = [(one, one.__dict__.pop("forward")) for one in lean]
    try:
        yield
    finally:
        for module, own in held:
            module.forward = own


def _forward_of(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    kind = type(module)
    if not kind.__module__.startswith("transformers."):
        return None
    if kind.__name__ in _NORMS:
        return _norm
    return _mlp if kind.__name__ in _MLPS and getattr(module.config, "hidden_act", "") == "silu" else None


def _norm(self: Any, hidden: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return type(self).forward(self, hidden)  # type: ignore[no-any-return]
    return _Norm.apply(hidden, self.weight, self.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]


def _mlp(self: Any, hidden: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return type(self).forward(self, hidden)  # type: ignore[no-any-return]
    product = _Gated.apply(self.gate_proj(hidden), self.up_proj(hidden))  # type: ignore[no-untyped-call]
    return self.down_proj(product)  # type: ignore[no-any-return]


class _Norm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) as transformers' RMSNorms compute it: the quotient in float32, then rounded as x is."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        wide = hidden.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, weight_D, scale)
        return weight_D * (wide * scale).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight_D, scale = ctx.saved_tensors
        normed = hidden.to(torch.float32) * scale
        taught_D = None
        if ctx.needs_input_grad[1]:
            taught_D = (upstream * normed.to(hidden.dtype)).sum_to_size(weight_D.shape)
        if not ctx.needs_input_grad[0]:
            return None, taught_D, None
        given = (upstream * weight_D).to(torch.float32)
        share = (given * normed).mean(-1, keepdim=True)
        return given.sub_(normed.mul_(share)).mul_(scale).to(hidden.dtype), taught_D, None


class _Gated(torch.autograd.Function):
    """SiLU(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(upstream * up, gate), F.silu(gate).mul_(upstream)

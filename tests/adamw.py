"""AdamW with clipping and the learning rate's schedule, written out for the tests that compare a run with itself by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class AdamW:
    """Decay on matrices alone; gradients clipped by the norm of all."""

    def __init__(
        self, weights: Sequence[Tensor], betas: tuple[float, float], eps: float, decay: float, most: float
    ) -> None:
        self.weights, self.betas, self.eps, self.decay, self.most = weights, betas, eps, decay, most
        self.first, self.second = ([torch.zeros_like(one) for one in weights] for _ in range(2))
        self.updates = 0

    @torch.no_grad()
    def update(self, loss: Tensor, rate: float) -> float:
        """Move the weights against the gradients of `loss`; the norm before clipping."""
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss, self.weights)
        norm = math.sqrt(sum(float(one.double().square().sum()) for one in gradients))
        self.updates += 1
        low, high = (1 - beta**self.updates for beta in self.betas)
        for weight, gradient, m, v in zip(self.weights, gradients, self.first, self.second, strict=True):
            clipped = gradient * min(1.0, self.most / (norm + 1e-6))
            m.mul_(self.betas[0]).add_(clipped, alpha=1 - self.betas[0])
            v.mul_(self.betas[1]).addcmul_(clipped, clipped, value=1 - self.betas[1])
            weight.mul_(1 - rate * (self.decay if weight.dim() >= 2 else 0.0))
            weight.sub_(m / low / ((v / high).sqrt() + self.eps), alpha=rate)
        return norm


def cosine(step: int, steps: int, peak: float, warmup: int, floor: float) -> float:
    """The learning rate of a step, from 0, of so many."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - 1 - warmup))))

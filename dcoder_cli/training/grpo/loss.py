"""Advantages and the clipped loss of GRPO with a k3 KL term.

Shapes: B completions, L completion tokens, G completions of one prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def advantages(rewards: Sequence[float], kind: str = "mean", scale: bool = False) -> list[float]:
    """Advantage of each completion of one group (DiffuCoder 5, A.3).

    - "mean": r_i - mean of the group. - "leave-one-out": r_i - mean of the others.

    A NaN reward (the judge had trouble) is left out of every baseline and gets advantage 0: it teaches nothing.
    `scale` divides by the group's standard deviation (plus 1e-4), which the paper does not do.
    """
    known = [reward for reward in rewards if not math.isnan(reward)]
    if len(known) < 2:
        return [0.0] * len(rewards)
    total = sum(known)
    mean = total / len(known)
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in known) / len(known)) + 1e-4 if scale else 1.0
    result = []
    for reward in rewards:
        baseline = (total - reward) / (len(known) - 1) if kind == "leave-one-out" else mean
        result.append(0.0 if math.isnan(reward) else (reward - baseline) / spread)
    return result


@dataclass(frozen=True)
class Loss:
    """Sums over completions, or over their tokens, to be divided by their number in the whole step, over all processes.

    Attributes:
        loss: of -surrogate + kl_coef * k3; carries gradients.
        kl: of k3 alone. clipped_low, clipped_high: of 1 where the clipping was active. ratio: of the ratio.
        count: how many completions or tokens were summed.
    """

    loss: Tensor
    kl: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    ratio: Tensor
    count: int


def grpo_loss(
    new_BL: Tensor,
    old_BL: Tensor,
    reference_BL: Tensor | None,
    advantage_B: Tensor,
    scored_BL: Tensor,
    clip: float = 0.5,
    kl_coef: float = 0.01,
    normaliser: str = "completion",
) -> Loss:
    """The loss of DiffuCoder's Algorithm 1, as a sum that micro-batches and processes can add up.

    Args:
        new_BL, old_BL, reference_BL: per-token log-probability estimates with the same masks; reference None = no KL.
        advantage_B: one a completion.
        scored_BL: bool, tokens up to and including the first end of turn.
        clip: epsilon of the clipping of the ratio.
        kl_coef: beta of the KL term, k3 = exp(ref - new) - (ref - new) - 1.
        normaliser: "completion" sums over completions the mean over each one's tokens; "token" sums over tokens.
    """
    ratio_BL = torch.exp(new_BL - old_BL)
    advantage_B1 = advantage_B[:, None]
    clipped_BL = ratio_BL.clamp(1 - clip, 1 + clip)
    surrogate_BL = torch.minimum(ratio_BL * advantage_B1, clipped_BL * advantage_B1)
    kl_BL = torch.zeros_like(new_BL)
    if reference_BL is not None:
        difference_BL = reference_BL - new_BL
        kl_BL = torch.exp(difference_BL) - difference_BL - 1
    count_B = scored_BL.sum(dim=1)
    divisor_B = count_B.clamp(min=1) if normaliser == "completion" else torch.ones_like(count_B)

    def summed(values_BL: Tensor) -> Tensor:
        return (torch.where(scored_BL, values_BL, torch.zeros_like(values_BL)).sum(dim=1) / divisor_B).sum()

    low_BL = (ratio_BL < 1 - clip) & (advantage_B1 < 0)
    high_BL = (ratio_BL > 1 + clip) & (advantage_B1 > 0)
    return Loss(
        summed(-surrogate_BL + kl_coef * kl_BL),
        summed(kl_BL.detach()),
        summed(low_BL.to(new_BL.dtype)),
        summed(high_BL.to(new_BL.dtype)),
        summed(ratio_BL.detach()),
        units(count_B.tolist(), normaliser),
    )


def units(lengths: Sequence[int], normaliser: str) -> int:
    """What the sums of a Loss are divided by for completions of these numbers of scored tokens."""
    return len(lengths) if normaliser == "completion" else sum(lengths)

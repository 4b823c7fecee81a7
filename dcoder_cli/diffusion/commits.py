"""How many of a row's candidates one step of the fast mode commits, and which.

The unmasking rule orders the candidates; these rules say how far down that order a step may go. They look at the
model's own distribution (temperature 1, nothing filtered), as Trajectory records it, so a threshold means the same at
every temperature. Each commits at least one candidate of each row at each step.

Shapes: R rows, M candidates of a row. Where a row has fewer, its rows end in confidence -1 and entropy inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

COMMITS = ("threshold", "factor", "entropy-bound", "schedule")


def above_threshold(order_RM: Tensor, confidence_RM: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """All candidates with a confidence above the threshold, else the first in order.

    Fast-dLLM (arXiv 2505.22618), for each row on its own and from the first step of a block on.

    Args:
        order_RM: candidates by the unmasking rule, the surest first.
        confidence_RM: probability of each candidate's token.
        threshold: between 0 (all at once) and 1 (one at a time).

    Returns:
        which are committed, bool [R, M], and of which rows the order decided, bool [R].
    """
    above_RM = confidence_RM > threshold
    none_R = ~above_RM.any(dim=-1)
    return torch.where(none_R[:, None], first(order_RM, torch.ones_like(none_R, dtype=torch.int64)), above_RM), none_R


def by_factor(order_RM: Tensor, ranked_RM: Tensor, confidence_RM: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """The n most confident candidates, n the largest with (n + 1)(1 - c_n) < factor; else the first in order.

    c_n is the n-th largest confidence (Fast-dLLM, arXiv 2505.22618: parallel greedy decoding then agrees
    with decoding from the joint distribution for factor = 1). Arguments and results as for `above_threshold`, and
    `ranked_RM`: candidates by confidence, the largest first.
    """
    sorted_RM = confidence_RM.gather(-1, ranked_RM)
    numbers_M = torch.arange(1, sorted_RM.shape[-1] + 1, device=sorted_RM.device)
    allowed_RM = ((numbers_M + 1) * (1 - sorted_RM.double()) < factor) & (sorted_RM >= 0)
    count_R = allowed_RM.sum(dim=-1)  # the left side never falls with n
    none_R = count_R == 0
    chosen_RM = torch.where(none_R[:, None], first(order_RM, count_R + 1), first(ranked_RM, count_R))
    return chosen_RM, none_R


def within_entropy_bound(order_RM: Tensor, entropy_RM: Tensor, entropy_bound: float) -> Tensor:
    """The longest start of the order whose entropies sum to at most `entropy_bound` beside the largest of them. bool [R, M].

    That sum bounds the joint mutual information of the committed tokens (EB-Sampler, arXiv 2505.24857; the name is that
    of transformers' EntropyBoundSampler, which orders by entropy: rule "entropy" here).

    Args:
        order_RM: candidates by the unmasking rule, the surest first.
        entropy_RM: entropy of each candidate's distribution, in nats.
        entropy_bound: in nats; 0 commits one at a time unless entropies are 0.
    """
    sorted_RM = entropy_RM.gather(-1, order_RM).double()
    bound_RM = sorted_RM.cumsum(dim=-1) - sorted_RM.cummax(dim=-1).values
    count_R = (bound_RM <= entropy_bound).sum(dim=-1)  # never falls along the order, and is 0 for its first
    return first(order_RM, count_R.clamp(min=1))


def first(order_RM: Tensor, count_R: Tensor) -> Tensor:
    """Which candidates are the first `count_R` of an order. bool [R, M]."""
    ranks_M = torch.arange(order_RM.shape[-1], device=order_RM.device)
    return torch.zeros_like(order_RM, dtype=torch.bool).scatter_(-1, order_RM, ranks_M < count_R[:, None])

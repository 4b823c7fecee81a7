"""How many of a row's candidates one step of the fast mode commits, and which.

The unmasking rule orders the candidates; these rules say how far down that order a step may go. They look at the
model's own distribution (temperature 1, nothing filtered), as Trajectory records it, so a threshold means the same at
every temperature. Each commits at least one candidate of each row at each step.

Shape: n candidates of one row.
"""

from __future__ import annotations

import torch
from torch import Tensor

COMMITS = ("threshold", "factor", "entropy-bound", "schedule")


def above_threshold(order_n: Tensor, confidence_n: Tensor, threshold: float) -> Tensor:
    """All candidates with a confidence above the threshold, else the first in order.

    Fast-dLLM (arXiv 2505.22618), for each row on its own and from the first step of a block on.

    Args:
        order_n: candidates by the unmasking rule, the surest first.
        confidence_n: probability of each candidate's token.
        threshold: between 0 (all at once) and 1 (one at a time).

    Returns:
        indices of the candidates to commit, in order.
    """
    chosen = order_n[confidence_n[order_n] > threshold]
    return chosen if len(chosen) else order_n[:1]


def by_factor(order_n: Tensor, ranked_n: Tensor, confidence_n: Tensor, factor: float) -> Tensor:
    """The n most confident candidates, n the largest with (n + 1)(1 - c_n) < factor; else the first in order.

    c_n is the n-th largest confidence (Fast-dLLM, arXiv 2505.22618: parallel greedy decoding then agrees
    with decoding from the joint distribution for factor = 1). Arguments as for `above_threshold`, and `ranked_n`:
    candidates by confidence, the largest first.
    """
    numbers_n = torch.arange(1, len(confidence_n) + 1, device=confidence_n.device)
    doubt_n = 1 - confidence_n[ranked_n].double()
    count = int(((numbers_n + 1) * doubt_n < factor).sum())  # the left side never falls with n
    return ranked_n[:count] if count else order_n[:1]


def within_entropy_bound(order_n: Tensor, entropy_n: Tensor, entropy_bound: float) -> Tensor:
    """The longest start of the order whose entropies sum to at most `entropy_bound` beside the largest of them.

    That sum bounds the joint mutual information of the committed tokens (EB-Sampler, arXiv 2505.24857; the name is that
    of transformers' EntropyBoundSampler, which orders by entropy: rule "entropy" here).

    Args:
        order_n: candidates by the unmasking rule, the surest first.
        entropy_n: entropy of each candidate's distribution, in nats.
        entropy_bound: in nats; 0 commits one at a time unless entropies are 0.
    """
    sorted_n = entropy_n[order_n].double()
    bound_n = sorted_n.cumsum(0) - sorted_n.cummax(0).values
    count = int((bound_n <= entropy_bound).sum())  # never falls along the order, and is 0 for its first
    return order_n[: max(count, 1)]

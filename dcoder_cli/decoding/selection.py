"""Which candidates of each row a step commits: the rule's order, ties, and how many.

Shapes: R rows, M the most candidates of a row, N candidates of all rows, K of them committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.decoding.proposal import Candidates, Proposal
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.diffusion import commits, unmasking


class Ragged:
    """Values of all candidates, rows one after another, as a table with a row for each, and back."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.count, self.most = sum(lengths), max(lengths)
        length_R = torch.tensor(lengths, device=device)
        self.start_R = length_R.cumsum(0) - length_R
        self.row_N = spread(length_R, self.count)
        self.at_N = torch.arange(self.count, device=device) - self.start_R[self.row_N]
        self.shape = (len(lengths), self.most)

    def table(self, values_N: Tensor, filler: float) -> Tensor:
        """[R, M], with `filler` behind the candidates of a row that has fewer."""
        if self.count == self.shape[0] * self.most:
            return values_N.view(self.shape)
        table_RM = values_N.new_full(self.shape, filler)
        table_RM[self.row_N, self.at_N] = values_N
        return table_RM

    def flat(self, table_RM: Tensor) -> Tensor:
        """[N] of a table."""
        return table_RM[self.row_N, self.at_N]


def spread(count_R: Tensor, total: int) -> Tensor:
    """Row 0 `count_R[0]` times, then row 1, ... int64 [total]; the host need not look at the counts."""
    return torch.repeat_interleave(torch.arange(len(count_R), device=count_R.device), count_R, output_size=total)


@dataclass
class Chosen:
    """What is committed.

    Attributes:
        at_K: candidates, rows one after another and the surest of a row first; all of them, in order, with `taken_K`.
        row_K: the row of each.
        taken_K: which of `at_K` are committed; None = all.
        tied_N: the candidates that stood in a tie for it.
    """

    at_K: Tensor
    row_K: Tensor
    taken_K: Tensor | None
    tied_N: Tensor

    def in_order(self, rank_N: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and candidates of what is committed alone, the surest of a row first. The host waits for it."""
        if self.taken_K is None:
            return self.row_K, self.at_K
        at_k = self.at_K[self.taken_K]
        most = int(rank_N.max()) + 1 if len(rank_N) else 1
        at_k = at_k[torch.argsort(self.row_K[at_k] * most + rank_N[at_k])]
        return self.row_K[at_k], at_k


def choose(
    settings: Settings, proposal: Proposal, candidates: Candidates, rows: Ragged, counts: Sequence[int] | None
) -> tuple[Chosen, Tensor]:
    """What each row commits, and each candidate's rank in its row's order, [N].

    Args:
        counts: commits of each row; None: as many as the commit rule of the fast mode allows, by the proposal's `own`.
    """
    scores_RM = rows.table(proposal.scores_N, -torch.inf)
    keys_RM = None if proposal.keys_N is None else rows.table(proposal.keys_N, -torch.inf)
    if settings.alg_temperature > 0:
        assert candidates.order_N is not None
        drawn_N = unmasking.heated(proposal.scores_N, settings.alg_temperature, candidates.order_N)
        order_RM = unmasking.ranking(rows.table(drawn_N, -torch.inf))
    else:
        order_RM = _ranked(scores_RM, keys_RM, candidates, counts)
    rank_RM = torch.empty_like(order_RM).scatter_(
        -1, order_RM, torch.arange(rows.most, device=order_RM.device).expand_as(order_RM)
    )
    device = scores_RM.device
    if counts is not None:
        count_R, total = torch.tensor(counts, device=device), sum(counts)
        row_K = spread(count_R, total)
        nth_K = torch.arange(total, device=device) - (count_R.cumsum(0) - count_R)[row_K]
        at_K = rows.start_R[row_K] + order_RM[row_K, nth_K]
        chosen_RM, taken_K, decided_R = rank_RM < count_R[:, None], None, None
    else:
        chosen_RM, scores_RM, decided_R = _allowed(settings, proposal, candidates, rows, order_RM, scores_RM, keys_RM)
        row_K, at_K, taken_K = rows.row_N, torch.arange(rows.count, device=device), rows.flat(chosen_RM)
    tied_RM = torch.zeros_like(chosen_RM)
    if settings.alg_temperature == 0 or (decided_R is not None and settings.commit == "factor"):
        tied_RM = unmasking.tied(scores_RM, chosen_RM)
        if decided_R is not None:
            tied_RM &= decided_R[:, None]
    return Chosen(at_K, row_K, taken_K, rows.flat(tied_RM)), rows.flat(rank_RM)


def _ranked(scores_RM: Tensor, keys_RM: Tensor | None, candidates: Candidates, counts: Sequence[int] | None) -> Tensor:
    """Each row's candidates in order, ties broken as the settings say; by topk the first of them alone, as many as count."""
    if candidates.columns is None or candidates.widths is None:
        return unmasking.ranking(scores_RM, keys_RM)
    order_RM = torch.arange(scores_RM.shape[1], device=scores_RM.device).repeat(len(scores_RM), 1)
    for row, (columns_n, width) in enumerate(zip(candidates.columns, candidates.widths, strict=True)):
        length = candidates.lengths[row]
        count = length if counts is None else counts[row]
        taken_k = unmasking.pick_by_topk(scores_RM[row, :length], count, columns_n, width)
        others_n = torch.ones(scores_RM.shape[1], dtype=torch.bool, device=scores_RM.device)
        others_n[taken_k] = False
        order_RM[row] = torch.cat([taken_k, others_n.nonzero()[:, 0]])
    return order_RM


def _allowed(
    settings: Settings, proposal: Proposal, candidates: Candidates, rows: Ragged, order_RM: Tensor, scores_RM: Tensor,
    keys_RM: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What the commit rule allows, bool [R, M]; what each row's were ranked by; and of which rows that decided, bool [R]."""
    assert proposal.own is not None
    by_order_R = torch.full((len(order_RM),), settings.alg_temperature == 0, device=order_RM.device)
    if settings.commit == "entropy-bound":
        assert settings.entropy_bound is not None and proposal.own.entropy_N is not None
        entropy_RM = rows.table(proposal.own.entropy_N, torch.inf)
        return commits.within_entropy_bound(order_RM, entropy_RM, settings.entropy_bound), scores_RM, by_order_R
    confidence_RM = rows.table(proposal.own.confidence_N, -1.0)
    if settings.commit == "factor":
        assert settings.factor is not None
        ranked_RM = _ranked(confidence_RM, keys_RM, candidates, None)
        chosen_RM, none_R = commits.by_factor(order_RM, ranked_RM, confidence_RM, settings.factor)
        ranked_by_RM = torch.where(none_R[:, None], scores_RM, confidence_RM.masked_fill(confidence_RM < 0, -torch.inf))
        return chosen_RM, ranked_by_RM, ~none_R | by_order_R
    assert settings.threshold is not None
    chosen_RM, none_R = commits.above_threshold(order_RM, confidence_RM, settings.threshold)
    return chosen_RM, scores_RM, none_R & by_order_R

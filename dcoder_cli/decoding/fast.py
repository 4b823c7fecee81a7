"""The fast mode: blocks from left to right, several commits a step, cached keys and values, an early stop.

Approximate, with its own measured quality; never compared token for token with the exact mode. A row's steps are its
own evaluations, counted from 0: rows wait for each other at block boundaries only, which changes nothing for them, so
a row's text and steps do not depend on its batch.

Early stop: a row is finished once a stop token and everything before it are committed. What lies behind it was not
decoded, and what was, is dropped: the answer of a row ends with its first stop token, as that of an AR model does, so
every token of a trajectory has the step that committed it.

Shapes: B rows, N candidates of all rows, n of one row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dcoder_cli.decoding.caches import BlockEvaluator
from dcoder_cli.decoding.exact import (
    Commit,
    Observer,
    OnCommit,
    Rows,
    commit,
    inside_block,
    note_ties,
    observe,
    start,
    topk_columns,
)
from dcoder_cli.decoding.proposal import Draws, Proposal, RowRandom, propose
from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.diffusion import commits, schedules, unmasking
from dcoder_cli.model.backbone import Model


@torch.no_grad()
def denoise(
    model: Model,
    requests: Sequence[Request],
    settings: Settings,
    observer: Observer | None = None,
    on_commit: OnCommit | None = None,
) -> Rows:
    """Decode a batch in the fast mode. Observers are told as in the exact mode, with each row's own step."""
    rows = start(model, requests)
    rule = unmasking.canonical(settings.rule)
    sources = [RowRandom(request, settings, rule) for request in requests]
    widths = [settings.block_for(request.new_tokens) for request in requests]
    plans = [
        schedules.plan(request.new_tokens, settings.steps, width, None)
        for request, width in zip(requests, widths, strict=True)
    ]
    steps = [0] * len(requests)
    finished = [False] * len(requests)
    for block in range(max(plan[-1][0] for plan in plans) + 1):
        inside = {
            row: inside_block(block, request.new_tokens, widths[row])
            for row, request in enumerate(requests)
            if block <= plans[row][-1][0]
        }
        evaluator = BlockEvaluator(model, rows, _spans(rows, inside), settings.cache or "none", settings.cache_refresh)
        while True:
            # 1. The rows with masks in this block, and those masks.
            candidates = {row: (inside[row] & rows.masked[row]).nonzero()[:, 0] for row in inside if not finished[row]}
            candidates = {row: places for row, places in candidates.items() if len(places)}
            if not candidates:
                break
            # 2. Logits there; a token and a score for each.
            draws = [source.draw() if row in candidates else _NOTHING for row, source in enumerate(sources)]
            hidden_ND = evaluator.hidden(candidates)
            proposal = propose(
                model, settings, rule, partial(_head, model, hidden_ND), candidates, draws,
                topk_columns(rows, candidates, settings),
                measured=observer is not None or settings.commit != "schedule",
            )  # fmt: skip
            # 3. As many of each row as the commit rule allows.
            taken = []
            offset = 0
            for row, waiting in candidates.items():
                here = slice(offset, offset + len(waiting))
                offset = here.stop
                if observer is not None:
                    observe(observer, proposal, here, steps[row], requests[row].index, waiting)
                scheduled = plans[row][steps[row]][1] if settings.commit == "schedule" else 0
                chosen, ranked_by_n = _chosen(settings, proposal, here, scheduled)
                tied_n = note_ties(rows, row, steps[row], waiting, ranked_by_n, chosen)
                index, at_k = requests[row].index, chosen.cpu()
                taken.append(Commit(row, steps[row], index, here.start + chosen, waiting[at_k], tied_n[at_k]))
            commit(model, rows, proposal, taken, on_commit)
            del proposal  # with the logits that it may keep: the next step's would come on top
            for row in candidates:
                steps[row] += 1
                finished[row] = bool(settings.early_stop) and _stop(model, rows, row)
        if all(finished):
            break
    return rows


def _head(model: Model, hidden_ND: Tensor, some: slice | Tensor) -> Tensor:
    return model.head(hidden_ND[some])


_NOTHING = Draws(torch.empty(0), torch.empty(0), torch.empty(0))


def _spans(rows: Rows, inside: dict[int, Tensor]) -> dict[int, tuple[int, int]]:
    """For each row the columns [first, end) of the block."""
    spans = {}
    for row, mask_n in inside.items():
        places = rows.places[row][mask_n]
        spans[row] = (int(places[0]), int(places[-1]) + 1)
    return spans


def _chosen(settings: Settings, proposal: Proposal, here: slice, scheduled: int) -> tuple[Tensor, Tensor | None]:
    """Which of a row's candidates are committed, and what they were ranked by; None where no ranking decided."""
    scores_n = proposal.scores_N[here]
    ranked_by_n = scores_n if settings.alg_temperature == 0 else None
    if settings.commit == "schedule":
        return proposal.picked(here, scheduled, settings.alg_temperature), ranked_by_n
    order_n = proposal.picked(here, len(scores_n), settings.alg_temperature)
    assert proposal.own is not None
    if settings.commit == "entropy-bound":
        assert settings.entropy_bound is not None
        entropy_n = proposal.own.entropy_N[here]
        return commits.within_entropy_bound(order_n, entropy_n, settings.entropy_bound), ranked_by_n
    confidence_n = proposal.own.confidence_N[here]
    if settings.commit == "factor":
        assert settings.factor is not None
        ranked_n = proposal.ranked(confidence_n, here, len(scores_n))
        chosen_n = commits.by_factor(order_n, ranked_n, confidence_n, settings.factor)
        by_confidence = 2 * (1 - float(confidence_n.max())) < settings.factor
        return chosen_n, confidence_n if by_confidence else ranked_by_n
    assert settings.threshold is not None
    chosen_n = commits.above_threshold(order_n, confidence_n, settings.threshold)
    surest = bool((confidence_n[chosen_n] > settings.threshold).all())
    return chosen_n, None if surest else ranked_by_n


def _stop(model: Model, rows: Rows, row: int) -> bool:
    """Whether a row's text is complete up to a stop token; its answer then ends there."""
    masked = rows.masked[row]
    left = int(masked.nonzero()[0, 0]) if bool(masked.any()) else len(masked)  # everything left of here is committed
    if not left:
        return False
    tokens = rows.ids_BL[row, rows.places[row][:left].to(rows.ids_BL.device)].tolist()
    stop = next((place for place, token in enumerate(tokens) if token in model.ids.stops), None)
    if stop is None:
        return False
    rows.kept[row] = stop + 1
    return True

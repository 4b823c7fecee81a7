"""The exact denoising loop: one batch of rows, any unmasking rule, the public samplers' quirks on request.

Shapes: B rows, L length, N candidates of all rows, V vocabulary, n masks of one row.
Rows never influence each other: counts, random numbers and positions are per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.decoding.proposal import LogitsAt, Proposal, RowRandom, propose
from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.diffusion import schedules, unmasking
from dcoder_cli.model.backbone import Model

# observer(step, row, positions, confidence, entropy): every still masked new token of a row, before the commit.
Observer = Callable[[int, int, list[int], list[float], list[float]], None]
# on_commit(step, row, positions, tokens): what a row has just committed. A token that is the mask itself (the public
# samplers may draw it) leaves its place masked.
OnCommit = Callable[[int, int, list[int], list[int]], None]


@dataclass
class Rows:
    """A batch being denoised.

    Attributes:
        ids_BL: current tokens, prompts left-padded.
        attention_BL: 1 on tokens, 0 on pads; None where no row is padded.
        pads: for each row how many pads stand left of its tokens.
        places: for each row the positions of its new tokens, ascending.
        masked: for each row which of its new tokens are still masks.
        reveal, confidence, entropy, tied, tied_from: for each row and new token, as in Trajectory.
        tied_since: for each row and new token the first of the latest steps through all of which it stood in a tie for
            the row's commit; -1 where it did not stand in one at the row's last step, None where none did.
        forwards: for each row the network evaluations it took part in (a guided step counts two).
        kept: for each row how many of its new tokens are its answer; fewer than all after an early stop.
    """

    ids_BL: Tensor
    attention_BL: Tensor | None
    pads: list[int]
    places: list[Tensor]
    masked: list[Tensor]
    reveal: list[list[int]]
    confidence: list[list[float]]
    entropy: list[list[float]]
    tied: list[list[bool]]
    tied_from: list[list[int]]
    tied_since: list[Tensor | None]
    forwards: list[int]
    kept: list[int]


def start(model: Model, requests: Sequence[Request]) -> Rows:
    """Rows of requests: prefix, masks, suffix, left-padded to the longest."""
    assert model.ids.mask is not None
    longest = max(request.length for request in requests)
    filler = model.ids.pad if model.ids.pad is not None else 0  # pads are closed to attention, so any id will do
    ids_BL = torch.full((len(requests), longest), filler, dtype=torch.int64)
    attention_BL = torch.zeros(len(requests), longest, dtype=torch.int64)
    places = []
    for row, request in enumerate(requests):
        tokens = [*request.prefix, *[model.ids.mask] * request.new_tokens, *request.suffix]
        ids_BL[row, longest - len(tokens) :] = torch.tensor(tokens)
        attention_BL[row, longest - len(tokens) :] = 1
        first = longest - len(tokens) + len(request.prefix)
        places.append(torch.arange(first, first + request.new_tokens))
    padded = not bool(attention_BL.all())
    sizes = [request.new_tokens for request in requests]
    return Rows(
        ids_BL.to(model.device),
        attention_BL.to(model.device) if padded else None,
        [longest - request.length for request in requests],
        places,
        [torch.ones(size, dtype=torch.bool) for size in sizes],
        [[-1] * size for size in sizes],
        [[0.0] * size for size in sizes],
        [[0.0] * size for size in sizes],
        [[False] * size for size in sizes],
        [[-1] * size for size in sizes],
        [None] * len(sizes),
        [0] * len(sizes),
        list(sizes),
    )


@torch.no_grad()
def denoise(
    model: Model,
    requests: Sequence[Request],
    settings: Settings,
    observer: Observer | None = None,
    on_commit: OnCommit | None = None,
) -> Rows:
    """Decode a batch. The row that the observer and `on_commit` are told is the request's index in the call."""
    rows = start(model, requests)
    rule = unmasking.canonical(settings.rule)
    plans = [schedules.plan(r.new_tokens, settings.steps, settings.block_length, settings.compat) for r in requests]
    sources = [RowRandom(request, settings, rule) for request in requests]
    for step in range(max(len(plan) for plan in plans)):
        # 1. The rows that commit something at this step, their candidates and counts.
        draws = [source.draw() for source in sources]
        candidates: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        for row, plan in enumerate(plans):
            if step >= len(plan):
                continue
            block, count = plan[step]
            inside = inside_block(block, len(rows.masked[row]), settings.block_length) & rows.masked[row]
            if settings.compat == "dream":
                per_block = len(plan) // (plan[-1][0] + 1)
                count = schedules.dream_count(int(inside.sum()), step % per_block, per_block)
            if count > 0:
                candidates[row], counts[row] = inside.nonzero()[:, 0], count
        if not candidates:
            continue
        # 2. Logits where a token may be committed; a token and a score for each.
        proposal = propose(
            model, settings, rule, _logits_at(model, rows, candidates, settings), candidates, draws,
            topk_columns(rows, candidates, settings), measured=observer is not None,
        )  # fmt: skip
        # 3. The surest candidates of each row are committed.
        commits = []
        offset = 0
        for row, waiting in candidates.items():
            here = slice(offset, offset + len(waiting))
            offset = here.stop
            if observer is not None:
                observe(observer, proposal, here, step, requests[row].index, waiting)
            chosen = proposal.picked(here, counts[row], settings.alg_temperature)
            scores_n = proposal.scores_N[here] if settings.alg_temperature == 0 else None
            tied_n = note_ties(rows, row, step, waiting, scores_n, chosen)
            taken = chosen.cpu()
            commits.append(Commit(row, step, requests[row].index, here.start + chosen, waiting[taken], tied_n[taken]))
        commit(model, rows, proposal, commits, on_commit)
        del proposal  # with the logits that it may keep: the next step's would come on top
    return rows


def note_ties(rows: Rows, row: int, step: int, candidates: Tensor, scores_n: Tensor | None, chosen: Tensor) -> Tensor:
    """Note which candidates stand in a tie for this commit; bool [n] on the CPU.

    Args:
        scores_n: what the candidates were ranked by, largest first; None where no ranking decided.
        chosen: indices of those that are committed.
    """
    since = rows.tied_since[row]
    tied_n = torch.zeros(len(candidates), dtype=torch.bool)
    if scores_n is not None:
        tied_n = unmasking.tie_set(scores_n, chosen).cpu()
    any_tied = bool(tied_n.any())
    if not any_tied and since is None:
        for place in candidates[chosen.cpu()].tolist():
            rows.tied_from[row][place] = step
        return tied_n
    since_n = torch.full_like(candidates, -1) if since is None else since[candidates]
    since_n = torch.where((since_n < 0) & tied_n, step, since_n)
    taken = chosen.cpu()
    for place, first in zip(candidates[taken].tolist(), since_n[taken].tolist(), strict=True):
        rows.tied_from[row][place] = first if first >= 0 else step
    rows.tied_since[row] = None
    if any_tied:
        now = torch.full((len(rows.masked[row]),), -1)
        now[candidates] = torch.where(tied_n, since_n, -1)
        rows.tied_since[row] = now
    return tied_n


def inside_block(block: int, size: int, block_length: int | None) -> Tensor:
    """Which of a row's `size` new tokens lie in a block. bool [size]."""
    width = size if block_length is None else block_length
    inside = torch.zeros(size, dtype=torch.bool)
    inside[block * width : (block + 1) * width] = True
    return inside


def _logits_at(model: Model, rows: Rows, candidates: dict[int, Tensor], settings: Settings) -> LogitsAt:
    """The network's answer at the candidates, guided if asked; logits are made of it where they are asked for."""
    active = list(candidates)
    everyone = len(active) == rows.ids_BL.shape[0]
    ids_BL = rows.ids_BL if everyone else rows.ids_BL[active]
    attention_BL = rows.attention_BL if everyone or rows.attention_BL is None else rows.attention_BL[active]
    row_N = torch.cat([torch.full((len(candidates[row]),), place) for place, row in enumerate(active)]).to(model.device)
    place_N = torch.cat([rows.places[row][candidates[row]] for row in active]).to(model.device)

    def at_candidates(tokens_BL: Tensor) -> Tensor:
        for row in active:
            rows.forwards[row] += 1
        return model.hidden(tokens_BL, attention_BL)[row_N, place_N]

    hidden_ND = at_candidates(ids_BL)
    if settings.cfg_scale == 0:
        return lambda some: model.head(hidden_ND[some])
    assert model.ids.mask is not None
    blind_BL = torch.full_like(ids_BL, model.ids.mask)  # the prompt is masked, what was committed stays
    for place, row in enumerate(active):
        new = rows.places[row].to(model.device)
        blind_BL[place, new] = ids_BL[place, new]
    blind_ND = at_candidates(blind_BL)

    def guided(some: slice | Tensor) -> Tensor:
        unconditional_nV = model.head(blind_ND[some])
        return model.head(hidden_ND[some]).sub_(unconditional_nV).mul_(settings.cfg_scale + 1).add_(unconditional_nV)

    return guided


def topk_columns(rows: Rows, candidates: dict[int, Tensor], settings: Settings) -> Callable[[int], tuple[Tensor, int]]:
    """Of a row, the columns of its candidates and its width, as torch.topk sees the row.

    As the public code has it: in its batches with the pads; elsewhere as the row stands alone.
    """
    width = rows.ids_BL.shape[1]

    def columns(row: int) -> tuple[Tensor, int]:
        pads = 0 if settings.compat else rows.pads[row]
        return rows.places[row][candidates[row]] - pads, width - pads

    return columns


def observe(observer: Observer, proposal: Proposal, here: slice, step: int, index: int, candidates: Tensor) -> None:
    """Tell an observer a row's candidates with the model's confidence and entropy."""
    assert proposal.own is not None
    own = proposal.own
    observer(step, index, candidates.tolist(), own.best_N[here].tolist(), own.entropy_N[here].tolist())


@dataclass
class Commit:
    """What a row commits at a step.

    Attributes:
        at_k: the candidates among all of the step's. places_k: among the row's new tokens.
        tied_k: whether a tie decided.
    """

    row: int
    step: int
    index: int
    at_k: Tensor
    places_k: Tensor
    tied_k: Tensor


def commit(model: Model, rows: Rows, proposal: Proposal, commits: Sequence[Commit], on_commit: OnCommit | None) -> None:
    """Write the tokens of a step into the rows and record when, how surely, and whether by a tie."""
    at_K = torch.cat([one.at_k for one in commits])
    tokens_K = proposal.tokens_N[at_K]
    row_K = torch.cat([torch.full_like(one.places_k, one.row) for one in commits])
    column_K = torch.cat([rows.places[one.row][one.places_k] for one in commits])
    rows.ids_BL[row_K.to(model.device), column_K.to(model.device)] = tokens_K
    tokens, (confidence, entropy) = tokens_K.tolist(), proposal.own_at(at_K)
    first = 0
    for one in commits:
        places, here = one.places_k.tolist(), slice(first, first + len(one.places_k))
        first = here.stop
        row = one.row
        columns = (places, tokens[here], confidence[here], entropy[here], one.tied_k.tolist())
        for place, token, sure, spread, by_tie in zip(*columns, strict=True):
            if token == model.ids.mask:
                continue  # the public samplers may draw the mask itself: the place simply stays masked
            rows.masked[row][place] = False
            rows.reveal[row][place] = one.step
            rows.confidence[row][place] = sure
            rows.entropy[row][place] = spread
            rows.tied[row][place] = by_tie
        if on_commit is not None:
            on_commit(one.step, one.index, places, tokens[here])

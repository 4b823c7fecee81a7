"""The exact denoising loop: one batch of rows, any unmasking rule, the public samplers' quirks on request.

Shapes: B rows, L length, N candidates of all rows, V vocabulary, n masks of one row.
Rows never influence each other: counts, random numbers and positions are per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.diffusion import schedules, unmasking
from dcoder_cli.diffusion.randomness import generator
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


@dataclass(frozen=True)
class Draws:
    """A row's random numbers for one step, one for each new token: of tokens, of their order, of ties; empty where not needed."""

    tokens: Tensor
    order: Tensor
    ties: Tensor


class RowRandom:
    """A row's random numbers: its own generators, so that neither its neighbours nor the tie break move its other draws."""

    def __init__(self, request: Request, settings: Settings, rule: str) -> None:
        self.settings, self.rule, self.size = settings, rule, request.new_tokens
        self.source = generator(settings.seed, "sample", request.seed)
        self.tie_source = generator(settings.seed, "ties", request.seed)

    def draw(self) -> Draws:
        """The next step's numbers."""
        return Draws(
            self._numbers(self.settings.temperature > 0, self.source),
            self._numbers(_needs_order(self.rule, self.settings), self.source),
            self._numbers(self.settings.tie_break == "random", self.tie_source),
        )

    def _numbers(self, wanted: bool, source: torch.Generator) -> Tensor:
        return torch.rand(self.size, generator=source) if wanted else torch.empty(0)


@dataclass
class Proposal:
    """A token and a score for each of N candidates, rows one after another.

    Attributes:
        raw_NV: the model's logits.
        tokens_N: the token chosen for each.
        scores_N: how sure each is under the rule; the largest are committed first.
        columns_N, widths_N: each candidate's column in its row, and that row's columns; None but for topk.
        uniform_N: the random numbers that decide the order, where the settings need any.
        keys_N: what orders equal scores, the largest first; None where the leftmost comes first, or topk decides.
    """

    raw_NV: Tensor
    tokens_N: Tensor
    scores_N: Tensor
    uniform_N: Tensor | None
    keys_N: Tensor | None
    columns_N: Tensor | None = None
    widths_N: Tensor | None = None

    def ranked(self, scores_n: Tensor, here: slice, count: int) -> Tensor:
        """Indices of a row's `count` candidates with the largest scores, ties broken as the settings say."""
        if self.columns_N is not None and self.widths_N is not None:
            return unmasking.pick_by_topk(scores_n, count, self.columns_N[here], int(self.widths_N[here.start]))
        return unmasking.pick(scores_n, count, 0.0, None, self.keys_N[here] if self.keys_N is not None else None)

    def picked(self, here: slice, count: int, alg_temperature: float) -> Tensor:
        """Indices of the candidates of a row to commit under the rule, `here` the row's part of N."""
        if alg_temperature > 0:
            assert self.uniform_N is not None
            return unmasking.pick(self.scores_N[here], count, alg_temperature, self.uniform_N[here])
        return self.ranked(self.scores_N[here], here, count)


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
        raw_NV = _logits(model, rows, candidates, settings)
        proposal = propose(model, rows, settings, rule, raw_NV, candidates, draws)
        # 3. The surest candidates of each row are committed.
        offset = 0
        for row in candidates:
            here = slice(offset, offset + len(candidates[row]))
            offset = here.stop
            if observer is not None:
                observe(observer, step, requests[row].index, candidates[row], raw_NV[here])
            chosen = proposal.picked(here, counts[row], settings.alg_temperature)
            scores_n = proposal.scores_N[here] if settings.alg_temperature == 0 else None
            tied_n = note_ties(rows, row, step, candidates[row], scores_n, chosen)
            places, tokens = candidates[row][chosen.cpu()], proposal.tokens_N[here][chosen]
            commit(model, rows, row, step, places, tokens, raw_NV[here][chosen], tied_n[chosen.cpu()])
            if on_commit is not None:
                on_commit(step, requests[row].index, places.tolist(), tokens.tolist())
    return rows


def propose(
    model: Model,
    rows: Rows,
    settings: Settings,
    rule: str,
    raw_NV: Tensor,
    candidates: dict[int, Tensor],
    draws: Sequence[Draws],
) -> Proposal:
    """A token and a score for each candidate of the rows in `candidates`.

    Args:
        raw_NV: the model's logits at the candidates, rows in the order of `candidates`.
        candidates: row -> indices among its new tokens.
        draws: for each row of the batch its random numbers for this step.
    """
    own_NV = _bias(model, raw_NV, candidates, settings)
    logits_NV = unmasking.filter_logits(own_NV, settings.temperature, settings.top_p, settings.top_k)
    probabilities_NV = torch.softmax(logits_NV, dim=-1)
    pairs = candidates.items()
    uniform_N = torch.cat([draws[row].tokens[places] for row, places in pairs]) if settings.temperature > 0 else None
    order_N = torch.cat([draws[row].order[places] for row, places in pairs]) if _needs_order(rule, settings) else None
    tokens_N = unmasking.choose(probabilities_NV, settings.temperature, uniform_N)
    # LLaDA takes its confidence before temperature and filters, Dream after them.
    scored_NV = torch.softmax(raw_NV, dim=-1) if settings.compat == "llada" else probabilities_NV
    places_N = torch.cat(list(candidates.values())).to(raw_NV.device)
    scores_N = unmasking.score(rule, scored_NV, tokens_N, places_N, order_N)
    keys_N: Tensor | None = None
    if settings.tie_break == "right":
        keys_N = places_N
    elif settings.tie_break == "random":
        keys_N = torch.cat([draws[row].ties[places] for row, places in pairs]).to(raw_NV.device)
    elif settings.tie_break == "model" and logits_NV is not own_NV and _any_equal(scores_N):
        # The same rule on the model's own distribution, neither heated nor filtered.
        keys_N = unmasking.score(rule, torch.softmax(own_NV, dim=-1), tokens_N, places_N, order_N)
    if settings.tie_break != "topk":
        return Proposal(raw_NV, tokens_N, scores_N, order_N, keys_N)
    # The row as the public code has it: in its batches with the pads; elsewhere as the row stands alone.
    width = rows.ids_BL.shape[1]
    pads = {row: 0 if settings.compat else rows.pads[row] for row in candidates}
    columns_N = torch.cat([rows.places[row][places] - pads[row] for row, places in pairs]).to(raw_NV.device)
    widths_N = torch.cat([torch.full_like(places, width - pads[row]) for row, places in pairs])
    return Proposal(raw_NV, tokens_N, scores_N, order_N, keys_N, columns_N, widths_N)


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


def _any_equal(scores_N: Tensor) -> bool:
    sorted_N = torch.sort(scores_N).values
    return bool((sorted_N[1:] == sorted_N[:-1]).any())


def _needs_order(rule: str, settings: Settings) -> bool:
    return rule == "random" or settings.alg_temperature > 0


def inside_block(block: int, size: int, block_length: int | None) -> Tensor:
    """Which of a row's `size` new tokens lie in a block. bool [size]."""
    width = size if block_length is None else block_length
    inside = torch.zeros(size, dtype=torch.bool)
    inside[block * width : (block + 1) * width] = True
    return inside


def _logits(model: Model, rows: Rows, candidates: dict[int, Tensor], settings: Settings) -> Tensor:
    """Raw logits [N, V] at the candidates, guided if asked."""
    active = list(candidates)
    everyone = len(active) == rows.ids_BL.shape[0]
    ids_BL = rows.ids_BL if everyone else rows.ids_BL[active]
    attention_BL = rows.attention_BL if everyone or rows.attention_BL is None else rows.attention_BL[active]
    row_N = torch.cat([torch.full((len(candidates[row]),), place) for place, row in enumerate(active)]).to(model.device)
    place_N = torch.cat([rows.places[row][candidates[row]] for row in active]).to(model.device)

    def at_candidates(tokens_BL: Tensor) -> Tensor:
        for row in active:
            rows.forwards[row] += 1
        return model.head(model.hidden(tokens_BL, attention_BL)[row_N, place_N])

    conditional_NV = at_candidates(ids_BL)
    if settings.cfg_scale == 0:
        return conditional_NV
    assert model.ids.mask is not None
    blind_BL = torch.full_like(ids_BL, model.ids.mask)  # the prompt is masked, what was committed stays
    for place, row in enumerate(active):
        new = rows.places[row].to(model.device)
        blind_BL[place, new] = ids_BL[place, new]
    unconditional_NV = at_candidates(blind_BL)
    return unconditional_NV + (settings.cfg_scale + 1) * (conditional_NV - unconditional_NV)


def _bias(model: Model, logits_NV: Tensor, candidates: dict[int, Tensor], settings: Settings) -> Tensor:
    """Logits with the mask forbidden (but for the public samplers, which allow it) and end tokens held back."""
    stops = sorted(model.ids.stops)
    logits_NV = logits_NV.clone()
    if settings.compat is None:
        logits_NV[:, model.ids.mask] = -torch.inf
    if settings.stop_penalty and stops:
        logits_NV[:, stops] -= settings.stop_penalty
    if settings.min_new_tokens and stops:
        early_N = (torch.cat(list(candidates.values())) < settings.min_new_tokens).to(logits_NV.device)
        held_NS = logits_NV[:, stops]
        logits_NV[:, stops] = torch.where(early_N[:, None], torch.full_like(held_NS, -torch.inf), held_NS)
    return logits_NV


def observe(observer: Observer, step: int, index: int, candidates: Tensor, raw_nV: Tensor) -> None:
    """Tell an observer a row's candidates with the model's confidence and entropy."""
    logs_nV = torch.log_softmax(raw_nV, dim=-1)
    entropy_n = -(logs_nV.exp() * logs_nV).sum(dim=-1)
    observer(step, index, candidates.tolist(), logs_nV.max(dim=-1).values.exp().tolist(), entropy_n.tolist())


def commit(
    model: Model, rows: Rows, row: int, step: int, chosen: Tensor, tokens: Tensor, raw: Tensor, tied: Tensor
) -> None:
    """Write tokens into a row and record when, how surely, and whether by a tie."""
    rows.ids_BL[row, rows.places[row][chosen].to(model.device)] = tokens
    logs = torch.log_softmax(raw, dim=-1)
    confidence = logs.gather(-1, tokens[:, None])[:, 0].exp().tolist()
    entropy = (-(logs.exp() * logs).sum(dim=-1)).tolist()
    columns = (chosen.tolist(), tokens.tolist(), confidence, entropy, tied.tolist())
    for place, token, sure, spread, by_tie in zip(*columns, strict=True):
        if token == model.ids.mask:
            continue  # the public samplers may draw the mask itself: the place simply stays masked
        rows.masked[row][place] = False
        rows.reveal[row][place] = step
        rows.confidence[row][place] = sure
        rows.entropy[row][place] = spread
        rows.tied[row][place] = by_tie

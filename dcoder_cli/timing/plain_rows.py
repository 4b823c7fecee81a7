"""Decoding as it is defined: one row alone, one step after another, whole logits, a place at a time. The engine's reference.

It shares with the engine only what is not its own: schedules, random numbers, filters and the network. The tests hold the
engine to it; `bench generate` times the fast mode beside it, and asks it whether two courses differ by rounding alone.

Shapes: L columns of the row, n candidates, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.decoding.proposal import RowRandom
from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.diffusion import schedules, unmasking
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.key_values import KeyValues
from dcoder_cli.timing.near_ties import Written, place_gap, token_gap


@dataclass
class Plain:
    """A row being decoded; the lists are a trajectory's, with None where nothing is committed yet.

    With `follow` its commits are those of that answer, and `gaps` says of each step how far they are from what it would
    have committed: 0 for the same, else the largest difference of the scores, confidences or probabilities that decided.
    """

    ids_L: list[int]
    first: int
    new: int
    forwards: int = 0
    kept: int = 0
    told: list[tuple[int, list[int], list[int]]] = field(default_factory=list)  # (step, places, tokens), surest first
    seen: list[tuple[int, list[int], list[float], list[float]]] = field(default_factory=list)  # as observers are told
    follow: Written | None = None
    gaps: list[float] = field(default_factory=list)
    on_step: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.kept = self.new
        self.reveal = [-1] * self.new
        self.confidence, self.entropy = [0.0] * self.new, [0.0] * self.new
        self.tied, self.tied_from = [False] * self.new, [-1] * self.new
        self.since: dict[int, int] = {}

    def columns(self) -> dict[str, list[Any]]:
        """As the engine gives them."""
        tokens = self.ids_L[self.first : self.first + self.new]
        every: dict[str, list[Any]] = {
            "tokens": tokens, "reveal_step": self.reveal, "confidence": self.confidence, "entropy": self.entropy,
            "tied": self.tied, "tied_from": self.tied_from,
        }  # fmt: skip
        return {name: values[: self.kept] for name, values in every.items()}


@torch.no_grad()
def decode(
    model: Model,
    request: Request,
    settings: Settings,
    pads: int = 0,
    follow: Written | None = None,
    on_step: Callable[[], None] | None = None,
) -> Plain:
    """One row. `pads`: columns that stand left of it where the public samplers' topk looks at it; `follow`: see Plain."""
    mask = model.ids.mask
    assert mask is not None
    ids = [*request.prefix, *[mask] * request.new_tokens, *request.suffix]
    row = Plain(ids, len(request.prefix), request.new_tokens, follow=follow, on_step=on_step)
    draws = RowRandom(request, settings, unmasking.canonical(settings.rule))
    with contextlib.suppress(_Astray):
        if settings.mode == "fast":
            _fast(model, row, settings, draws)
        else:
            _exact(model, row, settings, draws, pads)
    return row


class _Astray(Exception):
    """What is followed commits nothing at a step, or a place that is none of its block's masks."""


def _exact(model: Model, row: Plain, settings: Settings, draws: RowRandom, pads: int) -> None:
    plan = schedules.plan(row.new, settings.steps, settings.block_length, settings.compat)
    width = settings.block_length or row.new
    for step, (block, count) in enumerate(plan):
        numbers = draws.draw()
        waiting = [place for place in range(block * width, (block + 1) * width) if _masked(model, row, place)]
        if settings.compat == "dream":
            per_block = len(plan) // (plan[-1][0] + 1)
            count = schedules.dream_count(len(waiting), step % per_block, per_block)
        if not count or not waiting:
            continue
        raw_nV = _logits(model, row, [row.first + place for place in waiting], settings)
        _commit(model, row, settings, step, waiting, raw_nV, numbers, count, pads)


def _fast(model: Model, row: Plain, settings: Settings, draws: RowRandom) -> None:
    width = settings.block_for(row.new) or row.new
    plan = schedules.plan(row.new, settings.steps, width, None)
    step = 0
    for block in range(row.new // width):
        cache, age = KeyValues(), 0
        while waiting := [place for place in range(block * width, (block + 1) * width) if _masked(model, row, place)]:
            numbers = draws.draw()
            ids_1L = torch.tensor([row.ids_L], device=model.device)
            start = 0
            if settings.cache == "none":
                hidden_1WD = model.hidden(ids_1L)
            elif not cache.filled or (settings.cache_refresh is not None and age >= settings.cache_refresh):
                cache, age = KeyValues(), 1
                hidden_1WD = model.hidden_window(ids_1L, None, cache)
            else:
                age += 1
                start = row.first + block * width
                end = start + width if settings.cache == "dual" else len(row.ids_L)
                hidden_1WD = model.hidden_window(ids_1L, None, cache, [start], [end])
            row.forwards += 1
            raw_nV = model.head(hidden_1WD[0, [row.first + place - start for place in waiting]])
            count = plan[step][1] if settings.commit == "schedule" else None
            _commit(model, row, settings, step, waiting, raw_nV, numbers, count, 0)
            step += 1
            if settings.early_stop and _complete(model, row):
                return


def _logits(model: Model, row: Plain, columns: list[int], settings: Settings) -> Tensor:
    ids_1L = torch.tensor([row.ids_L], device=model.device)
    logits_nV = model.head(model.hidden(ids_1L)[0, columns])
    row.forwards += 1
    if settings.cfg_scale:
        assert model.ids.mask is not None
        blind_1L = torch.full_like(ids_1L, model.ids.mask)
        blind_1L[:, row.first : row.first + row.new] = ids_1L[:, row.first : row.first + row.new]
        blind_nV = model.head(model.hidden(blind_1L)[0, columns])
        row.forwards += 1
        logits_nV = blind_nV + (settings.cfg_scale + 1) * (logits_nV - blind_nV)
    return logits_nV


def _commit(
    model: Model, row: Plain, settings: Settings, step: int, waiting: list[int], raw_nV: Tensor, numbers: Any,
    count: int | None, pads: int,
) -> None:  # fmt: skip
    rule = unmasking.canonical(settings.rule)
    logs_nV = torch.log_softmax(raw_nV, dim=-1)
    entropy = (-(logs_nV.exp() * logs_nV).sum(dim=-1)).tolist()
    row.seen.append((step, waiting, logs_nV.max(dim=-1).values.exp().tolist(), entropy))
    biased_nV = raw_nV.clone()
    if settings.compat is None:
        model.ids.forbid(biased_nV)
    stops = sorted(model.ids.stops)
    for at, place in enumerate(waiting):
        for stop in stops:
            biased_nV[at, stop] -= settings.stop_penalty
            if place < settings.min_new_tokens:
                biased_nV[at, stop] = -torch.inf
    filtered_nV = unmasking.filter_logits(biased_nV, settings.temperature, settings.top_p, settings.top_k)
    probabilities_nV = torch.softmax(filtered_nV, dim=-1)
    places_n = torch.tensor(waiting, device=model.device)
    uniform_n = numbers.tokens.to(model.device)[places_n] if settings.temperature > 0 else None
    tokens_n = unmasking.choose(probabilities_nV, settings.temperature, uniform_n)
    order_n = numbers.order.to(model.device)[places_n] if len(numbers.order) else None
    own_nV = torch.softmax(raw_nV if settings.compat == "llada" else biased_nV, dim=-1)
    own_n = unmasking.score(rule, own_nV, tokens_n, places_n, order_n)
    scores_n = (
        own_n if settings.compat == "llada" else unmasking.score(rule, probabilities_nV, tokens_n, places_n, order_n)
    )
    scores, own = scores_n.tolist(), own_n.tolist()

    def ranked(by: list[float], wanted: int) -> list[int]:
        """Indices of the `wanted` largest, ties as the settings say."""
        every = range(len(waiting))
        if settings.tie_break == "topk":
            width = pads + len(row.ids_L)
            by_column = torch.full((width,), -torch.inf, dtype=scores_n.dtype, device=model.device)
            for at in every:
                by_column[pads + row.first + waiting[at]] = by[at]
            return [waiting.index(int(one) - pads - row.first) for one in torch.topk(by_column, wanted).indices]
        key = {
            "model": lambda at: (-by[at], -own[at]), "left": lambda at: (-by[at], waiting[at]),
            "right": lambda at: (-by[at], -waiting[at]), "random": lambda at: (-by[at], -float(numbers.ties[waiting[at]])),
        }[settings.tie_break or "model"]  # fmt: skip
        return sorted(every, key=key)[:wanted]

    if settings.alg_temperature > 0:
        assert order_n is not None
        drawn = [
            score / settings.alg_temperature - math.log(-math.log(min(max(one, 1e-12), 1 - 1e-12)))
            for score, one in zip(scores_n.double().tolist(), order_n.double().tolist(), strict=True)
        ]
        order = sorted(range(len(waiting)), key=lambda at: -drawn[at])
        ranked_by = None
    else:
        order, ranked_by = ranked(scores, len(waiting) if count is None else min(count, len(waiting))), scores
    confidence = logs_nV.gather(-1, tokens_n[:, None])[:, 0].exp().tolist()
    if count is not None:
        chosen = order[:count]
    else:
        chosen, ranked_by = _allowed(settings, order, ranked, confidence, entropy, ranked_by)
    in_tie = _tie(ranked_by, chosen)
    tokens = tokens_n.tolist()
    if row.follow is not None:
        given = {
            place: token
            for place, (token, at) in enumerate(zip(row.follow.tokens, row.follow.reveal_step, strict=True))
            if at == step
        }
        if not given or not given.keys() <= set(waiting):
            row.gaps.append(math.inf)
            raise _Astray
        taken = [waiting.index(place) for place in given]
        gap = place_gap(settings, taken, chosen, scores, confidence, count is None)
        token_gaps = [
            token_gap(probabilities_nV[at], tokens[at], token, None if uniform_n is None else float(uniform_n[at]))
            for at, token in zip(taken, given.values(), strict=True)
            if token != tokens[at]
        ]
        row.gaps.append(max([gap, *token_gaps]))
        chosen = taken
        for at, token in zip(taken, given.values(), strict=True):
            tokens[at] = token
    since = {waiting[at]: row.since.get(waiting[at], step) for at in in_tie}
    before, row.since = row.since, since
    for at in chosen:
        place, token = waiting[at], tokens[at]
        row.tied_from[place] = since.get(place, before.get(place, step))
        row.ids_L[row.first + place] = token
        if token != model.ids.mask:
            row.reveal[place], row.tied[place] = step, at in in_tie
            row.confidence[place], row.entropy[place] = confidence[at], entropy[at]
    row.told.append((step, [waiting[at] for at in chosen], [tokens[at] for at in chosen]))
    if row.on_step is not None:
        row.on_step()


def _allowed(
    settings: Settings, order: list[int], ranked: Any, confidence: list[float], entropy: list[float],
    ranked_by: list[float] | None,
) -> tuple[list[int], list[float] | None]:  # fmt: skip
    if settings.commit == "entropy-bound":
        assert settings.entropy_bound is not None
        total, largest, count = 0.0, 0.0, 0
        for at in order:
            total, largest = total + entropy[at], max(largest, entropy[at])
            if total - largest > settings.entropy_bound:
                break
            count += 1
        return order[: max(count, 1)], ranked_by
    if settings.commit == "factor":
        assert settings.factor is not None
        by_confidence = ranked(confidence, len(order))
        count = sum((n + 2) * (1 - confidence[at]) < settings.factor for n, at in enumerate(by_confidence))
        return (by_confidence[:count], confidence) if count else (order[:1], ranked_by)
    assert settings.threshold is not None
    above = [at for at in order if confidence[at] > settings.threshold]
    return (above, None) if above else (order[:1], ranked_by)


def _tie(ranked_by: list[float] | None, chosen: list[int]) -> set[int]:
    """Those whose equal scores left it open which are chosen."""
    if ranked_by is None:
        return set()
    least = min(ranked_by[at] for at in chosen)
    equal = {at for at, score in enumerate(ranked_by) if score == least}
    return equal if equal - set(chosen) else set()


def _masked(model: Model, row: Plain, place: int) -> bool:
    return row.ids_L[row.first + place] == model.ids.mask


def _complete(model: Model, row: Plain) -> bool:
    for place in range(row.new):
        if _masked(model, row, place):
            return False
        if row.ids_L[row.first + place] in model.ids.stops:
            row.kept = place + 1
            return True
    return False

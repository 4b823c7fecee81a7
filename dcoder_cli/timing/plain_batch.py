"""Exact decoding as the public samplers write it: one left-padded batch, whole rows and all logits at every step.

The manner is that of Dream's `_sample`: each step evaluates the whole canvas, makes logits at every place of every row,
sorts whole vocabularies for top-p, and chooses row by row. `bench generate` times the engine beside it. It shares with the
engine only what is not its own: the schedule, the rules' scores, the random numbers and the network.

Shapes: B rows, L columns, n masks of one row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dcoder_cli.decoding.proposal import Draws, RowRandom
from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.diffusion import schedules, unmasking
from dcoder_cli.model.backbone import Model
from dcoder_cli.timing.near_ties import Written


@torch.no_grad()
def decode(
    model: Model, requests: Sequence[Request], settings: Settings, on_step: Callable[[], None] | None = None
) -> list[Written]:
    """The answers of rows with equally many new tokens, in order.

    Args:
        settings: of exact mode, with rule, temperature, top-p and steps; ties go by the model's own scores, then leftmost.
        on_step: called after each step.
    """
    mask, new = model.ids.mask, requests[0].new_tokens
    assert mask is not None
    rule = unmasking.canonical(settings.rule)
    longest = max(len(request.prefix) for request in requests)
    ids_BL = torch.full((len(requests), longest + new), mask, device=model.device)
    attention_BL = torch.ones_like(ids_BL)
    for row, request in enumerate(requests):
        pads = longest - len(request.prefix)
        ids_BL[row, :pads] = model.ids.pad or 0
        attention_BL[row, :pads] = 0
        ids_BL[row, pads:longest] = torch.tensor(request.prefix, device=model.device)
    reveal_BL = torch.full_like(ids_BL, -1)
    draws = [RowRandom(request, settings, rule) for request in requests]
    for step, (_, count) in enumerate(schedules.plan(new, settings.steps, None, None)):
        logits_BLV = model.logits(ids_BL, None if bool(attention_BL.all()) else attention_BL)
        for row in range(len(requests)):
            masked_n = (ids_BL[row] == mask).nonzero()[:, 0]
            masked_n = masked_n[masked_n >= longest]
            tokens_n, order_n = _choose(
                model, settings, logits_BLV[row, masked_n], masked_n - longest, draws[row].draw()
            )
            chosen_k = order_n[:count]
            ids_BL[row, masked_n[chosen_k]] = tokens_n[chosen_k]
            reveal_BL[row, masked_n[chosen_k]] = step
        if on_step is not None:
            on_step()
    return [
        Written(tokens, steps)
        for tokens, steps in zip(ids_BL[:, longest:].tolist(), reveal_BL[:, longest:].tolist(), strict=True)
    ]


def _choose(
    model: Model, settings: Settings, logits_nV: Tensor, places_n: Tensor, numbers: Draws
) -> tuple[Tensor, Tensor]:
    """A token for each mask of a row, and the masks with the surest first."""
    rule = unmasking.canonical(settings.rule)
    model.ids.forbid(logits_nV)
    own_nV = torch.softmax(logits_nV, dim=-1)
    heated_nV = logits_nV / settings.temperature if settings.temperature > 0 else logits_nV
    probabilities_nV = torch.softmax(_nucleus(heated_nV, settings.top_p), dim=-1)
    uniform_n = numbers.tokens.to(places_n.device)[places_n] if settings.temperature > 0 else None
    order_n = numbers.order.to(places_n.device)[places_n] if len(numbers.order) else None
    tokens_n = unmasking.choose(probabilities_nV, settings.temperature, uniform_n)
    first_n = torch.sort(
        unmasking.score(rule, own_nV, tokens_n, places_n, order_n), descending=True, stable=True
    ).indices
    scores_n = unmasking.score(rule, probabilities_nV, tokens_n, places_n, order_n)
    return tokens_n, first_n[torch.sort(scores_n[first_n], descending=True, stable=True).indices]


def _nucleus(logits_nV: Tensor, top_p: float | None) -> Tensor:
    """Logits with those outside the top-p nucleus at -inf, by a sort of all of them."""
    if top_p is None or top_p >= 1:
        return logits_nV
    sorted_nV, index_nV = torch.sort(torch.softmax(logits_nV, dim=-1), dim=-1, descending=True, stable=True)
    beyond_nV = sorted_nV.cumsum(dim=-1).roll(1, dims=-1) > top_p
    beyond_nV[:, 0] = False
    return logits_nV.masked_fill(torch.zeros_like(beyond_nV).scatter(-1, index_nV, beyond_nV), -torch.inf)

"""AR models behind the sampler's interface: transformers' `generate`, with our filters and per-row random numbers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.decoding.rows import Decoded, Ticket
from dcoder_cli.diffusion import unmasking
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model


class _Draw:
    """A logits processor that makes greedy decoding draw: all but the drawn token go to -inf.

    It keeps the confidence and entropy of each draw, and gives every row its own random numbers, so a
    row's text does not depend on its neighbours.
    """

    def __init__(self, tickets: Sequence[Ticket], stops: list[int]) -> None:
        self.settings, self.stops = tickets[0].settings, stops
        self.watched = {
            row: one for row, one in enumerate(tickets) if one.on_commit
        }  # rows without a stop token so far
        self.generators = [generator(one.settings.seed, "sample", one.request.seed) for one in tickets]
        self.confidence: list[Tensor] = []
        self.entropy: list[Tensor] = []

    def __call__(self, input_ids_BL: Tensor, scores_BV: Tensor) -> Tensor:
        raw_BV = scores_BV.float()
        logits_BV = raw_BV.clone()
        if self.stops:
            logits_BV[:, self.stops] -= self.settings.stop_penalty
            if len(self.confidence) < self.settings.min_new_tokens:
                logits_BV[:, self.stops] = -torch.inf
        logits_BV = unmasking.filter_logits(
            logits_BV, self.settings.temperature, self.settings.top_p, self.settings.top_k
        )
        uniform_B = torch.cat([torch.rand(1, generator=source) for source in self.generators])
        tokens_B = unmasking.choose(torch.softmax(logits_BV, dim=-1), self.settings.temperature, uniform_B)
        logs_BV = torch.log_softmax(raw_BV, dim=-1)
        self.confidence.append(logs_BV.gather(-1, tokens_B[:, None])[:, 0].exp())
        self.entropy.append(-(logs_BV.exp() * logs_BV).sum(dim=-1))
        if self.watched:
            self._tell(tokens_B.tolist())
        return torch.full_like(raw_BV, -torch.inf).scatter_(-1, tokens_B[:, None], 0.0)

    def _tell(self, tokens: list[int]) -> None:
        step = len(self.confidence) - 1
        for row, ticket in list(self.watched.items()):
            assert ticket.on_commit is not None
            ticket.on_commit(step, ticket.request.index, [step], [tokens[row]])
            if tokens[row] in self.stops:
                del self.watched[row]


@torch.no_grad()
def decode(model: Model, tickets: Sequence[Ticket]) -> list[Decoded]:
    """Decode rows with like settings together; a row ends with its first stop token."""
    from transformers import GenerationConfig, LogitsProcessorList

    began = time.perf_counter()
    requests, settings = [ticket.request for ticket in tickets], tickets[0].settings
    longest = max(len(request.prefix) for request in requests)
    filler = model.ids.pad if model.ids.pad is not None else 0
    ids_BL = torch.full((len(requests), longest), filler, dtype=torch.int64)
    attention_BL = torch.zeros(len(requests), longest, dtype=torch.int64)
    for row, request in enumerate(requests):
        ids_BL[row, longest - len(request.prefix) :] = torch.tensor(request.prefix)
        attention_BL[row, longest - len(request.prefix) :] = 1
    stops = sorted(model.ids.stops)
    draw = _Draw(tickets, stops)
    output: Any = model.network.generate(
        input_ids=ids_BL.to(model.device),
        attention_mask=attention_BL.to(model.device),
        generation_config=GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            pad_token_id=filler,
            eos_token_id=stops or None,
        ),
        logits_processor=LogitsProcessorList([draw]),
    )
    confidence_TB = torch.stack(draw.confidence).cpu()
    entropy_TB = torch.stack(draw.entropy).cpu()
    results = []
    for row, ticket in enumerate(tickets):
        tokens = output[row, longest:].tolist()
        end = next((place + 1 for place, token in enumerate(tokens) if token in model.ids.stops), len(tokens))
        columns = {
            "tokens": tokens[:end], "reveal_step": list(range(end)), "confidence": confidence_TB[:end, row].tolist(),
            "entropy": entropy_TB[:end, row].tolist(), "tied": [False] * end, "tied_from": list(range(end)),
        }  # fmt: skip  # an AR model's order is no choice
        results.append(Decoded(ticket, columns, end, len(tickets), time.perf_counter() - began))
    return results


class Batches:
    """Rows of an AR model in the engine's manner: those with like settings that wait together are decoded together."""

    def __init__(self, model: Model, slots: int) -> None:
        self.model, self.slots = model, slots
        self.decoding = 0
        self._tickets: deque[Ticket] = deque()

    @property
    def waiting(self) -> int:
        """Rows without a slot."""
        return len(self._tickets)

    def add(self, ticket: Ticket) -> None:
        """Let a row wait for a slot."""
        self._tickets.append(ticket)

    def drop(self, ticket: Ticket) -> bool:
        """Take a row out that waits; whether it was there."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            return True
        return False

    def step(self) -> list[Decoded]:
        """Decode a batch, to its end."""
        if not self._tickets:
            return []
        alike = replace(self._tickets[0].settings, seed=0)
        batch = [one for one in self._tickets if replace(one.settings, seed=0) == alike][: self.slots]
        for ticket in batch:
            self._tickets.remove(ticket)
        self.decoding = len(batch)
        try:
            return decode(self.model, batch)
        finally:
            self.decoding = 0

"""AR models behind the sampler's interface: transformers' `generate`, with our filters and per-row random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.decoding.exact import OnCommit
from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.diffusion import unmasking
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model


class _Draw:
    """A logits processor that makes greedy decoding draw: all but the drawn token go to -inf.

    It keeps the confidence and entropy of each draw, and gives every row its own random numbers, so a
    row's text does not depend on its neighbours.
    """

    def __init__(
        self, requests: Sequence[Request], settings: Settings, stops: list[int], on_commit: OnCommit | None
    ) -> None:
        self.settings, self.stops, self.on_commit = settings, stops, on_commit
        self.going = {row: request.index for row, request in enumerate(requests)}  # rows without a stop token so far
        self.generators = [generator(settings.seed, "sample", request.seed) for request in requests]
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
        if self.on_commit is not None:
            self._tell(self.on_commit, tokens_B.tolist())
        return torch.full_like(raw_BV, -torch.inf).scatter_(-1, tokens_B[:, None], 0.0)

    def _tell(self, on_commit: OnCommit, tokens: list[int]) -> None:
        step = len(self.confidence) - 1
        for row, index in list(self.going.items()):
            on_commit(step, index, [step], [tokens[row]])
            if tokens[row] in self.stops:
                del self.going[row]


@torch.no_grad()
def decode(
    model: Model, requests: Sequence[Request], settings: Settings, on_commit: OnCommit | None = None
) -> list[tuple[list[int], list[float], list[float]]]:
    """New tokens, confidences and entropies of each request; a row ends with its first stop token."""
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(len(request.prefix) for request in requests)
    filler = model.ids.pad if model.ids.pad is not None else 0
    ids_BL = torch.full((len(requests), longest), filler, dtype=torch.int64)
    attention_BL = torch.zeros(len(requests), longest, dtype=torch.int64)
    for row, request in enumerate(requests):
        ids_BL[row, longest - len(request.prefix) :] = torch.tensor(request.prefix)
        attention_BL[row, longest - len(request.prefix) :] = 1
    stops = sorted(model.ids.stops)
    draw = _Draw(requests, settings, stops, on_commit)
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
    for row in range(len(requests)):
        tokens = output[row, longest:].tolist()
        end = next((place + 1 for place, token in enumerate(tokens) if token in model.ids.stops), len(tokens))
        results.append((tokens[:end], confidence_TB[:end, row].tolist(), entropy_TB[:end, row].tolist()))
    return results

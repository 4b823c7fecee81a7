"""Per-token log-probabilities of completions under a diffusion model, from the passes of an estimator.

Only the rows that are needed are run (a group shares the pass that masks everything), and logits exist only at scored
completion positions. Shapes: B completions, N completion tokens, R rows, L row length, E (completion, pass, token) entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcoder_cli.diffusion import vocabulary
from dcoder_cli.diffusion.coupled import Passes
from dcoder_cli.model import last_block
from dcoder_cli.model.backbone import Model


@dataclass(frozen=True)
class Completion:
    """One sampled answer.

    Attributes:
        prompt: prompt ids.
        tokens: all new tokens, pads after the end of turn included, as the sampler left them.
        scored: how many of them count: up to and including the first end of turn, or all.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    scored: int


def completion_of(prompt: Sequence[int], tokens: Sequence[int], stops: frozenset[int]) -> Completion:
    """A Completion of sampled tokens: it ends at the first end token, for loss and reward alike."""
    end = next((place + 1 for place, token in enumerate(tokens) if token in stops), len(tokens))
    return Completion(tuple(prompt), tuple(tokens), end)


@dataclass(frozen=True)
class Plan:
    """The rows to run and what to read from them.

    Attributes:
        ids_RL: int64 rows, left-padded, with masks put in.
        attention_RL: 1 on tokens, 0 on pads; None where no row is padded.
        row_E, place_E, target_E: where to read which token's log-probability.
        completion_E, token_E, weight_E: where it is added, with which factor.
        shape: (B, longest N).
    """

    ids_RL: Tensor
    attention_RL: Tensor | None
    row_E: Tensor
    place_E: Tensor
    target_E: Tensor
    completion_E: Tensor
    token_E: Tensor
    weight_E: Tensor
    shape: tuple[int, int]


def plan_rows(completions: Sequence[Completion], passes: Sequence[Passes], mask_id: int, pad_id: int) -> Plan:
    """Rows for all passes of all completions, the shared ones once."""
    rows: list[list[int]] = []
    shared: dict[tuple[tuple[int, ...], int], int] = {}
    entries: list[Tensor] = []
    weights: list[Tensor] = []
    longest = max(len(completion.prompt) + len(completion.tokens) for completion in completions)
    for index, (completion, own) in enumerate(zip(completions, passes, strict=True)):
        tokens = torch.tensor(completion.tokens)
        prompt = torch.tensor(completion.prompt, dtype=torch.int64)
        first = longest - len(completion.tokens)
        for number in range(own.masked_PN.shape[0]):
            key = (completion.prompt, len(completion.tokens))
            if number in own.blank and key in shared:
                row = shared[key]
            else:
                row = len(rows)
                masked_prompt = prompt.masked_fill(own.prompt_masked_PM[number], mask_id)
                rows.append([*masked_prompt.tolist(), *tokens.masked_fill(own.masked_PN[number], mask_id).tolist()])
                if number in own.blank:
                    shared[key] = row
            read = own.masked_PN[number, : completion.scored].nonzero()[:, 0]
            entries.append(
                torch.stack(
                    [torch.full_like(read, row), first + read, tokens[read], torch.full_like(read, index), read]
                )
            )
            weights.append(own.weight_PN[number, read])
    ids_RL = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    attention_RL = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, row_ids in enumerate(rows):
        ids_RL[place, longest - len(row_ids) :] = torch.tensor(row_ids)
        attention_RL[place, longest - len(row_ids) :] = 1
    row_E, place_E, target_E, completion_E, token_E = torch.cat(entries, dim=1)
    shape = (len(completions), max(len(completion.tokens) for completion in completions))
    padded = None if bool(attention_RL.all()) else attention_RL
    return Plan(ids_RL, padded, row_E, place_E, target_E, completion_E, token_E, torch.cat(weights), shape)


class EntryLogProbs(nn.Module):
    """Model and log-probabilities as one module, so that DDP sees every weight used inside one forward."""

    def __init__(self, model: Model, rows: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.rows = rows

    def forward(
        self, ids_RL: Tensor, attention_RL: Tensor | None, row_E: Tensor, place_E: Tensor, target_E: Tensor
    ) -> Tensor:
        """log P(target) at each (row, place), at temperature 1, float32 [E]. Each place's logits are computed once, in chunks."""
        places_U, entry_E = torch.unique(row_E * ids_RL.shape[1] + place_E, return_inverse=True)
        with last_block.read_for(self.model, places_U, ids_RL.shape[1], attention_RL):
            hidden_RLD = self.model.hidden(ids_RL, attention_RL)
        hidden_UD = hidden_RLD.flatten(0, 1)[places_U]
        rows = self.rows or vocabulary.chunk_rows(self.model.vocab_size, hidden_UD.device.type)
        return vocabulary.log_probabilities(vocabulary.head_of(self.model), hidden_UD, entry_E, target_E, rows)


def smallest(device: torch.device) -> dict[str, Tensor | None]:
    """Arguments of a forward of one token, which makes a sharded module ready to be gathered."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    return {"ids_RL": zero[None], "attention_RL": None, "row_E": zero, "place_E": zero, "target_E": zero}


def log_probabilities(module: Any, plan: Plan, device: torch.device) -> Tensor:
    """The estimate for every completion token, [B, N]; 0 where a token does not count or no pass masked it."""
    attention_RL = None if plan.attention_RL is None else plan.attention_RL.to(device)
    values_E = module(
        plan.ids_RL.to(device), attention_RL, plan.row_E.to(device), plan.place_E.to(device), plan.target_E.to(device)
    )
    flat = torch.zeros(plan.shape[0] * plan.shape[1], dtype=values_E.dtype, device=device)
    place_E = (plan.completion_E * plan.shape[1] + plan.token_E).to(device)
    return flat.index_add(0, place_E, values_E * plan.weight_E.to(device, values_E.dtype)).view(plan.shape)


def scored_mask(completions: Sequence[Completion]) -> Tensor:
    """bool [B, N]: the tokens that count."""
    longest = max(len(completion.tokens) for completion in completions)
    return torch.arange(longest)[None] < torch.tensor([completion.scored for completion in completions])[:, None]

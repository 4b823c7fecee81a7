"""What an estimate of a token's log-probability can be compared with, beside its own expectation (the variance lab).

    path    log P of the token at the step that committed it, given what was committed before: the product along the
            real decoding path. Tokens of one step share their context, as they did when they were sampled (fast mode).
    masks   the mean of log P over masks with t uniform in (0, 1), given that the token is masked: its term of the ELBO
            (DiffuCoder 2.1, with the 1/t weight and the chance t of being masked cancelling). By Monte Carlo.

Both by the model as it is (temperature 1, nothing filtered) on the whole row, without the caches of the fast mode.
Shapes: C completions, N new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.training.grpo.estimate import Completion, EntryLogProbs

_ROWS = 64  # forwarded together; ours


@dataclass(frozen=True)
class Truths:
    """What is known of some completions' tokens, float64 [C, N] each but `scored_CN`, bool: the tokens that count.

    Attributes:
        path_CN, masks_CN: the two truths, nats.
        masks_error_CN: the standard error of each entry of `masks_CN`.
    """

    scored_CN: Tensor
    path_CN: Tensor
    masks_CN: Tensor
    masks_error_CN: Tensor

    def masks_standard_error(self) -> float:
        """Of the truth "masks": root mean square over tokens, nats."""
        return float(self.masks_error_CN[self.scored_CN].square().mean().sqrt())

    def errors(self, mean_CN: Tensor, variance_CN: Tensor, draws: int) -> dict[str, float]:
        """Mean squared error of one estimate against "own", "path" and "masks", nats^2, mean over tokens.

        Args:
            mean_CN, variance_CN: of `draws` estimates of each token.
        """

        def mean(values_CN: Tensor) -> float:
            return float(values_CN[self.scored_CN].mean())

        variance = mean(variance_CN)
        noise = variance / draws
        to_path = mean((mean_CN - self.path_CN).square()) - noise
        to_masks = mean((mean_CN - self.masks_CN).square()) - noise - self.masks_standard_error() ** 2
        return {"own": variance, "path": max(0.0, to_path) + variance, "masks": max(0.0, to_masks) + variance}


def path(module: EntryLogProbs, completions: Sequence[Completion], steps: Sequence[Sequence[int]]) -> Tensor:
    """float64 [C, N], 0 where a token does not count. `steps`: for each completion the step that committed each token."""
    result = _empty(completions)
    for index, (completion, own) in enumerate(zip(completions, steps, strict=True)):
        step_N = torch.tensor(list(own))
        different = torch.unique(step_N[: completion.scored])
        for part in different.split(_ROWS):
            masked_RN = step_N[None] >= part[:, None]
            read_RN = step_N[None] == part[:, None]
            read_RN[:, completion.scored :] = False
            row_E, token_E = read_RN.nonzero(as_tuple=True)
            result[index, token_E] = _log_probabilities(module, completion, masked_RN, row_E, token_E)
    return result


def masks(
    module: EntryLogProbs, completions: Sequence[Completion], rows: int, sources: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Means and their standard errors, float64 [C, N] each, 0 where a token does not count.

    With t uniform, the number m of masked tokens among which a masked token stands is uniform on 1..N. Rows whose m has
    probability proportional to 1/m give that to every token that they mask, each with the same chance: so the plain
    mean over the rows that mask a token is unbiased. Rows are drawn on until each token was masked twice.

    Args:
        rows: of each completion at least.
        sources: a generator for each completion.
    """
    mean, error = _empty(completions), _empty(completions)
    for index, (completion, source) in enumerate(zip(completions, sources, strict=True)):
        length = len(completion.tokens)
        chances = 1 / torch.arange(1, length + 1, dtype=torch.float64)
        count_N, sum_N, square_N = torch.zeros(3, length, dtype=torch.float64)
        done = 0
        while done < rows or bool((count_N[: completion.scored] < 2).any()):
            number = min(_ROWS, max(rows - done, 8))
            masked_R = 1 + torch.multinomial(chances, number, replacement=True, generator=source)
            place_RN = torch.argsort(torch.rand(number, length, generator=source), dim=1).argsort(dim=1)
            masked_RN = place_RN < masked_R[:, None]
            read_RN = masked_RN.clone()
            read_RN[:, completion.scored :] = False
            row_E, token_E = read_RN.nonzero(as_tuple=True)
            value_E = _log_probabilities(module, completion, masked_RN, row_E, token_E)
            count_N.index_add_(0, token_E, torch.ones_like(value_E))
            sum_N.index_add_(0, token_E, value_E)
            square_N.index_add_(0, token_E, value_E.square())
            done += number
        own = slice(completion.scored)
        mean[index, own] = sum_N[own] / count_N[own]
        spread_N = (square_N[own] - sum_N[own].square() / count_N[own]).clamp(min=0) / (count_N[own] - 1)
        error[index, own] = (spread_N / count_N[own]).sqrt()
    return mean, error


def _empty(completions: Sequence[Completion]) -> Tensor:
    longest = max(len(completion.tokens) for completion in completions)
    return torch.zeros(len(completions), longest, dtype=torch.float64)


@torch.no_grad()
def _log_probabilities(
    module: EntryLogProbs, completion: Completion, masked_RN: Tensor, row_E: Tensor, token_E: Tensor
) -> Tensor:
    """log P of the completion's tokens `token_E` in rows `row_E`, whose new tokens are masked where `masked_RN` says."""
    model = module.model
    assert model.ids.mask is not None
    if not len(row_E):
        return torch.zeros(0, dtype=torch.float64)
    tokens_N = torch.tensor(completion.tokens)
    prompt_M = torch.tensor(completion.prompt, dtype=torch.int64)
    answer_RN = tokens_N.expand_as(masked_RN).masked_fill(masked_RN, model.ids.mask)
    ids_RL = torch.cat([prompt_M.expand(len(masked_RN), -1), answer_RN], dim=1)
    place_E = len(completion.prompt) + token_E
    arguments = (row_E, place_E, tokens_N[token_E])
    values: Tensor = module(ids_RL.to(model.device), None, *(part.to(model.device) for part in arguments))
    return values.double().cpu()

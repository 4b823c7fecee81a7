"""Masks for estimating a completion's per-token log-probabilities: coupled pairs and their baselines.

Each estimator is a pure function from lengths, a generator and settings to passes: which completion tokens each forward pass
masks, and the factor with which a token's log-probability in that pass enters the estimate

    logp_k = sum over passes p of weight_pk * log P(token k | row masked by pass p).

They are registered, by name, in estimators.py, which also says how to add one. Shapes: P passes, N completion tokens, M prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Passes:
    """The forward passes that estimate one completion's log-probabilities.

    Attributes:
        masked_PN: bool, completion tokens masked in each pass.
        weight_PN: float32, the factor of each token's log-probability in each pass; 0 where it is not masked.
        prompt_masked_PM: bool, prompt tokens masked in each pass (of ours only d1 masks any).
        blank: the passes that mask the whole completion and nothing else: a group of completions of one prompt shares them.
    """

    masked_PN: Tensor
    weight_PN: Tensor
    prompt_masked_PM: Tensor
    blank: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaskSettings:
    """The settings of stage 4 that estimators read; each reads those that it knows.

    Attributes:
        pairs: complementary pairs, lambda (1: DiffuCoder 5).
        t_range: of the pairs' mask ratios ([0.2, 0.8]: DiffuCoder 5).
        prompt_mask: share of prompt tokens masked (0.15: d1).
    """

    pairs: int = 1
    t_range: tuple[float, float] = (0.2, 0.8)
    prompt_mask: float = 0.15


def coupled(tokens: int, prompt_tokens: int, generator: torch.Generator, settings: MaskSettings) -> Passes:
    """DiffuCoder 5, Algorithm 1: every token masked once, then complementary pairs with t uniform in `t_range`.

    Each token is masked in exactly one pass of a pair and enters with 1 / that pass's mask ratio (t, or 1 - t for the
    complement); the sum is divided by pairs + 1.
    """
    return _pairs(tokens, prompt_tokens, generator, settings, complement=True)


def decoupled(tokens: int, prompt_tokens: int, generator: torch.Generator, settings: MaskSettings) -> Passes:
    """As many passes as `coupled` with the same ratios and factors, but the second mask of each pair drawn on its own.

    A token may be masked in both, in one or in none. The expectation is the same.
    """
    return _pairs(tokens, prompt_tokens, generator, settings, complement=False)


def full_mask(tokens: int, prompt_tokens: int, generator: torch.Generator, settings: MaskSettings) -> Passes:
    """One pass, everything masked (d1 without prompt masking)."""
    blank_1N = torch.ones(1, tokens, dtype=torch.bool)
    return Passes(blank_1N, torch.ones(1, tokens), torch.zeros(1, prompt_tokens, dtype=torch.bool), (0,))


def d1(tokens: int, prompt_tokens: int, generator: torch.Generator, settings: MaskSettings) -> Passes:
    """One pass, everything masked, and each prompt token with probability `prompt_mask`."""
    prompt_M = torch.rand(prompt_tokens, generator=generator) < settings.prompt_mask
    return Passes(torch.ones(1, tokens, dtype=torch.bool), torch.ones(1, tokens), prompt_M[None])


def _pairs(
    tokens: int, prompt_tokens: int, generator: torch.Generator, settings: MaskSettings, complement: bool
) -> Passes:
    blank_N = torch.ones(tokens, dtype=torch.bool)
    masks, factors = [blank_N], [torch.ones(tokens)]
    low, high = settings.t_range
    for _ in range(settings.pairs):
        t = low + (high - low) * float(torch.rand((), generator=generator))
        first_N = torch.rand(tokens, generator=generator) < t
        # The complement is one by construction: coverage is exact.
        second_N = blank_N & ~first_N if complement else torch.rand(tokens, generator=generator) < 1 - t
        masks += [first_N, second_N]
        factors += [torch.full((tokens,), 1 / t), torch.full((tokens,), 1 / (1 - t))]
    masked_PN = torch.stack(masks)
    weight_PN = torch.stack(factors) * masked_PN / (settings.pairs + 1)
    prompt_masked_PM = torch.zeros(len(masks), prompt_tokens, dtype=torch.bool)
    return Passes(masked_PN, weight_PN, prompt_masked_PM, (0,))

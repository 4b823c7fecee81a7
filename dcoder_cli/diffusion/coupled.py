"""Masks for estimating a completion's per-token log-probabilities: coupled pairs and their baselines.

Each estimator is a pure function from lengths and a generator to passes: which completion tokens each forward pass
masks, and the factor with which a token's log-probability in that pass enters the estimate

    logp_k = sum over passes p of weight_pk * log P(token k | row masked by pass p).

Shapes: P passes, N completion tokens, M prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError

ESTIMATORS = ("coupled", "full-mask", "decoupled", "d1")


@dataclass(frozen=True)
class Passes:
    """The forward passes that estimate one completion's log-probabilities.

    Attributes:
        masked_PN: bool, completion tokens masked in each pass.
        weight_PN: float32, the factor of each token's log-probability in each pass; 0 where it is not masked.
        prompt_masked_PM: bool, prompt tokens masked in each pass (d1 only).
        blank: the passes that mask the whole completion and nothing else: a group of completions of one prompt shares them.
    """

    masked_PN: Tensor
    weight_PN: Tensor
    prompt_masked_PM: Tensor
    blank: tuple[int, ...]


def make_passes(
    estimator: str,
    tokens: int,
    prompt_tokens: int,
    generator: torch.Generator,
    pairs: int = 1,
    t_range: tuple[float, float] = (0.2, 0.8),
    prompt_mask: float = 0.15,
) -> Passes:
    """Passes of an estimator.

    - "coupled" (DiffuCoder 5, Algorithm 1): every token masked once, then `pairs` complementary pairs with t uniform in
      `t_range`: each token is masked in exactly one pass of a pair and enters with 1 / that pass's mask ratio (t, or
      1 - t for the complement); the sum is divided by pairs + 1.
    - "decoupled": as many passes with the same ratios and factors, but the second mask of each pair drawn on its own: a token
      may be masked in both, in one or in none. The expectation is the same.
    - "full-mask": one pass, everything masked (d1 without prompt masking).
    - "d1": one pass, everything masked, and each prompt token with probability `prompt_mask`.

    Args:
        tokens: N, completion tokens that may be masked.
        prompt_tokens: M.
        generator: the completion's own, on the CPU.
    """
    if estimator not in ESTIMATORS:
        raise UserError(f"estimator {estimator!r} is unknown; use {', '.join(ESTIMATORS)}")
    blank_N = torch.ones(tokens, dtype=torch.bool)
    prompt_M = torch.zeros(prompt_tokens, dtype=torch.bool)
    if estimator == "full-mask":
        return Passes(blank_N[None], torch.ones(1, tokens), prompt_M[None], (0,))
    if estimator == "d1":
        prompt_M = torch.rand(prompt_tokens, generator=generator) < prompt_mask
        return Passes(blank_N[None], torch.ones(1, tokens), prompt_M[None], ())
    masks, factors = [blank_N], [torch.ones(tokens)]
    low, high = t_range
    for _ in range(pairs):
        t = low + (high - low) * float(torch.rand((), generator=generator))
        first_N = torch.rand(tokens, generator=generator) < t
        if estimator == "coupled":
            second_N = blank_N & ~first_N  # the complement by construction: coverage is exact
        else:
            second_N = torch.rand(tokens, generator=generator) < 1 - t
        masks += [first_N, second_N]
        factors += [torch.full((tokens,), 1 / t), torch.full((tokens,), 1 / (1 - t))]
    masked_PN = torch.stack(masks)
    weight_PN = torch.stack(factors) * masked_PN / (pairs + 1)
    return Passes(masked_PN, weight_PN, prompt_M.expand(len(masks), -1), (0,))

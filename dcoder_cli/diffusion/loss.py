"""The denoising loss: how masked positions are weighted, and named normalisers. vocabulary.py has the cross-entropies.

    loss = sum over masked (b, l) of weight_bl * CE(logits_bl, ids_bl) / denominator

Shapes: B batch, L length.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["elbo", "uniform", "cart"]
Normalizer = Literal["eligible", "masked", "positions", "answer"]


def token_weights(
    masked_BL: Tensor,
    eligible_BL: Tensor,
    t_B: Tensor,
    weighting: Weighting = "elbo",
    normalizer: Normalizer = "eligible",
    context_BL: Tensor | None = None,
    cart_p: float = 0.1,
) -> Tensor:
    """Weight of every token, float32 [B, L]; 0 where nothing is masked.

    Args:
        masked_BL: bool, tokens that are masked.
        eligible_BL: bool, tokens that could have been.
        t_B: each row's mask ratio.
        weighting: "elbo": 1/t (DiffuCoder 2.1); "uniform": 1; "cart": Dream's context-adaptive weight instead of 1/t.
        normalizer: "answer" divides each row by its number of eligible tokens (LLaDA's instruction tuning);
            the others only change `denominator`.
        context_BL: bool, tokens that are real text; the unmasked ones among them are CART's context. None = all.
        cart_p: CART's p (Dream: 0.1 to 0.3).
    """
    if weighting == "elbo":
        weights_BL = (1.0 / t_B)[:, None].expand(masked_BL.shape)
    elif weighting == "uniform":
        weights_BL = torch.ones(masked_BL.shape, device=masked_BL.device)
    else:
        context = ~masked_BL if context_BL is None else ~masked_BL & context_BL
        weights_BL = cart(context, cart_p)
    if normalizer == "answer":
        weights_BL = weights_BL / eligible_BL.sum(dim=1, keepdim=True).clamp(min=1)
    return weights_BL * masked_BL


def cart(context_BL: Tensor, p: float) -> Tensor:
    """Dream's CART weight of each position: 1/2 * sum over context positions i of p (1-p)^(|n-i|-1). float32 [B, L]."""
    length = context_BL.shape[1]
    places = torch.arange(length, device=context_BL.device)
    distance_LL = (places[:, None] - places[None, :]).abs()
    kernel_LL = 0.5 * p * (1.0 - p) ** (distance_LL - 1).clamp(min=0).float()
    kernel_LL.fill_diagonal_(0.0)
    return context_BL.float() @ kernel_LL


def denominator(masked_BL: Tensor, eligible_BL: Tensor, normalizer: Normalizer = "eligible") -> Tensor:
    """This batch's share of the loss's denominator; shares of several processes or micro-batches add up.

    - "eligible": maskable tokens; with 1/t weights the loss is the negative ELBO per token (dllm; our default).
    - "masked": masked tokens (DiffuLLaMA, Dream-Coder).
    - "positions": B * L (LLaDA's pre-training, CoDA).
    - "answer": rows; with the division in `token_weights` the mean over rows of a per-answer mean (LLaDA's instruction tuning).
    """
    count = {
        "eligible": eligible_BL.sum(),
        "masked": masked_BL.sum(),
        "positions": torch.tensor(masked_BL.numel(), device=masked_BL.device),
        "answer": eligible_BL.any(dim=1).sum(),
    }[normalizer]
    return count.float()

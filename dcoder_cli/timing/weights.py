"""Random weights, drawn where they will be used: a model of any size without a checkpoint. V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def draw(
    network: Any, on: torch.device, dtype: torch.dtype, held: torch.device | None = None, lively: int = 0, seed: int = 0
) -> dict[str, Tensor]:
    """Weights of a network, by key: normal with 0.02, norms 1, biases 0. Each is drawn on `on` in `dtype` and kept on `held`.

    So 7B in bfloat16 take 15 GB and no more, and seconds.

    Args:
        lively: what is sampled differs from place to place and from step to step: layers are drawn with 1.4 over the root of
            their inputs, so that they outweigh the embedding (a tied head would repeat the token before), and so many first
            rows of the head so large that they are chosen. 0: all of a vocabulary are about equally likely.
    """
    source = torch.Generator(on).manual_seed(seed)
    tied = network.config.tie_word_embeddings
    weights = {}
    for key, value in network.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        made = torch.empty(value.shape, dtype=dtype, device=on)
        if key.endswith("bias"):
            made.zero_()
        elif value.dim() == 1:
            made.fill_(1)
        else:
            table = key in ("lm_head.weight", "model.embed_tokens.weight")
            made.normal_(0, 1.4 * value.shape[1] ** -0.5 if lively and not table else 0.02, generator=source)
            if lively and table and (tied or key == "lm_head.weight"):
                made[:lively].normal_(0, 4 * value.shape[1] ** -0.5, generator=source)
        weights[key] = made.to(held or on)
        del made
    return weights

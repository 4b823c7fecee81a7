"""Absorbing-state noise: every eligible token becomes [MASK] with probability t (alpha_t = 1 - t).

Shapes: B batch, L length. True in `eligible_BL` means the token may be noised.
A generator for each row and step costs 11 us: 0.01% of a 7B model's step on a GPU (docs/results.md), so it is not worth another
stream, which would change every recorded run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dcoder_cli.diffusion.randomness import generator


def sample_t(
    rows: range, global_batch: int, seed: int, step: int, t_min: float = 1e-3, stratified: bool = False
) -> Tensor:
    """Mask ratios t in [t_min, 1] for rows of one global batch; each row's t depends on (seed, step, row) only.

    Args:
        rows: indices of the rows within the global batch.
        global_batch: rows of the whole step, over all processes and accumulation steps.
        seed: the run's seed.
        step: optimiser step.
        t_min: smallest ratio (1e-3 in the public codes: 1/t stays bounded).
        stratified: one offset for the step and t spread evenly over the batch, which lowers the variance of the loss (MDLM).

    Returns:
        float32 [len(rows)].
    """
    if stratified:
        offset = torch.rand((), generator=generator(seed, "t", step))
        row_B = torch.tensor(list(rows), dtype=torch.float32)
        uniform_B = (offset + row_B / global_batch) % 1.0
    else:
        uniform_B = torch.cat([torch.rand(1, generator=generator(seed, "t", step, row)) for row in rows])
    return t_min + (1.0 - t_min) * uniform_B


def uniforms(rows: range, length: int, seed: int, step: int) -> Tensor:
    """Uniform numbers [len(rows), L] that decide which tokens are masked; row by row, as for `sample_t`."""
    return torch.stack([torch.rand(length, generator=generator(seed, "noise", step, row)) for row in rows])


def add_noise(
    ids_BL: Tensor, eligible_BL: Tensor, t_B: Tensor, uniform_BL: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    """Mask each eligible token where its uniform number is below its row's t.

    Returns:
        noised ids int64 [B, L] and masked bool [B, L].
    """
    masked_BL = eligible_BL & (uniform_BL < t_B[:, None])
    return ids_BL.masked_fill(masked_BL, mask_id), masked_BL

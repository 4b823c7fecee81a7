"""How many tokens each denoising step commits.

A schedule is a function of the step and of how many masks are left; it is per row, so a ragged
batch gives what its rows give alone.
"""

from __future__ import annotations

import torch

from dcoder_cli.base.errors import UserError

DREAM_EPS = 1e-3  # Dream's generation_utils: timesteps run from 1 to eps


def even(length: int, steps: int) -> list[int]:
    """Commits per step, spread evenly: exactly one when steps = length; where it does not divide, later steps get more.

    Late steps see more context, so the surplus costs least there (LLaDA gives it to the earliest steps).
    """
    return [(step + 1) * length // steps - step * length // steps for step in range(steps)]


def llada(length: int, steps: int) -> list[int]:
    """LLaDA's public schedule: length // steps each, the remainder one apiece to the earliest steps."""
    base, rest = divmod(length, steps)
    return [base + (step < rest) for step in range(steps)]


def dream_share(step: int, steps: int) -> torch.Tensor:
    """Dream's share of the remaining masks to commit at a step, 1 - s/t in float32 as the public code has it."""
    times = torch.linspace(1, DREAM_EPS, steps + 1)
    return 1 - times[step + 1] / times[step]


def dream_count(left: int, step: int, steps: int) -> int:
    """Dream's public count for one step: int(remaining * (1 - s/t)), everything left at the last step.

    Float rounding makes it commit 0 tokens at step 0 and 2 at the last when steps = length.
    """
    return left if step == steps - 1 else int(torch.tensor(float(left)) * dream_share(step, steps))


def dream(length: int, steps: int) -> list[int]:
    """Dream's public schedule over all steps, if no committed token is the mask itself."""
    counts: list[int] = []
    for step in range(steps):
        counts.append(dream_count(length - sum(counts), step, steps))
    return counts


def plan(length: int, steps: int | None, block_length: int | None, compat: str | None) -> list[tuple[int, int]]:
    """For each step of one row: (index of its block, commits).

    Args:
        length: new tokens.
        steps: denoising steps over all blocks; None = length.
        block_length: semi-autoregressive blocks, left to right; None = one block.
        compat: None (our even schedule), "dream" or "llada".

    Raises:
        UserError: numbers that do not fit together.
    """
    blocks, steps = check(length, steps, block_length)
    block = length // blocks
    make = {None: even, "llada": llada, "dream": dream}[compat]
    return [(index, count) for index in range(blocks) for count in make(block, steps // blocks)]


def check(length: int, steps: int | None, block_length: int | None) -> tuple[int, int]:
    """How many blocks and steps a plan has, without making it. Raises UserError for numbers that do not fit together."""
    steps = length if steps is None else steps
    block = length if block_length is None else block_length
    if length < 1:
        raise UserError(f"max_new_tokens = {length} must be at least 1")
    if not 1 <= steps <= length:
        raise UserError(
            f"steps = {steps} must lie between 1 and the {length} new tokens; each step commits at least one"
        )
    if block < 1 or length % block:
        raise UserError(f"block_length = {block} must divide the {length} new tokens")
    blocks = length // block
    if steps % blocks:
        raise UserError(f"steps = {steps} must be a multiple of the {blocks} blocks (new tokens / block_length)")
    return blocks, steps

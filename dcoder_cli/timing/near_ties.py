"""How far two choices of a denoising step lie apart: a near tie that rounding decides, or another choice.

V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dcoder_cli.decoding.requests import Settings


@dataclass(frozen=True)
class Written:
    """A row's answer: its tokens, and the step that committed each."""

    tokens: list[int]
    reveal_step: list[int]


def place_gap(
    settings: Settings, taken: Sequence[int], chosen: Sequence[int], scores: list[float], confidence: list[float],
    by_rule: bool,
) -> float:  # fmt: skip
    """How far `taken` candidates are from the `chosen` ones: 0 for the same, inf where no near tie explains it."""
    extra, missing = set(taken) - set(chosen), set(chosen) - set(taken)
    if not extra and not missing:
        return 0.0
    if not by_rule:
        if len(extra) != len(missing):
            return math.inf
        return max(scores[at] for at in missing) - min(scores[at] for at in extra)
    if settings.commit != "threshold" or settings.threshold is None:
        return math.inf
    best = max(scores)
    return max(min(abs(confidence[at] - settings.threshold), best - scores[at]) for at in extra | missing)


def token_gap(probabilities_V: Tensor, own: int, other: int, uniform: float | None) -> float:
    """How far another token is from being chosen: in probability, or of the number drawn from its interval."""
    if uniform is None:
        return float(probabilities_V[own] - probabilities_V[other])
    cumulative_V = probabilities_V.double().cumsum(dim=-1)
    target, end = uniform * float(cumulative_V[-1]), float(cumulative_V[other])
    start = end - float(probabilities_V[other])
    return max(start - target, target - end, 0.0)

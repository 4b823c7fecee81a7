"""The model's own distribution at candidates, neither heated nor filtered: what a trajectory records and commit rules read.

Shapes: N candidates, n of one chunk, m of one part, K of them committed, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.decoding.room import part_size


@dataclass(frozen=True)
class Own:
    """Numbers of candidates.

    Attributes:
        confidence_N: probability of the chosen token.
        best_N, entropy_N: probability of the likeliest token; in nats. None where only the confidence was asked for.
    """

    confidence_N: Tensor
    best_N: Tensor | None
    entropy_N: Tensor | None


def measure(raw_nV: Tensor, tokens_n: Tensor, whole: bool = True) -> Own:
    """Numbers of candidates with these logits, which chose these tokens; `whole`: more than the confidence."""
    size = part_size(raw_nV)
    split = zip(torch.split(raw_nV, size), torch.split(tokens_n, size), strict=True)
    return joined([_of_part(raw_mV, tokens_m, whole) for raw_mV, tokens_m in split])


def measure_some(raw_nV: Tensor, tokens_n: Tensor, chosen_K: Tensor) -> Own:
    """As `measure`, of some candidates, without a copy of all their logits."""
    some = torch.split(chosen_K, part_size(raw_nV))
    return joined([_of_part(raw_nV[chosen_k], tokens_n[chosen_k], True) for chosen_k in some])


def joined(owns: list[Own]) -> Own:
    """Numbers of several chunks or parts, one after another."""
    confidence_N = torch.cat([own.confidence_N for own in owns])
    best = [own.best_N for own in owns if own.best_N is not None]
    entropy = [own.entropy_N for own in owns if own.entropy_N is not None]
    return Own(confidence_N, torch.cat(best) if best else None, torch.cat(entropy) if entropy else None)


def _of_part(raw_mV: Tensor, tokens_m: Tensor, whole: bool) -> Own:
    logs_mV = torch.log_softmax(raw_mV, dim=-1)
    confidence_m = logs_mV.gather(-1, tokens_m[:, None])[:, 0].exp()
    if not whole:
        return Own(confidence_m, None, None)
    best_m = logs_mV.amax(dim=-1).exp()
    return Own(confidence_m, best_m, -logs_mV.exp().mul_(logs_mV).sum(dim=-1))

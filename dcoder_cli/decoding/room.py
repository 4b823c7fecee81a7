"""Memory for logits: how many candidates' exist at once, and how many are worked on at a time.

Shapes: N candidates, n of one chunk, m of one part, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dcoder_cli.decoding.requests import Settings
from dcoder_cli.model.backbone import Model

# The bound by device, in MiB (ours): on a CPU a chunk that the caches still help with, on an accelerator one that fills it.
CPU_MIB, ACCELERATOR_MIB = 256, 2048
# Copies of logits that are alive at once, at most, where they are worked on: as they came (and in the head's own number
# format before), heated and filtered, as probabilities, and one to work in; the rest are the masks of top-p.
COPIES = 5
# On a CPU only a part of a chunk is worked on at a time, one that its caches hold through all passes over it: half of the
# bound is the chunk's (twice its logits: another number format, or guidance), the other half its part's copies.
CPU_COPIES = 2
CACHED = 8 * 2**20  # bytes of a part at most (ours, measured: twice as fast at 152,064 entries as 88 rows)
WORTH = 2**20  # bytes of a part that are no more than its calls cost (ours)


def chunk_size(model: Model, settings: Settings) -> int:
    """Candidates whose logits exist at once, at least one: as many as `logits_mib` has room for."""
    on_cpu = model.device.type == "cpu"
    mib = settings.logits_mib or (CPU_MIB if on_cpu else ACCELERATOR_MIB)
    wide = 8 if model.dtype == torch.float64 else 4
    return max(1, mib * 2**20 // (model.vocab_size * wide * (CPU_COPIES if on_cpu else COPIES)))


def part_size(raw_nV: Tensor) -> int:
    """How many rows of a chunk are worked on at a time."""
    if raw_nV.device.type != "cpu":
        return len(raw_nV)
    row = raw_nV.shape[1] * raw_nV.element_size()
    return max(1, min(CACHED, max(WORTH, len(raw_nV) * row // COPIES)) // row)


def parts(raw_nV: Tensor, here: slice | Tensor) -> Iterator[tuple[Tensor, slice | Tensor]]:
    """Logits so many rows at a time, with which of the step's candidates they are."""
    size = part_size(raw_nV)
    for start, part_mV in zip(range(0, len(raw_nV), size), torch.split(raw_nV, size), strict=True):
        end = start + len(part_mV)
        yield part_mV, slice(here.start + start, here.start + end) if isinstance(here, slice) else here[start:end]

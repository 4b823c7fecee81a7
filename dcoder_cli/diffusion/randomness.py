"""Random numbers by purpose: each draw has its own generator, so nothing depends on order, batch or process count.

All generators live on the CPU: the same seed gives the same noise on every device.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator determined by a seed, a purpose ("noise", "sample", ...) and indices (step, row, ...)."""
    entropy = [
        seed & 0xFFFFFFFFFFFFFFFF,
        zlib.crc32(purpose.encode()),
        *(value & 0xFFFFFFFFFFFFFFFF for value in index),
    ]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

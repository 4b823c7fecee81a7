"""What this process may use of the machine, and what the user tells it about the machine."""

from __future__ import annotations

import os
from typing import Literal, get_args

Attention = Literal["sdpa", "flash_attention_2", "flex", "eager"]  # how attention is computed; see model/attention.py
ATTENTIONS: tuple[str, ...] = get_args(Attention)
BENCHMARKS_VARIABLE = "DCODER_BENCHMARKS"  # environment variable: a folder with the public benchmarks' files


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

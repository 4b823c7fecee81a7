"""What this process may use of the machine, and what the user tells it about the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

Attention = Literal["sdpa", "flash_attention_2", "flex", "eager"]  # how attention is computed; see model/attention.py
ATTENTIONS: tuple[str, ...] = get_args(Attention)
BENCHMARKS_VARIABLE = "DCODER_BENCHMARKS"  # environment variable: a folder with the public benchmarks' files


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Memory of the machine that this process may fill, with the limit of its control group; None where it does not tell."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    for file in _MEMORY_LIMITS:
        try:
            found = min(found, int(file.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

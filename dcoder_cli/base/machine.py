"""What this process may use of the machine, and what the user tells it about the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

Attention = Literal["sdpa", "flash_attention_2", "flex", "eager"]  # how attention is computed; see model/attention.py
ATTENTIONS: tuple[str, ...] = get_args(Attention)
BENCHMARKS_VARIABLE = "DCODER_BENCHMARKS"  # environment variable: a folder with the public benchmarks' files


def cores() -> int:
    """Cores this process may use: those it may run on, and no more than its control groups' share of time is worth."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [text.split() for text in _limits("", "cpu.max")]  # microseconds of time in so many: "150000 100000"
    spans = list(_limits("cpu", "cpu.cfs_period_us"))
    shares += [[quota, span] for quota, span in zip(_limits("cpu", "cpu.cfs_quota_us"), spans, strict=False)]
    for quota, *span in shares:
        if span and quota.isdecimal() and span[0].isdecimal() and int(quota) > 0 < int(span[0]):  # else "max" or -1
            found = min(found, math.ceil(int(quota) / int(span[0])))
    return found


def bound_threads() -> None:
    """Have OpenMP begin as many threads as `cores` says where a share of time bounds them; torch reads no such share.

    Threads beyond it are all halted for the rest of the span once it is used up, the one that is waited for too. Before torch is loaded.
    """
    if hasattr(os, "sched_getaffinity") and cores() < len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def memory_bytes() -> int | None:
    """Memory of the machine that this process may fill, with the limits of its control groups; None where it does not tell."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    for text in (*_limits("", "memory.max"), *_limits("memory", "memory.limit_in_bytes")):
        if text.isdecimal():  # else "max"
            found = min(found, int(text))
    return found


_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def _limits(controller: str, name: str) -> Iterator[str]:
    """What a file says in this process's control group and each one above it.

    `controller`: of version 1, or "" for version 2, whose groups are of all controllers (cgroups(7)). A container sees its
    own group as the root, whatever path it is told.
    """
    try:
        with _OWN.open() as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controller not in controllers.split(","):
            continue
        root = _GROUPS / controller
        inner = root / path.lstrip("/")
        for group in dict.fromkeys((inner, *(one for one in inner.parents if one.is_relative_to(root)), root)):
            try:
                yield (group / name).read_text().strip()
            except OSError:
                continue

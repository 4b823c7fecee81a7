"""The peak of memory that some work takes above what was held at its start."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from pathlib import Path

import torch

_EVERY = 0.002  # seconds between two looks at the resident size (ours)
_RESIDENT = Path("/proc/self/statm")


class PeakMemory:
    """A context: `bytes` is there after it, None where the machine does not tell."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            self._before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _RESIDENT.is_file():
            _give_back()
            self._before = self._peak = _resident()
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        elif _RESIDENT.is_file():
            self._over.set()
            self._thread.join()
            self.bytes = max(self._peak, _resident()) - self._before

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            self._peak = max(self._peak, _resident())


def how(device: torch.device) -> str | None:
    """What is measured on a device; None where nothing is."""
    if device.type == "cuda":
        return "the most that PyTorch's allocator held on the GPU, above what it held before"
    if _RESIDENT.is_file():
        return f"the most resident memory of this process, looked at every {_EVERY * 1000:g} ms, above what was resident before"
    return None


def _resident() -> int:
    return int(_RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _give_back() -> None:
    """Let the C library return what it keeps of memory that is free, or the work would find it there."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no such call
            ctypes.CDLL(None).malloc_trim(0)

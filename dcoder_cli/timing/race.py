"""Two ways of the same work, timed in turn: a warm-up of each apart, a run of each that is watched, then pairs of laps."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from dcoder_cli.base.errors import UserError, WorkFailed, is_out_of_memory
from dcoder_cli.timing.memory import PeakMemory


@dataclass(frozen=True)
class Work:
    """What one of the two does.

    Attributes:
        run: the work as it is timed.
        watch: the same, while it is watched; its result is compared with the other's.
        count: the same once more, for its forward passes. Apart: hooks on a head change the way that it is taken.
    """

    run: Callable[[], Any]
    watch: Callable[[], Any]
    count: Callable[[], Any] | None = None


@dataclass
class Timing:
    """What was measured of one of the two.

    Attributes:
        warm_up: seconds of its first run.
        wall, cpu: seconds of each lap, by the clock and of all processors together.
        peak: bytes, of the watched run; see memory.py.
        result: of the watched run. counts: of the counted one.
        trouble: why there are no laps, in words.
    """

    warm_up: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int | None = None
    result: Any = None
    counts: Any = None
    trouble: str | None = None


RUNS_ASIDE = 4  # besides the laps: a warm-up and a watched run of each


def race(
    works: tuple[Work, Work], repeats: int, device: torch.device, on_run: Callable[[str], None], alone: bool = True
) -> tuple[Timing, Timing]:
    """Both, ours and the plain way, `repeats` times in turn.

    Args:
        on_run: told the name of each run when it is over.
        alone: all of it happens in this process; else there is no peak of memory to tell.

    Raises:
        WorkFailed: there is not enough memory for ours. Where there is not enough for the plain way, its `trouble` says so.
    """
    timings = (Timing(), Timing())
    entrants = list(zip(works, timings, ("dcoder", "plain"), strict=True))
    for work, timing, name in entrants:
        with _room_for(timing, timing is timings[0], device):
            timing.warm_up = _lap(work.run, device)[0]
            on_run(f"{name} warmed up")
            with PeakMemory(device) as peak:
                timing.result = work.watch()
            timing.peak = peak.bytes if alone else None
            timing.counts = None if work.count is None else work.count()
            on_run(f"{name} watched")
    for _ in range(repeats):
        for work, timing, name in entrants:
            if timing.trouble is None:
                with _room_for(timing, timing is timings[0], device):
                    wall, cpu = _lap(work.run, device)
                    timing.wall.append(wall)
                    timing.cpu.append(cpu)
            on_run(name)
    return timings


@contextmanager
def _room_for(timing: Timing, ours: bool, device: torch.device) -> Iterator[None]:
    """Around a run that may find no memory: ours raises WorkFailed, the plain way's `trouble` says so."""
    try:
        yield
    except Exception as error:
        if ours:
            refuse_memory(error)
        if not is_out_of_memory(error):
            raise
        timing.trouble, timing.result, timing.counts = "out of memory", None, None
    if timing.trouble is not None and device.type == "cuda":
        torch.cuda.empty_cache()  # only now has the error let go of what it held


def refuse_memory(error: BaseException) -> None:
    """Raises WorkFailed where that is what an error says."""
    if is_out_of_memory(error):
        raise WorkFailed("out of memory; ask for smaller batches, shorter rows or a smaller model") from None


def _lap(run: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds by the clock and of all processors, those of processes that ended meanwhile included."""
    wait(device)
    began, used = time.perf_counter(), _used()
    run()
    wait(device)
    return time.perf_counter() - began, _used() - used


def _used() -> float:
    return time.process_time() + sum(os.times()[2:4])


def wait(device: torch.device) -> None:
    """Until a device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def check_repeats(repeats: int) -> None:
    """Raises UserError below 1."""
    if repeats < 1:
        raise UserError(f"--repeats {repeats} must be at least 1")

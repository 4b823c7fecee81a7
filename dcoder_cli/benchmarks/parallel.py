"""Parts of families trained, and families measured, at the same time: a process each, the cores divided among them.

A model of a million parameters hardly gains from a second core, so two parts at a time take little longer than one.
Each process leaves its checkpoints and measurements in its family's folder, where the caller then finds them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import WorkFailed
from dcoder_cli.base.machine import cores
from dcoder_cli.benchmarks.claims import Claim, choose, roles_of
from dcoder_cli.benchmarks.family import STARTS, parts, train_part, trained
from dcoder_cli.benchmarks.measures import Measures, Settings

MOST = 3  # parts of a family that can run at a time: stage 4 with three estimators
_MEASURE = "measure"


def train_and_measure(
    out: Path,
    seeds: int,
    effort: float,
    claims: Sequence[Claim],
    settings: Settings,
    unsafe: bool,
    jobs: int,
    announce: Callable[[str], None],
) -> None:
    """Fill the folders of families 0 .. seeds - 1: checkpoints, and what the claims need measured.

    Spawns processes, so a program that calls this needs the usual `if __name__ == "__main__"` guard.

    Raises:
        UserError, WorkFailed: what a family raised.
        WorkFailed: a process was killed.
    """
    context = get_context("spawn")
    lines = context.SimpleQueue()
    executor = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(max(1, cores() // jobs), lines)
    )
    try:
        roles = roles_of(claims)
        needs = {part: {start} if (start := STARTS[part]) else set() for part in parts(roles)}
        needs[_MEASURE] = set(needs)
        names = [claim.name for claim in claims]
        waiting = [(seed, unit) for seed in range(seeds) for unit in needs]
        finished: set[tuple[int, str]] = set()
        running: dict[Future[None], tuple[int, str]] = {}
        while waiting or running:
            ready = [(seed, unit) for seed, unit in waiting if finished >= {(seed, need) for need in needs[unit]}]
            for seed, unit in ready[: jobs - len(running)]:
                waiting.remove((seed, unit))
                future = executor.submit(_one, out, seed, unit, effort, names, settings, unsafe)
                running[future] = (seed, unit)
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            while not lines.empty():
                announce(lines.get())
            for future in done:
                future.result()
                finished.add(running.pop(future))
    except BrokenProcessPool:
        raise WorkFailed(
            "a family's process was killed, most likely for memory; run the same command again to go on, with fewer --jobs"
        ) from None
    except BaseException:
        # The others would go on for many minutes; what they have finished is written down.
        for process in list(executor._processes.values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int, lines: Any) -> None:
    """In each process, once: its share of the cores, where its lines go, and no life after the caller's."""
    import torch

    global _lines
    _lines = lines
    torch.set_num_threads(threads)

    def follow() -> None:
        caller = parent_process()
        if caller is not None:
            caller.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


_lines: Any = None


def _one(out: Path, seed: int, unit: str, effort: float, claims: list[str], settings: Settings, unsafe: bool) -> None:
    if unit != _MEASURE:
        train_part(out, seed, unit, effort, _lines.put, quiet=True)
        return
    chosen = choose(claims)
    family = trained(out, seed, effort, _lines.put, quiet=True, roles=roles_of(chosen))
    measures = Measures(family, settings, _lines.put, unsafe)
    for claim in chosen:
        claim.effect(measures)

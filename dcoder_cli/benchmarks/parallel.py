"""Families of several seeds, trained and measured at the same time: a process each, the cores divided among them.

A model of a million parameters hardly gains from a second core, so two families at a time take little longer than one.
Each process leaves its checkpoints and measurements in its family's folder, where the caller then finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from typing import Any

from dcoder_cli.base.errors import WorkFailed
from dcoder_cli.base.machine import cores
from dcoder_cli.benchmarks.measures import Measures, Settings


def train_and_measure(
    out: Path,
    seeds: int,
    effort: float,
    claims: Sequence[str],
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
    threads = max(1, cores() // jobs)
    context = get_context("spawn")
    with context.Manager() as manager:
        lines = manager.Queue()
        executor = ProcessPoolExecutor(jobs, mp_context=context)
        try:
            running = [
                executor.submit(_one, out, seed, effort, list(claims), settings, unsafe, threads, lines)
                for seed in range(seeds)
            ]
            left = set(running)
            while left:
                done, left = wait(left, timeout=0.5)
                _pass_on(lines, announce)
                for future in done:
                    future.result()
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


def _pass_on(lines: Any, announce: Callable[[str], None]) -> None:
    while True:
        try:
            announce(lines.get_nowait())
        except Empty:
            return


def _one(
    out: Path, seed: int, effort: float, claims: list[str], settings: Settings, unsafe: bool, threads: int, lines: Any
) -> None:
    import torch

    from dcoder_cli.benchmarks.claims import choose
    from dcoder_cli.benchmarks.family import trained

    torch.set_num_threads(threads)
    measures = Measures(trained(out, seed, effort, lines.put, quiet=True), settings, lines.put, unsafe)
    for claim in choose(claims):
        claim.effect(measures)

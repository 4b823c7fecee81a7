"""Running units in worker processes, with progress, until all their files are there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from dcoder_cli.base.console import Bar, bar, note
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import cores
from dcoder_cli.base.workers import a_kill_is, workers
from dcoder_cli.data.sources import Unit
from dcoder_cli.data.units import TokenizeJob, UnitWorker, process_unit, start_worker, unit_path

_MEGABYTE = 1e6
# Below this a single process is done before others have started: starting one takes about 1 s, in which one encodes
# 10 to 15 MB (ours, measured).
_WORTH_PROCESSES = 16e6


def worker_count(asked: int, size: int) -> int:
    """The number of workers: as asked; for 0, one for each core this process may use, or 1 for a small `size` in bytes.

    Raises UserError below 0.
    """
    if asked < 0:
        raise UserError(f"--workers {asked} must be 0 (one for each core) or more")
    return asked or (cores() if size > _WORTH_PROCESSES else 1)


def run_units(job: TokenizeJob, units: Sequence[Unit], workers: int, quiet: bool, ray: str | None = None) -> None:
    """Process every unit whose file is not there yet, here or in the cluster at the address `ray`.

    One worker works in this process; several are spawned, so a program that calls this needs the usual
    `if __name__ == "__main__"` guard. Ctrl-C ends after the units in hand, which stay.

    Raises:
        UserError: what a worker raised, such as a damaged source.
        WorkFailed: a worker was killed.
        OSError: the disk is full, or cannot be written.
    """
    waiting = [index for index in range(len(units)) if not unit_path(job.folder, index).exists()]
    total = sum(unit.bytes for unit in units)
    done = total - sum(units[index].bytes for index in waiting)
    count = worker_count(workers, total - done)
    begin = time.monotonic()
    try:
        _run(job, units, waiting, count, begin, total, done, quiet, ray)
    except KeyboardInterrupt:
        note("stopped; run the same command again to go on")
        raise


def _run(
    job: TokenizeJob,
    units: Sequence[Unit],
    waiting: list[int],
    count: int,
    begin: float,
    total: int,
    done: int,
    quiet: bool,
    ray: str | None,
) -> None:
    with bar("tokenizing (MB)", round(total / _MEGABYTE, 1) or None, done / _MEGABYTE, quiet) as progress:
        report = _Report(progress, begin)
        if ray is not None and waiting:
            from dcoder_cli.data.cluster import run_in_cluster

            run_in_cluster(job, units, waiting, ray, report.add)
        elif count == 1 or len(waiting) <= 1:
            worker = UnitWorker(job) if waiting else None
            for index in waiting:
                assert worker is not None
                report.add(worker.process(index, units[index]), units[index])
        else:
            _in_processes(job, units, waiting, min(count, len(waiting)), report)
    seconds = time.monotonic() - begin
    if not quiet and waiting:
        note(
            f"tokenized {report.read / _MEGABYTE:.1f} MB in {seconds:.1f} s ({report.read / _MEGABYTE / seconds:.1f} MB/s)"
        )


class _Report:
    def __init__(self, progress: Bar, begin: float) -> None:
        self._bar, self._begin, self.read = progress, begin, 0

    def add(self, read: int, unit: Unit) -> None:
        self.read += read
        rate = self.read / _MEGABYTE / max(time.monotonic() - self._begin, 1e-3)
        self._bar.advance(unit.bytes / _MEGABYTE, f"{rate:.1f} MB/s")


def _in_processes(job: TokenizeJob, units: Sequence[Unit], waiting: list[int], count: int, report: _Report) -> None:
    executor = workers(count, start_worker, job)
    told = "a tokenizing worker was killed, most likely for memory; run the same command again to go on, with fewer --workers"
    running: dict[Future[int], int] = {}
    left = iter(waiting)
    try:
        with a_kill_is(told):
            for index in left:
                running[executor.submit(process_unit, index, units[index])] = index
                if len(running) < 2 * count:
                    continue
                _collect(running, units, report)
            while running:
                _collect(running, units, report)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _collect(running: dict[Future[int], int], units: Sequence[Unit], report: _Report) -> None:
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        report.add(future.result(), units[running.pop(future)])

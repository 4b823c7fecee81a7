"""Where work runs: in this process, or in processes of this machine. In a Ray cluster: cluster.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import chain, islice
from typing import Any, Protocol

from dcoder_cli.base.console import note
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import cores
from dcoder_cli.base.workers import a_kill_is, workers

# Below this a single process is done before others have started: starting one takes about 1 s, in which one encodes
# 10 to 15 MB (ours, measured).
_WORTH_PROCESSES = 16e6
_LONG = 5.0  # seconds of work that are told (ours)
AHEAD = 2  # calls for each worker that are handed over, so that none waits for this process (ours)


Task = Callable[..., Any]
Call = tuple[Any, ...]
Done = Callable[[int, Any], None]  # is told a call's number and what it returned


class Place(Protocol):
    """Where work runs."""

    def run(self, function: Task, shared: Any, calls: Iterable[Call], done: Done) -> None:
        """`function(shared, *call)` for every call, in any order; `done` is told each one's number and what it returned.

        `shared` goes to each worker once. Calls are drawn as there is room for them. What a function raises is raised.

        Raises:
            WorkFailed: a worker was killed.
        """


class Here:
    """This process."""

    def run(self, function: Task, shared: Any, calls: Iterable[Call], done: Done) -> None:
        """As `Place.run`."""
        for number, call in enumerate(calls):
            done(number, function(shared, *call))


class Processes:
    """`count` processes of this machine, which a program that uses them guards against as usual (`base.workers`)."""

    def __init__(self, count: int) -> None:
        self.count = count

    def run(self, function: Task, shared: Any, calls: Iterable[Call], done: Done) -> None:
        """As `Place.run`; a call alone runs in this process."""
        left = iter(calls)
        first = list(islice(left, self.count))
        if len(first) < 2:
            Here().run(function, shared, first, done)
            return
        told = "a tokenizing worker was killed, most likely for memory; run the same command again to go on, with fewer --workers"
        executor = workers(len(first), _hold, shared)
        running: dict[Future[Any], int] = {}
        try:
            with a_kill_is(told):
                for number, call in enumerate(chain(first, left)):
                    running[executor.submit(_call, function, call)] = number
                    if len(running) >= AHEAD * self.count:
                        _collect(running, done)
                while running:
                    _collect(running, done)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _collect(running: dict[Future[Any], int], done: Callable[[int, Any], None]) -> None:
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        done(running.pop(future), future.result())


_shared: Any = None


def _hold(shared: Any) -> None:
    global _shared
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    _shared = shared


def _call(function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    return function(_shared, *call)


def worker_count(asked: int, size: int) -> int:
    """The number of workers: as asked; for 0, one for each core this process may use, or 1 for a small `size` in bytes.

    Raises UserError below 0.
    """
    if asked < 0:
        raise UserError(f"--workers {asked} must be 0 (one for each core) or more")
    return asked or (cores() if size > _WORTH_PROCESSES else 1)


def tell_time(what: str, begin: float, quiet: bool) -> None:
    """Say how long something took that began at `begin`, of `time.monotonic`, if it was long."""
    seconds = time.monotonic() - begin
    if not quiet and seconds >= _LONG:
        note(f"{what} in {seconds:.1f} s")

"""Processes that work for this one: spawned, deaf to Ctrl-C, gone when their parent is. Never imports torch.

Spawned, so a program that has some needs the usual `if __name__ == "__main__"` guard.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from dcoder_cli.base.errors import WorkFailed

CONTEXT = get_context("spawn")


def workers(count: int, begin: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """An executor of `count` processes, each of which calls `begin(*arguments)` once, before its first work."""
    return ProcessPoolExecutor(count, mp_context=CONTEXT, initializer=_begin, initargs=(begin, arguments))


@contextmanager
def a_kill_is(told: str) -> Iterator[None]:
    """Raises WorkFailed, saying `told`, where a worker was killed, most likely for memory."""
    try:
        yield
    except BrokenProcessPool:
        raise WorkFailed(told) from None


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on

    def follow() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    begin(*arguments)

"""Ctrl-C and a polite kill, heard by a loop that ends after its step."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Set by Ctrl-C or a polite kill: the loop ends after its step, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False


_SAME = 1.0  # seconds (ours)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop; a second one stops at once.

    Within a moment of the first it is the same one: a launcher passes on what the terminal has sent to all.
    """
    stop, asked_at = Stop(), 0.0

    def ask(number: int, frame: Any) -> None:
        nonlocal asked_at
        if not stop.asked:
            stop.asked, asked_at = True, time.monotonic()
        elif time.monotonic() - asked_at > _SAME:
            raise KeyboardInterrupt

    before = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)

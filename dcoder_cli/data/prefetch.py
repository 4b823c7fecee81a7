"""Work done ahead of its use, by one thread: the rows of the next steps are prepared while the device computes this one's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def ahead(work: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Iterator[Result]]:
    """`map(work, items)` with up to `depth` results made before they are asked for; 0 = none, and no thread.

    The calls are made in order, one at a time, all by one thread: `work` needs no lock, and what it makes is the same
    at any depth. Leaving the block ends the thread, which finishes the call that it is at and makes no more.

    Raises (from `next`): what `work` or `items` raised, as it is, in the place of that item's result.
    """
    if depth == 0:
        yield map(work, items)
        return
    made: SimpleQueue[tuple[Result] | BaseException | None] = SimpleQueue()  # None: no more items
    free = threading.Semaphore(depth)
    closed = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                free.acquire()
                if closed.is_set():
                    return
                made.put((work(item),))
            made.put(None)
        except BaseException as error:
            made.put(error)

    def results() -> Iterator[Result]:
        while (result := made.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            free.release()
            yield result[0]

    # A daemon: a second Ctrl-C, which does not wait for it, still ends the process.
    thread = threading.Thread(target=produce, name="rows ahead", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        closed.set()
        free.release()
        thread.join()

"""The one thread that decodes: rows of all clients in one engine, as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from dcoder_cli.base.errors import one_line
from dcoder_cli.decoding.autoregressive import Batches
from dcoder_cli.decoding.engine import Engine
from dcoder_cli.decoding.rows import Decoded, Ticket
from dcoder_cli.model.backbone import Model

# Told, in the worker's thread, of a row that is done, or that failed.
OnEnd = Callable[[Ticket, Decoded | Exception], None]


class Full(Exception):
    """More rows wait than may."""


class Decoder:
    """Decodes what clients ask for.

    Args:
        slots: rows decoded together.
        most_waiting: rows that may wait for a slot.
    """

    def __init__(self, model: Model, slots: int, most_waiting: int) -> None:
        self.model, self.slots, self.most_waiting = model, slots, most_waiting
        self.rows = 0  # all that wait or are decoded
        self.error: str | None = None  # what the last step failed with; None once one has worked
        self._ends: dict[Ticket, OnEnd] = {}
        self._new: list[Ticket] = []
        self._gone: list[Ticket] = []
        self._stopping = False
        self._changed = threading.Condition()
        self._engine = self._fresh()
        self._thread = threading.Thread(target=self._run, name="dcoder-decode", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether rows can be decoded."""
        return self._thread.is_alive()

    @property
    def decoding(self) -> int:
        """Rows in slots."""
        return self._engine.decoding

    def add(self, tickets: Sequence[Ticket], on_end: OnEnd) -> None:
        """Let rows wait for slots; all of them, or none.

        Raises:
            Full: too many wait.
        """
        with self._changed:
            if self.rows + len(tickets) > self.slots + self.most_waiting:
                raise Full
            self.rows += len(tickets)
            self._ends.update(dict.fromkeys(tickets, on_end))
            self._new += tickets
            self._changed.notify()

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Give up rows, those that are done already apart. Nobody is told."""
        with self._changed:
            left = [ticket for ticket in tickets if self._ends.pop(ticket, None) is not None]
            self.rows -= len(left)
            self._gone += left
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after its step; rows that are left are given up."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _fresh(self) -> Engine | Batches:
        return Engine(self.model, self.slots) if self.model.is_diffusion else Batches(self.model, self.slots)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._new or self._gone or self._stopping or self._engine.waiting or self._engine.decoding
                )
                if self._stopping:
                    return
                new, gone, self._new, self._gone = self._new, self._gone, [], []
            for ticket in new:
                self._engine.add(ticket)
            for ticket in gone:
                self._engine.drop(ticket)
            try:
                done = self._engine.step()
                self.error = None
            except Exception as error:  # a step that fails, out of memory for one, fails its rows and not the server
                self.error = one_line(error)
                self._engine = self._fresh()
                for ticket in list(self._ends):
                    if ticket not in self._new:
                        self._end(ticket, error)
                continue
            for decoded in done:
                self._end(decoded.ticket, decoded)

    def _end(self, ticket: Ticket, result: Decoded | Exception) -> None:
        with self._changed:
            on_end = self._ends.pop(ticket, None)
            self.rows -= on_end is not None
        if on_end is not None:
            on_end(ticket, result)

"""Frames of known length over a socket, with deadlines: four bytes of length, then the body.

This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import select
import struct
import time
from socket import MSG_PEEK, socket

from dcoder_cli.execution.codec import MAX_FRAME


class Gone(Exception):
    """The other side closed the connection, or died."""


class Late(Exception):
    """Nothing complete came before the deadline."""


class Forged(Exception):
    """The other side does not keep to the protocol."""


class Channel:
    """Whole frames over a stream socket, with deadlines on `time.monotonic()`.

    `limit` caps an arriving frame: the announced length is checked before a byte of the body is kept.
    """

    def __init__(self, connection: socket, limit: int = MAX_FRAME + 4096) -> None:
        self.connection = connection
        self.limit = limit
        self._buffer = bytearray()
        connection.setblocking(False)

    def fileno(self) -> int:
        return self.connection.fileno()

    def pending(self) -> bool:
        """Whether bytes came that nobody has asked for."""
        return bool(self._buffer) or self._ready(select.POLLIN, 0)

    def closed(self) -> bool:
        """Whether the other side is gone and has left nothing unread."""
        try:
            return not self._buffer and not self.connection.recv(1, MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send(self, body: bytes, deadline: float | None = None) -> None:
        """Send one frame. Raises Gone, or Late if the other side does not take it in time."""
        rest = memoryview(struct.pack("!I", len(body)) + body)
        while rest:
            try:
                rest = rest[self.connection.send(rest) :]
            except BlockingIOError:
                self._wait(deadline, writing=True)
            except OSError:
                raise Gone from None

    def receive(self, deadline: float | None = None) -> bytes:
        """The next frame. Raises Gone, Late or Forged (a frame over the limit)."""
        header = self._take(4, deadline)
        (length,) = struct.unpack("!I", header)
        if length > self.limit:
            raise Forged(f"a frame of {length} bytes; the limit is {self.limit}")
        return self._take(length, deadline)

    def _take(self, count: int, deadline: float | None) -> bytes:
        while len(self._buffer) < count:
            try:
                chunk = self.connection.recv(min(max(count - len(self._buffer), 4096), 1 << 20))
            except BlockingIOError:
                self._wait(deadline, writing=False)
                continue
            except OSError:
                raise Gone from None
            if not chunk:
                raise Gone
            self._buffer += chunk
        with memoryview(self._buffer) as whole:
            taken = bytes(whole[:count])
        del self._buffer[:count]
        return taken

    def _wait(self, deadline: float | None, writing: bool) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if (left is not None and left <= 0) or not self._ready(select.POLLOUT if writing else select.POLLIN, left):
            raise Late

    def _ready(self, event: int, seconds: float | None) -> bool:
        poll = select.poll()  # not select(): it fails beyond descriptor 1023
        poll.register(self.connection, event)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

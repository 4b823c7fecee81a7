"""Frames of known length over a socket, with deadlines: four bytes of length, then the body.

This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import select
import struct
import time
from socket import MSG_PEEK, socket

from dcoder_cli.execution.codec import MAX_FRAME

_SMALL = 4096  # bytes: below, a copy is cheaper than a system call
_CHUNK = 1 << 18  # what one call may bring: more than a socket holds


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
        self._buffer = b""
        connection.setblocking(False)
        self._readable, self._writable = _watch(connection, select.POLLIN), _watch(connection, select.POLLOUT)

    def fileno(self) -> int:
        return self.connection.fileno()

    def pending(self) -> bool:
        """Whether bytes came that nobody has asked for."""
        return bool(self._buffer or self._readable.poll(0))

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
        header = struct.pack("!I", len(body))
        rest = [memoryview(header + body)] if len(body) < _SMALL else [memoryview(header), memoryview(body)]
        for part in rest:
            while part:
                try:
                    part = part[self.connection.send(part) :]
                except BlockingIOError:
                    left = None if deadline is None else (deadline - time.monotonic()) * 1000
                    if (left is not None and left <= 0) or not self._writable.poll(left):
                        raise Late from None
                except OSError:
                    raise Gone from None

    def receive(self, deadline: float | None = None) -> bytes:
        """The next frame. Raises Gone, Late or Forged (a frame over the limit)."""
        (length,) = struct.unpack("!I", self._take(4, deadline))
        if length > self.limit:
            raise Forged(f"a frame of {length} bytes; the limit is {self.limit}")
        return self._take(length, deadline)

    def _take(self, count: int, deadline: float | None) -> bytes:
        """The next `count` bytes. More are read along only where a header and a small body come together."""
        parts: list[bytes] = []
        missing = count - len(self._buffer)
        while missing > 0:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            if not self._readable.poll(left):
                raise Late
            try:
                chunk = self.connection.recv(min(max(missing, _SMALL), _CHUNK))
            except BlockingIOError:
                continue
            except OSError:
                raise Gone from None
            if not chunk:
                raise Gone
            parts.append(chunk)
            missing -= len(chunk)
        whole = b"".join((self._buffer, *parts)) if parts else self._buffer
        self._buffer = whole[count:]
        return whole[:count]


def _watch(connection: socket, event: int) -> select.poll:
    poll = select.poll()  # not select(): it fails beyond descriptor 1023
    poll.register(connection, event)
    return poll

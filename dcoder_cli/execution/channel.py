"""Frames of known length over a socket, with deadlines: four bytes of length, then the body.

This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import contextlib
import select
import struct
import time
from collections.abc import Sequence
from socket import MSG_PEEK, recv_fds, send_fds, socket

from dcoder_cli.execution.codec import MAX_FRAME

_SMALL = 1 << 16  # bytes to send in one piece
_READ = 4096  # the least to read: a header and most bodies
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

    def send(self, *bodies: bytes, deadline: float | None = None, descriptors: Sequence[int] = ()) -> None:
        """Send frames, with descriptors at their first byte. Raises Gone, or Late if they are not taken in time."""
        parts = [part for body in bodies for part in (struct.pack("!I", len(body)), body)]
        if sum(map(len, parts)) < _SMALL:
            parts = [b"".join(parts)]  # a copy is cheaper than a system call, and wakes the other side once
        for part in parts:
            rest = memoryview(part)
            while rest:
                try:
                    sent = send_fds(self.connection, [rest], descriptors) if descriptors else self.connection.send(rest)
                    rest, descriptors = rest[sent:], ()
                except BlockingIOError:
                    left = None if deadline is None else (deadline - time.monotonic()) * 1000
                    if (left is not None and left <= 0) or not self._writable.poll(left):
                        raise Late from None
                except OSError:
                    raise Gone from None

    def receive_first(self) -> tuple[bytes, list[int]]:
        """The next frame and the descriptors at its first byte; only where nothing can have come before it."""
        assert not self._buffer
        self._readable.poll()
        with contextlib.suppress(OSError):
            self._buffer, descriptors, _, _ = recv_fds(self.connection, _READ, 1)
        if not self._buffer:
            raise Gone
        return self.receive(), list(descriptors)

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
                chunk = self.connection.recv(min(max(missing, _READ), _CHUNK))
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

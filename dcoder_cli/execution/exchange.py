"""The trusted side's hold on a candidate: requests with deadlines, and a new candidate when one is gone.

This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from dcoder_cli.execution import codec
from dcoder_cli.execution.channel import Channel, Forged, Gone, Late
from dcoder_cli.execution.codec import Remote, Unfit
from dcoder_cli.execution.handlers import Ledger

_NONCES = 64
# Of calls asked for together (ours): how many, and their bytes, which a socket takes at once, read or not; after so many that were
# asked for singly. A switch to another process and back costs 50 to 150 us, more than most calls.
MOST_TOGETHER, _BYTES_TOGETHER, _SINGLY = 64, 1 << 15, 8
MAX_RESTARTS = 20  # ours: a candidate that dies on each of its tests must not hold a worker for ever
# Ours: what a candidate with a budget gets after its first time-out, for everything and for one answer. It has failed; what is
# left to learn is which of the other tests it passes, and an honest answer to those takes milliseconds.
AFTER_TIMEOUT, ANSWER_AFTER_TIMEOUT = 2.0, 0.5


class Stopped(BaseException):
    """A request did not end in an answer. `status` is one of timeout, failed, memory. Not an Exception: test code
    that catches everything must not catch this."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class NoValue(Exception):
    """The candidate returned what cannot cross to the tests: it has not answered."""


class Candidate:
    """A candidate behind the socket `first`. `report` is the way to the host, who makes new ones.

    Any request may raise Stopped (no answer in time, dead, forged), after which `restart` is needed; NoValue; Unfit for
    what cannot cross to the candidate; or what the candidate raised. All of these are in `ledger`.

    `budget`: seconds for all that it is asked, from now on; less after the first time-out. None: each request has its own.
    """

    def __init__(
        self, report: Channel, first: socket.socket, source: str, seconds: float, run: bool, budget: float | None = None
    ) -> None:
        self._report = report
        self._source, self._seconds, self._run = source, seconds, run
        self._budget, self._most = budget, math.inf
        self._ends = math.inf if budget is None else time.monotonic() + budget
        self._restarts = 0
        self._nonces: list[bytes] = []
        self._asked: deque[bytes] = deque()  # the nonces of calls asked for together, whose answers are to come
        self._singly = 0  # answers of this process that were asked for singly
        self.ledger = Ledger()
        self.condemned = ""  # why no answer of this candidate counts any more
        self.forged = False  # whether it sent what no honest candidate can send; then none ever counted
        self._begin(first)

    def restart(self, counts: bool = True) -> None:
        """A fresh process with the same source. Raises Stopped when there were too many, or on a bad load."""
        self._restarts += counts
        if self._restarts > MAX_RESTARTS:
            self.condemned = self.condemned or f"died or hung more than {MAX_RESTARTS} times"
        if self.condemned:
            raise Stopped("failed", self.condemned)
        self._channel.connection.close()
        self._report.send(b'{"candidate":true}')
        self._begin(_receive_socket(self._report.connection))

    def call(self, name: str, arguments: list[Any], keywords: dict[str, Any], watch: bool, seconds: float) -> Any:
        """`name(*arguments, **keywords)` in the candidate. With `watch`, lists, dicts and sets given as arguments
        come to hold what the candidate left in them."""
        result = self._ask("call", [name, arguments, keywords, "watch" if watch else "plain"], seconds)
        if not watch:
            return result[0]
        if len(result) != 2 or type(result[1]) is not dict:
            raise self.ledger.raised(self._forgery("an answer without its changes"), final=True)
        for place, value in result[1].items():
            if type(place) is int and 0 <= place < len(arguments):
                _refill(arguments[place], value)
        return result[0]

    def use(self, operation: str, *details: Any, seconds: float) -> Any:
        """Get, set or call an attribute of an object that lives in the candidate."""
        return self._ask(operation, list(details), seconds)[0]

    def program(self, text: str, seconds: float) -> Any:
        """What the source writes on standard output with `text` on its standard input."""
        return self._ask("program", [text], seconds)[0]

    def answer(self, name: str, encoded_arguments: bytes, seconds: float) -> bytes:
        """The encoded result, or its digest, of a call with encoded arguments: nothing is decoded on the way.

        After `ask_together` the calls must be those, in their order.
        """
        if self._asked:
            nonce, request = self._asked.popleft(), None
        else:
            nonce, self._singly = self._nonce(), self._singly + 1
            request = _digest_of(nonce, name, encoded_arguments)
        data = self._exchange(request, min(seconds, self._most))
        prefix = b'["%b","value",' % nonce
        if data.startswith(prefix) and data.endswith(b"]"):
            return data[len(prefix) : -1]
        return codec.dumps(self._checked(data, nonce, None)[0])

    def ask_together(self, name: str, arguments: Sequence[memoryview]) -> None:
        """Send the first of these calls ahead, where none is under way. It answers one as soon as it is known, as ever, and each has
        its own limit from the answer before; so what goes wrong is the first unanswered call's, and the others are asked for again.
        """
        if self._asked or self._singly < _SINGLY or self.condemned or not self.alive or self._channel.pending():
            return
        frames: list[bytes] = []
        size = 0
        for one in arguments[:MOST_TOGETHER]:
            size += len(one) + 100
            if size > _BYTES_TOGETHER:
                break
            self._asked.append(self._nonce())
            frames.append(_digest_of(self._asked[-1], name, bytes(one)))
        with contextlib.suppress(Gone, Late):  # to receive the first answer tells
            self._channel.send(*frames, deadline=min(time.monotonic() + self._seconds, self._ends))

    def close(self) -> None:
        """Let go of the candidate; the host buries it."""
        self._channel.connection.close()

    def _begin(self, connection: socket.socket) -> None:
        self._channel = Channel(connection)
        self.alive = True
        self._asked.clear()
        self._singly = 0
        self._ask("load", [self._source, self._run], self._seconds)

    def _nonce(self) -> bytes:
        if not self._nonces:
            drawn = os.urandom(8 * _NONCES).hex().encode()  # at once: a system call for each takes longer
            self._nonces = [drawn[start : start + 16] for start in range(0, len(drawn), 16)]
        return self._nonces.pop()

    def _ask(self, operation: str, details: list[Any], seconds: float) -> list[Any]:
        nonce = self._nonce()
        try:
            seconds = seconds if operation == "load" else min(seconds, self._most)
            request = codec.dumps([operation, nonce.decode(), *details], _number_of)
            return self._checked(self._exchange(request, seconds), nonce, Remote)
        except (Stopped, NoValue, Unfit) as problem:
            raise self.ledger.raised(problem, final=True) from None

    def _exchange(self, request: bytes | None, seconds: float) -> bytes:
        """The answer to a request, or to the next of those sent ahead."""
        if self.condemned or not self.alive:
            raise Stopped("failed", self.condemned or "the candidate is gone")
        if request is not None and self._channel.pending():
            if self._channel.closed():
                self.alive = False
                raise Stopped("failed", "the candidate's process ended")
            raise self._forgery("a frame nobody asked for")
        now = time.monotonic()
        deadline = min(now + seconds, self._ends)
        if now >= self._ends:
            self.alive = False
            self.condemned = f"all its answers together took too long (more than {self._budget:.3g} s, or time-outs)"
            raise Stopped("timeout", self.condemned)
        try:
            if request is not None:
                self._channel.send(request, deadline=deadline)
            return self._channel.receive(deadline)
        except Late:
            self.alive = False
            if self._budget is not None:
                self._ends, self._most = min(self._ends, time.monotonic() + AFTER_TIMEOUT), ANSWER_AFTER_TIMEOUT
            raise Stopped("timeout", f"no answer within {deadline - now:.3g} s") from None
        except Gone:
            self.alive = False
            raise Stopped("failed", "the candidate's process ended") from None
        except Forged as problem:
            raise self._forgery(str(problem)) from None

    def _checked(self, data: bytes, nonce: bytes, remote: Any) -> list[Any]:
        try:
            frame = codec.loads(data, remote)
        except (Unfit, MemoryError) as problem:  # an honest number can be too long, too
            raise self._breach(str(problem)) from None
        if type(frame) is not list or len(frame) < 3 or frame[0] != nonce.decode():
            raise self._forgery("an answer to nothing that was asked")
        kind, *rest = frame[1:]
        if kind == "value":
            return rest
        text = [part if type(part) is str else "" for part in (*rest, "", "", "")]
        if kind == "unfit":
            raise NoValue(f"the candidate returned {text[0]}")
        if kind == "syntax":
            self.condemned = f"{text[0]}: {text[1]}"
            raise Stopped("syntax" if text[0] != "MemoryError" else "memory", self.condemned)
        if kind == "raised":
            raised = _exception(text[0], text[1], text[2], rest[3] if len(rest) > 3 else None)
            raise raised if isinstance(raised, Stopped) else self.ledger.raised(raised)
        raise self._forgery("an answer of no known kind")

    def _forgery(self, what: str) -> Stopped:
        self.forged = True
        return self._breach(what)

    def _breach(self, what: str) -> Stopped:
        self.alive = False
        self.condemned = f"broke the protocol: {what}"
        return Stopped("failed", self.condemned)


def _digest_of(nonce: bytes, name: str, encoded_arguments: bytes) -> bytes:
    return b'["call","%b",%b,%b,null,"digest"]' % (nonce, _quoted(name), encoded_arguments)


@functools.lru_cache(16)
def _quoted(name: str) -> bytes:
    return json.dumps(name).encode()


def _refill(target: Any, value: Any) -> None:
    """Make a list, dict or set hold what another of its type holds."""
    if type(target) is not type(value):
        return
    if isinstance(target, list):
        target[:] = value
    elif isinstance(target, (dict, set)):
        target.clear()
        target.update(value)


def _number_of(value: Any) -> int | None:
    return value.number if isinstance(value, Remote) else None


def _exception(name: str, message: str, base: str, arguments: Any) -> BaseException:
    """What the candidate raised: the builtin kind `base`, under the name of the candidate's own class.

    Made of plain values, and by builtin code only, whatever the candidate claims.
    """
    kind = getattr(builtins, base, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        kind = Exception
    if issubclass(kind, MemoryError):
        return Stopped("memory", "MemoryError")
    own: Any = type(name, (kind,), {}) if name != kind.__name__ and name.isidentifier() else kind
    for given in (arguments, [message]):
        try:
            if type(given) is list:
                raised: BaseException = own(*given)
                return raised
        except Exception:  # UnicodeDecodeError and the like take only arguments of their own
            continue
    return Exception(f"{name}: {message}")


def _receive_socket(connection: socket.socket) -> socket.socket:
    """A socket that the host sends along with one byte."""
    connection.setblocking(True)
    try:
        data, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    finally:
        connection.setblocking(False)
    if not data or len(descriptors) != 1:
        raise Gone
    return socket.socket(fileno=descriptors[0])

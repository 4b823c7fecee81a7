"""Inside the sandbox: hold a candidate and answer requests to call it. Nothing here is trusted by the judge.

A request is `[operation, nonce, ...]` and its answer `[nonce, kind, ...]`. The process has never seen a test or an
expected value; whatever the candidate does to it, the judge only reads what comes over the socket, and believes an
answer only as a value to compare.

This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import types
import warnings
from typing import Any

from dcoder_cli.execution import codec

_MUTABLE = (list, dict, set)
_SMALL, _CHUNK = 4096, 1 << 18  # bytes to read and write at once
_REHEARSALS = 16  # CPython 3.11 makes code faster at its 8th call
_MOST_ARGUMENTS = 1 << 16  # bytes of an exception with its arguments; beyond, its message must do


def serve(descriptor: int) -> None:
    """Answer requests from the socket `descriptor`, each as soon as it is known, until the other side closes it."""
    warnings.simplefilter("ignore")
    candidate, requests = _Candidate(), _Requests(descriptor)
    while True:
        body = requests.next()
        if body is None:
            return
        answer = _answer(candidate, body)
        header = struct.pack("!I", len(answer))
        rest = [memoryview(header + answer)] if len(answer) < _SMALL else [memoryview(header), memoryview(answer)]
        for part in rest:
            while part:
                part = part[os.write(descriptor, part) :]


def rehearse() -> None:
    """In the fork server, once: what Python prepares at the first uses of code is then there in every fork."""
    source = "def f(x, y=2.5):\n    return {x: (y,)} if x else [x, 'a']\n"
    arguments: list[list[Any]] = [[0], [1], [[]], [None]]
    requests: list[list[Any]] = [["load", "0", source, True]]
    requests += [["call", "0", "f", values, None, "digest"] for values in arguments]
    requests += [["call", "0", "f", values, {"y": 1}, "watch"] for values in arguments]
    for _ in range(_REHEARSALS):
        candidate = _Candidate()
        for request in requests:
            _answer(candidate, codec.dumps(request))
    del sys.modules["solution"]


def _answer(candidate: _Candidate, body: bytes) -> bytes:
    operation, nonce, *details = codec.loads(body, candidate.find, sys.maxsize)  # what a test passes comes as it is
    try:
        return candidate.answer(operation, nonce, details)
    except codec.Unfit as problem:
        return codec.dumps([nonce, "unfit", str(problem)[:200]])
    except BaseException as problem:  # SystemExit and KeyboardInterrupt are a failed call like any other
        return _raised(nonce, problem)


class _Candidate:
    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._module = types.ModuleType("solution")
        self._source = ""

    def find(self, number: int) -> Any:
        return self._objects[number]

    def answer(self, operation: str, nonce: str, details: list[Any]) -> bytes:
        if operation == "call":
            return self._call(nonce, *details)
        if operation == "load":
            return codec.dumps([nonce, *self._load(*details)])
        if operation == "program":
            return codec.dumps([nonce, "value", _program(self._source, *details)])
        return codec.dumps([nonce, "value", self._use(operation, *details)], self._keep)

    def _load(self, source: str, run: bool) -> list[Any]:
        self._source = source
        try:
            code = compile(source, "<solution>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as problem:
            return ["syntax", *_described(problem)]
        if run:
            sys.modules["solution"] = self._module
            exec(code, self._module.__dict__)
        return ["value", None]

    def _call(self, nonce: str, name: str, arguments: list[Any], keywords: dict[str, Any] | None, mode: str) -> bytes:
        function = vars(self._module)[name] if name in vars(self._module) else _missing(name)
        if mode == "digest":
            return b'["%b","value",%b]' % (nonce.encode(), codec.dumps_or_digest(function(*arguments)))
        keywords = keywords or {}
        keep = self._keep if isinstance(function, type) else None
        if mode == "plain":
            return codec.dumps([nonce, "value", function(*arguments, **keywords)], keep)
        before = [codec.dumps(value, self._number) if type(value) in _MUTABLE else b"" for value in arguments]
        result = function(*arguments, **keywords)
        changes = {
            place: value
            for place, value in enumerate(arguments)
            if before[place] and codec.dumps(value, self._number) != before[place]
        }
        return codec.dumps([nonce, "value", result, changes], keep)

    def _use(self, operation: str, target: Any, name: str, *details: Any) -> Any:
        if operation == "set":
            setattr(target, name, details[0])
            return None
        if operation == "method":
            return getattr(target, name)(*details[0], **details[1])
        value = getattr(target, name)
        return ["method"] if callable(value) else ["value", value]

    def _number(self, value: Any) -> int | None:
        """The number under which the judge knows this object."""
        return next((number for number, known in enumerate(self._objects) if known is value), None)

    def _keep(self, value: Any) -> int | None:
        """The number of an object of a class the candidate wrote, given out if it is new."""
        if type(value).__module__ != "solution":
            return None
        number = self._number(value)
        if number is None:
            number = len(self._objects)
            self._objects.append(value)
        return number


def _missing(name: str) -> Any:
    raise NameError(f"name {name!r} is not defined")


def _raised(nonce: str, problem: BaseException) -> bytes:
    """The answer that says what was raised: its name and message, the builtin kind it is, and its arguments if they cross.

    The class may do anything when asked; then the answer says only that something was raised.
    """
    try:
        kinds = type.mro(type(problem))
        base = next(kind.__name__ for kind in kinds if kind.__module__ == "builtins")
        described = [nonce, "raised", *_described(problem), base]
        try:
            answer = codec.dumps([*described, list(problem.args)])
        except codec.Unfit:
            return codec.dumps(described)
        return answer if len(answer) <= _MOST_ARGUMENTS else codec.dumps(described)
    except BaseException:
        return codec.dumps([nonce, "raised", "Exception", ""])


def _described(problem: BaseException) -> tuple[str, str]:
    """A name and a message, whatever the candidate's exception class does when asked."""
    try:
        name, message = type(problem).__name__, str(problem)
        return str.__getitem__(name, slice(80)), str.__getitem__(message, slice(2000))
    except BaseException:
        return "Exception", ""


def _program(source: str, text: str) -> str:
    """Run the source as a program with `text` on its standard input; what it wrote on standard output."""
    written = io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogatepass")), encoding="utf-8")
    sys.stdout = output = io.TextIOWrapper(written, encoding="utf-8", errors="surrogatepass", write_through=True)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        exec(compile(source, "<solution>", "exec", dont_inherit=True), module.__dict__)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise
    output.flush()
    return written.getvalue().decode("utf-8", "replace")


class _Requests:
    """Frames as they come, one or several at once, each four bytes of length and a body."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._come = b""  # and not yet asked for

    def next(self) -> bytes | None:
        """The next frame's body; None when the other side is gone."""
        length = 4
        parts = [self._come]
        missing = length - len(self._come)
        for header in (True, False):
            while missing > 0:
                parts.append(os.read(self._descriptor, min(max(missing, _SMALL), _CHUNK)))
                if not parts[-1]:
                    return None
                missing -= len(parts[-1])
            if header:
                parts = [b"".join(parts)]
                length += struct.unpack("!I", parts[0][:4])[0]
                missing = length - len(parts[0])
        whole = b"".join(parts)
        self._come = whole[length:]
        return whole[4:length]

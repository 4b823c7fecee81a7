"""The trusted side of one job: puts a candidate to its tests and reports what came of it.

Runs in a sandbox of its own, apart from the candidate's, so that neither a hostile value nor the test code can reach
the host: it has the tests and expected values, a socket to the candidate, and one to the host.

This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dcoder_cli.execution import codec, handlers
from dcoder_cli.execution.channel import Channel, Gone
from dcoder_cli.execution.codec import Remote, Unfit
from dcoder_cli.execution.compare import OUTPUTS, Comparison
from dcoder_cli.execution.exchange import MOST_TOGETHER, Candidate, NoValue, Stopped

_RANK = ("passed", "failed", "memory", "timeout", "syntax", "broken")  # the worst that happened names the verdict


def serve(report: int) -> None:
    """Run the jobs that come over the socket `report`: a problem (nothing: the one before) and a source each.

    What it gets from candidates is data, and only test code, which is trusted, runs here. The host uses the process again
    only after test code that can leave nothing in it (testcode.leaves_nothing).
    """
    host = Channel(socket.socket(fileno=report), limit=1 << 30)
    problem: dict[str, Any] = {}
    texts: list[memoryview] = []
    while True:
        try:
            payload, descriptors = host.receive_first()
            if payload:
                problem, texts = codec.unpack(payload)
            source = host.receive().decode("utf-8", "surrogatepass")
        except Gone:
            return
        host.send(json.dumps(_Job(host, problem, texts, source, socket.socket(fileno=descriptors[0])).run()).encode())


class _Broken(Exception):
    """The problem itself is at fault, not the candidate."""


class _Job:
    def __init__(
        self, host: Channel, problem: dict[str, Any], texts: list[memoryview], source: str, first: socket.socket
    ) -> None:
        self._first = first
        self._host, self._problem, self._texts, self._source = host, problem, texts, source
        self._status, self._why = "passed", ""
        self._passed: list[int] = []
        self._answers: list[tuple[bytes | None, float]] = []
        self._names: dict[str, Any] = {}
        self._live: Candidate | None = None

    def run(self) -> dict[str, Any]:
        """The outcome: status, why, tests passed in each group, tests in each group."""
        kind = self._problem["kind"]
        with self._noting():
            seconds = self._problem["load_seconds"]
            self._live = Candidate(
                self._host, self._first, self._source, seconds, kind != "programs", self._problem.get("budget")
            )
            {"calls": self._calls, "asserts": self._asserts, "programs": self._programs, "outputs": self._outputs}[
                kind
            ]()
        if self._live is not None:
            self._live.close()
            if self._live.forged:
                self._passed = [0] * len(self._passed)
        outcome: dict[str, Any] = {"status": self._status, "why": self._why[:300], "passed": self._passed}
        if kind == "outputs":
            outcome["answers"] = [
                (None if text is None else text.decode("utf-8", "surrogatepass"), seconds)
                for text, seconds in self._answers
            ]
        return outcome

    @contextmanager
    def _noting(self, where: str = "") -> Iterator[None]:
        """Turn whatever goes wrong into status and reason, keeping the first reason of the worst status."""
        try:
            yield
            return
        except Stopped as problem:
            status, why = problem.status, problem.why
        except AssertionError as problem:
            status, why = "failed", _told(problem)
        except MemoryError:
            status, why = "memory", "MemoryError"
        except _Broken as problem:
            status, why = "broken", str(problem)
        except Unfit as problem:
            status, why = "failed", f"the test passes what cannot cross to the candidate: {problem}"
        except NoValue as problem:
            status, why = "failed", str(problem)
        except BaseException as problem:  # of test code on the candidate's values, or raised by the candidate
            status, why = "failed", f"{type(problem).__name__}: {_told(problem)}"
        if _RANK.index(status) > _RANK.index(self._status):
            self._status, self._why = status, f"{where}: {why}" if where and why else where or why

    @property
    def _candidate(self) -> Candidate:
        assert self._live is not None
        return self._live

    def _ready(self) -> bool:
        """A live candidate, restarted if need be; False when it cannot be had."""
        if self._candidate.alive and not self._candidate.condemned:
            return True
        with self._noting():
            self._candidate.restart()
            return True
        return False

    # --- calls with expected values ----------------------------------------------------------------------------------

    def _calls(self) -> None:
        start = 0
        for place, group in enumerate(self._problem["groups"]):
            self._passed.append(0)
            if place:  # each group meets a fresh process, like the published evaluator's
                if self._status != "passed":
                    return
                with self._noting(group["name"]):
                    self._candidate.restart(counts=False)
            end = start + 2 * len(group["seconds"])
            self._group(group, self._texts[start:end])
            start = end

    def _group(self, group: dict[str, Any], texts: list[memoryview]) -> None:
        comparison = Comparison(self._problem["oracle"], self._problem["tolerance"])
        cases = zip(texts[0::2], texts[1::2], group["seconds"], strict=True)
        for place, (arguments, expected, seconds) in enumerate(cases):
            if not self._ready():
                return
            right = False
            self._candidate.ask_together(
                self._problem["entry_point"], texts[2 * place : 2 * (place + MOST_TOGETHER) : 2]
            )
            with self._noting(f"{group['name']} test {place + 1}"):
                right = self._one(comparison, bytes(arguments), bytes(expected), seconds)
                if not right:
                    raise AssertionError("wrong answer")
            self._passed[-1] += right
            if not right and not self._problem["every"]:
                return

    def _one(self, comparison: Comparison, arguments: bytes, expected: bytes, seconds: float) -> bool:
        answer = self._candidate.answer(self._problem["entry_point"], arguments, seconds)
        if answer == expected and b"NaN" not in answer and comparison.text_suffices:
            comparison.expects_text(expected)
            return True
        try:
            value = codec.loads(answer)
        except Unfit as problem:
            raise AssertionError(str(problem)) from None
        return comparison.right(codec.loads(arguments), value, codec.loads(expected))

    def _outputs(self) -> None:
        for arguments in self._texts:
            start = time.monotonic()
            answer = None
            if self._ready():
                with self._noting(f"input {len(self._answers) + 1}"):
                    answer = self._candidate.answer(
                        self._problem["entry_point"], bytes(arguments), self._problem["seconds"]
                    )
            self._answers.append((answer, time.monotonic() - start))
        self._passed.append(sum(answer is not None for answer, _ in self._answers))

    # --- programs ----------------------------------------------------------------------------------------------------

    def _programs(self) -> None:
        self._passed.append(0)
        same = OUTPUTS[self._problem["output"]]
        for place, (text, expected) in enumerate(self._problem["programs"]):
            if place:  # every run of a program is a fresh process
                with self._noting(f"test {place + 1}"):
                    self._candidate.restart(counts=not self._candidate.alive)
            right = False
            with self._noting(f"test {place + 1}"):
                written = self._candidate.program(text, self._problem["seconds"])
                right = type(written) is str and same(written, expected)
                if not right:
                    raise AssertionError("wrong output")
            self._passed[-1] += right
            if not right and (not self._problem["every"] or self._candidate.condemned):
                return

    # --- test code ---------------------------------------------------------------------------------------------------

    def _asserts(self) -> None:
        self._passed.append(0)
        code = (self._problem["prelude"], self._problem["setup"], *self._problem["tests"])
        if any("unittest" in part for part in code):
            handlers.watch_unittest(self._candidate.ledger)
        self._prepare()
        for place, test in enumerate(self._problem["tests"]):
            if not self._candidate.alive or self._candidate.condemned:
                if not self._ready():
                    return
                self._prepare()
            right = False
            with self._noting(f"test {place + 1}"):
                self._execute(test, "<test>")
                right = True
            self._passed[-1] += right
            if not right and not self._problem["every"]:
                return

    def _prepare(self) -> None:
        """A fresh namespace: the problem's own code, then the candidate's names, then the set-up of the tests."""
        self._names = {"__name__": "tests", **self._candidate.ledger.names()}
        try:
            self._execute(self._problem["prelude"], "<problem>")
        except Exception as problem:
            raise _Broken(f"the problem's own code fails: {type(problem).__name__}: {_told(problem)}") from None
        seconds = self._problem["seconds"]
        self._names.update({name: _Name(self._candidate, name, seconds) for name in self._problem["names"]})
        self._execute(self._problem["setup"], "<setup>")

    def _execute(self, code: str, name: str) -> None:
        """Run test code. Raises what it raises, and for what the candidate raised and no handler of the test stopped."""
        ledger = self._candidate.ledger
        ledger.clear()
        try:
            exec(handlers.compiled(code, name, self._problem["catches"]), self._names)
        except BaseException:
            stopped = ledger.left()
            if isinstance(stopped, Stopped):  # whatever a handler made of it
                raise stopped from None
            raise
        left = ledger.left()
        if isinstance(left, (Stopped, NoValue, Unfit)):
            raise left
        if left is not None:
            raise AssertionError(f"the candidate raised {type(left).__name__}: {_told(left)}")


def _told(problem: BaseException) -> str:
    """An exception's message; its arguments may be ones that Python refuses to print."""
    try:
        return str(problem)
    except Exception:
        return ""


class _Name:
    """A function or class of the candidate, as test code sees it."""

    def __init__(self, candidate: Candidate, name: str, seconds: float) -> None:
        self._candidate, self.__name__, self._seconds = candidate, name, seconds

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        values = list(arguments)
        watch = any(type(value) in (list, dict, set) for value in values)
        result = self._candidate.call(self.__name__, values, keywords, watch, self._seconds)
        return _Object(self._candidate, result, self._seconds) if isinstance(result, Remote) else result


class _Object(Remote):
    """An object of the candidate's, as test code sees it: attributes and methods, and nothing to compare."""

    def __init__(self, candidate: Candidate, remote: Remote, seconds: float) -> None:
        super().__init__(remote.number)
        object.__setattr__(self, "_candidate", candidate)
        object.__setattr__(self, "_seconds", seconds)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            kind, *rest = self._candidate.use("get", Remote(self.number), name, seconds=self._seconds)
        except AttributeError as problem:  # that it has no such attribute is an answer: hasattr and getattr ask for it
            self._candidate.ledger.caught(problem)
            raise
        if kind == "method":
            return lambda *arguments, **keywords: self._wrapped(
                self._candidate.use(
                    "method", Remote(self.number), name, list(arguments), keywords, seconds=self._seconds
                )
            )
        return self._wrapped(rest[0])

    def __eq__(self, other: object) -> bool:
        raise self._refused("compared")

    def __bool__(self) -> bool:
        raise self._refused("taken as true or false")

    def __hash__(self) -> int:  # type: ignore[override]
        raise self._refused("hashed")

    def _refused(self, what: str) -> BaseException:
        """For code of the candidate's that does not run here; no handler of the test's takes it for an answer."""
        problem = NoValue(f"an object of the candidate, which cannot be {what}")
        ledger: handlers.Ledger = self._candidate.ledger
        return ledger.raised(problem, final=True)

    def __setattr__(self, name: str, value: Any) -> None:
        self._candidate.use("set", Remote(self.number), name, value, seconds=self._seconds)

    def _wrapped(self, value: Any) -> Any:
        return _Object(self._candidate, value, self._seconds) if isinstance(value, Remote) else value

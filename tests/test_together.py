"""Calls that are asked for together: the verdict is that of calls asked for one after another, whatever goes wrong on the way."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from dcoder_cli.execution import candidate, codec, sandbox
from dcoder_cli.execution.channel import Channel
from dcoder_cli.execution.exchange import Candidate
from dcoder_cli.execution.judge import Calls, Judge, Problem

needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.best_tier() == "C", reason="no sandbox holds here"
)
MANY = 100


@pytest.fixture(scope="module")
def running() -> Iterator[Judge]:
    with Judge(workers=1) as made:
        yield made


def problem(every: bool, seconds: float = 4.0) -> Problem:
    calls = Calls.of([[x] for x in range(MANY)], list(range(MANY)), seconds)
    return Problem("t", "f", calls=(calls,), every_test=every)


WRONG = {
    "wrong": ("failed", "return -1"),
    "raises": ("failed", "raise ValueError(x)"),
    "leaves": ("failed", "raise SystemExit"),
    "no value": ("failed", "return object()"),
    "dies": ("failed", "os._exit(0)"),
    "hangs": ("timeout", "while True: pass"),
    "hangs in C": ("timeout", "return (10 ** 10 ** 8) % 3"),
    "fills the memory": ("memory", "return bytearray(1 << 40)"),
}


@needs_sandbox
@pytest.mark.parametrize("at", [3, 9, 40])
@pytest.mark.parametrize("kind", WRONG)
def test_one_bad_call_costs_its_own_test(running: Judge, kind: str, at: int) -> None:
    status, statement = WRONG[kind]
    source = f"import os\ndef f(x):\n    if x == {at}:\n        {statement}\n    return x\n"
    found = running.submit(problem(True, 0.4), source).result()
    assert (found.status, found.tests_passed, found.tests_total) == (status, MANY - 1, MANY), found
    found = running.submit(problem(False, 0.4), source).result()
    assert (found.status, found.tests_passed) == (status, at), found
    assert found.why.startswith(f"base test {at + 1}")


@needs_sandbox
def test_asking_again_is_no_death(running: Judge) -> None:
    """More than 20 deaths end a candidate; here 11 are followed by as many fresh processes for calls asked for singly."""
    source = f"import os\ndef f(x):\n    if x in {list(range(9, MANY + 10, 10))}: os._exit(0)\n    return x\n"
    calls = Calls.of([[x] for x in range(MANY + 10)], list(range(MANY + 10)))
    found = running.submit(Problem("t", "f", calls=(calls,), every_test=True), source).result()
    assert (found.status, found.tests_passed) == ("failed", MANY + 10 - 11), found


@needs_sandbox
def test_calls_that_turn_slow_have_each_its_own_limit(running: Judge) -> None:
    """All together they take longer than calls that are asked for together may, and none takes too long."""
    source = "import time\ndef f(x):\n    time.sleep(0.03 if x > 20 else 0)\n    return x\n"
    found = running.submit(problem(True), source).result()
    assert (found.status, found.tests_passed) == ("passed", MANY), found


@needs_sandbox
@pytest.mark.parametrize(
    "forged",
    [
        "os.write(fd, bytes([0, 0, 0, 1]) + b'1')",  # a frame of its own before the answer
        "os.write(fd, bytes([0, 0, 0, 1]) + b'1' * 300)",
        "os.close(fd)",
    ],
)
def test_what_no_honest_candidate_sends_ends_it(running: Judge, forged: str) -> None:
    source = (
        "import os\ndef f(x):\n    if x == 40:\n        for fd in range(3, 30):\n            try:\n"
        f"                {forged}\n            except OSError: pass\n    return x\n"
    )
    found = running.submit(problem(True), source).result()
    assert not found.passed and found.tests_passed < MANY


def test_few_switches_are_needed() -> None:
    """The candidate waits for the judge a few times, and not at every call; large answers are not held back."""
    mine, his = socket.socketpair()
    report, _ = socket.socketpair()
    waits: list[int] = []
    read = os.read

    def counted(descriptor: int, size: int) -> bytes:
        if descriptor == his.fileno():
            waits.append(size)
        return read(descriptor, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate.os, "read", counted)
        thread = threading.Thread(target=candidate.serve, args=(his.fileno(),), daemon=True)
        thread.start()
        live = Candidate(Channel(report), mine, "def f(x): return [x] * (5000 if x == 50 else 1)", 5.0, True)
        arguments = [memoryview(codec.dumps([x])) for x in range(MANY)]
        for x in range(MANY):
            live.ask_together("f", arguments[x:])
            assert codec.loads(live.answer("f", bytes(arguments[x]), 5.0)) == [x] * (5000 if x == 50 else 1)
        live.close()
        thread.join(5)
    assert len(waits) < 40 and not thread.is_alive()

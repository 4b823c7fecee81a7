"""Calls that are asked for together: the verdict is that of calls asked for one after another, whatever goes wrong on the way."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

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
    """A death ends the calls that were sent ahead with it, and each of them is asked for again."""
    source = f"import os\ndef f(x):\n    if x in {list(range(9, MANY + 10, 10))}: os._exit(0)\n    return x\n"
    calls = Calls.of([[x] for x in range(MANY + 10)], list(range(MANY + 10)))
    found = running.submit(Problem("t", "f", calls=(calls,), every_test=True), source).result()
    assert (found.status, found.tests_passed) == ("failed", MANY + 10 - 11), found


STATE = "import os, time\nk = []\ndef f(x):\n    k.append(x)\n"


@needs_sandbox
@pytest.mark.parametrize(
    ("rest", "limit", "status", "passed"),
    [
        ("    time.sleep(0.6 if x == 40 else 0)\n    return len(k) - 1", 4.0, "passed", MANY),
        (
            "    time.sleep(0.03 if x > 20 else 0)\n    return len(k) - 1",
            0.5,
            "passed",
            MANY,
        ),  # together over the limit
        ("    time.sleep(0.3 if x == 40 else 0)\n    return x", 0.1, "timeout", 40),
        ("    if len(k) == 60: os._exit(1)\n    return x", 4.0, "failed", 59),
        ("    while len(k) == 60: pass\n    return x", 0.4, "timeout", 59),
    ],
)
def test_limits_and_what_calls_leave_behind_are_those_of_single_calls(
    running: Judge, rest: str, limit: float, status: str, passed: int
) -> None:
    found = running.submit(problem(False, limit), STATE + rest).result()
    assert (found.status, found.tests_passed) == (status, passed), found


@needs_sandbox
def test_every_hang_costs_its_own_test_and_each_group_meets_a_fresh_process(running: Judge) -> None:
    calls = Calls.of([[x] for x in range(MANY)], list(range(MANY)), 0.3)
    twice = Problem("t", "f", calls=(calls, replace(calls, name="plus")), every_test=True, total_seconds=12.0)
    found = running.submit(twice, STATE + "    while x in (40, 70): pass\n    return x").result()
    assert (found.status, found.tests_passed) == ("timeout", MANY - 2), found
    found = running.submit(twice, STATE + "    return len(k) - 1").result()
    assert (found.status, found.tests_passed) == ("passed", 2 * MANY), found


@needs_sandbox
@pytest.mark.parametrize(
    "forged",
    [
        "os.write(fd, bytes([0, 0, 0, 1]) + b'1')",  # a frame of its own before the answer
        "os.write(fd, bytes([0, 0, 0, 1]) + b'1' * 300)",
    ],
)
def test_what_no_honest_candidate_sends_ends_it(running: Judge, forged: str) -> None:
    source = (
        "import os\ndef f(x):\n    if x == 40:\n        for fd in range(3, 30):\n            try:\n"
        f"                {forged}\n            except OSError: pass\n    return x\n"
    )
    found = running.submit(problem(True), source).result()
    assert found.status == "failed" and found.tests_passed == 0, found


def test_few_switches_are_needed() -> None:
    """The candidate waits for the judge a few times, and not at every call."""
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

"""The judge: verdicts of every kind of test, shares of tests, restarts, and trouble that is not the candidate's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.execution import codec, jobs, sandbox
from dcoder_cli.execution.judge import Calls, Judge, Problem, Verdict, judge, resolve_tier

needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.best_tier() == "C", reason="no sandbox holds here"
)
pytestmark = needs_sandbox

ADD = Problem("add", "f", tests=("assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 4"), every_test=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Judge]:
    with Judge(workers=1) as made:
        yield made


def verdict(running: Judge, problem: Problem, source: str) -> Verdict:
    return running.submit(problem, source).result()


# --- statuses and shares ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "status", "passed"),
    [
        ("def f(x): return x + 1", "passed", 3),
        ("def f(x): return x + 1 if x < 3 else 0", "failed", 2),
        ("def f(x): return x", "failed", 0),
        ("def g(x): return x + 1", "failed", 0),
        ("def f(x) return x", "syntax", 0),
        ("x = '\0'", "syntax", 0),
        ("", "failed", 0),
        ("def f(x):\n    raise ValueError(x)", "failed", 0),
        ("def f(x):\n    if x == 2: raise ValueError(x)\n    return x + 1", "failed", 2),
        ("import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x + 1", "failed", 2),
        ("def f(x):\n    if x == 1: return bytearray(1 << 31)\n    return x + 1", "memory", 2),
        ("import no_such_module\ndef f(x): return x + 1", "failed", 0),
    ],
)
def test_status_and_share(running: Judge, source: str, status: str, passed: int) -> None:
    found = verdict(running, ADD, source)
    assert (found.status, found.tests_passed, found.tests_total) == (status, passed, 3), found
    assert found.passed == (status == "passed") and bool(found.why) == (not found.passed)
    assert found.share == passed / 3


def test_one_timeout_does_not_zero_the_other_tests(running: Judge) -> None:
    problem = Problem("t", "f", tests=ADD.tests, every_test=True, seconds=1.0)
    found = verdict(running, problem, "def f(x):\n    while x == 2: pass\n    return x + 1")
    assert (found.status, found.tests_passed) == ("timeout", 2)


def test_without_every_test_the_first_failure_ends_it(running: Judge) -> None:
    found = verdict(running, Problem("t", "f", tests=ADD.tests), "def f(x): return x + 1 if x != 2 else 0")
    assert (found.status, found.tests_passed) == ("failed", 1)


def test_a_candidate_that_dies_on_every_test_is_given_up(running: Judge) -> None:
    problem = Problem("t", "f", tests=ADD.tests * 20, every_test=True)
    start = time.monotonic()
    found = verdict(running, problem, "import os\ndef f(x): os._exit(0)")
    assert found.status == "failed" and found.tests_passed == 0 and time.monotonic() - start < 20


def test_the_whole_job_has_a_deadline(running: Judge) -> None:
    problem = Problem("t", "f", tests=("while f(1): pass",), total_seconds=0.5)
    found = verdict(running, problem, "def f(x): return 1")
    assert found.status == "timeout" and found.seconds < 20
    assert verdict(running, ADD, "def f(x): return x + 1").passed


# --- test code -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "source"),
    [
        (
            Problem("node", "depth", setup="root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)",
                    tests=("assert depth(root) == 3", "assert root.left.value == 2")),
            "class Node:\n    def __init__(self, v): self.value, self.left = v, None\n"
            "def depth(n): return 1 + depth(n.left) if n else 0",
        ),
        (
            Problem("stack", "Stack", tests=("s = Stack([1])\ns.push(2)\nassert s.pop() == 2\nassert s.size == 1",)),
            "class Stack:\n    def __init__(self, i): self.i = i\n    def push(self, x): self.i.append(x)\n"
            "    def pop(self): return self.i.pop()\n    @property\n    def size(self): return len(self.i)",
        ),
        (
            Problem("mutated", "f", tests=("a = [3, 1]; b = {}\nassert f(a, b) is None\nassert a == [1, 3] and b == {1: (2,)}",)),
            "def f(a, b):\n    a.sort()\n    b[1] = (2,)",
        ),
        (
            Problem("check", "f", prelude="def helper(x): return x * 2\ndef f(x):\n    '''doc'''\n",
                    setup="def check(candidate):\n    for i in range(5):\n        assert candidate(helper(i)) == i",
                    tests=("check(f)",)),
            "def f(x): return x // 2",
        ),
        (Problem("raises", "f", tests=("try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'",)),
         "def f(x): raise ValueError('no')"),
        (Problem("keywords", "f", tests=("assert f(1, b=2) == 3",)), "def f(a, *, b): return a + b"),
        (Problem("modules", "f", tests=("assert math.isclose(f(1), 0.3)", "assert f(2) == sys.getsizeof(0) * 0 + 0.3")),
         "def f(x): return 0.3"),
        (Problem("types", "f", tests=("assert f((1, 'a', 2.0), int) == (1,)",)),
         "def f(t, kind): return tuple(x for x in t if type(x) is kind)"),
        (Problem("counter", "f", tests=("assert f('aab') == {'a': 2, 'b': 1}",)),
         "from collections import Counter\ndef f(s): return Counter(s)"),
        (Problem("match", "f", tests=("assert f('ab')", "assert f('b') is None")), "import re\ndef f(s): return re.match('a', s)"),
        (Problem("main", "f", tests=("assert f() == 1",)), "def f(): return 1\nif __name__ == '__main__':\n    1 / 0"),
        (Problem("dataclass", "f", tests=("assert f() == 3",)),
         "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(): return P(3).x"),
        (Problem("numpy", "f", tests=("assert f() == 6",)), "import numpy as np\ndef f(): return np.array([1, 2, 3]).sum()"),
    ],
    ids=lambda value: value.task_id if isinstance(value, Problem) else "",
)  # fmt: skip
def test_test_code_reaches_the_candidate(running: Judge, problem: Problem, source: str) -> None:
    found = verdict(running, problem, source)
    assert found.passed, found.why


@pytest.mark.parametrize(
    "test",
    ["assert f(1) == root", "assert root == root", "assert not (root != 1)", "assert root", "assert {root: 1}"],
)
def test_objects_of_the_candidate_cannot_be_compared(running: Judge, test: str) -> None:
    source = "class Node:\n    def __eq__(s, o): return True\n    def __bool__(s): return True\ndef f(x): return 1"
    assert not verdict(running, Problem("t", "f", setup="root = Node()", tests=(test,)), source).passed


def test_a_problem_whose_own_code_fails_is_not_the_candidates_fault(running: Judge) -> None:
    found = verdict(running, Problem("t", "f", prelude="1 / 0", tests=("assert f(1) == 2",)), "def f(x): return x + 1")
    assert found.status == "infrastructure" and "ZeroDivisionError" in found.why


# --- calls, programs, outputs ----------------------------------------------------------------------------------------


def test_base_and_plus(running: Judge) -> None:
    problem = Problem("t", "f", calls=(Calls.of([[1], [2]], [1, 4]), Calls.of([[-3]], [9], name="plus")))
    rows = [
        ("def f(x): return x * x", True, True, 3, "passed"),
        ("def f(x): return abs(x) * x", True, False, 2, "failed"),
        ("def f(x): return abs(x)", False, False, 1, "failed"),
    ]
    for source, base, plus, passed, status in rows:
        found = verdict(running, problem, source)
        assert (found.base, found.plus, found.tests_passed, found.status) == (base, plus, passed, status)


def test_plus_starts_in_a_fresh_process(running: Judge) -> None:
    problem = Problem("t", "f", calls=(Calls.of([[1]], [[1]]), Calls.of([[1]], [[1]], name="plus")))
    assert verdict(running, problem, "def f(x, seen=[]):\n    seen.append(x)\n    return seen").plus


@pytest.mark.parametrize(
    ("oracle", "arguments", "expected", "answer", "right"),
    [
        ("equal", [1], 0.1 + 0.2, "0.3", True),
        ("equal", [1], [0.5, 1.5], "[0.5, 1.5000001]", True),
        ("equal", [1], [0.5, 1.5], "(0.5, 1.5)", False),
        ("equal", [1], [0.5, 1.5], "[0.5]", False),
        ("equal", [1], 1.0, "float('nan')", False),
        ("equal", [1], float("nan"), "float('nan')", False),
        ("equal", [1], float("inf"), "float('inf')", True),
        ("equal", [1], 1, "1.0000001", False),
        ("equal", [1], (1, 2), "[1, 2]", False),
        ("equal", [1], {1: {2}}, "{1: {2}}", True),
        ("equal", [1], "a", "b'a'", False),
        ("equal", [1], 1e-5, "1.00000001e-5", True),
        ("same-set", [1], (1, 2), "[2, 1, 1]", True),
        ("same-set", [1], (1, 2), "[2]", False),
        ("not-none", [1], True, "'anything'", True),
        ("not-none", [1], True, "None", False),
        ("not-none", [1], False, "None", True),
        ("anything", [1], True, "3", True),
        ("or-zero", [1], 5, "0", True),
        ("or-zero", [1], 5, "1", False),
        ("pyramid-surface", [3, 4], 1, "35", True),
        ("pyramid-surface", [3, 4], 1, "34", False),
        ("digit-distance", [1, 23], 99, "4", True),
        ("digit-distance", [1, 23], 99, "5", False),
        ("polynomial-root", [[-6, 11, -6, 1]], 0, "2.0", True),
        ("polynomial-root", [[-6, 11, -6, 1]], 1.5, "1.5", False),
    ],
)
def test_oracles(
    running: Judge, oracle: str, arguments: list[object], expected: object, answer: str, right: bool
) -> None:
    problem = Problem(
        "t", "f", calls=(Calls.of([arguments], [expected]),), oracle=oracle, tolerance=1e-4 if "root" in oracle else 0
    )
    assert verdict(running, problem, f"def f(*a): return {answer}").passed == right


def test_integers_beyond_the_decimal_limit(running: Judge) -> None:
    problem = Problem("t", "f", calls=(Calls.of([[1 << 20000]], [(1 << 20000) + 1]),))
    assert verdict(running, problem, "def f(x): return x + 1").passed
    assert not verdict(running, problem, "def f(x): return x").passed


def test_the_float_tolerance_stays_once_floats_were_expected(running: Judge) -> None:
    problem = Problem("t", "f", calls=(Calls.of([[0], [1]], [1.0, [2, 1.5]]),))
    assert verdict(running, problem, "def f(x): return [1.0, [2, 1.5000001]][x]").passed
    problem = Problem("t", "f", calls=(Calls.of([[1], [0]], [[2, 1.5], 1.0]),))
    assert not verdict(running, problem, "def f(x): return [1.0, [2, 1.5000001]][x]").passed


def test_programs(running: Judge) -> None:
    problem = Problem("sum", programs=(("1 2\n", "3\n"), ("5 6\n", "11")), every_test=True)
    assert verdict(running, problem, "a, b = map(int, input().split())\nprint(a + b)").passed
    assert verdict(
        running,
        problem,
        "import sys\nif __name__ == '__main__':\n    print(sum(map(int, sys.stdin.read().split())))\n    sys.exit()",
    ).passed
    found = verdict(running, problem, "input()\nprint(3)")
    assert (found.status, found.tests_passed) == ("failed", 1)
    assert not verdict(running, problem, "import os\nos.write(1, b'3')\nos._exit(0)").passed


def test_outputs(running: Judge) -> None:
    source = "def f(x):\n    if x == 2: raise ValueError\n    return (x, {x})"
    inputs = [codec.dumps([value]) for value in (1, 2, 3)]
    found = running.outputs(source, "f", inputs).result()
    assert [None if text is None else codec.loads(text) for text, _ in found] == [(1, {1}), None, (3, {3})]
    assert [text for text, _ in running.outputs("def f(", "f", inputs).result()] == [None, None, None]


# --- the API ---------------------------------------------------------------------------------------------------------


def test_judge_keeps_the_order_and_reports_progress() -> None:
    sources = [f"def f(x): return x + {number % 2}" for number in range(12)]
    seen: list[Verdict] = []
    found = judge([ADD] * 12, sources, workers=3, progress=seen.append)
    assert [item.passed for item in found] == [bool(number % 2) for number in range(12)]
    assert len(seen) == 12
    assert found[0].row()["status"] == "failed" and found[1].row()["passed"] is True


@pytest.mark.parametrize(
    "make",
    [
        lambda: judge([ADD], []),
        lambda: Problem("t", "f"),
        lambda: Problem("t", "f", tests=("1",), programs=(("", ""),)),
        lambda: Problem("t", "f()", tests=("1",)),
        lambda: Problem("t", "f", tests=("assert (",)),
        lambda: Problem("t", "f", calls=(Calls.of([[1]], [1]),), oracle="no-such"),
        lambda: Judge(workers=0),
        lambda: resolve_tier("D"),
    ],
)
def test_wrong_input_is_one_line(make: object) -> None:
    with pytest.raises(UserError) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_tier_c_is_refused_unless_unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "tier_trouble", lambda tier: "" if tier == "C" else "made up")
    with pytest.raises(UserError, match=r"apt install bubblewrap.*--unsafe-exec"):
        resolve_tier()
    with pytest.raises(UserError, match="--unsafe-exec"):
        resolve_tier("C")
    assert resolve_tier(unsafe=True) == "C"
    with pytest.raises(UserError, match="does not hold here: made up"):
        resolve_tier("A", unsafe=True)


def test_tier_c_judges(tmp_path: Path) -> None:
    sources = ["def f(x): return x + 1", "def f(x): return x", "import os\ndef f(x): os.fork(); return x + 1"]
    assert [item.passed for item in judge([ADD] * 3, sources, workers=1, tier="C", unsafe=True)][:2] == [True, False]


def test_killed_workers_cost_no_result() -> None:
    """Sandboxes of either kind killed while jobs run: every verdict is as if nothing had been."""
    problem = Problem("slow", "f", tests=("assert f(1) == 2",), seconds=30)
    with Judge(workers=2) as running:
        running.submit(problem, "def f(x): return x + 1").result()
        futures = [running.submit(problem, "import time\ndef f(x): time.sleep(0.5); return x + 1") for _ in range(12)]
        for victim in (0, 3):  # one worker's candidates, the other's testers
            time.sleep(0.8)
            os.killpg(_all_running(running, 4)[victim], signal.SIGKILL)
        assert [future.result(60).status for future in futures] == ["passed"] * 12


def _all_running(judge: Judge, count: int) -> list[int]:
    """The pids once all sandboxes are up."""
    until = time.monotonic() + 60
    while len(pids := judge.pids) < count:
        assert time.monotonic() < until, pids
        time.sleep(0.01)
    return pids


def test_trouble_that_persists_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with Judge(workers=1) as running:
        monkeypatch.setattr(sandbox, "_command", lambda tier, descriptor: ["/bin/false"])
        found = [running.submit(ADD, "def f(x): return x + 1") for _ in range(4)]
        first = found[0].result()
        assert first.status == "infrastructure" and not first.passed and not first.base
        with pytest.raises(WorkFailed, match="dcoder doctor"):
            found[3].result()


def test_a_job_killed_from_outside_is_infrastructure_not_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the out-of-memory killer does to a candidate says nothing about it."""
    worker = jobs.Worker(resolve_tier())
    with pytest.raises(jobs.Infrastructure):
        worker._check({"signal": signal.SIGKILL, "cpu": 0.1, "status": 0}, sandbox.limits(1024, 10))
    worker._check({"signal": signal.SIGKILL, "cpu": 12.0, "status": 0}, sandbox.limits(1024, 10))


def test_closing_kills_what_runs_and_cancels_what_waits() -> None:
    running = Judge(workers=1)
    futures = [
        running.submit(Problem("t", "f", tests=("f()",), seconds=300), "def f():\n    while True: pass")
        for _ in range(3)
    ]
    pids = _all_running(running, 2)
    time.sleep(0.5)
    start = time.monotonic()
    running.close()
    assert time.monotonic() - start < 10 and futures[2].cancelled()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_nothing_survives_the_judge_process(tmp_path: Path) -> None:
    """`kill -9` of the process that judges takes every sandbox along."""
    script = (
        "import time\nfrom dcoder_cli.execution.judge import *\n"
        "j = Judge(2)\nP = Problem('t', 'f', tests=('f()',), seconds=300)\n"
        "fs = [j.submit(P, 'def f():\\n    while True: pass') for _ in range(2)]\n"
        "while len(j.pids) < 4: time.sleep(0.01)\n"
        "time.sleep(0.5)\nprint(*j.pids, flush=True)\ntime.sleep(300)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(part) for part in process.stdout.readline().split()]
    assert len(pids) == 4
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while any(
        os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1][:3]
        for pid in pids
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wanted"), [("trivial", 200), ("humaneval", 120)])
def test_speed(name: str, wanted: int, benchmarks: Path) -> None:
    """Jobs a second on two workers; meant for a quiet machine with two processors."""
    if name == "trivial":
        pairs = [(Problem("t", "f", tests=("assert f(1) == 2",)), "def f(x): return x + 1")] * 1000
    else:
        import gzip
        import json

        with gzip.open(benchmarks / "humaneval" / "HumanEval.jsonl.gz", "rt") as lines:
            rows = [json.loads(line) for line in lines]
        pairs = [
            (Problem(row["task_id"], row["entry_point"], prelude=row["prompt"], setup=row["test"],
                     tests=(f"check({row['entry_point']})",)), row["prompt"] + row["canonical_solution"])
            for row in rows
        ] * 4  # fmt: skip
    with Judge(workers=2) as running:
        list(running.stream(pairs[:50]))
        start = time.monotonic()
        found = list(running.stream(pairs))
        rate = len(found) / (time.monotonic() - start)
    print(f"{name}: {rate:.0f} jobs/s")
    assert all(item.passed for _, item in found)
    assert rate >= wanted


# --- what a hostile completion may cost -----------------------------------------------------------------------------


def test_after_its_first_time_out_a_scored_candidate_is_waited_for_no_longer(running: Judge) -> None:
    """Ten tests of 1 s: a loop on each would take 10 s, and takes the first second and 2 s for all others together."""
    tests = tuple(f"assert f({number}) == {number + 1}" for number in range(10))
    problem = Problem("loops", "f", tests=tests, every_test=True, seconds=1.0)
    found = verdict(running, problem, "def f(x):\n    while True: pass")
    assert (found.status, found.tests_passed) == ("timeout", 0) and found.seconds < 7, found
    some = verdict(running, problem, "def f(x):\n    while x == 3: pass\n    return x + 1")
    assert (some.status, some.tests_passed) == ("timeout", 9)  # and the tests that it passes still count
    late = replace(problem, total_seconds=2.0, seconds=1.5)
    slow = verdict(running, late, "import time\ndef f(x):\n    time.sleep(0.7)\n    return x + 1")
    assert slow.status == "timeout" and 1 <= slow.tests_passed <= 2 and slow.seconds < 7, slow  # its share, not 0


def test_a_protocol_s_limits_are_its_own(running: Judge) -> None:
    """Without `every_test` no budget: answers that each take most of their limit are all waited for."""
    calls = Calls.of([[0], [1], [2]], [0, 1, 2], seconds=1.0)
    source = "import time\ndef f(x):\n    time.sleep(0.6)\n    return x"
    assert verdict(running, Problem("slow", "f", calls=(calls,)), source).passed
    assert codec.unpack(Problem("slow", "f", calls=(calls,)).payload)[0]["budget"] is None


@pytest.mark.parametrize(
    ("oracle", "tests"),
    [
        ("", ("assert list(f(1)) == [1]",)),
        ("", ("assert sorted(f(1)) == [1]", "assert sum(f(1)) == 1")),
        ("same-set", ()),
    ],
)
def test_a_range_is_not_expanded_on_our_side(running: Judge, oracle: str, tests: tuple[str, ...]) -> None:
    """A few bytes that were 3.8 GB and the whole deadline of the tester."""
    if oracle:
        problem = Problem("range", "f", calls=(Calls.of([[1]], [[1]]),), oracle=oracle)
    else:
        problem = Problem("range", "f", tests=tests, every_test=True)
    found = verdict(running, problem, "def f(x):\n    return range(10**9)")
    assert (found.status, found.tests_passed) == ("failed", 0) and found.seconds < 8, found


def test_a_long_range_that_is_right_is_right(running: Judge) -> None:
    source = (
        "def f(x): return range(10**9)\ndef g(x): return [range(5), range(2**20)]\ndef h(r): return sum(r[:5]), len(r)"
    )
    tests = ("assert f(1) == range(10**9)", "assert len(f(1)) == 10**9 and 5 in f(1)", "assert f(1) != range(10**9 + 1)",
             "assert list(g(1)[0]) == [0, 1, 2, 3, 4]", "assert h(range(10**9)) == (10, 10**9)")  # fmt: skip
    found = verdict(running, Problem("range", "f", tests=tests, every_test=True), source)
    assert found.passed, found
    calls = Calls.of([[1]], [range(10**9)])
    assert verdict(running, Problem("range", "f", calls=(calls,)), source).passed
    many = codec.loads(codec.dumps([range(2**20)] * 3))
    assert [type(one) for one in many] == [range, codec.LongRange, codec.LongRange] and many[1] == range(2**20)


@pytest.mark.parametrize("answer", ["'a' * 10**8", "['a' * 10**8]", "b'a' * 10**8", "{1: 'a' * 10**8}"])
def test_a_text_that_cannot_cross_is_refused_before_it_is_written_out(answer: str) -> None:
    value = eval(answer)
    began = time.process_time()
    with pytest.raises(codec.Unfit, match="the limit is"):
        codec.dumps(value)
    assert time.process_time() - began < 0.05

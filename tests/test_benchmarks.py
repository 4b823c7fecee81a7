"""Benchmarks: finding data, reading tasks, pass@k, GSM8K answers, and that every reference solution passes."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.base.machine import BENCHMARKS_VARIABLE
from dcoder_cli.benchmarks import (
    bigcodebench,
    data,
    environment,
    evalplus,
    expected,
    gsm8k,
    humaneval,
    infilling,
    mbpp,
    oracles,
    passk,
    suites,
    tasks,
)  # fmt: skip
from dcoder_cli.execution import codec, sandbox
from dcoder_cli.execution.judge import Judge, Problem, Verdict
from dcoder_cli.execution.unittests import UnittestJob, judge_unittests

SOURCES = suites.sources()
READERS = {
    "humaneval": humaneval.task_of, "humaneval+": evalplus.task_of, "mbpp": mbpp.task_of,
    "mbpp-sanitized": mbpp.sanitized_task_of, "mbpp+": evalplus.task_of,
    **{f"humaneval-infilling-{subset}": infilling.task_of for subset in infilling.SOURCES},
}  # fmt: skip


def read(name: str, file: str | Path | None = None) -> tasks.TaskSet:
    return tasks.read(SOURCES[name], READERS[name], file)


needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.best_tier() == "C", reason="no sandbox holds here"
)


@pytest.fixture
def folder(benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(BENCHMARKS_VARIABLE, str(benchmarks))
    return benchmarks


# --- finding data ----------------------------------------------------------------------------------------------------


def test_data_not_found_names_the_three_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(BENCHMARKS_VARIABLE, str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(UserError) as caught:
        data.find(SOURCES["humaneval"])
    text = str(caught.value)
    assert "--data" in text and BENCHMARKS_VARIABLE in text and "openai/openai_humaneval" in text and "\n" not in text
    with pytest.raises(UserError, match="not on the hub"):
        data.find(SOURCES["humaneval-infilling-single"])


def test_evalplus_own_files_are_read_from_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's data sets of that name have no inputs; EvalPlus keeps RELEASE-VERSION.jsonl, decompressed."""
    made = {
        "prompt": "", "contract": "", "entry_point": "f", "canonical_solution": "\ndef f(a):\n    return a\n",
        "base_input": [[[1, 2]]], "plus_input": [[[3]], [[]]], "atol": 0,
    }  # fmt: skip
    published = {
        "humaneval+": [{**made, "task_id": f"HumanEval/{number}", "atol": 1e-6} for number in range(3)],
        "mbpp+": [
            {**made, "task_id": "Mbpp/2", "assertion": "assert f((1, 2)) == (1, 2)"},
            {**made, "task_id": "Mbpp/793", "assertion": "assert f([1]) == [1]", "plus_input": {}},
        ],
    }
    monkeypatch.delenv(BENCHMARKS_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, file in (("humaneval+", "HumanEvalPlus-v0.1.10"), ("mbpp+", "MbppPlus-v0.2.0")):
        rows = published[name]
        source = replace(SOURCES[name], count=len(rows))
        with pytest.raises(UserError) as caught:
            data.find(source)
        release, _, version = file.partition("-")
        address = (
            f"https://github.com/evalplus/{release.lower()}_release/releases/download/{version}/{release}.jsonl.gz"
        )
        assert all(way in str(caught.value) for way in ("--data", BENCHMARKS_VARIABLE, str(tmp_path), address))
        cached = tmp_path / "evalplus" / f"{file}.jsonl"
        cached.parent.mkdir(exist_ok=True)
        cached.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = tasks.read(source, evalplus.task_of)
        assert found.origin == str(cached) and len(found.tasks) == len(rows)
        assert environment._where(source) == str(cached)
    first, last = (task.plus for task in found.tasks)
    assert first is not None and last is not None and not last.plus
    assert [codec.loads(one) for one in first.plus] == [[(3,)], [()]]  # Mbpp/2 takes tuples
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data._evalplus_cache() == tmp_path / "home" / "Library" / "Caches" / "evalplus"


def row(number: int) -> dict[str, object]:
    return {"task_id": f"HumanEval/{number}", "prompt": "def f(x):\n    '''doc'''\n", "entry_point": "f", "canonical_solution": "    return x\n",
            "test": "def check(c):\n    assert c(1) == 1\n"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(json.dumps(row(n)) for n in range(163)), "has 163 tasks and must have 164"),
        ("\n".join(json.dumps(row(0)) for n in range(164)), "twice"),
        (json.dumps(row(0)) + "\n{broken\n", "line 2 is not JSON"),
        (json.dumps(row(0)) + "\n3\n", "line 2 holds a number, not an object"),
        (
            "\n".join(json.dumps({**row(n), "test": 1} if n else {"task_id": "x"}) for n in range(164)),
            "no field 'prompt'",
        ),
        *(
            (
                "\n".join(json.dumps({**row(n), field: value} if n == 5 else row(n)) for n in range(164)),
                f"task 6 has {field} = .*, which must be text",
            )
            for field, value in (("prompt", None), ("entry_point", 5), ("test", ["x"]))
        ),
        ("", "is empty"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read("humaneval", file)


def test_wrong_names_and_places() -> None:
    with pytest.raises(UserError, match="did you mean 'humaneval'"):
        suites.load("humanevl")
    with pytest.raises(UserError, match="is not a file"):
        read("humaneval", "/no/such/file")


def test_a_file_is_the_same_compressed_or_not(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row(number)) for number in range(164))
    (tmp_path / "a.jsonl").write_text(text)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as handle:
        handle.write(text)
    plain, packed = (read("humaneval", tmp_path / name) for name in ("a.jsonl", "a.jsonl.gz"))
    assert plain.sha256 == packed.sha256 and plain.tasks == packed.tasks
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b1234")
    with pytest.raises(UserError, match="is damaged"):
        read("humaneval", tmp_path / "broken.gz")


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_counts_and_forms(folder: Path) -> None:
    for name in READERS:
        found = read(name)
        assert len(found.tasks) == SOURCES[name].count
        assert all((task.problem is None) == (task.plus is not None) for task in found.tasks)
    plus = read("humaneval+").by_id().values()
    assert sum(len(task.plus.plus) for task in plus if task.plus) == 122_683
    tree = read("mbpp").by_id()["Mbpp/367"]
    assert tree.problem and tree.entry_point == "is_tree_balanced" and "Node" in tree.problem.setup


def test_mbpp_plus_repairs(folder: Path) -> None:
    found = read("mbpp+").by_id()

    def first(number: int) -> list[object]:
        task = found[f"Mbpp/{number}"]
        assert task.plus is not None
        value = codec.loads(task.plus.base[0])
        assert isinstance(value, list)
        return value

    assert first(2) == [(3, 4, 5, 6), (5, 7, 4, 10)]
    assert all(type(item) is tuple for item in first(63)[0])  # type: ignore[attr-defined]
    assert type(first(124)[1]) is complex and type(first(252)[0]) is complex
    assert oracles.repair("Mbpp/115", [[[[1, 2], []]]]) == [[[{1, 2}, {}]]]
    task = found["Mbpp/793"]
    assert task.plus is not None and task.plus.plus == ()
    assert {number for number in range(1000) if oracles.oracle(f"Mbpp/{number}", "f") == "same-set"} == set(
        oracles._SETS
    )
    assert (
        oracles.oracle("HumanEval/2", "Diff") == "equal"
        and oracles.oracle("HumanEval/32", "find_zero") == "polynomial-root"
    )


def pairs(name: str) -> list[tuple[Problem, str]]:
    return [(task.problem, task.reference) for task in read(name).tasks if task.problem]


def judged(items: Sequence[tuple[Problem, str]]) -> dict[str, Verdict]:
    with Judge(workers=2) as running:
        return {verdict.task_id: verdict for _, verdict in running.stream(items)}


@needs_sandbox
@pytest.mark.parametrize("name", ["humaneval", "humaneval-infilling-span"])
def test_references_pass(folder: Path, name: str) -> None:
    found = judged(pairs(name))
    assert len(found) == SOURCES[name].count
    assert [verdict for verdict in found.values() if not verdict.passed] == []


@needs_sandbox
def test_mbpp_references_of_each_kind_pass(folder: Path) -> None:
    """Every twentieth task and all that are unlike the others; all of them in the slow test."""
    unlike = {"Mbpp/367", "Mbpp/927", "Mbpp/601", "Mbpp/596", "Mbpp/533", "Mbpp/40", "Mbpp/653"}
    some = [pair for place, pair in enumerate(pairs("mbpp")) if place % 20 == 0 or pair[0].task_id in unlike]
    some += [pair for pair in pairs("mbpp-sanitized") if pair[0].task_id in ("Mbpp/82", "Mbpp/737", "Mbpp/787")]
    assert [verdict for verdict in judged(some).values() if not verdict.passed] == []


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mbpp", "mbpp-sanitized", "humaneval-infilling-single", "humaneval-infilling-multi", "humaneval+", "mbpp+"]
)
def test_all_references_pass(folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCODER_CACHE", str(tmp_path))
    with Judge(workers=2) as running:
        found = expected.with_expected(read(name), running)
    verdicts = judged([(task.problem, task.reference) for task in found.tasks if task.problem])
    assert len(verdicts) == SOURCES[name].count
    assert [verdict for verdict in verdicts.values() if not verdict.passed] == []


# --- expected values -------------------------------------------------------------------------------------------------


def plus_benchmark(answer: str) -> tasks.TaskSet:
    inputs = tuple(codec.dumps([value]) for value in (1, 2, 30))
    task = tasks.Task(
        "HumanEval/0", "def f(x):\n", "f", answer, "complete", plus=tasks.PlusInputs(inputs[:1], inputs[1:], 0.0)
    )
    return tasks.TaskSet("made", (task,), "here", "0" * 64)


@needs_sandbox
def test_expected_values_are_computed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCODER_CACHE", str(tmp_path))
    ran: list[str] = []
    with Judge(workers=1) as running:
        for _ in range(2):
            [task] = expected.with_expected(plus_benchmark("    return [x, 2 * x]\n"), running, ran.append).tasks
            assert task.problem is not None
            base, plus = task.problem.calls
            assert [codec.loads(text) for text in (*base.expected, *plus.expected)] == [[1, 2], [2, 4], [30, 60]]
            assert set(base.seconds + plus.seconds) == {4.0}
            assert running.submit(task.problem, task.reference).result().plus
            found = running.submit(task.problem, "def f(x): return [x, 2 * x if x < 9 else 0]").result()
            assert (found.base, found.plus, found.tests_passed) == (True, False, 2)
        assert ran == ["HumanEval/0"]
        [path] = tmp_path.rglob("*.json.gz")
        path.write_bytes(b"broken")
        expected.with_expected(plus_benchmark("    return [x, 2 * x]\n"), running, ran.append)
        assert len(ran) == 2


@needs_sandbox
def test_a_failing_reference_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCODER_CACHE", str(tmp_path))
    with Judge(workers=1) as running, pytest.raises(WorkFailed, match=r"HumanEval/0 fails on 1 of its inputs"):
        expected.with_expected(plus_benchmark("    return 1 // (x - 2)\n"), running)


@needs_sandbox
def test_answers_too_large_for_a_frame_are_compared_by_digest() -> None:
    source = "def f(n): return [(i, 'abcdefghijklmnop') for i in range(n)]"
    inputs = (codec.dumps([700_000]),)
    with Judge(workers=1) as running:
        [(answer, _)] = running.outputs(source, "f", inputs, seconds=60, memory_mib=4096).result()
        assert answer is not None and len(answer) < 100 and type(codec.loads(answer)) is codec.Digest
        from dcoder_cli.execution.problem import Calls

        problem = Problem("t", "f", calls=(Calls("base", inputs, (answer,), (60.0,)),), memory_mib=4096)
        assert running.submit(problem, source).result().passed
        assert not running.submit(problem, source.replace("(n)", "(n - 1)")).result().passed
        assert not running.submit(problem, source.replace("op'", "o'")).result().passed


# --- pass@k ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(numbers: tuple[int, int, int]) -> None:
    n, c, k = numbers
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert math.isclose(passk.pass_at_k(n, c, k), sum(map(any, draws)) / len(draws), abs_tol=1e-12)


def test_pass_at_k_is_stable_and_checked() -> None:
    assert passk.pass_at_k(100_000, 1, 1) == pytest.approx(1e-5, rel=1e-9)
    for wrong in ((3, 4, 1), (3, 1, 4), (3, -1, 1), (3, 1, 0)):
        with pytest.raises(UserError):
            passk.pass_at_k(*wrong)


# --- GSM8K -----------------------------------------------------------------------------------------------------------


def test_golds_all_parse(benchmark_files: Path) -> None:
    questions, _ = gsm8k.load()
    assert len(questions) == 1319 and len({question.task_id for question in questions}) == 1319
    for question in questions:
        text = f" {question.worked.rpartition('####')[0]}The answer is {question.worked.rpartition('####')[2].strip()}.\n\nQ: And 7?"
        assert gsm8k.strict_answer(text) == gsm8k.flexible_answer(text) == question.gold


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" 5 + 4 = 9. The answer is 9.", 9, 9),
        (" The answer is $1,234.50.", "1234.5", "1234.5"),
        (" The answer is -3", -3, -3),
        (" The answer is 9.0", 9, 9),
        (" So 18 dollars\n", None, 18),
        (" The answer is 5.\n\nQ: What is 6?\n\nA: The answer is 6.", 5, 5),
        (" no number", None, None),
        ("", None, None),
        (" The answer is __import__('os').", None, None),
        (" The answer is 9**9**9.", 9, 9),
        (" 1" + "0" * 400, None, "1" + "0" * 400),
    ],
)
def test_answers(text: str, strict: object, flexible: object) -> None:
    assert gsm8k.strict_answer(text) == (None if strict is None else Decimal(str(strict)))
    assert gsm8k.flexible_answer(text) == (None if flexible is None else Decimal(str(flexible)))


def test_the_prompt_has_eight_examples_that_end_in_an_answer() -> None:
    text = gsm8k.prompt("How many?")
    assert text.endswith("Q: How many?\n\nA:") and text.count("Q: ") == 9 and text.count("\n\nA:") == 9
    answers = [gsm8k.strict_answer(part) for part in text.split("\n\nA:")[1:9]]
    assert answers == [6, 5, 39, 8, 9, 29, 33, 8]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="The answer is.-$,0123456789\nQ:", max_size=60))
def test_any_text_parses_or_not(text: str) -> None:
    for answer in (gsm8k.strict_answer(text), gsm8k.flexible_answer(text)):
        assert answer is None or answer.is_finite()


# --- BigCodeBench ----------------------------------------------------------------------------------------------------

TESTS = """
import os, socket, subprocess, unittest
class TestCases(unittest.TestCase):
    def test_one(self):
        self.assertEqual(task_func(1), 2)
    def test_two(self):
        self.assertEqual(task_func(2), 3)
"""


@needs_sandbox
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap")
def test_unittests_beside_the_candidate(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    survivor = f"sleep 31{os.getpid()}"
    cases = {
        "def task_func(x): return x + 1": "passed",
        "def task_func(x): return x": "failed",
        "def task_func(x) return x": "syntax",
        "import os\nos._exit(0)": "failed",
        "import sys\nsys.exit(0)": "failed",
        "while True: pass": "timeout",
        f"def task_func(x): return len(open({str(secret)!r}).read()) + x": "failed",
        "import socket\ndef task_func(x):\n    socket.create_connection(('1.1.1.1', 53), 1)\n    return x + 1": "failed",
        f"import subprocess\nsubprocess.Popen({survivor.split()!r})\ndef task_func(x): return x + 1": "passed",
        "import subprocess, sys\ndef task_func(x): return int(subprocess.check_output(['python', '-c', f'print({x} + 1)']))": "passed",
    }
    jobs = [UnittestJob(str(number), source, TESTS, seconds=10.0) for number, source in enumerate(cases)]
    found = judge_unittests(jobs, sys.executable, workers=2)
    assert {source: verdict.status for source, verdict in zip(cases, found, strict=True)} == cases
    assert all(verdict.low_trust and verdict.row()["low_trust"] for verdict in found)
    running = subprocess.run(["ps", "-ef"], capture_output=True, text=True, check=False).stdout
    assert survivor not in running


def test_a_wrong_interpreter_is_said() -> None:
    for python in ("/no/such/python", "/bin/true"):
        with pytest.raises(UserError, match="--python"):
            judge_unittests([UnittestJob("t", "", TESTS)], python)


@needs_sandbox
def test_bigcodebench_tasks(benchmark_files: Path) -> None:
    """Some tasks that need only the standard library; the list of all that pass depends on the libraries installed."""
    full, _ = bigcodebench.load(hard=False)
    hard, _ = bigcodebench.load(hard=True)
    assert {task.task_id for task in hard} <= {task.task_id for task in full}
    chosen = [task for task in full if task.task_id in ("BigCodeBench/2", "BigCodeBench/8")]
    verdicts = judge_unittests([task.job(task.reference) for task in chosen], sys.executable, workers=2)
    assert [verdict.status for verdict in verdicts] == ["passed"] * len(chosen) == ["passed"] * 2
    bodies = judge_unittests(
        [task.job(f"def {task.entry_point}(*a, **k): return None") for task in chosen], sys.executable, workers=2
    )
    assert not any(verdict.passed for verdict in bodies)


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor(benchmark_files: Path, root: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dcoder_cli", "doctor"]
    found = json.loads(
        subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True).stdout
    )
    assert found["sandbox"]["tier"] == sandbox.best_tier()
    assert found["hub"].startswith("offline")
    assert found["benchmarks"]["humaneval"] == str(benchmark_files / "humaneval" / "HumanEval.jsonl.gz")
    assert found["packages"]["torch"] and isinstance(found["gpu"], list)
    assert found["sandbox"]["why_not_better"] == {} or found["sandbox"]["tier"] != "A"
    without = {**environment, "PATH": "/nonexistent"}
    text = subprocess.run(command, env=without, capture_output=True, text=True, check=True).stdout
    assert "humaneval-infilling-span" in text and "not tier A" in text and "apt install bubblewrap" in text

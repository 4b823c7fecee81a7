"""Our own tasks in the formats of the public benchmarks: they are read whole, and their references pass."""

from __future__ import annotations

import sys
from pathlib import Path

import own_benchmarks
import pytest

from dcoder_cli.benchmarks import bigcodebench, evalplus, expected, gsm8k, humaneval, infilling, mbpp, suites, tasks
from dcoder_cli.execution import sandbox
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.unittests import judge_unittests

needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.best_tier() == "C", reason="no sandbox holds here"
)
CODE = {
    "humaneval": "humaneval", "humaneval+": "humanevalplus", "mbpp": "mbpp", "mbpp-sanitized": "sanitized-mbpp",
    "mbpp+": "mbppplus", "humaneval-infilling-single": "infilling-single", "humaneval-infilling-multi": "infilling-multi",
    "humaneval-infilling-span": "infilling-span",
}  # fmt: skip


@pytest.fixture(autouse=True)
def files(own_benchmark_files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DCODER_BENCHMARKS", str(own_benchmark_files))
    monkeypatch.setenv("DCODER_CACHE", str(tmp_path))


@needs_sandbox
@pytest.mark.parametrize("name", list(CODE))
def test_references_pass_and_nothing_does_not(name: str) -> None:
    readers = {
        "humaneval": humaneval.task_of, "mbpp": mbpp.task_of, "mbpp-sanitized": mbpp.sanitized_task_of,
        "humaneval+": evalplus.task_of, "mbpp+": evalplus.task_of,
    }  # fmt: skip
    found = tasks.read(suites.sources()[name], readers.get(name, infilling.task_of))
    own = found.tasks[: len(own_benchmarks.rows(CODE[name]))]
    with Judge(workers=2) as judge:
        complete = expected.with_expected(tasks.TaskSet(name, own, found.origin, found.sha256), judge)
        for task in complete.tasks:
            assert task.problem is not None
            right, wrong = judge.submit(task.problem, task.reference), f"def {task.entry_point}(*_): return None"
            assert right.result().passed, (task.task_id, right.result())
            assert not judge.submit(task.problem, wrong).result().passed, task.task_id


@needs_sandbox
def test_bigcodebench_references_pass() -> None:
    full, _ = bigcodebench.load(hard=False)
    own = full[: len(own_benchmarks.rows("bigcodebench"))]
    verdicts = judge_unittests([task.job(task.reference) for task in own], sys.executable, workers=2)
    assert [verdict.status for verdict in verdicts] == ["passed"] * len(own)
    bodies = [task.job(f"def {task.entry_point}(*a): return None") for task in own]
    assert not any(verdict.passed for verdict in judge_unittests(bodies, sys.executable, workers=2))


def test_gsm8k_golds_parse() -> None:
    questions, _ = gsm8k.load()
    assert [str(one.gold) for one in questions[:3]] == ["19", "3600", "11.5"]

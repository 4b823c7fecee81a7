"""Expected values of plus tests: what the reference solutions answer, computed once in the sandbox and kept.

With them go the times that the references took, on this machine and under its load: a candidate gets
max(4 s, 4 times that) for an input (EvalPlus). The cache is keyed by the hash of the data.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import WorkFailed
from dcoder_cli.base.files import atomic_file
from dcoder_cli.benchmarks import oracles
from dcoder_cli.benchmarks.tasks import Task, TaskSet
from dcoder_cli.execution import codec
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import CALL_SECONDS, MOST_SECONDS, Calls, Problem

TIMES_REFERENCE = 4.0  # EvalPlus
PLUS_MEMORY_MIB = 4096  # EvalPlus's limit
_REFERENCE_SECONDS = 300.0  # ours: Mbpp/599 takes up to 58 s for all its inputs, on a quiet machine
_VERSION = 1  # of the cache's form

Answers = list[tuple[bytes, float]]  # encoded answer and seconds, for each base input and then each plus input


def with_expected(found: TaskSet, judge: Judge, progress: Callable[[str], None] | None = None) -> TaskSet:
    """The tasks with a Problem in every plus task; the others are left as they are.

    Args:
        judge: runs the references that the cache does not have.
        progress: called with each task id whose reference has run.

    Raises:
        WorkFailed: a reference fails on one of its inputs.
    """
    if all(task.plus is None for task in found.tasks):
        return found
    path = cache_file(found)
    known = _read(path)
    waiting = {}
    for task in found.tasks:
        if task.plus is not None and task.task_id not in known:
            waiting[task.task_id] = judge.outputs(
                task.reference,
                task.entry_point,
                [*task.plus.base, *task.plus.plus],
                seconds=_REFERENCE_SECONDS,
                total_seconds=_REFERENCE_SECONDS,
                memory_mib=PLUS_MEMORY_MIB,
            )
    for task_id, future in waiting.items():
        known[task_id] = _complete(task_id, future.result())
        if progress is not None:
            progress(task_id)
    if waiting:
        _write(path, known)
    tasks = tuple(
        task if task.plus is None else replace(task, problem=_problem(task, known[task.task_id]))
        for task in found.tasks
    )
    return replace(found, tasks=tasks)


def cache_file(found: TaskSet) -> Path:
    """Where the expected values of tasks are kept: $DCODER_CACHE, else $XDG_CACHE_HOME/dcoder, else ~/.cache/dcoder."""
    folder = os.environ.get("DCODER_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dcoder"
    )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Path(folder) / "expected" / f"{found.sha256[:32]}-{python}-{_VERSION}.json.gz"


def _complete(task_id: str, answers: Sequence[tuple[bytes | None, float]]) -> Answers:
    complete = [(answer, seconds) for answer, seconds in answers if answer is not None]
    if len(complete) != len(answers):
        raise WorkFailed(
            f"the reference solution of {task_id} fails on {len(answers) - len(complete)} of its inputs here"
        )
    return complete


def _problem(task: Task, answers: Answers) -> Problem:
    assert task.plus is not None
    oracle = oracles.oracle(task.task_id, task.entry_point)
    if oracle == "not-none":  # published as truths: what the reference finds cannot be written down (re.Match)
        answers = [(codec.dumps(codec.loads(answer) is not None), seconds) for answer, seconds in answers]
    groups = []
    cut = len(task.plus.base)
    for name, inputs, part in (("base", task.plus.base, answers[:cut]), ("plus", task.plus.plus, answers[cut:])):
        limits = tuple(max(CALL_SECONDS, TIMES_REFERENCE * seconds) for _, seconds in part)
        groups.append(Calls(name, inputs, tuple(answer for answer, _ in part), limits))
    spent = sum(seconds for _, seconds in answers)
    return Problem(
        task.task_id,
        task.entry_point,
        calls=tuple(groups),
        oracle=oracle,
        tolerance=task.plus.tolerance,
        total_seconds=2 * MOST_SECONDS + TIMES_REFERENCE * spent,
        memory_mib=PLUS_MEMORY_MIB,
    )


def _read(path: Path) -> dict[str, Answers]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            stored: dict[str, list[tuple[str, float]]] = json.load(handle)
        return {task_id: [(text.encode("utf-8", "surrogatepass"), seconds) for text, seconds in answers]
                for task_id, answers in stored.items()}  # fmt: skip
    except (OSError, EOFError, ValueError, TypeError, AttributeError):
        return {}  # none yet, or broken: computed again


def _write(path: Path, known: dict[str, Answers]) -> None:
    stored: dict[str, Any] = {
        task_id: [(text.decode("utf-8", "surrogatepass"), round(seconds, 5)) for text, seconds in answers]
        for task_id, answers in known.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8", compresslevel=3) as handle:
        json.dump(stored, handle)

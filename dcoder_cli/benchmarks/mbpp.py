"""MBPP (Austin et al. 2021): functions from a description in words and three tests."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcoder_cli.benchmarks import tasks
from dcoder_cli.benchmarks.benchmark import Benchmark, Item, Loaded
from dcoder_cli.benchmarks.data import BenchmarkSource
from dcoder_cli.benchmarks.humaneval import base_passed

SECONDS = 20.0  # the references take at most 2.1 s for one test (123); ours, for busy machines

_HUB, _SPLITS = "google-research-datasets/mbpp", ("prompt", "test", "validation", "train")
SOURCE = BenchmarkSource(
    "mbpp", "mbpp/mbpp.jsonl.gz", 974, _HUB, "full", _SPLITS,
    ("task_id", "text", "code", "test_list", "test_setup_code"),
    texts=("text", "code"),
)  # fmt: skip
SANITIZED = BenchmarkSource(
    "mbpp-sanitized", "mbpp/sanitized-mbpp.json.gz", 427, _HUB, "sanitized", _SPLITS,
    ("task_id", "prompt", "code", "test_list", "test_imports"),
    texts=("prompt", "code"),
)  # fmt: skip


def task_of(row: dict[str, Any]) -> tasks.Task:
    """A row of the whole set."""
    code = row["code"].replace("\r\n", "\n")
    setup = row["test_setup_code"].replace("\r\n", "\n")
    return _task(row["task_id"], row["text"], code, setup, tuple(row["test_list"]))


def sanitized_task_of(row: dict[str, Any]) -> tasks.Task:
    """A row of the sanitized set."""
    return _task(row["task_id"], row["prompt"], row["code"], "\n".join(row["test_imports"]), tuple(row["test_list"]))


def _task(number: int, text: str, code: str, setup: str, tests: tuple[str, ...]) -> tasks.Task:
    from dcoder_cli.execution.problem import Problem

    # setup code runs after the solution: two tasks (367, 927) build trees of the solution's own class with it
    entry_point = _tested_function(code, tests)
    task_id = f"Mbpp/{number}"
    problem = Problem(task_id, entry_point, tests=tests, setup=setup, seconds=SECONDS, total_seconds=2 * SECONDS)
    return tasks.Task(task_id, text, entry_point, code, "whole", shown_tests=tests, problem=problem)


def _tested_function(code: str, tests: tuple[str, ...]) -> str:
    """The function of the reference that the tests call."""
    defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    called = [node.func.id for node in ast.walk(ast.parse(tests[0]))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
    return next((name for name in called if name in defined), defined[-1] if defined else called[0])


def _item(task: tasks.Task) -> Item:
    prompt = f'"""\n{task.prompt}\n{task.shown_tests[0]}\n"""\n'  # the form of EvalPlus's MBPP prompts
    return Item(
        task.task_id,
        "whole",
        prompt,
        task.entry_point,
        task,
        "",
        task.prompt,
        task.shown_tests,
        task.reference,
        names=task.problem.names if task.problem is not None else frozenset(),
    )


def _load(subset: str, file: str | Path | None) -> Loaded:
    if subset == "sanitized":
        return tasks.loaded(tasks.read(SANITIZED, sanitized_task_of, file), _item, "MBPP sanitized")
    found = tasks.loaded(tasks.read(SOURCE, task_of, file), _item, "MBPP")
    if subset == "all":
        return found
    asked = tuple(one for one in found.items if 11 <= int(one.task_id.rpartition("/")[2]) <= 510)  # Austin et al. 2021
    return replace(found, items=asked)


BENCHMARKS = (
    Benchmark(
        "mbpp",
        "MBPP: functions from a description; subsets test (500), all (974), sanitized (427).",
        _load,
        tasks.BY_OWN_TESTS,
        {"mbpp": base_passed},
        subsets=("test", "all", "sanitized"),
        widest="all",
        sources=(SOURCE, SANITIZED),
    ),
)

"""The public code benchmarks as tasks: what a model is given, and the Problem that judges its answer."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import data, oracles
from dcoder_cli.execution import codec
from dcoder_cli.execution.problem import Problem

Form = Literal["complete", "infill", "whole"]

# HumanEval's references take at most 0.5 s for all calls of a test, MBPP's 2.1 s for one (123); ours, for busy machines
HUMANEVAL_SECONDS = 10.0
MBPP_SECONDS = 20.0
PLUS_MEMORY_MIB = 4096  # EvalPlus's limit


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        task_id: as published (MBPP: `Mbpp/N`).
        prompt: HumanEval: the code to complete; infilling: the code before the gap; MBPP: the description in words.
        suffix: the code after the gap, for infilling.
        form: how an answer becomes a program: `complete` after the prompt, `infill` between prompt and suffix, or it is
            the `whole` program.
        entry_point: the function to define.
        answer: a reference answer in the same form.
        shown_tests: tests that MBPP's prompts show.
        problem: what judges a program; None for plus tasks until `expected.with_expected` has been there.
        plus: raw inputs of a plus task: base, plus, tolerance.
    """

    task_id: str
    prompt: str
    entry_point: str
    answer: str
    form: Form
    suffix: str = ""
    shown_tests: tuple[str, ...] = ()
    problem: Problem | None = None
    plus: PlusInputs | None = None

    def program(self, answer: str) -> str:
        """The program that an answer makes."""
        if self.form == "whole":
            return answer
        return self.prompt + answer + self.suffix

    @property
    def reference(self) -> str:
        """A program that is right."""
        return self.program(self.answer)


@dataclass(frozen=True)
class PlusInputs:
    """Lists of arguments of a plus task, encoded by `codec.dumps`, and its absolute tolerance."""

    base: tuple[bytes, ...]
    plus: tuple[bytes, ...]
    tolerance: float


@dataclass(frozen=True)
class Benchmark:
    """Tasks of one benchmark with where they came from and the hash of the data."""

    name: str
    tasks: tuple[Task, ...]
    origin: str
    sha256: str

    def by_id(self) -> dict[str, Task]:
        """Tasks by their ids."""
        return {task.task_id: task for task in self.tasks}


def load(name: str, file: str | Path | None = None) -> Benchmark:
    """A code benchmark by name (the keys of `READERS`), its data found as `data.find` says.

    Raises:
        UserError: unknown, not found, incomplete or broken.
    """
    if name not in READERS:
        raise UserError(f"unknown benchmark {name!r}{nearest(name, list(READERS))}")
    rows = data.find(name, file)
    tasks = tuple(READERS[name](row) for row in rows.rows)
    ids = {task.task_id for task in tasks}
    if len(ids) != len(tasks):
        raise UserError(f"{name} from {rows.origin} has task ids twice; fetch the file again")
    return Benchmark(name, tasks, rows.origin, rows.sha256)


# --- readers, one for each layout ------------------------------------------------------------------------------------


def _humaneval(row: dict[str, Any]) -> Task:
    entry_point = row["entry_point"]
    problem = Problem(
        row["task_id"],
        entry_point,
        prelude=row["prompt"],  # some checks use the prompt's helpers (poly, encode_cyclic, encode_shift)
        setup=row["test"],
        tests=(f"check({entry_point})",),
        seconds=HUMANEVAL_SECONDS,
        total_seconds=2 * HUMANEVAL_SECONDS,
    )
    return Task(row["task_id"], row["prompt"], entry_point, row["canonical_solution"], "complete", problem=problem)


def _infilling(row: dict[str, Any]) -> Task:
    task = _humaneval({**row, "prompt": ""})
    assert task.problem is not None
    prelude = _helpers(row["prompt"] + row["canonical_solution"] + row["suffix"], row["entry_point"])
    problem = replace(task.problem, prelude=prelude)
    return replace(task, prompt=row["prompt"], suffix=row["suffix"], form="infill", problem=problem)


def _helpers(program: str, entry_point: str) -> str:
    """What a reference program has besides its entry point, for checks that use it."""
    tree = ast.parse(program)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == entry_point)]
    return ast.unparse(tree)


def _mbpp(row: dict[str, Any]) -> Task:
    code = row["code"].replace("\r\n", "\n")
    setup = row["test_setup_code"].replace("\r\n", "\n")
    return _mbpp_task(row["task_id"], row["text"], code, setup, tuple(row["test_list"]))


def _mbpp_sanitized(row: dict[str, Any]) -> Task:
    return _mbpp_task(
        row["task_id"], row["prompt"], row["code"], "\n".join(row["test_imports"]), tuple(row["test_list"])
    )


def _mbpp_task(number: int, text: str, code: str, setup: str, tests: tuple[str, ...]) -> Task:
    # setup code runs after the solution: two tasks (367, 927) build trees of the solution's own class with it
    entry_point = _tested_function(code, tests)
    task_id = f"Mbpp/{number}"
    problem = Problem(
        task_id, entry_point, tests=tests, setup=setup, seconds=MBPP_SECONDS, total_seconds=2 * MBPP_SECONDS
    )
    return Task(task_id, text, entry_point, code, "whole", shown_tests=tests, problem=problem)


def _tested_function(code: str, tests: tuple[str, ...]) -> str:
    """The function of the reference that the tests call."""
    defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    called = [node.func.id for node in ast.walk(ast.parse(tests[0]))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]  # fmt: skip
    return next((name for name in called if name in defined), defined[-1] if defined else called[0])


def _plus(row: dict[str, Any]) -> Task:
    task_id, entry_point = row["task_id"], row["entry_point"]
    base, plus = (
        tuple(codec.dumps(arguments) for arguments in oracles.repair(task_id, row[name]))
        for name in ("base_input", "plus_input")
    )
    whole = task_id.startswith("Mbpp/")
    answer = row["canonical_solution"]
    return Task(
        task_id, row["prompt"], entry_point, row["prompt"] + answer if whole else answer,
        "whole" if whole else "complete", plus=PlusInputs(base, plus, float(row["atol"])),
    )  # fmt: skip


READERS: dict[str, Callable[[dict[str, Any]], Task]] = {
    "humaneval": _humaneval,
    "humaneval+": _plus,
    "mbpp": _mbpp,
    "mbpp-sanitized": _mbpp_sanitized,
    "mbpp+": _plus,
    "humaneval-infilling-single": _infilling,
    "humaneval-infilling-multi": _infilling,
    "humaneval-infilling-span": _infilling,
}

"""Code tasks as the public benchmarks publish them: what a model is given, and the Problem that judges its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import data
from dcoder_cli.benchmarks.benchmark import ByTests, Item, Loaded, Suite, Told

if TYPE_CHECKING:
    from dcoder_cli.execution.judge import Judge
    from dcoder_cli.execution.problem import Problem

Form = Literal["complete", "infill", "whole"]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        task_id: as published.
        prompt: the code to complete; the code before the gap; or the description in words.
        suffix: the code after the gap, for infilling.
        form: how an answer becomes a program: `complete` after the prompt, `infill` between prompt and suffix, or it is
            the `whole` program.
        entry_point: the function to define.
        answer: a reference answer in the same form.
        shown_tests: tests that prompts show.
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
class TaskSet:
    """Tasks of one file, with where it came from and the hash of the data."""

    name: str
    tasks: tuple[Task, ...]
    origin: str
    sha256: str

    def by_id(self) -> dict[str, Task]:
        """Tasks by their ids."""
        return {task.task_id: task for task in self.tasks}


def read(
    source: data.BenchmarkSource, task_of: Callable[[dict[str, Any]], Task], file: str | Path | None = None
) -> TaskSet:
    """The tasks of a data file, which is found as `data.find` says; `task_of` reads a row.

    Raises:
        UserError: not found, incomplete or broken.
    """
    rows = data.find(source, file)
    tasks = tuple(task_of(row) for row in rows.rows)
    if len({task.task_id for task in tasks}) != len(tasks):
        raise UserError(f"{source.name} from {rows.origin} has task ids twice; fetch the file again")
    return TaskSet(source.name, tasks, rows.origin, rows.sha256)


def loaded(found: TaskSet, item_of: Callable[[Task], Item], version: str) -> Loaded:
    """Tasks as a benchmark's loader gives them."""
    items = tuple(item_of(task) for task in found.tasks)
    return Loaded(items, version, found.origin, found.sha256, items)


def item(task: Task) -> Item:
    """A task to complete, or with a gap to fill, as an item."""
    if task.form == "infill":
        return Item(task.task_id, "infill", task.prompt, task.entry_point, task, suffix=task.suffix)
    return Item(task.task_id, "complete", task.prompt, task.entry_point, task, reference=task.reference)


def own_problems(suite: Suite, judge: Judge, told: Told | None) -> Mapping[str, Problem]:
    """The problems that the tasks have from the start."""
    return {one.task_id: one.source.problem for one in suite.items}


BY_OWN_TESTS = ByTests(own_problems)

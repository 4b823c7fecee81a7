"""BigCodeBench, full and hard: prompts, and programs as its evaluator puts them together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcoder_cli.benchmarks import data
from dcoder_cli.benchmarks.benchmark import Benchmark, ByUnittests, Item, Loaded, passed

if TYPE_CHECKING:
    from dcoder_cli.execution.unittests import UnittestJob

_FIELDS = (
    "task_id", "complete_prompt", "instruct_prompt", "code_prompt", "canonical_solution", "test", "entry_point",
)  # fmt: skip
FULL = data.BenchmarkSource(
    "bigcodebench", "bigcodebench/BigCodeBench-v0.1.4-derived.jsonl.gz", 1140, "bigcode/bigcodebench", None, ("v0.1.4",),
    _FIELDS, texts=_FIELDS,
)  # fmt: skip
HARD = data.BenchmarkSource(
    "bigcodebench-hard", "bigcodebench/BigCodeBench-Hard-v0.1.4-derived.jsonl.gz", 148, "bigcode/bigcodebench-hard", None,
    ("v0.1.4",), _FIELDS, texts=_FIELDS,
)  # fmt: skip


@dataclass(frozen=True)
class LibraryTask:
    """One task: code to complete (`complete_prompt`), the same in words (`instruct_prompt`), and its unittest class.

    `code_prompt` holds imports and the signature without the description; `answer` is the reference function body.
    """

    task_id: str
    complete_prompt: str
    instruct_prompt: str
    code_prompt: str
    entry_point: str
    answer: str
    test: str

    def job(self, solution: str) -> UnittestJob:
        """What judges a whole solution (imports, signature and body)."""
        from dcoder_cli.execution.unittests import UnittestJob

        # the stub in front gives imports and name where a solution leaves them out; the solution redefines it
        return UnittestJob(self.task_id, f"{self.code_prompt}\n    pass\n{solution}", self.test)

    @property
    def reference(self) -> str:
        """A solution that is right with the libraries of the benchmark's time."""
        return self.complete_prompt + self.answer


def load(hard: bool, file: str | Path | None = None) -> tuple[tuple[LibraryTask, ...], data.BenchmarkRows]:
    """The 1140 tasks or the 148 hard ones, and where they came from. Raises UserError as `data.find` does."""
    rows = data.find(HARD if hard else FULL, file)
    tasks = tuple(
        LibraryTask(
            task_id=row["task_id"],
            complete_prompt=row["complete_prompt"],
            instruct_prompt=row["instruct_prompt"],
            code_prompt=row["code_prompt"],
            entry_point=row["entry_point"],
            answer=row["canonical_solution"],
            test=row["test"],
        )
        for row in rows.rows
    )
    return tasks, rows


def _load(subset: str, file: str | Path | None) -> Loaded:
    form, _, part = subset.partition("-")
    found, rows = load(part == "hard", file)
    items = tuple(
        Item(task.task_id, "complete", task.complete_prompt, task.entry_point, task, reference=task.reference)
        if form == "complete"
        else Item(task.task_id, "words", task.instruct_prompt, task.entry_point, task, reference=task.reference)
        for task in found
    )
    version = "BigCodeBench-Hard v0.1.4" if part == "hard" else "BigCodeBench v0.1.4"
    return Loaded(items, version, rows.origin, rows.sha256)


def _job(item: Item, solution: str) -> UnittestJob:
    task: LibraryTask = item.source
    return task.job(solution)


BENCHMARKS = (
    Benchmark(
        "bigcodebench",
        "BigCodeBench; subsets complete-full, complete-hard, instruct-full, instruct-hard.",
        _load,
        ByUnittests(_job),
        {"bigcodebench": passed},
        subsets=("complete-full", "complete-hard", "instruct-full", "instruct-hard"),
        sources=(FULL, HARD),
        published={
            "complete-full": {"bigcodebench": "BigCodeBench-C full"},
            "complete-hard": {"bigcodebench": "BigCodeBench-C hard"},
        },
    ),
)

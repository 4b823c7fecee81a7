"""BigCodeBench, full and hard: prompts, and programs as its evaluator puts them together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dcoder_cli.benchmarks import data
from dcoder_cli.execution.unittests import UnittestJob


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
        # the stub in front gives imports and name where a solution leaves them out; the solution redefines it
        return UnittestJob(self.task_id, f"{self.code_prompt}\n    pass\n{solution}", self.test)

    @property
    def reference(self) -> str:
        """A solution that is right with the libraries of the benchmark's time."""
        return self.complete_prompt + self.answer


def load(hard: bool, file: str | Path | None = None) -> tuple[tuple[LibraryTask, ...], data.Rows]:
    """The 1140 tasks or the 148 hard ones, and where they came from. Raises UserError as `data.find` does."""
    rows = data.find("bigcodebench-hard" if hard else "bigcodebench", file)
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

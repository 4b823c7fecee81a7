"""HumanEval (Chen et al. 2021): functions to complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcoder_cli.benchmarks import tasks
from dcoder_cli.benchmarks.benchmark import Benchmark, Loaded, Row
from dcoder_cli.benchmarks.data import BenchmarkSource

SECONDS = 10.0  # the references take at most 0.5 s for all calls of a test; ours, for busy machines

SOURCE = BenchmarkSource(
    "humaneval", "humaneval/HumanEval.jsonl.gz", 164, "openai/openai_humaneval", None, ("test",),
    ("task_id", "prompt", "entry_point", "canonical_solution", "test"),
    texts=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
)  # fmt: skip


def task_of(row: dict[str, Any]) -> tasks.Task:
    """A row in HumanEval's layout."""
    from dcoder_cli.execution.problem import Problem

    entry_point = row["entry_point"]
    problem = Problem(
        row["task_id"],
        entry_point,
        prelude=row["prompt"],  # some checks use the prompt's helpers (poly, encode_cyclic, encode_shift)
        setup=row["test"],
        tests=(f"check({entry_point})",),
        seconds=SECONDS,
        total_seconds=2 * SECONDS,
    )
    return tasks.Task(
        row["task_id"], row["prompt"], entry_point, row["canonical_solution"], "complete", problem=problem
    )  # fmt: skip


def base_passed(row: Row) -> bool:
    """Whether the original tests passed, where there are others too."""
    return bool(row.get("base", row["passed"]))


def _load(_: str, file: str | Path | None) -> Loaded:
    return tasks.loaded(tasks.read(SOURCE, task_of, file), tasks.item, "HumanEval")


BENCHMARKS = (
    Benchmark(
        "humaneval",
        "HumanEval: 164 functions to complete.",
        _load,
        tasks.BY_OWN_TESTS,
        {"humaneval": base_passed},
        sources=(SOURCE,),
        published={"": {"humaneval": "HumanEval"}},
    ),
)

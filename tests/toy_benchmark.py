"""A benchmark as a contributor writes one: this file, and its line in `suites.MODULES`. Functions that return a constant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcoder_cli.benchmarks.benchmark import Benchmark, ByTests, Item, Loaded, Suite, passed
from dcoder_cli.benchmarks.data import BenchmarkSource, find
from dcoder_cli.execution.problem import Problem

SOURCE = BenchmarkSource(
    "toy", "toy/toy.jsonl", 3, None, None, (), ("task_id", "prompt", "entry_point", "answer", "test")
)


def load(subset: str, file: str | Path | None) -> Loaded:
    rows = find(SOURCE, file)
    asked = rows.rows if subset == "all" else rows.rows[:2]
    items = tuple(Item(row["task_id"], "complete", row["prompt"], row["entry_point"], row) for row in asked)
    return Loaded(items, "toy 1", rows.origin, rows.sha256)


def problems(suite: Suite, _: Any, __: Any) -> Mapping[str, Problem]:
    return {one.task_id: Problem(one.task_id, one.entry_point, tests=(one.source["test"],)) for one in suite.items}


BENCHMARKS = (
    Benchmark(
        "toy",
        "Toy: functions that return a constant; subsets two, all.",
        load,
        ByTests(problems),
        {"toy": passed},
        subsets=("two", "all"),
        widest="all",
        sources=(SOURCE,),
        settings={"max_new_tokens": 6, "temperature": 0.0},
    ),
)


def write(folder: Path) -> Path:
    """The data, below a folder as DCODER_BENCHMARKS names it."""
    file = folder / SOURCE.file
    file.parent.mkdir(parents=True)
    rows = [
        {"task_id": f"Toy/{n}", "prompt": f"def f{n}():\n", "entry_point": f"f{n}", "answer": f"    return {n}\n", "test": f"assert f{n}() == {n}"}
        for n in range(3)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file

"""HumanEval-Infilling (Bavarian et al. 2022): the code of a gap, between what stands before and after it."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcoder_cli.benchmarks import humaneval, tasks
from dcoder_cli.benchmarks.benchmark import Benchmark, Loaded, passed
from dcoder_cli.benchmarks.data import BenchmarkSource

_FIELDS = ("task_id", "prompt", "suffix", "entry_point", "canonical_solution", "test")
_FILES = {
    "single": ("HumanEval-SingleLineInfilling", 1033),
    "multi": ("HumanEval-MultiLineInfilling", 5815),
    "span": ("HumanEval-RandomSpanInfillingLight", 164),
}
SOURCES = {
    subset: BenchmarkSource(
        f"humaneval-infilling-{subset}",
        f"humaneval_infilling/{file}.jsonl.gz",
        count,
        None,
        None,
        (),
        _FIELDS,
        texts=_FIELDS,
    )
    for subset, (file, count) in _FILES.items()
}


def task_of(row: dict[str, Any]) -> tasks.Task:
    """A row: HumanEval's layout, and the code after the gap."""
    task = humaneval.task_of({**row, "prompt": ""})
    assert task.problem is not None
    prelude = _helpers(row["prompt"] + row["canonical_solution"] + row["suffix"], row["entry_point"])
    problem = replace(task.problem, prelude=prelude)
    return replace(task, prompt=row["prompt"], suffix=row["suffix"], form="infill", problem=problem)


def _helpers(program: str, entry_point: str) -> str:
    """What a reference program has besides its entry point, for checks that use it."""
    tree = ast.parse(program)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == entry_point)]
    return ast.unparse(tree)


def _load(subset: str, file: str | Path | None) -> Loaded:
    return tasks.loaded(tasks.read(SOURCES[subset], task_of, file), tasks.item, _FILES[subset][0])


BENCHMARKS = (
    Benchmark(
        "humaneval-infilling",
        "HumanEval-Infilling; subsets single, multi, span.",
        _load,
        tasks.BY_OWN_TESTS,
        {"infilling": passed},
        subsets=tuple(_FILES),
        sources=tuple(SOURCES.values()),
        gaps=True,
    ),
)

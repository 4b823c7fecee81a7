"""EvalPlus (Liu et al. 2023): HumanEval and MBPP with many more inputs, whose answers are compared with a reference's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.benchmarks import oracles, tasks
from dcoder_cli.benchmarks.benchmark import Benchmark, ByTests, Item, Loaded, Row, Suite, Told
from dcoder_cli.benchmarks.data import BenchmarkSource
from dcoder_cli.benchmarks.humaneval import base_passed

if TYPE_CHECKING:
    from dcoder_cli.execution.judge import Judge
    from dcoder_cli.execution.problem import Problem

_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
HUMANEVAL_PLUS = BenchmarkSource(
    "humaneval+", "humanevalplus/HumanEvalPlus.jsonl.gz", 164, None, None, (), _FIELDS, ("HumanEvalPlus", "v0.1.10")
)
MBPP_PLUS = BenchmarkSource("mbpp+", "mbppplus/MbppPlus.jsonl.gz", 378, None, None, (), _FIELDS, ("MbppPlus", "v0.2.0"))


def task_of(row: dict[str, Any]) -> tasks.Task:
    """A row of either file."""
    from dcoder_cli.execution import codec

    task_id, entry_point = row["task_id"], row["entry_point"]
    base, plus = (
        tuple(codec.dumps(arguments) for arguments in oracles.repair(task_id, row[name]))
        for name in ("base_input", "plus_input")
    )
    whole = task_id.startswith("Mbpp/")
    answer = row["canonical_solution"]
    return tasks.Task(
        task_id, row["prompt"], entry_point, row["prompt"] + answer if whole else answer,
        "whole" if whole else "complete", plus=tasks.PlusInputs(base, plus, float(row["atol"])),
    )  # fmt: skip


def _described(task: tasks.Task) -> Item:
    """MBPP+: the prompt is the description and a test, as a docstring."""
    lines = task.prompt.strip().strip('"').strip().splitlines()
    words = "\n".join(line for line in lines if not line.startswith("assert")).strip()
    shown = tuple(line for line in lines if line.startswith("assert"))
    # the published answer begins with the prompt, which worked examples show already
    answer = task.reference.removeprefix(task.prompt).strip()
    return Item(task.task_id, "whole", task.prompt, task.entry_point, task, "", words, shown, answer)


def _problems(suite: Suite, judge: Judge, told: Told | None) -> Mapping[str, Problem]:
    """The references are run first, where the cache does not have their answers."""
    from dcoder_cli.benchmarks.expected import with_expected

    asked = tasks.TaskSet(suite.task, tuple(item.source for item in suite.items), suite.origin, suite.sha256)
    complete = with_expected(asked, judge, told)
    return {task.task_id: task.problem for task in complete.tasks if task.problem is not None}


def _loads(
    source: BenchmarkSource, item_of: Callable[[tasks.Task], Item], version: str
) -> Callable[[str, str | Path | None], Loaded]:
    return lambda _, file: tasks.loaded(tasks.read(source, task_of, file), item_of, version)


def _plus_passed(row: Row) -> bool:
    return bool(row["plus"])


# The published MBPP is the base tests of MBPP+'s tasks, so it stands beside `mbpp+` runs and not beside `mbpp`'s.
BENCHMARKS = (
    Benchmark(
        "humaneval+",
        "HumanEval+ (EvalPlus): the same with 80 times the tests.",
        _loads(HUMANEVAL_PLUS, tasks.item, "HumanEval+ v0.1.10"),
        ByTests(_problems),
        {"humaneval": base_passed, "humaneval+": _plus_passed},
        sources=(HUMANEVAL_PLUS,),
        published={"": {"humaneval": "HumanEval", "humaneval+": "HumanEval+"}},
    ),
    Benchmark(
        "mbpp+",
        "MBPP+ (EvalPlus): 378 functions with 35 times the tests.",
        _loads(MBPP_PLUS, _described, "MBPP+ v0.2.0"),
        ByTests(_problems),
        {"mbpp": base_passed, "mbpp+": _plus_passed},
        sources=(MBPP_PLUS,),
        published={"": {"mbpp": "MBPP", "mbpp+": "MBPP+"}},
    ),
    Benchmark(
        "evalplus",
        "HumanEval+ and MBPP+, and the mean of their scores.",
        None,
        None,
        parts=("humaneval+", "mbpp+"),
        mean="evalplus",
        published={"": {"evalplus": "EvalPlus"}},
    ),
)

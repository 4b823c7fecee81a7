"""What `dcoder eval` can score: every benchmark as items with one shape, whatever its data look like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import bigcodebench, gsm8k, tasks
from dcoder_cli.data import micro

Kind = Literal["complete", "whole", "library-complete", "library-instruct", "math", "infill", "micro"]


@dataclass(frozen=True)
class Item:
    """One task of any benchmark.

    Attributes:
        task_id: as published.
        kind: what is asked: `complete` a function, write a `whole` one from words, `infill` a gap, ...
        prompt: the published prompt; the code before the gap of an infill.
        entry_point: the function to define ("" for questions).
        suffix: the code after the gap of an infill.
        description, shown_tests: the prompt of a `whole` task in parts.
        reference: a right solution, as a program (MBPP's worked examples use it).
        source: the task as its own module knows it, for judging.
    """

    task_id: str
    kind: Kind
    prompt: str
    entry_point: str
    source: Any
    suffix: str = ""
    description: str = ""
    shown_tests: tuple[str, ...] = ()
    reference: str = ""


@dataclass(frozen=True)
class Suite:
    """A benchmark to run.

    Attributes:
        task: the name on the command line; `subset`: its part, "" where it has none.
        items: what is asked.
        examples: items that few-shot prompts of this benchmark show (also those that are not asked).
        metrics: names of the scores, the main one last; each is a key of `scoring.METRICS`.
        version: of the data, as published; `origin` and `sha256`: where this copy came from and its hash.
        benchmark: the code benchmark behind the items, None for the others.
        total: the number of items without --limit.
    """

    task: str
    subset: str
    items: tuple[Item, ...]
    examples: tuple[Item, ...]
    metrics: tuple[str, ...]
    version: str
    origin: str
    sha256: str
    total: int
    benchmark: tasks.Benchmark | None = None

    @property
    def name(self) -> str:
        """The task with its subset."""
        return f"{self.task} ({self.subset})" if self.subset else self.task


@dataclass(frozen=True)
class _Spec:
    subsets: tuple[str, ...]
    load: Callable[[str, str | Path | None], Suite]


TASKS = (
    "humaneval",
    "humaneval+",
    "mbpp",
    "mbpp+",
    "evalplus",
    "bigcodebench",
    "gsm8k",
    "humaneval-infilling",
    "micro",
    "micro-kinds",
)
# A task that stands for several. EvalPlus's score is the mean of their plus scores; our micro sets differ in what they
# hold out, so each keeps its own score, and `load("micro")` is the first set alone.
PARTS = {"evalplus": ("humaneval+", "mbpp+"), "micro": ("micro", "micro-kinds")}


def parts(task: str) -> tuple[str, ...]:
    """The tasks that one stands for: those of PARTS, or itself alone."""
    return PARTS.get(task, (task,))


def subsets(task: str) -> tuple[str, ...]:
    """The parts of a task that --subset chooses from, the default first; empty where it has none."""
    return _SPECS[task].subsets if task in _SPECS else ()


def load(task: str, subset: str | None = None, file: str | Path | None = None, limit: int | None = None) -> Suite:
    """The items of a task.

    Args:
        task: one of TASKS; not "evalplus", which is made of others.
        subset: one of `subsets(task)`; default the first.
        file: the data, else they are looked for as `data.find` does.
        limit: only the first so many items.

    Raises:
        UserError: an unknown task or subset; data not found, incomplete or broken.
    """
    if task not in parts(task):
        raise UserError(f"task {task!r} is made of {' and '.join(PARTS[task])}; name one of them")
    if task not in _SPECS:
        raise UserError(f"unknown task {task!r}{nearest(task, list(_SPECS))}")
    known = _SPECS[task].subsets
    if subset is not None and subset not in known:
        choices = f"; choose {', '.join(known)}" if known else "; leave --subset out"
        raise UserError(f"{task} has no subset {subset!r}{choices}")
    if file is not None and task in micro.BENCHMARKS:
        raise UserError(f"{task}'s tasks are inside the package; leave --data out")
    suite = _SPECS[task].load(subset or (known[0] if known else ""), file)
    if limit is None:
        return suite
    if limit < 1:
        raise UserError(f"--limit {limit} must be at least 1")
    return only(suite, suite.items[:limit])


def only(suite: Suite, items: tuple[Item, ...]) -> Suite:
    """The suite with these of its items."""
    return replace(suite, items=items)


# --- readers ---------------------------------------------------------------------------------------------------------

_VERSIONS = {
    "humaneval": "HumanEval",
    "humaneval+": "HumanEval+ v0.1.10",
    "mbpp": "MBPP",
    "mbpp-sanitized": "MBPP sanitized",
    "mbpp+": "MBPP+ v0.2.0",
    "humaneval-infilling-single": "HumanEval-SingleLineInfilling",
    "humaneval-infilling-multi": "HumanEval-MultiLineInfilling",
    "humaneval-infilling-span": "HumanEval-RandomSpanInfillingLight",
    "micro": "micro 2",  # the tasks of 1, with hidden tests that no constant answer passes over a quarter of
    "micro-kinds": "micro-kinds 1",
}


def _code(name: str, file: str | Path | None, task: str, subset: str, metrics: tuple[str, ...]) -> Suite:
    found = tasks.load(name, file)
    items = tuple(_item(one) for one in found.tasks)
    asked = items
    if name == "mbpp" and subset == "test":
        asked = tuple(one for one in items if 11 <= int(one.task_id.rpartition("/")[2]) <= 510)  # Austin et al. 2021
    return Suite(
        task, subset, asked, items, metrics, _VERSIONS[name], found.origin, found.sha256, len(asked), found
    )  # fmt: skip


def _item(task: tasks.Task) -> Item:
    if task.form == "infill":
        return Item(task.task_id, "infill", task.prompt, task.entry_point, task, suffix=task.suffix)
    if task.form == "complete":
        return Item(task.task_id, "complete", task.prompt, task.entry_point, task, reference=task.reference)
    if task.plus is not None:  # EvalPlus: the description and a test, as a docstring
        lines = task.prompt.strip().strip('"').strip().splitlines()
        words = "\n".join(line for line in lines if not line.startswith("assert")).strip()
        shown = tuple(line for line in lines if line.startswith("assert"))
        # the published answer begins with the prompt, which worked examples show already
        answer = task.reference.removeprefix(task.prompt).strip()
        return Item(task.task_id, "whole", task.prompt, task.entry_point, task, "", words, shown, answer)
    prompt = f'"""\n{task.prompt}\n{task.shown_tests[0]}\n"""\n'  # the form of EvalPlus's MBPP prompts
    return Item(
        task.task_id, "whole", prompt, task.entry_point, task, "", task.prompt, task.shown_tests, task.reference
    )


def _mbpp(subset: str, file: str | Path | None) -> Suite:
    return _code("mbpp-sanitized" if subset == "sanitized" else "mbpp", file, "mbpp", subset, ("mbpp",))


def _library(subset: str, file: str | Path | None) -> Suite:
    form, _, part = subset.partition("-")
    found, rows = bigcodebench.load(part == "hard", file)
    kind: Kind = "library-complete" if form == "complete" else "library-instruct"
    items = tuple(
        Item(
            task.task_id,
            kind,
            task.complete_prompt if form == "complete" else task.instruct_prompt,
            task.entry_point,
            task,
            reference=task.reference,
        )
        for task in found
    )
    version = "BigCodeBench-Hard v0.1.4" if part == "hard" else "BigCodeBench v0.1.4"
    return Suite(
        "bigcodebench", subset, items, (), ("bigcodebench",), version, rows.origin, rows.sha256, len(items)
    )  # fmt: skip


def _math(_: str, file: str | Path | None) -> Suite:
    found, rows = gsm8k.load(file)
    items = tuple(Item(one.task_id, "math", one.question, "", one) for one in found)
    return Suite(
        "gsm8k", "", items, (), ("flexible", "strict"), "GSM8K test", rows.origin, rows.sha256, len(items)
    )  # fmt: skip


def _micro(name: str) -> Suite:
    found = micro.benchmark(name)
    told = (part for task in found for part in (task.fingerprint, task.question, *task.tests_hidden))
    digest = hashlib.sha256("".join(told).encode()).hexdigest()
    items = tuple(
        Item(task.task_id, "micro", task.question, task.entry_point, task, reference=task.solution) for task in found
    )
    return Suite(name, "", items, (), (name,), _VERSIONS[name], "inside the package", digest, len(items))


_SPECS = {
    "humaneval": _Spec((), lambda _, file: _code("humaneval", file, "humaneval", "", ("humaneval",))),
    "humaneval+": _Spec((), lambda _, file: _code("humaneval+", file, "humaneval+", "", ("humaneval", "humaneval+"))),
    "mbpp": _Spec(("test", "all", "sanitized"), _mbpp),
    "mbpp+": _Spec((), lambda _, file: _code("mbpp+", file, "mbpp+", "", ("mbpp", "mbpp+"))),
    "bigcodebench": _Spec(("complete-full", "complete-hard", "instruct-full", "instruct-hard"), _library),
    "gsm8k": _Spec((), _math),
    "humaneval-infilling": _Spec(
        ("single", "multi", "span"),
        lambda subset, file: _code(
            f"humaneval-infilling-{subset}", file, "humaneval-infilling", subset, ("infilling",)
        ),
    ),
    "micro": _Spec((), lambda _, __: _micro("micro")),
    "micro-kinds": _Spec((), lambda _, __: _micro("micro-kinds")),
}

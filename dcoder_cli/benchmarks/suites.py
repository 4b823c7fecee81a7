"""The table of benchmarks, and the tasks of one of them as a suite to run."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import BENCHMARKS_VARIABLE
from dcoder_cli.benchmarks.benchmark import Benchmark, Item, Row, Suite
from dcoder_cli.benchmarks.data import BenchmarkSource

# A benchmark is registered by its module's line here. The module declares one or more as its tuple BENCHMARKS.
MODULES = (
    "dcoder_cli.benchmarks.humaneval",
    "dcoder_cli.benchmarks.mbpp",
    "dcoder_cli.benchmarks.evalplus",
    "dcoder_cli.benchmarks.bigcodebench",
    "dcoder_cli.benchmarks.gsm8k",
    "dcoder_cli.benchmarks.livecodebench",
    "dcoder_cli.benchmarks.cruxeval",
    "dcoder_cli.benchmarks.infilling",
    "dcoder_cli.benchmarks.micro",
)


def table() -> dict[str, Benchmark]:
    """Every benchmark by its name, in the order of `MODULES`."""
    return _table(MODULES)


@functools.cache
def _table(modules: tuple[str, ...]) -> dict[str, Benchmark]:
    found: dict[str, Benchmark] = {}
    for module in modules:
        for one in importlib.import_module(module).BENCHMARKS:
            assert one.name not in found, f"{one.name} is declared twice"
            found[one.name] = one
    return found


def find(task: str) -> Benchmark:
    """A benchmark by name. Raises UserError for an unknown one."""
    known = table()
    if task not in known:
        raise UserError(f"unknown task {task!r}{nearest(task, list(known))}")
    return known[task]


def names(which: Callable[[Benchmark], bool]) -> list[str]:
    """The benchmarks of a kind."""
    return [name for name, one in table().items() if which(one)]


def parts(task: str) -> tuple[str, ...]:
    """The benchmarks that a name stands for: its parts, or itself alone. An unknown name stands for itself."""
    one = table().get(task)
    return (one.parts if one is not None else ()) or (task,)


def check_file(task: str, file: str | Path | None) -> None:
    """Raises UserError where `file` was given for a task of several files, or of none."""
    if file is None:
        return
    if find(task).in_package:
        raise UserError(f"{task}'s tasks are inside the package; leave --data out")
    if task not in parts(task):
        raise UserError(f"{task} reads several files and --data names one; set {BENCHMARKS_VARIABLE} to their folder")


def sources() -> dict[str, BenchmarkSource]:
    """The data files of all benchmarks, by name."""
    return {source.name: source for one in table().values() for source in one.sources}


def right(metric: str) -> Callable[[Row], bool]:
    """What counts as right for a score. Metrics of one name are the same in every benchmark."""
    return next(one.metrics[metric] for one in table().values() if metric in one.metrics)


def load(
    task: str,
    subset: str | None = None,
    file: str | Path | None = None,
    limit: int | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Suite:
    """The items of a task.

    Args:
        task: name of a benchmark that has tasks of its own; a name with parts that include it means it alone.
        subset: one of the benchmark's; default the first.
        file: the data, else they are looked for as `data.find` does.
        limit: only the first so many items.
        since, until: only items of these dates and between, written 2025-01-31, of a benchmark that is dated.

    Raises:
        UserError: an unknown task or subset; data not found, incomplete or broken; a window without a task.
    """
    one = find(task)
    window = _date("--since", since), _date("--until", until)
    if window != (None, None) and not one.dated:
        raise UserError(f"{task} has no dates to choose by; leave {'--until' if since is None else '--since'} out")
    if None not in window and window[0] > window[1]:  # type: ignore[operator]
        raise UserError(f"--since {since} is after --until {until}; swap them")
    if one.load is None:
        raise UserError(f"task {task!r} is made of {' and '.join(one.parts)}; name one of them")
    if subset is not None and subset not in one.subsets:
        choices = f"; choose {', '.join(one.subsets)}" if one.subsets else "; leave --subset out"
        raise UserError(f"{task} has no subset {subset!r}{choices}")
    check_file(task, file)
    chosen = subset or (one.subsets[0] if one.subsets else "")
    found = one.load(chosen, file)
    suite = Suite(
        one, chosen, found.items, found.examples, found.version, found.origin, found.sha256, len(found.items)
    )  # fmt: skip
    if window != (None, None):
        suite = _within(suite, *window)
    if limit is None:
        return suite
    if limit < 1:
        raise UserError(f"--limit {limit} must be at least 1")
    return only(suite, suite.items[:limit])


def _date(flag: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{flag} {text!r} is no date; write it as 2025-01-31") from None


def _within(suite: Suite, since: date | None, until: date | None) -> Suite:
    """The suite's items of a window of dates, both ends included."""
    dates = [item.day or date.min for item in suite.items]
    chosen = tuple(
        item
        for item, day in zip(suite.items, dates, strict=True)
        if (since is None or since <= day) and (until is None or day <= until)
    )
    if not chosen:
        asked = " and ".join(f"{word} {day}" for word, day in (("since", since), ("until", until)) if day is not None)
        raise UserError(
            f"{suite.name} from {suite.origin} has no task {asked}; its dates are {min(dates)} to {max(dates)}"
        )
    return replace(suite, items=chosen, window=(since, until))


def only(suite: Suite, items: tuple[Item, ...]) -> Suite:
    """The suite with these of its items."""
    return replace(suite, items=items)

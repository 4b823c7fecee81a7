"""What a benchmark is: its tasks as items with one shape, and how samples of them are judged and scored.

A benchmark is one module that makes a `Benchmark` of these parts, and its line in `suites.MODULES`; everything else reads
what it declares. This file imports nothing heavy: `dcoder eval --help` lists benchmarks from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dcoder_cli.benchmarks.data import BenchmarkSource
    from dcoder_cli.execution.judge import Judge
    from dcoder_cli.execution.problem import Problem
    from dcoder_cli.execution.unittests import UnittestJob

Row = dict[str, Any]  # of judged.jsonl
Kind = Literal["complete", "whole", "words", "infill", "own"]
Told = Callable[[str], None]


@dataclass(frozen=True)
class OwnPrompt:
    """A prompt that is the benchmark's, the same under every protocol.

    Attributes:
        chat: messages for an instruct model; `chat_stops`: where its answer is cut.
        plain: text for a base model, with `plain_stops`; "" where there is none, and then `no_plain` says why and what to do.
        answer: the solution in an answer, given its text up to a stop and whether it is a chat's; None: the protocol's way.
    """

    chat: tuple[Mapping[str, str], ...]
    plain: str
    chat_stops: tuple[str, ...] = ()
    plain_stops: tuple[str, ...] = ()
    no_plain: str = ""
    answer: Callable[[str, bool], str] | None = None


@dataclass(frozen=True)
class Item:
    """One task of any benchmark.

    Attributes:
        task_id: as published.
        kind: what is asked, and so how a protocol asks: `complete` a function; write a `whole` one from a description;
            the same in `words` made for instruct models; `infill` a gap; or by the benchmark's `own` prompt.
        prompt: the published prompt; the code before the gap of an infill.
        entry_point: the function to define; "" where the answer is text.
        source: the task as its own module knows it, for judging.
        suffix: the code after the gap of an infill.
        description, shown_tests: the prompt of a `whole` task in parts.
        reference: a right solution, as a program (worked examples use it).
        own: the prompt of the kind `own`.
        names: what the tests use by name, of which a solution may define some beside its function (Mbpp/367 has a class).
        day: when it was published, where the benchmark is `dated`.
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
    own: OwnPrompt | None = None
    names: frozenset[str] = frozenset()
    day: date | None = None


@dataclass(frozen=True)
class Loaded:
    """What a benchmark's loader reads.

    Attributes:
        items: what is asked.
        version: of the data, as published; `origin` and `sha256`: where this copy came from and its hash.
        examples: items that few-shot prompts show (also those that are not asked).
    """

    items: tuple[Item, ...]
    version: str
    origin: str
    sha256: str
    examples: tuple[Item, ...] = ()


Problems = Callable[["Suite", "Judge", "Told | None"], Mapping[str, "Problem"]]


@dataclass(frozen=True)
class ByTests:
    """Judged by tests outside the candidate's process.

    Attributes:
        problems: makes those of a suite's items, by task id. Where tests are large, a mapping that makes each when asked.
        program: the program that is put to the tests, from a task's solution; None: the solution itself.
        large: a problem's tests may take megabytes, so that few samples may wait to be judged.
    """

    problems: Problems
    program: Callable[[Item, str], str] | None = None
    large: bool = False


@dataclass(frozen=True)
class ByUnittests:
    """Judged by unittests beside the candidate, in an interpreter the user names: low trust, never a reward."""

    job: Callable[[Item, str], UnittestJob]


@dataclass(frozen=True)
class ByAnswer:
    """Judged by reading the text, nothing is run; `verdict` gives `passed`, `why` and what else the metrics read."""

    verdict: Callable[[Item, str], Row]


def passed(row: Row) -> bool:
    """The metric of a benchmark with one kind of tests."""
    return bool(row["passed"])


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, declared.

    Attributes:
        name, summary: on the command line and in its help.
        load: its tasks, from a subset's name ("" without subsets) and a file or None; None where its parts have them.
        judged: how a sample is judged.
        metrics: what counts as right in a row of judged.jsonl, for each score; the main score last.
        subsets: what --subset chooses from, the default first; `widest`: the one that has every task id.
        sources: data files with their counts and hub ids.
        gaps: its tasks are code with a gap (`infill`), whose length is searched.
        in_package: the tasks are inside the package, so no file can be given.
        parts: the benchmarks that its name stands for on the command line; empty: itself alone.
        mean: the score that is the mean of the parts' main scores; "" where each part keeps its own.
        settings: of the sampler, over the protocol's; None takes one out. `subset_settings`: over these, by subset.
        dated: its items have dates, so that a window of them can be chosen.
        published: metric -> column of `published.TABLE`, for each subset.
    """

    name: str
    summary: str
    load: Callable[[str, str | Path | None], Loaded] | None
    judged: ByTests | ByUnittests | ByAnswer | None
    metrics: Mapping[str, Callable[[Row], bool]] = field(default_factory=dict)
    subsets: tuple[str, ...] = ()
    widest: str = ""
    sources: tuple[BenchmarkSource, ...] = ()
    gaps: bool = False
    in_package: bool = False
    parts: tuple[str, ...] = ()
    mean: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    subset_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dated: bool = False
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A benchmark's tasks to run: `items` are asked, of `total` without --limit; the rest is as in `Loaded`.

    `window`: the first and the last date that was asked for, where there is one.
    """

    benchmark: Benchmark
    subset: str
    items: tuple[Item, ...]
    examples: tuple[Item, ...]
    version: str
    origin: str
    sha256: str
    total: int
    window: tuple[date | None, date | None] = (None, None)

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's settings that are the benchmark's own."""
        return {**self.benchmark.settings, **self.benchmark.subset_settings.get(self.subset, {})}

    @property
    def task(self) -> str:
        """The benchmark's name on the command line."""
        return self.benchmark.name

    @property
    def kind(self) -> Kind:
        """What its items ask; the same for all."""
        return self.items[0].kind

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of its scores, the main one last."""
        return tuple(self.benchmark.metrics)

    @property
    def name(self) -> str:
        """The task with its subset."""
        return f"{self.task} ({self.subset})" if self.subset else self.task

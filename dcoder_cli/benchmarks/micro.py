"""Our own micro tasks (data/micro.py), inside the package: functions held out, and kinds of them held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dcoder_cli.benchmarks.benchmark import Benchmark, ByTests, Item, Loaded, OwnPrompt, Suite, Told, passed

if TYPE_CHECKING:
    from dcoder_cli.data.micro import MicroTask
    from dcoder_cli.execution.judge import Judge
    from dcoder_cli.execution.problem import Problem

_TOKENS = 40  # ours: the longest reference, in the quickstart's tokens
# No published score stands behind these tasks, so ties are left to the model's own order, not to a public sampler's.
_SETTINGS = {"max_new_tokens": _TOKENS, "tie_break": None}
_VERSIONS = {
    "micro": "micro 2",  # the tasks of 1, with hidden tests that no constant answer passes over a quarter of
    "micro-kinds": "micro-kinds 1",
}


def _item(task: MicroTask) -> Item:
    # as the quickstart's stages write it: a chat, or a comment above the code
    own = OwnPrompt(
        chat=tuple(task.messages()[:1]),
        plain="# " + task.question.replace("\n", "\n# ") + "\n",
        plain_stops=("\n# ", "\n\n\n"),
    )
    return Item(task.task_id, "own", task.question, task.entry_point, task, reference=task.solution, own=own)


def _loads(name: str) -> Callable[[str, str | Path | None], Loaded]:
    def load(_: str, __: str | Path | None) -> Loaded:
        import hashlib

        from dcoder_cli.data import micro

        found = micro.benchmark(name)
        told = (part for task in found for part in (task.fingerprint, task.question, *task.tests_hidden))
        digest = hashlib.sha256("".join(told).encode()).hexdigest()
        return Loaded(tuple(_item(task) for task in found), _VERSIONS[name], "inside the package", digest)

    return load


def _problems(suite: Suite, judge: Judge, told: Told | None) -> Mapping[str, Problem]:
    """Each test gets the least time there is: references take microseconds (EvalPlus: max(4 s, 4 x the reference))."""
    from dcoder_cli.execution.problem import Problem

    return {
        item.task_id: Problem(item.task_id, item.entry_point, tests=item.source.tests_hidden) for item in suite.items
    }


BENCHMARKS = (
    Benchmark(
        "micro",
        "Our own micro tasks, inside the package: 210 with functions held out, then micro-kinds.",
        _loads("micro"),
        ByTests(_problems),
        {"micro": passed},
        in_package=True,
        parts=("micro", "micro-kinds"),  # they differ in what they hold out, so each keeps its own score
        settings=_SETTINGS,
    ),
    Benchmark(
        "micro-kinds",
        "150 micro tasks whose combinations of operations and wordings occur in no training task.",
        _loads("micro-kinds"),
        ByTests(_problems),
        {"micro-kinds": passed},
        in_package=True,
        settings=_SETTINGS,
    ),
)

"""A problem as prompts: the question as it stands, and as code to complete, under ids that no other prompt has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcoder_cli.base.schema import Format
from dcoder_cli.data.dropped import Tally
from dcoder_cli.data.problems import RlProblem, completion_prompt

# DiffuCoder B.2: the question of a completion-style prompt, as in its evaluation.
_COMPLETE = "Please complete the following problem:\n```\n{code}\n```\n"


@dataclass(frozen=True)
class PromptTests:
    """What a completion is held against, in code."""

    hidden: list[str] | None = None
    shown: list[str] | None = None
    prelude: str = ""
    setup: str = ""


@dataclass(frozen=True)
class PromptRow:
    """A line of prompts.jsonl; which of these a reward needs, `check_prompts` knows."""

    task_id: str | int
    prompt: str | None = None
    tests: PromptTests | None = None
    entry_point: str | None = None
    answer: str | None = None
    baseline: float | None = None


PROMPTS = Format("prompts", PromptRow, "make them again with: dcoder tokenize rl")


@dataclass
class Ids:
    """The ids of a run's prompts. Of problems under one id the later are told apart: `a`, `a#2`, `a#3`.

    Attributes:
        renamed: the new ids.
    """

    renamed: Tally = field(default_factory=Tally)
    _taken: set[str] = field(default_factory=set)
    _last: Counter[str] = field(default_factory=Counter)

    def take(self, name: str, endings: Sequence[str]) -> str:
        """`name`, or the next one that is free with each of these endings."""
        chosen = name
        while any(chosen + ending in self._taken for ending in endings):
            self._last[name] += 1
            chosen = f"{name}#{self._last[name] + 1}"
        if chosen != name:
            self.renamed.add(chosen)
        self._taken.update(chosen + ending for ending in endings)
        return chosen


def prompts_of(problem: RlProblem, complete: bool, baseline: float | None, ids: Ids) -> Iterator[dict[str, Any]]:
    """The records of `load_prompts`; `complete`: also as code to complete, where it does not address the reader."""
    prompts = list(_prompts(problem, complete, baseline))
    name = ids.take(problem.task_id, [prompt["task_id"] for prompt in prompts])
    for prompt in prompts:
        yield {**prompt, "task_id": name + prompt["task_id"]}


def _prompts(problem: RlProblem, complete: bool, baseline: float | None) -> Iterator[dict[str, Any]]:
    """With the endings of their ids in place of these."""
    if problem.answer is not None:
        task = {"task_id": "", "style": "math", "messages": problem.messages}
        yield {**task, "answer": problem.answer, "source": problem.source}
        return
    common = {
        "tests": {"shown": problem.shown, "hidden": problem.hidden, **_beside(problem)},
        "entry_point": problem.entry_point,
        "source": problem.source,
        **({} if baseline is None else {"baseline": baseline}),
    }
    yield {"task_id": "", "style": "instruct", "messages": problem.messages, **common}
    if not complete or problem.reference is None or re.search(r"\byou", problem.question, re.IGNORECASE):
        return
    code = completion_prompt(problem.question, problem.reference, problem.entry_point)
    if code is not None:
        messages = [*problem.messages[:-1], {"role": "user", "content": _COMPLETE.format(code=code)}]
        yield {"task_id": "/complete", "style": "complete", "messages": messages, **common}


def _beside(problem: RlProblem) -> dict[str, str]:
    """The code that the tests need, where there is any."""
    code = {"prelude": problem.prelude, "setup": problem.setup}
    return {name: value for name, value in code.items() if value}

"""A problem as prompts: the question as it stands, and as code to complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dcoder_cli.data.problems import RlProblem, completion_prompt

# DiffuCoder B.2: the question of a completion-style prompt, as in its evaluation.
_COMPLETE = "Please complete the following problem:\n```\n{code}\n```\n"


def _beside(problem: RlProblem) -> dict[str, str]:
    """The code that the tests need, where there is any."""
    code = {"prelude": problem.prelude, "setup": problem.setup}
    return {name: value for name, value in code.items() if value}


def prompts_of(problem: RlProblem, complete: bool, baseline: float | None) -> Iterator[dict[str, Any]]:
    """The records of `load_prompts`; `complete`: also as code to complete, where it does not address the reader."""
    if problem.answer is not None:
        task = {"task_id": problem.task_id, "style": "math", "messages": problem.messages}
        yield {**task, "answer": problem.answer, "source": problem.source}
        return
    common = {
        "tests": {"shown": problem.shown, "hidden": problem.hidden, **_beside(problem)},
        "entry_point": problem.entry_point,
        "source": problem.source,
        **({} if baseline is None else {"baseline": baseline}),
    }
    yield {"task_id": problem.task_id, "style": "instruct", "messages": problem.messages, **common}
    if not complete or problem.reference is None or re.search(r"\byou", problem.question, re.IGNORECASE):
        return
    code = completion_prompt(problem.question, problem.reference, problem.entry_point)
    if code is not None:
        messages = [*problem.messages[:-1], {"role": "user", "content": _COMPLETE.format(code=code)}]
        yield {"task_id": f"{problem.task_id}/complete", "style": "complete", "messages": messages, **common}

"""Rewards: hidden tests behind the format gate, format, verifiable numbers, and functions of the user's own.

A reward is a number for the text up to the first end of turn, the same text the loss counts. Judge trouble is NaN, never 0.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.execution.extract import extract_solution, fence_format
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import Problem, Verdict

FORMAT = {"parses": 1.0, "syntax-error": 0.5, "none": 0.0}  # DiffuCoder 5: before weighting with 0.5
BUILT_IN = ("code", "format", "math")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

UserReward = Callable[[Mapping[str, Any], str], float]


@dataclass(frozen=True)
class Reward:
    """What a completion earned: `total`, and each part before weighting (NaN where the judge had trouble)."""

    total: float
    parts: dict[str, float]
    status: str


@dataclass
class Pending:
    """A completion whose code is being judged."""

    parts: dict[str, float]
    verdict: Future[Verdict] | None


class Rewarder:
    """Scores completions; code runs in the judge's sandbox while the caller goes on.

    Args:
        weights: reward name -> weight: "code", "format", "math" or "module:function".
        judge: shared with whoever else judges; None where no "code" is asked for.

    A user's function gets (prompt record, completion text) and returns a finite number.

    Raises:
        UserError: an unknown name, a module or function that is not there.
    """

    def __init__(self, weights: Mapping[str, float], judge: Judge | None) -> None:
        self.weights, self.judge = dict(weights), judge
        self.functions = {name: user_function(name) for name in weights if ":" in name}
        for name in weights:
            if name not in BUILT_IN and ":" not in name:
                raise UserError(f"reward {name!r} is unknown{nearest(name, BUILT_IN)}; your own is module:function")

    def submit(self, prompt: Mapping[str, Any], text: str) -> Pending:
        """Start scoring a completion of a prompt record (`entry_point`, `tests`, `answer`, as the reward needs)."""
        form = fence_format(text)
        parts: dict[str, float] = {}
        verdict = None
        for name in self.weights:
            if name == "format":
                parts[name] = FORMAT[form]
            elif name == "math":
                parts[name] = math_reward(text, str(prompt["answer"]))
            elif name == "code":
                parts[name] = 0.0
                if form == "parses":  # the gate: code without a fence that parses earns nothing, and is not run
                    assert self.judge is not None
                    verdict = self.judge.submit(problem_of(prompt), extract_solution(text, prompt["entry_point"]))
            else:
                parts[name] = _finite(name, self.functions[name](prompt, text))
        return Pending(parts, verdict)

    def result(self, pending: Pending) -> Reward:
        """The reward, once the judge is done."""
        parts, status = dict(pending.parts), "unjudged"
        if pending.verdict is not None:
            verdict = pending.verdict.result()
            status = verdict.status
            parts["code"] = math.nan if status == "infrastructure" else verdict.share
        return Reward(sum(self.weights[name] * value for name, value in parts.items()), parts, status)


def problem_of(prompt: Mapping[str, Any]) -> Problem:
    """The hidden tests of a prompt record as a problem; the tests shown in the prompt do not score."""
    hidden = tuple(prompt["tests"]["hidden"])
    return Problem(task_id=prompt["task_id"], entry_point=prompt["entry_point"], tests=hidden, every_test=True)


def math_reward(text: str, answer: str) -> float:
    """1.0 if the last number in the text is the answer (GSM8K's flexible match), else 0.0. Nothing is evaluated."""
    numbers = _NUMBER.findall(text)
    expected = _NUMBER.findall(answer)
    if not numbers or not expected:
        return 0.0
    return float(float(numbers[-1].replace(",", "")) == float(expected[-1].replace(",", "")))


def user_function(name: str) -> UserReward:
    """The function named "module:function", found from the current folder too. Raises UserError."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"reward {name!r} cannot be imported: {error}; write it as module:function") from None
    if not callable(function) or len(inspect.signature(function).parameters) != 2:
        raise UserError(f"reward {name!r} must be a function of (prompt, text)")
    return function  # type: ignore[no-any-return]


def _finite(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"reward {name!r} returned {value!r}; it must return a finite number")
    return float(value)


def check_prompts(prompts: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> None:
    """Raises UserError now if a prompt lacks what a reward will need."""
    for prompt in prompts:
        name = prompt.get("task_id", "?")
        if "code" in weights and not (prompt.get("entry_point") and prompt.get("tests", {}).get("hidden")):
            raise UserError(f"prompt {name!r} has no entry_point or no hidden tests, which the reward 'code' needs")
        if "math" in weights and not _NUMBER.findall(str(prompt.get("answer", ""))):
            raise UserError(f"prompt {name!r} has no numeric answer, which the reward 'math' needs")

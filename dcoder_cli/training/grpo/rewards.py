"""Rewards: hidden tests behind the format gate, format, verifiable numbers, and functions of the user's own.

The reward `code` is the share of hidden tests passed; where the prompt has a `baseline` (`dcoder tokenize rl --baseline`),
it is the share above that. A reward is a number for the text up to the first end of turn, the same text the loss counts. Judge trouble is NaN, never 0.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError, WorkFailed, one_line
from dcoder_cli.data.answers import final_number, last_number
from dcoder_cli.data.constants import above_baseline
from dcoder_cli.execution.extract import extract_solution, fence_format
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import Problem, Verdict

# DiffuCoder 5: before weighting with 0.5. Nothing is asked of code that parses: `pass` in a fence earns the 1.0 too.
FORMAT = {"parses": 1.0, "syntax-error": 0.5, "none": 0.0}
BUILT_IN = ("code", "format", "math")
PROBES = ("", "```python\npass\n```\n")  # what a user's function is tried on before the first step

UserReward = Callable[[Mapping[str, Any], str], float]


@dataclass(frozen=True)
class Reward:
    """What a completion earned: `total`, and each part before weighting (NaN where the judge had trouble).

    `status` is the judge's; without code to judge, `passed` or `failed` by the number; else `unjudged`.
    """

    total: float
    parts: dict[str, float]
    status: str


@dataclass
class Pending:
    """A completion whose code is being judged; `baseline`: the share of its prompt's tests that earns nothing."""

    parts: dict[str, float]
    verdict: Future[Verdict] | None
    baseline: float = 0.0


class Rewarder:
    """Scores completions; code runs in the judge's sandbox while the caller goes on.

    Args:
        weights: reward name -> weight: "code", "format", "math" or "module:function".
        judge: shared with whoever else judges; None where no "code" is asked for.
        strict: one Python fence and nothing after it, else neither "format" nor "code" earns anything; see `fence_format`.

    A user's function gets (prompt record, completion text) and returns a finite number; `probe` tries it.

    Raises:
        UserError: an unknown name, a weight that is not finite, a module or function that is not there.
    """

    def __init__(self, weights: Mapping[str, float], judge: Judge | None, strict: bool = False) -> None:
        self.weights, self.judge, self.strict = dict(weights), judge, strict
        self.functions = {name: user_function(name) for name in weights if ":" in name}
        for name, weight in weights.items():
            if name not in BUILT_IN and ":" not in name:
                raise UserError(f"reward {name!r} is unknown{nearest(name, BUILT_IN)}; your own is module:function")
            if not math.isfinite(weight):
                raise UserError(f"reward {name!r} has the weight {weight}; give a finite number")

    def sources(self) -> dict[str, str | None]:
        """For each function of the user's own, the SHA-256 of the file that holds it; None where it is in none."""
        files = {
            name: getattr(inspect.getmodule(function), "__file__", None) for name, function in self.functions.items()
        }
        return {
            name: hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else None
            for name, file in files.items()
        }

    def submit(self, prompt: Mapping[str, Any], text: str) -> Pending:
        """Start scoring a completion of a prompt record (`entry_point`, `tests`, `answer`, as the reward needs).

        Raises:
            WorkFailed: a user's function raised, or returned no finite number.
        """
        form = fence_format(text, strict=self.strict)
        parts: dict[str, float] = {}
        verdict = None
        for name in self.weights:
            if name == "format":
                parts[name] = FORMAT[form]
            elif name == "math":
                parts[name] = math_reward(text, str(prompt["answer"]))
            elif name == "code":
                parts[name] = 0.0
                # The gate: code that is not well formed or does not parse earns nothing, and is not run.
                if form == "parses":
                    assert self.judge is not None
                    problem = problem_of(prompt)
                    solution = extract_solution(text, problem.entry_point, also=problem.names)
                    verdict = self.judge.submit(problem, solution)
            else:
                try:
                    parts[name] = _asked(name, self.functions[name], prompt, text)
                except _Broken as broken:
                    raise WorkFailed(f"{broken}; mend it and go on with --resume") from broken.__cause__
        return Pending(parts, verdict, float(prompt.get("baseline", 0.0)))

    def result(self, pending: Pending) -> Reward:
        """The reward, once the judge is done."""
        parts, status = dict(pending.parts), "unjudged"
        if "math" in parts and "code" not in parts:
            status = "passed" if parts["math"] == 1.0 else "failed"
        if pending.verdict is not None:
            verdict = pending.verdict.result()
            status = verdict.status
            credit = above_baseline(verdict.share, pending.baseline)
            parts["code"] = math.nan if status == "infrastructure" else credit
        return Reward(sum(self.weights[name] * value for name, value in parts.items()), parts, status)


def says_passed(weights: Mapping[str, float]) -> bool:
    """Whether one of the rewards knows right from wrong; without, no completion has passed and none has failed."""
    return "code" in weights or "math" in weights


def problem_of(prompt: Mapping[str, Any]) -> Problem:
    """The hidden tests of a prompt record as a problem; the tests shown in the prompt do not score."""
    tests = prompt["tests"]
    return Problem(
        task_id=prompt["task_id"],
        entry_point=prompt["entry_point"],
        tests=tuple(tests["hidden"]),
        prelude=tests.get("prelude", ""),
        setup=tests.get("setup", ""),
        every_test=True,
    )


def math_reward(text: str, answer: str) -> float:
    """1.0 if the last number in the text is the answer's (GSM8K's flexible match), else 0.0. Nothing is evaluated."""
    expected = final_number(answer)
    return float(expected is not None and last_number(text) == expected)


def user_function(name: str) -> UserReward:
    """The function named "module:function", found from the current folder too. Raises UserError."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # anything can happen in a module that is not ours
        raise UserError(f"reward {name!r} cannot be imported: {_told(error)}; write it as module:function") from error
    if not callable(function):
        raise UserError(f"reward {name!r} is not a function but {_short(function)}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return function  # type: ignore[no-any-return]
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise UserError(f"reward {name!r} must be a function of (prompt, text): {error}") from None
    return function  # type: ignore[no-any-return]


def probe(rewarder: Rewarder, prompt: Mapping[str, Any]) -> None:
    """Try each user's function on a prompt record and the texts PROBES, before the run depends on it.

    Raises:
        UserError: one raised, or returned no finite number.
    """
    for name, function in rewarder.functions.items():
        for text in PROBES:
            try:
                _asked(name, function, prompt, text)
            except _Broken as broken:
                raise UserError(f"{broken} (tried on the text {text!r}); mend it") from broken.__cause__


class _Broken(Exception):
    """What a user's function did instead of returning a finite number."""


def _asked(name: str, function: UserReward, prompt: Mapping[str, Any], text: str) -> float:
    """What a user's function returns, as a plain float: bools and scalars of numpy and torch are numbers too."""
    where = f"reward {name!r}, asked about prompt {prompt.get('task_id', '?')!r},"
    try:
        value = function(prompt, text)
    except (Exception, SystemExit) as error:
        raise _Broken(f"{where} raised {_told(error)}") from error
    try:
        number = math.nan if isinstance(value, (str, bytes, bytearray)) else float(value)
    except Exception as error:  # each library refuses in its own way
        raise _Broken(f"{where} returned {_short(value)}; it must return a finite number") from error
    if not math.isfinite(number):
        raise _Broken(f"{where} returned {_short(value)}; it must return a finite number")
    return number


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _short(value: Any) -> str:
    return one_line(reprlib.repr(value))


def check_prompts(prompts: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> None:
    """Raises UserError now if a prompt lacks what a reward will need."""
    for prompt in prompts:
        name = prompt.get("task_id", "?")
        if "code" in weights:
            if not (prompt.get("entry_point") and (prompt.get("tests") or {}).get("hidden")):
                hint = "; its answer is a number: --reward math=1" if prompt.get("answer") else ""
                raise UserError(
                    f"prompt {name!r} has no entry_point or no hidden tests, which the reward 'code' needs{hint}"
                )
            baseline = prompt.get("baseline", 0.0)
            if not isinstance(baseline, (int, float)) or not 0 <= baseline < 1:
                raise UserError(f"prompt {name!r} has the baseline {baseline!r}; it must be a share from 0 to below 1")
            problem_of(prompt)  # refuses tests that do not parse, and an entry point that is no name
        if "math" in weights and final_number(str(prompt.get("answer", ""))) is None:
            raise UserError(f"prompt {name!r} has no numeric answer, which the reward 'math' needs")

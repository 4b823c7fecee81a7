"""Rewards: hidden tests behind the format gate, format, verifiable numbers, and functions of the user's own.

The reward `code` is the share of hidden tests passed; where the prompt has a `baseline` (`dcoder tokenize rl --baseline`),
it is the share above that. A reward is a number for the text up to the first end of turn, the same text the loss counts. Judge trouble is NaN, never 0.

A function of the user's own, `--reward mine:function=1.0`, scores one completion,

    def brevity(prompt, text):                     # the prompt's record from `dcoder tokenize rl`, and the text
        return -len(text) / 1000                   # any finite number

or all that a process sampled in a step at once (a reward model on its accelerator, ranks within a group):

    def brevity(prompts, texts):                   # lists of equal length; a text that a prompt got twice stands there once
        return [-len(text) / 1000 for text in texts]

It is the second kind where its parameters are called prompts and texts, or where the function has an attribute `batch = True`
(False says the first kind).
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.base.functions import import_function, short, told
from dcoder_cli.data.answers import final_number, last_number
from dcoder_cli.data.constants import above_baseline
from dcoder_cli.execution.extract import extract_solution, fence_format
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import REWARD_SECONDS, Problem, Verdict

# DiffuCoder 5: before weighting with 0.5. Nothing is asked of code that parses: `pass` in a fence earns the 1.0 too.
FORMAT = {"parses": 1.0, "syntax-error": 0.5, "none": 0.0}
BUILT_IN = ("code", "format", "math")
PROBES = ("", "```python\npass\n```\n")  # what a user's function is tried on before the first step

UserReward = Callable[[Any, Any], Any]  # (prompt, text) -> number, or (prompts, texts) -> numbers


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
    """A completion whose code is being judged.

    Attributes:
        prompt, text: what was completed, and how.
        parts: what is known of its reward.
        verdict: the judge's, to come; None where none was asked for.
        unasked: batch functions that have not been asked about it yet.
    """

    prompt: Mapping[str, Any]
    text: str
    parts: dict[str, float]
    verdict: Future[Verdict] | None
    unasked: set[str] = field(default_factory=set)


class Rewarder:
    """Scores completions; code runs in the judge's sandbox while the caller goes on.

    Args:
        weights: reward name -> weight: "code", "format", "math" or "module:function".
        judge: shared with whoever else judges; None where no "code" is asked for.
        strict: one Python fence and nothing after it, else neither "format" nor "code" earns anything; see `fence_format`.

    Functions of the user's own are described above; `probe` tries them.

    Raises:
        UserError: an unknown name, a weight that is not finite, a module or function that is not there.
    """

    def __init__(self, weights: Mapping[str, float], judge: Judge | None, strict: bool = False) -> None:
        self.weights, self.judge, self.strict = dict(weights), judge, strict
        self.functions: dict[str, UserReward] = {
            name: import_function("reward", name, ("prompt", "text")) for name in weights if ":" in name
        }
        self.batched = {name for name, function in self.functions.items() if is_batch(function)}
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
            WorkFailed: a user's function of one completion raised, or returned no finite number.
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
            elif name in self.batched:
                parts[name] = math.nan  # until it is asked, with all others
            else:
                try:
                    parts[name] = _asked(name, self.functions[name], prompt, text)
                except _Broken as broken:
                    raise WorkFailed(f"{broken}; mend it and go on with --resume") from broken.__cause__
        return Pending(prompt, text, parts, verdict, set(self.batched))

    def results(self, pending: Sequence[Pending]) -> list[Reward]:
        """The rewards, once the judge is done. Batch functions are asked once, each completion standing there once.

        Raises:
            WorkFailed: a batch function raised, or did not return a finite number for each text.
        """
        for name in self.batched:
            asked = list({id(one): one for one in pending if name in one.unasked}.values())
            if not asked:
                continue
            try:
                values = _asked_all(
                    name, self.functions[name], [one.prompt for one in asked], [one.text for one in asked]
                )
            except _Broken as broken:
                raise WorkFailed(f"{broken}; mend it and go on with --resume") from broken.__cause__
            for one, value in zip(asked, values, strict=True):
                one.parts[name] = value
                one.unasked.discard(name)
        return [self.result(one) for one in pending]

    def result(self, pending: Pending) -> Reward:
        """The reward of one completion, once the judge is done; `results` is for many."""
        if pending.unasked:
            return self.results([pending])[0]
        parts, status = dict(pending.parts), "unjudged"
        if "math" in parts and "code" not in parts:
            status = "passed" if parts["math"] == 1.0 else "failed"
        if pending.verdict is not None:
            verdict = pending.verdict.result()
            status = verdict.status
            credit = above_baseline(verdict.share, float(pending.prompt.get("baseline", 0.0)))
            parts["code"] = math.nan if status == "infrastructure" else credit
        return Reward(sum(self.weights[name] * value for name, value in parts.items()), parts, status)


def says_passed(weights: Mapping[str, float]) -> bool:
    """Whether one of the rewards knows right from wrong; without, no completion has passed and none has failed."""
    return "code" in weights or "math" in weights


def problem_of(prompt: Mapping[str, Any]) -> Problem:
    """The hidden tests of a prompt record as a problem; the tests shown in the prompt do not score."""
    tests = prompt["tests"]
    problem = Problem(
        task_id=prompt["task_id"],
        entry_point=prompt["entry_point"],
        tests=tuple(tests["hidden"]),
        prelude=tests.get("prelude", ""),
        setup=tests.get("setup", ""),
        every_test=True,
    )
    return replace(problem, total_seconds=min(REWARD_SECONDS, problem.deadline_seconds))


def math_reward(text: str, answer: str) -> float:
    """1.0 if the last number in the text is the answer's (GSM8K's flexible match), else 0.0. Nothing is evaluated."""
    expected = final_number(answer)
    return float(expected is not None and last_number(text) == expected)


def is_batch(function: UserReward) -> bool:
    """Whether a user's function takes all prompts and texts at once: its attribute `batch` says so, or its parameters' names."""
    declared = getattr(function, "batch", None)
    if declared is not None:
        return bool(declared)
    try:
        return list(inspect.signature(function).parameters)[:2] == ["prompts", "texts"]
    except (TypeError, ValueError):  # some builtins have none
        return False


def probe(rewarder: Rewarder, prompt: Mapping[str, Any]) -> None:
    """Try each user's function on a prompt record and the texts PROBES, before the run depends on it.

    Raises:
        UserError: one raised, or returned no finite number.
    """
    for name, function in rewarder.functions.items():
        if name in rewarder.batched:
            try:
                _asked_all(name, function, [prompt] * len(PROBES), list(PROBES))
            except _Broken as broken:
                tried = ", ".join(map(repr, PROBES))
                raise UserError(f"{broken} (tried on the texts {tried}); mend it") from broken.__cause__
            continue
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
        raise _Broken(f"{where} raised {told(error)}") from error
    return _number(where, value)


def _asked_all(name: str, function: UserReward, prompts: list[Mapping[str, Any]], texts: list[str]) -> list[float]:
    """What a user's batch function returns, as plain floats, one a text: of lists, arrays and tensors alike."""
    where = f"reward {name!r}, asked about {len(texts)} texts at once,"
    try:
        values = function(list(prompts), list(texts))
    except (Exception, SystemExit) as error:
        raise _Broken(f"{where} raised {told(error)}") from error
    wanted = f"it must return {len(texts)} finite numbers, one a text in their order"
    try:
        unordered = isinstance(values, (str, bytes, bytearray, Mapping, set, frozenset))
        found = None if unordered else list(values)
    except Exception as error:  # a number, None, what raises as it goes
        raise _Broken(f"{where} returned {short(values)}; {wanted}") from error
    if found is None:
        raise _Broken(f"{where} returned {short(values)}; {wanted}")
    if len(found) != len(texts):
        raise _Broken(f"{where} returned {len(found)} values; {wanted}")
    return [
        _number(f"{where} for prompt {prompt.get('task_id', '?')!r}", value)
        for prompt, value in zip(prompts, found, strict=True)
    ]


def _number(where: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, (str, bytes, bytearray)) else float(value)
    except Exception as error:  # each library refuses in its own way
        raise _Broken(f"{where} returned {short(value)}; it must return a finite number") from error
    if not math.isfinite(number):
        raise _Broken(f"{where} returned {short(value)}; it must return a finite number")
    return number


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

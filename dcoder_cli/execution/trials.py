"""Which references earn their tests: the reference passes twice, in interpreters of their own, and trivial answers fail.

Two judges, one after the other, are two interpreters with other hash seeds, so that an order of a set shows. All of it runs in
the sandbox, the references too: they are code that somebody wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dcoder_cli.base.console import bar
from dcoder_cli.data.problems import RlProblem
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import Problem, Verdict

_SECONDS, _TOTAL_SECONDS = 2.0, 10.0  # for a call and for all (ours): stage 4 judges thousands of answers
_TRIVIAL = ("def {name}(*given, **named):\n    return None\n", "def {name}(*given, **named):\n    return given[0]\n")


class Trial(NamedTuple):
    """A function's name, its tests, and the code that should pass them."""

    name: str
    entry_point: str
    tests: Sequence[str]
    reference: str


def why_not(cases: Sequence[Trial], unsafe: bool = False, done: Callable[[], None] = lambda: None) -> list[str | None]:
    """For each case why its tests cannot be used, in few words; None where they can.

    Args:
        unsafe: run without a sandbox where none holds.
        done: called for each case that is through.

    Raises:
        UserError: no sandbox holds here. WorkFailed: several jobs in a row could not be run.
    """
    problems = [
        Problem(one.name, one.entry_point, tests=tuple(one.tests), seconds=_SECONDS, total_seconds=_TOTAL_SECONDS)
        for one in cases
    ]
    reasons: list[str | None] = [None] * len(cases)
    with Judge(unsafe=unsafe) as judge:
        for place, verdict in judge.stream([(p, case.reference) for p, case in zip(problems, cases, strict=True)]):
            reasons[place] = _reason(verdict)
            done()
    left = [place for place, reason in enumerate(reasons) if reason is None]
    with Judge(unsafe=unsafe) as judge:
        for at, verdict in judge.stream([(problems[place], cases[place].reference) for place in left]):
            if not verdict.passed:
                reasons[left[at]] = "passes its tests only sometimes"
        for text in _TRIVIAL:
            answers = [(problems[place], text.format(name=cases[place].entry_point)) for place in left]
            for at, verdict in judge.stream(answers):
                if verdict.passed and reasons[left[at]] is None:
                    reasons[left[at]] = "a trivial answer passes its tests"
    return reasons


def tried(problems: Sequence[RlProblem], unsafe: bool, quiet: bool) -> list[str | None]:
    """`why_not` of questions with references, with a bar."""
    cases = [
        Trial(one.task_id, str(one.entry_point), [*one.shown, *one.hidden], str(one.reference)) for one in problems
    ]
    with bar("running references", len(cases), quiet=quiet) as progress:
        return why_not(cases, unsafe, progress.advance)


def _reason(verdict: Verdict) -> str | None:
    if verdict.passed:
        return None
    if verdict.status == "timeout":
        return "too slow"
    if "No module named" in verdict.why or "ModuleNotFoundError" in verdict.why:
        return "needs a module that the sandbox lacks"
    told = {"memory": "takes too much memory", "infrastructure": "could not be run"}
    return told.get(verdict.status, "fails its own tests")

"""`bench judge`: the sandboxed judge beside a fresh `python` for every program, on our own micro tasks.

The plain way has no sandbox. It is safe here alone: every program is a reference of data/micro.py, and so are its tests.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import cores
from dcoder_cli.data import micro
from dcoder_cli.execution.judge import Problem, judge, resolve_tier
from dcoder_cli.timing import race, report

_WRONG = 4  # of so many programs one is another task's reference under this one's name, and mostly fails
_SECONDS = 30.0  # that a plain program gets


@dataclass(frozen=True)
class JudgeBench:
    """What is measured: so many programs, `workers` at a time (None: one for each processor), in both ways."""

    programs: int = 64
    workers: int | None = None
    repeats: int = 5
    seed: int = 0


def runs(asked: JudgeBench) -> int:
    """How often `on_run` will be called."""
    return race.RUNS_ASIDE + 2 * asked.repeats


def bench(asked: JudgeBench, on_run: Callable[[str], None]) -> dict[str, Any]:
    """The document of report.py. Raises UserError for a wrong setting."""
    race.check_repeats(asked.repeats)
    for name, value in (("--programs", asked.programs), ("--workers", asked.workers)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} must be at least 1")
    tasks = micro.generate("train", asked.programs, asked.seed)
    programs = programs_of(tasks)
    problems = [Problem(task.task_id, task.entry_point, tests=task.tests_hidden) for task in tasks]
    workers, tier = asked.workers or cores(), resolve_tier(unsafe=True)  # our own programs: any tier will do

    def ours() -> list[bool]:
        return [one.passed for one in judge(problems, programs, workers=workers, tier=tier, unsafe=True)]

    plain = partial(_plain, tasks, programs, workers)
    works = race.Work(ours, ours), race.Work(plain, plain)
    timings = race.race(works, asked.repeats, torch.device("cpu"), on_run, alone=False)
    for timing in timings:
        timing.cpu = []  # the processes of a sandbox end inside it, and their seconds are not told
    what = {"programs": len(tasks), "workers": workers}
    found = report.case(what, "programs", len(tasks), *timings, agree(timings[0].result, timings[1].result))
    subject = {"programs": "references of the micro tasks", "sandbox": f"tier {tier}"}
    return report.document("judge", subject, torch.device("cpu"), None, asked.repeats, [found])


def programs_of(tasks: Sequence[micro.MicroTask]) -> list[str]:
    """A program for each task: its own reference, or now and then the next task's."""
    programs = []
    for place, task in enumerate(tasks):
        other = tasks[(place + 1) % len(tasks)] if place % _WRONG == _WRONG - 1 else task
        programs.append(re.sub(rf"\b{other.entry_point}\(", f"{task.entry_point}(", other.solution, count=1))
    return programs


def _plain(tasks: Sequence[micro.MicroTask], programs: Sequence[str], workers: int) -> list[bool]:
    """Whether each program with its tests behind it ends well, in a process of its own."""

    def passes(task: micro.MicroTask, program: str) -> bool:
        code = "\n".join([program, *task.tests_hidden])
        try:
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(passes, tasks, programs))


def agree(ours: Sequence[bool], plain: Sequence[bool]) -> report.Agreement:
    """Whether both gave the same verdicts."""
    equal, passed = sum(map(bool.__eq__, ours, plain)), sum(plain)
    numbers = {"verdicts": len(plain), "equal_verdicts": equal, "passed": passed}
    if list(ours) == list(plain):
        words = f"agree: all {len(plain):,} verdicts, {passed:,} of them passed"
        return report.Agreement(True, words, numbers)
    return report.Agreement(False, f"DISAGREE: {len(plain) - equal:,} of {len(plain):,} verdicts differ", numbers)

"""Judging samples of any suite while something else goes on: futures of rows of judged.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import expected, gsm8k
from dcoder_cli.benchmarks.suites import Item, Suite
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import Problem, Verdict
from dcoder_cli.execution.unittests import judge_unittests

Row = dict[str, Any]
_MICRO_SECONDS = 10.0  # ours: a reference takes microseconds; the rest is for busy machines


class Judging:
    """Judges samples of one suite. A context manager: leaving it stops all that runs.

    Attributes:
        tier: the sandbox's tier; "" where nothing is executed (gsm8k).
    """

    def __init__(
        self,
        suite: Suite,
        workers: int | None = None,
        unsafe: bool = False,
        python: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Start the sandboxes, and compute or read what plus tests expect.

        Args:
            workers: jobs at a time; by default one for each processor.
            unsafe: agree to run without a sandbox where none holds.
            python: the interpreter with BigCodeBench's libraries.
            progress: told each task id whose reference solution has been run for its expected values.

        Raises:
            UserError: no sandbox holds here and `unsafe` is not set; BigCodeBench without `python`.
        """
        self._judge: Judge | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._python, self._unsafe = python, unsafe
        self.tier = ""
        kinds = {item.kind for item in suite.items}
        self._problems: dict[str, Problem] = {}
        if kinds & {"library-complete", "library-instruct"}:
            check_interpreter(python, unsafe)
            self._pool = ThreadPoolExecutor(workers)
        elif kinds != {"math"}:
            self._judge = Judge(workers, unsafe=unsafe)
            self.tier = str(self._judge.tier)
            try:
                self._problems = _problems(suite, self._judge, progress)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Judging:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs and cancel what waits."""
        if self._judge is not None:
            self._judge.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, item: Item, sample: int, solution: str) -> Future[Row]:
        """Judge one sample; the future's result is its row of judged.jsonl."""
        done: Future[Row] = Future()
        if item.kind == "math":
            done.set_result(_answered(item, sample, solution))
            return done
        future: Future[Verdict]
        if self._judge is not None:
            future = self._judge.submit(self._problems[item.task_id], solution)
        else:
            assert self._pool is not None and self._python is not None
            job, python = item.source.job(solution), self._python
            future = self._pool.submit(lambda: judge_unittests([job], python, 1, self._unsafe)[0])

        def finish(judged: Future[Verdict]) -> None:
            if judged.cancelled():
                done.cancel()
            elif (trouble := judged.exception()) is not None:
                done.set_exception(trouble)
            else:
                row = judged.result().row()
                done.set_result({"task_id": row.pop("task_id"), "sample": sample, **row})

        future.add_done_callback(finish)
        return done


def check_interpreter(python: str | None, unsafe: bool) -> None:
    """Raises UserError unless BigCodeBench's tests can run here: no interpreter named, a wrong one, no sandbox."""
    if python is None:
        raise UserError("bigcodebench needs --python INTERPRETER, one that has the libraries its tests use")
    judge_unittests([], python, 1, unsafe)


def _problems(suite: Suite, judge: Judge, progress: Callable[[str], None] | None) -> dict[str, Problem]:
    wanted = {item.task_id for item in suite.items}
    if suite.benchmark is None:
        return {
            item.task_id: Problem(
                item.task_id, item.entry_point, tests=item.source.tests_hidden, seconds=_MICRO_SECONDS
            )
            for item in suite.items
        }
    asked = tuple(task for task in suite.benchmark.tasks if task.task_id in wanted)
    complete = expected.with_expected(replace(suite.benchmark, tasks=asked), judge, progress)
    return {task.task_id: task.problem for task in complete.tasks if task.problem is not None}


def _answered(item: Item, sample: int, text: str) -> Row:
    """GSM8K: `passed` is strict ("The answer is X."), `flexible` takes the last number."""
    began = time.perf_counter()
    strict = gsm8k.strict_answer(text) == item.source.gold
    flexible = gsm8k.flexible_answer(text) == item.source.gold
    return {
        "task_id": item.task_id, "sample": sample, "passed": strict, "status": "passed" if strict else "failed",
        "strict": strict, "flexible": flexible, "seconds": round(time.perf_counter() - began, 3),
        "why": "" if strict else f"the answer is {item.source.gold}",
    }  # fmt: skip

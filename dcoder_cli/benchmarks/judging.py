"""Judging samples of any suite while something else goes on: futures of rows of judged.jsonl."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks.benchmark import ByAnswer, ByTests, ByUnittests, Item, Row, Suite
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import Problem, Verdict
from dcoder_cli.execution.unittests import judge_unittests

_WAITING = 32  # ours: samples of large problems that may wait or run, each with its tests in memory


class Judging:
    """Judges samples of one suite. A context manager: leaving it stops all that runs.

    Attributes:
        tier: the sandbox's tier; "" where nothing is executed.
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
            python: the interpreter of benchmarks whose tests run beside the candidate, with their libraries.
            progress: told each task id whose reference solution has been run for its expected values.

        Raises:
            UserError: no sandbox holds here and `unsafe` is not set; a benchmark that needs `python` without it.
        """
        self._judge: Judge | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._python, self._unsafe = python, unsafe
        self.tier = ""
        self._judged = suite.benchmark.judged
        self._problems: Mapping[str, Problem] = {}
        self._room: threading.Semaphore | None = None
        if isinstance(self._judged, ByUnittests):
            check_interpreter(suite.task, python, unsafe)
            self._pool = ThreadPoolExecutor(workers)
        elif isinstance(self._judged, ByTests):
            self._judge = Judge(workers, unsafe=unsafe)
            self.tier = str(self._judge.tier)
            try:
                self._problems = self._judged.problems(suite, self._judge, progress)
                self._room = threading.Semaphore(_WAITING) if self._judged.large else None
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
        """Judge one sample; the future's result is its row of judged.jsonl. Waits while many large problems are judged."""
        done: Future[Row] = Future()
        if isinstance(self._judged, ByAnswer):
            done.set_result(_answered(self._judged, item, sample, solution))
            return done
        future: Future[Verdict]
        if isinstance(self._judged, ByTests):
            assert self._judge is not None
            program = solution if self._judged.program is None else self._judged.program(item, solution)
            room = self._room
            if room is not None:
                room.acquire()
            future = self._judge.submit(self._problems[item.task_id], program)
            if room is not None:
                future.add_done_callback(lambda _: room.release())
        else:
            assert self._judged is not None and self._pool is not None and self._python is not None
            job, python = self._judged.job(item, solution), self._python
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


def check_interpreter(task: str, python: str | None, unsafe: bool) -> None:
    """Raises UserError unless unittests can run here: no interpreter named, a wrong one, no sandbox."""
    if python is None:
        raise UserError(f"{task} needs --python INTERPRETER, one that has the libraries its tests use")
    judge_unittests([], python, 1, unsafe)


def _answered(judged: ByAnswer, item: Item, sample: int, text: str) -> Row:
    began = time.perf_counter()
    verdict = judged.verdict(item, text)
    why = verdict.pop("why")
    status = "passed" if verdict["passed"] else "failed"
    return {
        "task_id": item.task_id, "sample": sample, "passed": verdict.pop("passed"), "status": status, **verdict,
        "seconds": round(time.perf_counter() - began, 3), "why": why,
    }  # fmt: skip

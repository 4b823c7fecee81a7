"""`judge(problems, completions)`: run model-written code against tests, without believing it or letting it out.

Each job is two forked processes in two sandboxes: one holds the candidate and answers calls, the other holds tests and
expected values and only ever sees plain values. Nothing the candidate prints, patches, raises, exits with or leaves
behind counts; a verdict is what comparing those values gives. Workers are threads that wait on these processes, so
generation and training go on meanwhile.

The sandbox's strength is its tier (see sandbox.py). In every tier the kernel is shared with the code that runs: a hole
in the kernel is a hole in the sandbox. For code from a source you have reason to fear, run dcoder in a virtual machine.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import Any

from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.base.machine import cores
from dcoder_cli.execution import codec, sandbox
from dcoder_cli.execution.jobs import Infrastructure, Job, Worker
from dcoder_cli.execution.problem import CALL_SECONDS, MEMORY_MIB, Calls, Problem, Verdict

__all__ = ["Calls", "Judge", "Problem", "Verdict", "judge", "resolve_tier"]

_MOST_TROUBLE = 3  # jobs in a row lost to infrastructure, each after a retry, before the run stops


def judge(
    problems: Sequence[Problem],
    completions: Sequence[str],
    workers: int | None = None,
    tier: str | None = None,
    unsafe: bool = False,
    progress: Callable[[Verdict], None] | None = None,
) -> list[Verdict]:
    """A verdict for each pair of problem and completion (Python source), in order.

    Args:
        workers: jobs at a time; by default one for each processor.
        tier: A, B or C; by default the best that holds here.
        unsafe: agree to tier C, which keeps nothing from anybody.
        progress: called with each verdict as it comes.

    Raises:
        UserError: lengths differ, or no sandbox holds here and `unsafe` is not set.
        WorkFailed: several jobs in a row could not be run.
    """
    if len(problems) != len(completions):
        raise UserError(f"{len(problems)} problems and {len(completions)} completions; give one completion for each")
    verdicts: dict[int, Verdict] = {}
    with Judge(workers, tier, unsafe) as running:
        for place, verdict in running.stream(zip(problems, completions, strict=True)):
            verdicts[place] = verdict
            if progress is not None:
                progress(verdict)
    return [verdicts[place] for place in range(len(problems))]


class Judge:
    """Workers that judge while you do something else. A context manager: leaving it kills everything inside.

    `submit` gives a future at once. Sandboxes start with the first jobs and are used again for all that follow.
    """

    def __init__(self, workers: int | None = None, tier: str | None = None, unsafe: bool = False) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"workers = {workers}; give 1 or more")
        self.tier = resolve_tier(tier, unsafe)
        self._jobs: queue.SimpleQueue[tuple[Job, Callable[[dict[str, Any], float], Any], Future[Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._trouble = 0
        self._closing = False
        self._workers = [Worker(self.tier) for _ in range(workers or cores())]
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"judge-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, problem: Problem, completion: str) -> Future[Verdict]:
        """Judge `completion` (Python source) on `problem`; the future's result is its Verdict.

        The future raises WorkFailed when several jobs in a row could not be run.
        """
        job = Job(problem.payload, completion, problem.deadline_seconds, problem.memory_mib, problem.leaves_nothing)
        return self._submit(job, lambda outcome, seconds: self._verdict(problem, outcome, seconds))

    def stream(self, pairs: Iterable[tuple[Problem, str]]) -> Iterator[tuple[int, Verdict]]:
        """Verdicts as they come, each with the place of its pair."""
        futures = {self.submit(problem, completion): place for place, (problem, completion) in enumerate(pairs)}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def outputs(
        self,
        source: str,
        entry_point: str,
        inputs: Sequence[bytes],
        seconds: float = CALL_SECONDS,
        total_seconds: float | None = None,
        memory_mib: int = MEMORY_MIB,
    ) -> Future[list[tuple[bytes | None, float]]]:
        """What `entry_point` of `source` answers to each encoded list of arguments: (encoded answer, seconds).

        The answer is None where the call failed. For expected values from reference solutions.
        """
        payload = {
            "kind": "outputs",
            "entry_point": entry_point,
            "seconds": seconds,
            "load_seconds": seconds,
        }
        job = Job(codec.pack(payload, inputs), source, total_seconds or seconds * (len(inputs) + 1), memory_mib, True)

        def answers(outcome: dict[str, Any], _: float) -> list[tuple[bytes | None, float]]:
            if outcome["status"] == "infrastructure":
                raise WorkFailed(f"{entry_point} could not be run: {outcome['why']}")
            found = [(None if text is None else text.encode("utf-8", "surrogatepass"), spent)
                     for text, spent in outcome.get("answers", [])]  # fmt: skip
            return found + [(None, 0.0)] * (len(inputs) - len(found))

        return self._submit(job, answers)

    def close(self) -> None:
        """Stop: jobs that wait are cancelled, those that run are killed, and nothing is left alive."""
        self._closing = True
        while True:
            try:
                item = self._jobs.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                item[2].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for worker, thread in zip(self._workers, self._threads, strict=True):
            while thread.is_alive():
                worker.interrupt()
                thread.join(0.1)

    @property
    def pids(self) -> list[int]:
        """The processes of the sandboxes that run now."""
        return [pid for worker in self._workers for pid in worker.pids]

    def _submit(self, job: Job, finish: Callable[[dict[str, Any], float], Any]) -> Future[Any]:
        if self._closing:
            raise RuntimeError("this judge is closed")
        future: Future[Any] = Future()
        self._jobs.put((job, finish, future))
        return future

    def _work(self, worker: Worker) -> None:
        try:
            while (item := self._jobs.get()) is not None:
                job, finish, future = item
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(self._judged(worker, job, finish))
                except BaseException as problem:
                    future.set_exception(problem)
        finally:
            worker.close()

    def _judged(self, worker: Worker, job: Job, finish: Callable[[dict[str, Any], float], Any]) -> Any:
        if self._trouble >= _MOST_TROUBLE:
            raise WorkFailed(f"{self._trouble} jobs in a row could not be run; see `dcoder doctor`")
        for attempt in range(2):
            start = time.monotonic()
            try:
                outcome = worker.run(job)
                self._trouble = 0
                break
            except Infrastructure as problem:
                outcome = {"status": "infrastructure", "why": str(problem), "passed": []}
                if self._closing:
                    break
                self._trouble += attempt
        return finish(outcome, time.monotonic() - start)

    def _verdict(self, problem: Problem, outcome: dict[str, Any], seconds: float) -> Verdict:
        status = outcome["status"] if outcome["status"] != "broken" else "infrastructure"
        passed: list[int] = outcome["passed"]
        groups = [len(group.inputs) for group in problem.calls] or [problem.tests_total]
        base = status != "infrastructure" and passed[:1] == groups[:1]
        plus = base and passed == groups if len(groups) > 1 else None
        if status == "passed" and passed != groups:
            status = "failed"
        return Verdict(
            task_id=problem.task_id, status=status, base=base, plus=plus, tests_passed=sum(passed),
            tests_total=sum(groups), seconds=seconds, why=outcome["why"], tier=self.tier,
        )  # fmt: skip


def resolve_tier(tier: str | None = None, unsafe: bool = False) -> str:
    """The tier to run in: the one asked for, or the best that holds here.

    Raises:
        UserError: it does not hold, or it is C without `unsafe`.
    """
    if tier is not None and tier not in sandbox.TIERS:
        raise UserError(f"unknown sandbox tier {tier!r}; known: {', '.join(sandbox.TIERS)}")
    if tier in ("A", "B"):
        trouble = sandbox.tier_trouble(tier)
        if trouble:
            raise UserError(f"sandbox tier {tier} does not hold here: {trouble}; see `dcoder doctor`")
        return tier
    chosen = tier or sandbox.best_tier()
    if chosen == "C" and not unsafe:
        whys = "; ".join(f"tier {name}: {why}" for name, why in sandbox.tiers().items() if why)
        raise UserError(
            "model-written code would run here without a sandbox"
            + (f" ({whys})" if whys else "")
            + "; on Linux `apt install bubblewrap`, or give --unsafe-exec to run it all the same"
        )
    return chosen

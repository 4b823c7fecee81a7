"""One worker: a sandbox for candidates, a second one for their tests, and one job at a time across both."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any

from dcoder_cli.execution.channel import Channel, Gone, Late
from dcoder_cli.execution.problem import START_SECONDS
from dcoder_cli.execution.sandbox import Sandbox, SandboxGone, limits

# Ours: a tester holds tests and one answer; a hostile value that grows in test code or a comparison stops here. Few problems
# have more than 4 MiB of tests (MBPP+'s largest), and only they get the larger one.
_TESTER_MIB, _LARGE_MIB, _LARGE = 1536, 4096, 4 << 20
_TESTER_JOBS = 200  # ours: the most for one tester; its memory is that of the largest
_TESTER_SECONDS = 3600.0  # of processor time, over all its jobs


@dataclass(frozen=True)
class Job:
    """A payload for the tester (problem.Problem.payload or an `outputs` job), a candidate's source, and limits.

    `leaves_nothing`: the tester may be used again. Candidates never are.
    """

    payload: bytes
    source: str
    seconds: float
    memory_mib: int
    leaves_nothing: bool


class Infrastructure(Exception):
    """The job did not run to an end for reasons that are not the candidate's."""


class Worker:
    """Runs jobs in two sandboxes of one tier. To be used from one thread; the sandboxes die with it."""

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self._candidates: Sandbox | None = None
        self._testers: Sandbox | None = None
        self._tester: Channel | None = None
        self._jobs = 0  # done by the present tester
        self._payload = b""  # the one it knows
        self._mib = 0  # what it may hold

    @property
    def pids(self) -> list[int]:
        """The processes of the sandboxes that run."""
        return [sandbox.pid for sandbox in (self._candidates, self._testers) if sandbox is not None]

    def run(self, job: Job) -> dict[str, Any]:
        """The tester's outcome: `status` (or `broken`: the problem is at fault), `why`, `passed` per group, ...

        Raises:
            Infrastructure: a sandbox died, or was killed from outside. The next job gets new ones.
        """
        try:
            return self._run(job)
        except (SandboxGone, Infrastructure, OSError) as problem:
            self.close()
            raise Infrastructure(str(problem)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill both sandboxes."""
        for sandbox in (self._candidates, self._testers):
            if sandbox is not None:
                sandbox.close()
        if self._tester is not None:
            self._tester.connection.close()
        self._candidates = self._testers = self._tester = None

    def interrupt(self) -> None:
        """Kill what runs, from another thread; the job under way ends as Infrastructure."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _run(self, job: Job) -> dict[str, Any]:
        deadline = time.monotonic() + job.seconds + START_SECONDS
        bounds = limits(job.memory_mib, job.seconds + START_SECONDS)
        waiting = self._fork_candidate(bounds)  # while the tester reads the job
        outcome: dict[str, Any] | None = None
        late = False
        try:
            tester = self._ready_tester(_LARGE_MIB if len(job.payload) > _LARGE else _TESTER_MIB)
            try:
                problem = b"" if job.payload is self._payload else job.payload
                source = job.source.encode("utf-8", "surrogatepass")
                tester.send(problem, source, deadline=deadline, descriptors=[waiting.fileno()])
                self._payload = job.payload
                waiting.close()
                while outcome is None:
                    message = _report(tester.receive(deadline))
                    if "candidate" not in message:
                        outcome = message
                        break
                    self._bury_candidate(bounds)
                    waiting = self._fork_candidate(bounds)
                    tester.connection.setblocking(True)
                    socket.send_fds(tester.connection, [b"+"], [waiting.fileno()])
                    tester.connection.setblocking(False)
                    waiting.close()
            except Late:
                late = True
            except Gone:
                pass
        finally:
            waiting.close()
        self._bury_candidate(bounds)
        self._jobs += 1
        if outcome is not None and outcome["status"] != "memory":
            if self._jobs >= _TESTER_JOBS or not job.leaves_nothing:
                self._end_tester()
            return outcome
        ended = self._end_tester()
        if outcome is not None:
            return outcome
        if late:
            return {"status": "timeout", "why": f"not done within {job.seconds:.4g} s", "passed": []}
        self._check(ended, None)
        return {"status": "failed", "why": f"the tests crashed on its answers (signal {ended['signal']})", "passed": []}

    def _fork_candidate(self, bounds: dict[str, int]) -> socket.socket:
        """Fork a candidate; the tester's end of the socket between the two."""
        if self._candidates is None:
            self._candidates = Sandbox(self.tier)
        to_tester, to_candidate = socket.socketpair()
        with to_candidate:
            try:
                self._candidates.run("candidate", [to_candidate.fileno()], bounds)
            except BaseException:
                to_tester.close()
                raise
        return to_tester

    def _bury_candidate(self, bounds: dict[str, int]) -> None:
        assert self._candidates is not None
        ended = self._candidates.stop()
        self._check(ended, bounds)
        if not ended["clean"]:  # what is left in its file system goes with the whole sandbox
            self._candidates.close()
            self._candidates = None

    def _ready_tester(self, mib: int) -> Channel:
        """A tester with `mib` MiB, or more where there is one."""
        if self._tester is not None and mib > self._mib:
            self._end_tester()
        if self._testers is None:
            self._testers = Sandbox(self.tier)
        if self._tester is None:
            mine, theirs = socket.socketpair()
            with theirs:
                self._testers.run("tester", [theirs.fileno()], limits(mib, _TESTER_SECONDS))
            self._tester, self._jobs, self._payload, self._mib = Channel(mine, limit=1 << 30), 0, b"", mib
        return self._tester

    def _end_tester(self) -> dict[str, Any]:
        assert self._testers is not None and self._tester is not None
        self._tester.connection.close()
        self._tester = None
        return self._testers.stop()

    def _check(self, ended: dict[str, Any], bounds: dict[str, int] | None) -> None:
        """Whether a process died of itself. No job can send SIGKILL, and the processor limit is known by its time."""
        spent = bounds is not None and ended["cpu"] >= bounds["CPU"] - 1
        if ended["signal"] == signal.SIGKILL and not spent and self.tier != "C":
            raise Infrastructure("a job was killed from outside (out of memory?)")


def _report(data: bytes) -> dict[str, Any]:
    """What a tester says. Test code may have patched what it speaks with."""
    try:
        message: dict[str, Any] = json.loads(data)
        if "candidate" in message or (type(message["status"]) is str and type(message["passed"]) is list):
            return message
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return {"status": "broken", "why": "the tests disturb the process that runs them", "passed": []}

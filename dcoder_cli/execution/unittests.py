"""BigCodeBench's kind of test: a unittest class that runs beside the candidate, in an interpreter the user names.

These tests patch, fork, serve and draw, so they cannot be kept apart from the candidate as `judge` does, nor be held to
its system calls. They run in bubblewrap's namespaces (no network, nothing of the user's files, an own process tree that
ends with the deadline) and their verdicts are marked `low_trust`: fit for a benchmark, never for a reward.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.execution import sandbox
from dcoder_cli.execution.problem import Verdict

TASK_SECONDS = 240.0  # BigCodeBench's evaluator
_MEMORY = 8 * 2**30  # ours, of private memory; the published limits (30 GiB of addresses) are above most machines
_TMP_BYTES = 2**30
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache",
           "/etc/localtime", "/etc/mime.types", "/etc/passwd", "/etc/ssl/certs")  # fmt: skip
_DRIVER = Path(__file__).with_name("unittest_driver.py")


@dataclass(frozen=True)
class UnittestJob:
    """A program and the source of a class `TestCases` that tests it in the same module."""

    task_id: str
    program: str
    test: str
    seconds: float = TASK_SECONDS


def judge_unittests(
    jobs: Sequence[UnittestJob],
    python: str,
    workers: int | None = None,
    unsafe: bool = False,
    progress: Callable[[Verdict], None] | None = None,
) -> list[Verdict]:
    """A verdict for each job, in order, all with `low_trust`.

    Args:
        python: the interpreter that has the libraries the tests need.
        unsafe: agree to run without a sandbox where bubblewrap does not work.

    Raises:
        UserError: `python` is not an interpreter, or there is no sandbox and `unsafe` is not set.
    """
    interpreter = _interpreter(python)
    trouble = sandbox.tier_trouble("A")
    if trouble and not unsafe:
        raise UserError(
            f"these tests need bubblewrap, which does not work here ({trouble}); on Linux `apt install bubblewrap`, or "
            "give --unsafe-exec to run them unprotected"
        )
    tier = "C" if trouble else "A"
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        verdicts = []
        for verdict in pool.map(lambda job: _run(job, interpreter, tier), jobs):
            verdicts.append(verdict)
            if progress is not None:
                progress(verdict)
    return verdicts


@dataclass(frozen=True)
class _Interpreter:
    path: str
    folders: tuple[str, ...]


@lru_cache
def _interpreter(python: str) -> _Interpreter:
    path = shutil.which(python)
    if path is None:
        raise UserError(f"--python {python!r} is not a program; give the path of an interpreter")
    script = "import json, sys; print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, sys.version_info[0]]))"
    try:
        answer = subprocess.run([path, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout
        executable, prefix, base, major = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UserError(f"--python {python!r} does not run as Python: {one_line(error)[:200]}") from None
    if major != 3:
        raise UserError(f"--python {python!r} is Python {major}; give a Python 3")
    return _Interpreter(executable, tuple(dict.fromkeys([prefix, base])))


def _command(interpreter: _Interpreter, tier: str, descriptor: int, hosts: str) -> list[str]:
    start = [interpreter.path, "-B", str(_DRIVER) if tier == "C" else "/driver.py", str(descriptor)]
    if tier == "C":
        return start
    command = [str(sandbox.bubblewrap()), "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]
    command += ["--cap-drop", "ALL", "--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    for path in _SYSTEM:
        command += ["--ro-bind-try", path, path]
    command += ["--proc", "/proc", "--dev", "/dev", "--perms", "0700", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]
    for path in interpreter.folders:  # after the private /tmp: the interpreter may lie in the real one
        command += ["--ro-bind-try", path, path]
    command += ["--ro-bind", str(_DRIVER), "/driver.py", "--ro-bind", hosts, "/etc/hosts"]
    for name, value in _environment("/tmp", interpreter).items():
        command += ["--setenv", name, value]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--", *start]


def _environment(home: str, interpreter: _Interpreter) -> dict[str, str]:
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {"HOME": home, "TMPDIR": home, "PATH": f"{os.path.dirname(interpreter.path)}:/usr/bin:/bin", "LANG": "C.UTF-8", "MPLBACKEND": "Agg",
            "TF_CPP_MIN_LOG_LEVEL": "3", **threads}  # fmt: skip


def _run(job: UnittestJob, interpreter: _Interpreter, tier: str) -> Verdict:
    start = time.monotonic()
    status, why, ran, wrong = "infrastructure", "", 0, 1
    for _ in range(2):
        status, why, ran, wrong = _attempt(job, interpreter, tier)
        if status != "infrastructure":
            break
    return Verdict(
        job.task_id, status, base=status == "passed", plus=None, tests_passed=max(0, ran - wrong), tests_total=max(ran, 1),
        seconds=time.monotonic() - start, why=why, tier=tier, low_trust=True,
    )  # fmt: skip


def _attempt(job: UnittestJob, interpreter: _Interpreter, tier: str) -> tuple[str, str, int, int]:
    """Status, reason, tests that ran, tests that did not pass."""
    reader, writer = os.pipe()
    home = tempfile.mkdtemp(prefix="dcoder-unittest-")
    hosts = os.path.join(home, "hosts")  # tests serve themselves on localhost
    Path(hosts).write_text("127.0.0.1 localhost sandbox\n", encoding="utf-8")
    task = json.dumps(
        {"program": job.program, "test": job.test, "limits": {"DATA": _MEMORY, "CORE": 0, "FSIZE": 2**30}}
    )
    try:
        try:
            process = subprocess.Popen(
                _command(interpreter, tier, writer, hosts), pass_fds=[writer], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=_environment(home, interpreter), cwd=home, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writer)
        answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reading = threading.Thread(target=lambda: answers.put(_read_all(reader)), daemon=True)
        reading.start()
        late = False
        try:
            process.communicate(task.encode(), timeout=job.seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _kill(process)
        reading.join(10)
        return _judged(b"" if answers.empty() else answers.get(), late, process.returncode, job.seconds)
    except OSError as problem:
        return "infrastructure", one_line(problem), 0, 1
    finally:
        os.close(reader)
        shutil.rmtree(home, ignore_errors=True)


def _judged(answer: bytes, late: bool, code: int, seconds: float) -> tuple[str, str, int, int]:
    if late:
        return "timeout", f"not done within {seconds:.4g} s", 0, 1
    try:
        result: dict[str, Any] = json.loads(answer)
        ran, wrong, why = int(result["ran"]), int(result["wrong"]), str(result["why"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "failed", f"the tests' process ended early (exit {code})", 0, 1
    if result.get("syntax"):
        return "syntax", why, ran, wrong
    return ("passed", "", ran, 0) if ran > 0 and wrong == 0 else ("failed", why or "no test ran", ran, wrong)


def _read_all(reader: int) -> bytes:
    parts = []
    try:
        while part := os.read(reader, 1 << 16):
            parts.append(part)
            if sum(map(len, parts)) > 1 << 20:
                break
    except OSError:
        pass
    return b"".join(parts)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, 9)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()

"""The host's side of the sandbox: how each tier is started, jobs in it, and choosing the tier by trying.

Tier A: bubblewrap (own user, mount, process, network and ipc namespaces; a read-only Python and a small private file
        system are all there is), and in it for every job limits, no-new-privileges, Landlock and seccomp.
Tier B: the same per job without bubblewrap; namespaces by hand where the kernel gives them.
Tier C: limits only. Stops accidents, not attacks: refused unless asked for as unsafe.

In every tier the code shares the kernel with the host: a hole in the kernel is a hole in the sandbox. Against that,
run the whole of dcoder in a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import one_line
from dcoder_cli.execution import landlock, seccomp, zygote

TIERS = ("A", "B", "C")
_PACKAGE = Path(__file__).resolve().parent.parent
# What the sandbox has of dcoder. Everything else of the package, the micro tests above all, stays outside.
_MODULES = ("candidate", "channel", "codec", "compare", "exchange", "handlers", "landlock", "probe", "seccomp",
            "tester", "zygote")  # fmt: skip
_INSIDE = ("__init__.py", "execution/__init__.py", *(f"execution/{name}.py" for name in _MODULES))
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero")
_SCRATCH = "/scratch"
_SCRATCH_BYTES = 64 * 2**20  # ours: solutions write little, and the file system lives in memory
_START_SECONDS = 60.0  # generous: an interpreter starts in 0.2 s, on a machine under load in several
_ANSWER_SECONDS = 20.0  # to kill a process that holds memory under load


class SandboxGone(Exception):
    """The fork server died or does not answer. Not the candidate's doing: nothing it may do reaches the server."""


class Sandbox:
    """One running fork server in its tier. Not thread safe; it dies with the thread that made it."""

    def __init__(self, tier: str) -> None:
        """Raises SandboxGone, with the reason, if it does not start."""
        self.tier = tier
        self._outside = tempfile.mkdtemp(prefix="dcoder-") if tier != "A" else None
        mine, theirs = socket.socketpair()
        self._control = mine
        mine.settimeout(_START_SECONDS)
        with tempfile.TemporaryFile() as errors:
            try:
                command = _command(tier, theirs.fileno())
                self._process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=errors, env={"PATH": os.environ.get("PATH", os.defpath)}, start_new_session=True, cwd="/",
                )  # fmt: skip
            except OSError as error:
                raise SandboxGone(one_line(error)) from None
            finally:
                theirs.close()
            answer = None
            try:
                zygote.send(mine, _config(tier, self._outside))
                answer = zygote.receive(mine)
            except OSError:
                pass
            if answer is None:
                self.close()
                errors.seek(0)
                tail = errors.read().decode(errors="replace").strip().splitlines()
                raise SandboxGone(tail[-1][:300] if tail else "the fork server does not start")
        self.note = str(json.loads(answer[0])["note"])
        mine.settimeout(_ANSWER_SECONDS)

    @property
    def pid(self) -> int:
        """The process to kill to kill it all."""
        return self._process.pid

    def run(self, role: str, descriptors: Sequence[int], limits: dict[str, int]) -> None:
        """Fork a job that has only these descriptors, from 3 on. One at a time: `stop` comes before the next."""
        try:
            zygote.send(self._control, {"do": "run", "role": role, "limits": limits}, descriptors)
        except OSError:
            raise SandboxGone("the fork server is gone") from None

    def ask_stop(self) -> None:
        """Begin to `stop`, for killing in two sandboxes at once."""
        try:
            zygote.send(self._control, {"do": "stop"})
        except OSError:
            raise SandboxGone("the fork server is gone") from None

    def stopped(self) -> dict[str, Any]:
        """How the job ended: `signal` that killed it before we did, or 0; exit `status`; `cpu` seconds; `clean`."""
        try:
            answer = zygote.receive(self._control)
        except OSError:
            answer = None
        if answer is None:
            raise SandboxGone("the fork server is gone")
        ended: dict[str, Any] = json.loads(answer[0])
        return ended

    def stop(self) -> dict[str, Any]:
        """Kill the job and everything it left."""
        self.ask_stop()
        return self.stopped()

    def close(self) -> None:
        """Kill everything inside. Safe to call twice."""
        self._control.close()
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has its SIGKILL; nobody waits for it for ever
            self._process.wait(_ANSWER_SECONDS)
        if self._outside is not None:
            zygote.remove_tree(self._outside, 1_000_000)


def limits(memory_mib: int, seconds: float) -> dict[str, int]:
    """Resource limits of a job: address space, processor time, files. Wall-clock time is watched from outside."""
    return {
        "AS": memory_mib * 2**20,
        "CPU": int(seconds) + 2,
        "FSIZE": 16 * 2**20,
        "NOFILE": 64,
        "CORE": 0,
        "MEMLOCK": 0,
    }


def bubblewrap() -> str | None:
    """The path of `bwrap`, or None."""
    return shutil.which("bwrap")


def _command(tier: str, descriptor: int) -> list[str]:
    root = "/dcoder" if tier == "A" else str(_PACKAGE.parent)
    start = (
        f"import sys; sys.path.insert(0, {root!r}); from dcoder_cli.execution.zygote import main; main({descriptor})"
    )
    python = [_interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", start]
    return [*_bubblewrap_arguments(), *python] if tier == "A" else python


def _bubblewrap_arguments() -> list[str]:
    program = bubblewrap()
    if program is None:
        raise FileNotFoundError("bubblewrap is not installed (Debian and Ubuntu: apt install bubblewrap)")
    can = _bubblewrap_help(program)
    # the user inside is nobody, without capabilities even where dcoder runs as root
    command = [program, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    command += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--hostname", "sandbox"]
    command += ["--disable-userns"] if "--disable-userns" in can else []
    for path in _python_folders():
        command += ["--ro-bind-try", path, path]
    for path in _hidden():
        if any(_below(path, folder) for folder in _python_folders()) and os.path.isdir(path):
            command += ["--tmpfs", path, "--remount-ro", path]
    for path in _numpy_folders():
        command += ["--ro-bind-try", path, path]
    for path in _DEVICES:
        command += ["--dev-bind-try", path, path]
    for name in _INSIDE:
        command += ["--ro-bind", str(_PACKAGE / name), f"/dcoder/dcoder_cli/{name}"]
    if "--size" in can:
        command += ["--perms", "0700", "--size", str(_SCRATCH_BYTES), "--tmpfs", _SCRATCH]
    return [*command, "--remount-ro", "/", "--chdir", "/", "--"]


@lru_cache
def _bubblewrap_help(program: str) -> str:
    return subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout


def _config(tier: str, outside: str | None) -> dict[str, Any]:
    scratch = outside
    if tier == "A":
        scratch = _SCRATCH if "--size" in _bubblewrap_help(bubblewrap() or "") else None
    numpy = _numpy_folders()
    readable = [part for path in _python_folders() for part in _without(path, _hidden())]
    return {
        "numpy": numpy[0] if numpy and tier != "C" else None,
        "hide": [str(_PACKAGE.parent), "/dcoder"],
        "scratch": scratch,
        "unshare": tier == "B",
        "seccomp": tier != "C",
        "landlock": tier == "B" or (tier == "A" and landlock.version() > 0),
        "readable": [*readable, *numpy, *_DEVICES],
    }


def _interpreter() -> str:
    """The interpreter behind a virtual environment: it needs nothing but its own folders."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@lru_cache
def _python_folders() -> tuple[str, ...]:
    """What an interpreter needs to see: itself, its library and the system's shared libraries."""
    own = {_interpreter(), os.path.dirname(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix}))}
    own |= {os.path.dirname(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix}))}
    own |= {os.path.join(sys.base_prefix, "lib")}
    paths = [path for path in sorted(own) + list(_SYSTEM) if os.path.exists(path)]
    return tuple(path for path in paths if not any(_below(path, other) for other in paths if other != path))


def _hidden() -> list[str]:
    """Folders of installed packages, dcoder among them: the sandbox has no business there."""
    own = {sysconfig.get_path(name, vars={"base": base, "platbase": base}) for name in ("purelib", "platlib")
           for base in (sys.base_prefix, sys.prefix)}  # fmt: skip
    return sorted(own | {str(_PACKAGE)})


@lru_cache
def _numpy_folders() -> tuple[str, ...]:
    """Where numpy is, without importing it; solutions may use it. Its shared libraries lie beside it."""
    for entry in sys.path:
        folder = os.path.join(entry, "numpy")
        if os.path.isfile(os.path.join(folder, "__init__.py")):
            return tuple(path for path in (folder, folder + ".libs") if os.path.isdir(path))
    return ()


def _below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _without(path: str, hidden: Sequence[str]) -> Iterator[str]:
    """`path`, or where something hidden lies below it, its parts without that."""
    if path in hidden:
        return
    if not any(_below(inner, path) for inner in hidden):
        yield path
        return
    for name in sorted(os.listdir(path)):
        yield from _without(os.path.join(path, name), hidden)


# --- the self-test ---------------------------------------------------------------------------------------------------


def self_test(tier: str) -> str:
    """Start the tier and try to break out of it. Why it does not hold; empty if it holds."""
    if tier != "C" and sys.platform != "linux":
        return f"{sys.platform} has neither seccomp nor Landlock"
    if tier != "C" and not seccomp.supported():
        return "no seccomp table for this processor"
    if tier == "B" and landlock.version() < 3:
        return f"Landlock version {landlock.version()} of this kernel is below 3"
    try:
        sandbox = Sandbox(tier)
    except SandboxGone as problem:
        return str(problem)
    try:
        return _broken(sandbox) if tier != "C" else ""
    except (SandboxGone, OSError, ValueError) as problem:
        return f"the self-test did not end: {one_line(problem)}"
    finally:
        sandbox.close()


def _broken(sandbox: Sandbox) -> str:
    outside = tempfile.mkdtemp(prefix="dcoder-outside-")
    listener = socket.create_server(("127.0.0.1", 0))
    mine, theirs = socket.socketpair()
    try:
        secret = os.path.join(outside, "secret")
        Path(secret).write_text("secret", encoding="utf-8")
        sandbox.run("probe", [theirs.fileno()], limits(1024, 10))
        theirs.close()
        mine.settimeout(30)
        zygote.send(mine, {"secret": secret, "outside": outside, "port": listener.getsockname()[1]})
        answer = zygote.receive(mine)
        ended = sandbox.stop()
        if answer is None:
            return f"a job does not come back from it (signal {ended['signal']}, status {ended['status']})"
        held: list[str] = json.loads(answer[0])
        if os.listdir(outside) != ["secret"] or Path(secret).read_text(encoding="utf-8") != "secret":
            held.append("change a file outside")
        return "it lets a job " + ", ".join(held) if held else ""
    finally:
        mine.close()
        listener.close()
        shutil.rmtree(outside, ignore_errors=True)


@lru_cache
def tier_trouble(tier: str) -> str:
    """`self_test` of the tier, tried once in a process."""
    return self_test(tier)


def tiers() -> dict[str, str]:
    """For each tier why it does not hold here, or an empty text; best first, up to the first that holds."""
    found: dict[str, str] = {}
    for tier in TIERS:
        found[tier] = tier_trouble(tier)
        if not found[tier]:
            break
    return found


def best_tier() -> str:
    """The best tier that holds here: A, B or C."""
    return next((tier for tier, trouble in tiers().items() if not trouble), "C")

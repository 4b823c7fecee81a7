"""The fork server: an interpreter with the common modules loaded, from which every job is a fork.

It obeys the host over one socket: `run` forks a child with the sockets sent along, `stop` kills and buries it. The
child puts itself under limits, no-new-privileges, Landlock and seccomp before it reads a byte of the job. The server
itself never sees a job.

This file also runs inside the sandbox, so it imports only the standard library and its neighbours.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from dcoder_cli.execution import landlock, seccomp

# What solutions to programming problems import most; anything else is loaded when asked for.
_COMMON = (
    "abc", "array", "bisect", "calendar", "cmath", "collections", "collections.abc", "contextlib", "copy",
    "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io",
    "itertools", "json", "math", "numbers", "operator", "os", "random", "re", "statistics", "string", "struct", "sys",
    "textwrap", "time", "traceback", "types", "typing", "unicodedata", "warnings",
)  # fmt: skip
_MOST_ENTRIES = 2000  # files a job may leave before its whole sandbox is thrown away instead of cleaned
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38


def main(descriptor: int) -> None:
    """Serve until the host closes the socket `descriptor`. The first frame is the configuration."""
    control = socket.socket(fileno=descriptor)
    received = receive(control)
    if received is None:
        return
    config = json.loads(received[0])
    server = _Server(control, config)
    control.sendall(_frame({"ready": os.getpid(), "note": server.note}))
    server.serve()


class _Server:
    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        from dcoder_cli.execution import candidate, probe, tester

        self._roles = {
            "candidate": lambda fds: candidate.serve(fds[0]),
            "tester": lambda fds: tester.serve(fds[0]),
            "probe": lambda fds: probe.serve(fds[0]),
        }
        self._control, self._config = control, config
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.note = ""
        self._child: tuple[int, int | None] | None = None
        self._folder: str | None = None
        self._jobs = 0
        for name in _COMMON:
            importlib.import_module(name)
        if config["numpy"]:
            sys.meta_path.append(_Numpy(config["numpy"]))
        sys.path[:] = [entry for entry in sys.path if entry not in config["hide"]]
        os.environ.clear()
        os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", HOME=config["scratch"] or "/", LANG="C.UTF-8")
        if config["unshare"]:
            self.note = _unshare(config["scratch"])
            if self.note:  # without a private file system a job gets no folder to write in
                config["scratch"] = None
        if config["landlock"]:
            # what all jobs share is set here, once; a job's own layer narrows it to its folder
            self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            landlock.restrict(config["readable"], _own(config["scratch"]))
        self._filters = (
            {role: seccomp.Filter(sockets=role == "tester") for role in self._roles} if config["seccomp"] else {}
        )
        if sys.platform == "linux":
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to act on
        candidate.rehearse()
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        while (received := receive(self._control)) is not None:
            order, descriptors = json.loads(received[0]), received[1]
            if order["do"] == "run":
                self._run(order, descriptors)
            else:
                self._control.sendall(_frame(self._stop()))

    def _run(self, order: dict[str, Any], descriptors: list[int]) -> None:
        assert self._child is None
        self._jobs += 1
        if self._config["scratch"] and order["role"] != "tester":
            self._folder = os.path.join(self._config["scratch"], f"job{self._jobs}")
            os.mkdir(self._folder, 0o700)
        server = os.getpid()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self._become(order, descriptors, server)
                self._roles[order["role"]](list(range(3, 3 + len(descriptors))))
                status = 0
            except BaseException as problem:
                with contextlib.suppress(BaseException):  # for the self-test and for whoever debugs
                    os.write(2, repr(problem).encode())
            finally:
                os._exit(status)
        for descriptor in descriptors:
            os.close(descriptor)
        self._child = child, os.pidfd_open(child) if hasattr(os, "pidfd_open") else None

    def _become(self, order: dict[str, Any], descriptors: list[int], server: int) -> None:
        """Turn this fork into a job: only its own descriptors, folder and limits, and no way back."""
        moved = [os.dup(descriptor) for descriptor in descriptors]  # out of the way of 0 .. 4
        top = max(moved) + 1
        high = [os.dup2(descriptor, top + place) for place, descriptor in enumerate(moved)]
        null = os.open(os.devnull, os.O_RDWR)
        for target in range(3):
            if target != 2 or not order.get("stderr"):
                os.dup2(null, target)
        for place, descriptor in enumerate(high):
            os.dup2(descriptor, 3 + place, inheritable=False)
        os.closerange(3 + len(high), 4096)
        if not self._filters:  # a group of its own to kill; with seccomp it has no children (and setsid takes 3 ms)
            os.setsid()
        if sys.platform == "linux":
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != server:
                os._exit(1)
        os.chdir(self._folder or "/")
        os.environ["TMPDIR"] = self._folder or "/nonexistent"
        _limit(order["limits"])
        if sys.platform == "linux":
            if self._libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "no-new-privileges")
            if self._config["landlock"]:
                landlock.restrict_writing(_own(self._folder))
            if self._filters:
                self._filters[order["role"]].apply()

    def _stop(self) -> dict[str, Any]:
        """Kill the child and whatever it left behind; how it ended, and whether its folder could be cleaned."""
        if self._child is None:
            return {"signal": 0, "status": 0, "cpu": 0.0, "clean": True}
        child, handle = self._child
        self._child = None
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        with contextlib.suppress(ProcessLookupError):
            if handle is not None:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            else:
                os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        if handle is not None:
            os.close(handle)
        if not self._filters:
            _kill_leftovers(child)
        folder, self._folder = self._folder, None
        clean = folder is None or remove_tree(folder, _MOST_ENTRIES)
        own = ended and os.WIFSIGNALED(status)
        return {
            "signal": os.WTERMSIG(status) if own else 0,  # what killed it before we did
            "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
            "cpu": usage.ru_utime + usage.ru_stime,
            "clean": clean,
        }


def _own(folder: str | None) -> list[str]:
    """What may be written to: a folder, and the device that swallows everything."""
    return [folder, os.devnull] if folder else [os.devnull]


def _limit(limits: dict[str, int]) -> None:
    """Resource limits, hard and soft alike. Names without the RLIMIT_ prefix."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue  # not on this system
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (bound, bound))
        except (ValueError, OSError):
            if name != "AS":  # macOS does not know how to limit memory
                raise


def _unshare(scratch: str) -> str:
    """Namespaces by hand: no network, no other processes' ipc, and a small private file system at `scratch`.

    What could not be had is the answer, for the sandbox's description; empty if all is there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    user, mounts, uts, ipc, network = 0x10000000, 0x00020000, 0x04000000, 0x08000000, 0x40000000
    if libc.unshare(user | mounts | uts | ipc | network) != 0:
        return f"no namespaces ({os.strerror(ctypes.get_errno())})"
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {uid} 1"), ("gid_map", f"65534 {gid} 1")):
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as handle:
            handle.write(text)
    recursive_private, restricted = 0x4000 | 0x40000, 0x2 | 0x4 | 0x8  # MS_REC|MS_PRIVATE; nosuid, nodev, noexec
    if libc.mount(None, b"/", None, recursive_private, None) != 0:
        return f"no private mounts ({os.strerror(ctypes.get_errno())})"
    options = b"size=64m,nr_inodes=4096,mode=0700"
    if libc.mount(b"tmpfs", scratch.encode(), b"tmpfs", restricted, options) != 0:
        return f"no private file system ({os.strerror(ctypes.get_errno())})"
    return ""


def _kill_leftovers(child: int) -> None:
    """Kill what a job without seccomp left: its process group, and on Linux every orphan that came to this server."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    for _ in range(1000):
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as handle:
                orphans = [int(number) for number in handle.read().split()]
        except OSError:
            orphans = []
        for orphan in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)
        try:
            if os.waitpid(-1, 0 if orphans else os.WNOHANG)[0] == 0 and not orphans:
                return
        except ChildProcessError:
            return


def remove_tree(path: str, most: int) -> bool:
    """Remove a folder left by hostile code: links are not followed, permissions are mended, at most `most` entries.

    False if something is still there.
    """
    budget = [most]

    def empty(folder: int, depth: int) -> bool:
        os.fchmod(folder, 0o700)
        for name in os.listdir(folder):
            budget[0] -= 1
            if budget[0] < 0 or depth > 50:
                return False
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                with contextlib.suppress(OSError):
                    os.chmod(name, 0o700, dir_fd=folder)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                try:
                    if not empty(inner, depth + 1):
                        return False
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
        return True

    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            emptied = empty(root, 0)
        finally:
            os.close(root)
        if emptied:
            os.rmdir(path)
        return emptied
    except FileNotFoundError:
        return True
    except OSError:
        return False


class _Numpy(importlib.abc.MetaPathFinder):
    """Finds numpy where the host has it, without the rest of that folder being on the path."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "numpy":
            return None
        start = os.path.join(self._folder, "__init__.py")
        return importlib.util.spec_from_file_location(fullname, start, submodule_search_locations=[self._folder])


# --- frames with descriptors, used by the host as well ---------------------------------------------------------------


def _frame(value: dict[str, Any]) -> bytes:
    body = json.dumps(value).encode()
    return struct.pack("!I", len(body)) + body


def send(control: socket.socket, value: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """One small frame, with descriptors attached to its first byte."""
    frame = _frame(value)
    sent = socket.send_fds(control, [frame], descriptors) if descriptors else 0
    if sent < len(frame):
        control.sendall(frame[sent:])


def receive(control: socket.socket) -> tuple[bytes, list[int]] | None:
    """One frame and the descriptors that came with it; None when the other side is gone."""
    try:
        header, descriptors, _, _ = socket.recv_fds(control, 4, 4)
        while len(header) < 4:
            part = control.recv(4 - len(header))
            if not part:
                return None
            header += part
        body = b""
        length = struct.unpack("!I", header)[0]
        while len(body) < length:
            part = control.recv(length - len(body))
            if not part:
                return None
            body += part
    except OSError:
        return None
    return body, list(descriptors)

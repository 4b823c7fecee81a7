"""The self-test's inside: try what a job must not be able to do, and say what was possible.

Runs as a job of the sandbox under test. A sandbox is believed only for what this has seen refused.
This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

# memfd_create, io_uring_setup, unshare, mount, ptrace, keyctl, bpf, userfaultfd
_CALLS = {
    "x86_64": (319, 425, 272, 165, 101, 250, 321, 323),
    "aarch64": (279, 425, 97, 40, 117, 219, 280, 282),
}
_CALL_NAMES = ("memfd", "io_uring", "unshare", "mount", "ptrace", "keyctl", "bpf", "userfaultfd")


def serve(descriptor: int) -> None:
    """Read one JSON object (`secret`: a file outside, `outside`: a folder, `port`: a listener), try, and answer."""
    length = struct.unpack("!I", os.read(descriptor, 4))[0]
    answer = json.dumps(attempts(json.loads(os.read(descriptor, length)))).encode()
    os.write(descriptor, struct.pack("!I", len(answer)) + answer)


def attempts(task: dict[str, Any]) -> list[str]:
    """The names of everything that was possible and must not be. Empty in a sandbox that holds."""
    import subprocess  # not at the top: every fork of a process that has loaded threading pays for it
    import threading

    tries: list[tuple[str, Callable[[], Any]]] = [
        ("read a file outside", lambda: os.close(os.open(task["secret"], os.O_RDONLY))),
        ("write a file outside", lambda: os.close(os.open(task["outside"] + "/x", os.O_CREAT | os.O_WRONLY))),
        ("truncate a file outside", lambda: os.truncate(task["secret"], 0)),
        ("change permissions outside", lambda: os.chmod(task["secret"], 0o777)),
        ("list a folder outside", lambda: os.listdir(task["outside"])),
        ("read the parent's environment", lambda: os.close(os.open("/proc/1/environ", os.O_RDONLY))),
        ("read /proc", lambda: os.listdir("/proc")),
        ("fork", _fork),
        ("start a thread", lambda: threading.Thread(target=int).start()),
        ("run a program", lambda: subprocess.run(["/bin/true"], check=False)),
        ("exec", lambda: os.execv("/bin/false", ["false"])),
        ("open a TCP socket", lambda: socket.create_connection(("127.0.0.1", task["port"]), 1)),
        ("open a UDP socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        ("open a unix socket", lambda: socket.socket(socket.AF_UNIX)),
        ("signal the parent", lambda: os.kill(os.getppid(), 0)),
        ("signal everyone", lambda: os.kill(-1, signal.SIGCONT)),
        ("take much memory", lambda: mmap.mmap(-1, 8 << 30)),
    ]
    held = [name for name, attempt in tries if _possible(attempt)]
    libc = ctypes.CDLL(None, use_errno=True)
    for name, number in zip(_CALL_NAMES, _CALLS.get(platform.machine(), ()), strict=False):
        argument = {"memfd": ctypes.c_char_p(b"x"), "unshare": ctypes.c_long(0x10000000)}.get(name, ctypes.c_long(0))
        if libc.syscall(number, argument, 0, 0, 0, 0) >= 0 or ctypes.get_errno() != 1:  # anything but EPERM got through
            held.append(name)
    return held


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _possible(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except (OSError, RuntimeError, ValueError, OverflowError):
        return False
    return True

"""Landlock: which files a process and its children may touch, no TCP, no signals to others. Undoable by nobody.

From include/uapi/linux/landlock.h. Rights the running kernel does not know are left out; `version()` tells which
there are (1: files; 3: truncate; 4: TCP; 5: device ioctl; 6: signals and abstract sockets).
This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_READ_FILE, _READ_DIR, _WRITE_FILE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
_ON_FILES = _READ_FILE | _WRITE_FILE | _TRUNCATE  # the rights that a rule on a file, not a folder, may give
# execute .. make symlinks; since 2: refer; since 3: truncate; since 5: ioctl on devices
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_WRITING = _WRITE_FILE | _TRUNCATE | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8) | (1 << 12)

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    try:
        return max(0, int(_libc.syscall(_CREATE, None, 0, 1)))
    except (AttributeError, OSError):
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Confine this process for good: read below `readable`, read and write below `writable`, nothing else.

    Needs no-new-privileges. Paths that do not exist are left out. Raises OSError where the kernel refuses.
    """
    handled = _RIGHTS[min(_known(), 5)]
    rules = [(path, _READ_FILE | _READ_DIR) for path in readable]
    rules += [(path, (_READ_FILE | _READ_DIR | _WRITING) & handled) for path in writable]
    _enforce(handled, rules)


def restrict_writing(writable: Iterable[str]) -> None:
    """A further layer: of what may be written so far, only what is below `writable`; reading stays as it is."""
    handled = _RIGHTS[min(_known(), 5)] & ~(_READ_FILE | _READ_DIR)
    _enforce(handled, [(path, _WRITING & handled) for path in writable])


def _known() -> int:
    known = version()
    if known == 0:
        raise OSError(errno.ENOSYS, "Landlock: not in this kernel")
    return known


def _enforce(handled: int, rules: list[tuple[str, int]]) -> None:
    known = _known()
    tcp = 3 if known >= 4 else 0  # bind and connect
    scoped = 3 if known >= 6 else 0  # abstract unix sockets and signals to processes outside
    attributes = struct.pack("=QQQ", handled, tcp, scoped)[: 8 if known < 4 else 16 if known < 6 else 24]
    ruleset = _call(_CREATE, attributes, len(attributes), 0)
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights)
        _call(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= _ON_FILES
            _call(_ADD, ruleset, 1, struct.pack("=Qi", rights, place), 0)
        finally:
            os.close(place)


def _call(number: int, *arguments: int | bytes) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {errno.errorcode.get(code, code)}")
    return result

"""Outputs that are written into and cannot be replaced: devices, FIFOs, and what a process has open (/dev/stdout)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from dcoder_cli.base.errors import UserError

_DESCRIPTORS = re.compile(r"/proc/(self|\d+)(/task/\d+)?/fd|/dev/fd")


def is_stream(path: str | Path) -> bool:
    """Whether a path, its links followed, is no regular file, folder or missing: a rename onto it would put a file in its place."""
    if _descriptor(path) is not None:
        return True
    place = Path(os.path.realpath(path))
    return place.exists() and not place.is_file() and not place.is_dir()


def _descriptor(path: str | Path) -> Path | None:
    """The entry of a process's open files that a path leads to. It must be known by its name: behind it may be a regular file."""
    place = Path(path).absolute()
    for _ in range(40):
        if _DESCRIPTORS.fullmatch(os.path.realpath(place.parent)) and place.name.isdigit():
            return place
        if not place.is_symlink():
            return None
        place = place.parent / os.readlink(place)
    return None


def _own(path: str | Path) -> int | None:
    """The number of a file that this process has open; None where the path is no such file."""
    entry = _descriptor(path)
    if entry is None:
        return None
    folder = os.path.realpath(entry.parent)
    return int(entry.name) if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") else None


def check_stream(path: str | Path, told: str) -> None:
    """Raises UserError where a stream cannot be written into; `told`: the beginning of the message. Nothing is opened."""
    number = _own(path)
    if number is not None:
        writes = os.path.exists(path) and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    else:
        mode = os.stat(path).st_mode
        if stat.S_ISBLK(mode):
            raise UserError(f"{told} is a disk, which would be written over; choose another file")
        if stat.S_ISSOCK(mode):
            raise UserError(f"{told} is a socket, which no file is written to; choose another file")
        writes = os.access(path, os.W_OK)
    if not writes:
        raise UserError(f"{told} cannot be written: it is not open for writing; choose another file")


def write_into(path: str | Path, source: Path) -> None:
    """Copy a file into a stream. One that this process has open goes on where it stands. Raises OSError."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # what was printed before comes before
    with open(source, "rb") as reader, _opened(path) as writer:
        shutil.copyfileobj(reader, writer)


def _opened(path: str | Path) -> BinaryIO:
    number = _own(path)
    return open(path, "wb") if number is None else os.fdopen(os.dup(number), "wb")

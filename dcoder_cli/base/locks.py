"""One writer for a folder: a second one is refused in its first second, and a killed one leaves no lock.

The lock is the kernel's (`flock`), on a file beside the folder, `.NAME.lock`, or in it where nothing can be written beside
it; the file is removed with the lock, and one that a kill left means nothing. On a file system that has no locks (some NFS
servers) nothing is locked and everything runs: there, do not start two. NFS of Linux has them, across machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dcoder_cli.base.errors import UserError

LOCK_INSIDE = ".lock"  # its name in the folder itself
_BUSY = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)


def try_lock(handle: IO[Any]) -> bool:
    """Lock an open file for this process alone; False where another has it. Without locks in the file system: True."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _BUSY
    return True


class Lock:
    """A folder's lock, held until `release`, or until this object or its process is gone."""

    def __init__(self, file: Path, handle: IO[str], made: list[Path]) -> None:
        self.file, self._held = file, _Held(handle, file, made)
        weakref.finalize(self, _release, self._held)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        _release(self._held)

    def _take_over(self) -> Lock:
        handle, self._held.handle = self._held.handle, None
        assert handle is not None
        return Lock(self.file, handle, self._held.made)


class _Held:
    """What is to be given back; `handle` is None once it was."""

    def __init__(self, handle: IO[str], file: Path, made: list[Path]) -> None:
        self.handle: IO[str] | None = handle
        self.file, self.made = file, made


_ours: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


def lock(folder: str | Path, what: str = "--out") -> Lock | None:
    """Lock a folder that need not be there yet. What this process holds already, it gets again; None where nothing can be locked.

    Raises:
        UserError: another process writes to it; it is named. Or it is the root of the file system.
    """
    place = Path(os.path.realpath(folder))
    if not place.name:
        raise UserError(f"{what} {str(folder)!r} is the root of the file system; choose a folder in it")
    beside = place.with_name(f".{place.name}.lock")
    made = _make(place.parent)
    for file in (beside, place / LOCK_INSIDE):
        ours = _ours.get(file)
        if ours is not None and ours._held.handle is not None:
            found = ours._take_over()
        else:
            try:
                handle = _open_locked(file)
            except OSError:  # read-only beside it, a name too long: inside, then
                continue
            if handle is None:
                _unmake(made)
                raise UserError(
                    f"{what} {str(folder)!r} is being written by {_owner(file)}; wait for it, or choose another --out"
                )
            found = Lock(file, handle, made)
        _ours[file] = found
        return found
    _unmake(made)
    return None


@contextmanager
def locked(folder: str | Path, what: str = "--out") -> Iterator[None]:
    """`lock` for the time of a block."""
    found = lock(folder, what)
    try:
        yield
    finally:
        if found is not None:
            found.release()


def release_all() -> None:
    """Give back all that this process holds: a command has ended."""
    for one in list(_ours.values()):
        one.release()


def _open_locked(file: Path) -> IO[str] | None:
    """The lock file, open and locked; None where another process has it. Raises OSError where there can be no such file."""
    while True:
        handle = open(file, "a+", encoding="utf-8")  # noqa: SIM115
        if not try_lock(handle):
            handle.close()
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(file)):
                handle.truncate(0)
                handle.write(f"process {os.getpid()} on {os.uname().nodename}")
                handle.flush()
                return handle
        handle.close()  # its owner removed it between our opening and our locking


def _owner(file: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if told := file.read_text(encoding="utf-8").strip():
            return f"another dcoder ({told[:100]})"
    return "another dcoder"


def _release(held: _Held) -> None:
    handle, held.handle = held.handle, None
    if handle is not None:
        with contextlib.suppress(OSError):
            held.file.unlink()  # before it is unlocked: who waits for it looks whether it is still there
        with contextlib.suppress(OSError):
            handle.close()
        _unmake(held.made)


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns what was made, the innermost first."""
    missing = []
    while not os.path.exists(folder):
        missing.append(folder)
        folder = folder.parent
    try:
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
    except OSError:  # the command's own check says what is wrong with it
        return []
    return missing


def _unmake(folders: list[Path]) -> None:
    """Remove the folders that were made for a lock and hold nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()

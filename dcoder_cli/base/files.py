"""Writing files so that a reader sees all of one or none of it."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.locks import LOCK_INSIDE, locked
from dcoder_cli.base.streams import check_stream, is_stream, write_into


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it if the block succeeds, removed if it does not.

    A link stays, and what it leads to is replaced. What cannot be replaced (see streams.py) is written into at the end.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / Path(path).name
            yield temporary
            write_into(path, temporary)
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # of other machines too
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed onto it if the block succeeds, removed if it does not.

    A link stays, and what it leads to is replaced. In a folder that cannot be renamed, a mount or one whose parent is not
    ours to write, the temporary folder lies inside and its files are moved up.

    Raises:
        UserError: another process is writing it.
    """
    target = Path(os.path.realpath(path))
    inside = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK))
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{target.name}.{os.getpid()}.tmp"
    temporary = target / name if inside else target.with_name(name)
    with locked(target):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            put_in_place(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def put_in_place(temporary: Path, target: Path) -> None:
    """Rename a folder that is whole onto `target`, its files safe on the disk and readable as new ones are."""
    share(temporary)
    for file in temporary.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    if temporary.parent == target:
        for old in target.iterdir():
            if old != temporary and old.name != LOCK_INSIDE:
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        for new in temporary.iterdir():
            os.replace(new, target / new.name)
        temporary.rmdir()
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():  # set aside first: a kill in between loses neither
        os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


def share(folder: Path) -> None:
    """Give the files of a folder that this process made the permissions that a new file has, as the umask says.

    safetensors writes for the owner alone (0600): a checkpoint that no colleague and no web server can read.
    """
    ordinary = folder.stat().st_mode & 0o666  # mkdir asked for 0777, and the umask took its part
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(stat.S_IMODE(file.stat().st_mode) | ordinary)


def write_json(path: str | Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """One JSON value a line, atomically."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json_line(row))


def json_line(value: Any) -> str:
    """A JSON value on a line. Halves of surrogate pairs, which no file can hold, stand as escapes."""
    line = json.dumps(value, ensure_ascii=False) + "\n"
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value) + "\n"
    return line


def check_folder(out: str | Path) -> None:
    """Raises UserError where a folder cannot be made at `--out`, or not be written to; leaves nothing behind."""
    folder = Path(out).absolute()
    told = f"--out {str(out)!r}"
    place = _first_there(folder, told, "choose another folder")
    if place == folder and folder.exists() and not folder.is_dir():
        raise UserError(f"{told} is a file; name a folder")
    _try_writing(place, told, "choose another folder")


def check_file(path: str | Path, option: str) -> None:
    """Raises UserError where a file cannot be written; leaves nothing behind.

    Args:
        path: the file, whose folder must be there.
        option: what the user gave it as, such as `--trajectories`.
    """
    told = f"{option} {str(path)!r}"
    if is_stream(path):
        check_stream(path, told)
        return
    file = Path(os.path.realpath(path))  # of a link what it leads to, which will be replaced
    place = _first_there(file, told, "choose another file")
    if file.is_dir():
        raise UserError(f"{told} is a folder; name a file")
    if file.is_symlink():
        raise UserError(f"{told} is a link that leads to itself; choose another file")
    if place not in (file, file.parent) and place.is_dir():
        raise UserError(f"{told} lies in a folder that does not exist; make it first")
    _try_writing(file.parent if place == file else place, told, "choose another file")


def _first_there(path: Path, told: str, remedy: str) -> Path:
    """`path`, or the nearest above it that is there."""
    while True:
        try:
            path.lstat()
            return path
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        except OSError as error:
            raise UserError(f"{told} cannot be written: {error.strerror or error}; {remedy}") from None


def _try_writing(folder: Path, told: str, remedy: str) -> None:
    """Permissions alone do not tell: a file system may be read-only, or take no files."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if not is_out_of_space(error):
            raise UserError(f"{told} cannot be written: {error.strerror or error}; {remedy}") from None


def check_replaceable(out: Path, force: bool, mark: str, what: str) -> None:
    """Raises UserError where a command would destroy something of the user's in `out`.

    Args:
        out: the folder that will be made.
        force: replace it if it is of the same command.
        mark: the file by which that is known.
        what: what such a folder holds, for the messages.
    """
    check_folder(out)
    if not out.is_dir() or not any(file.name != LOCK_INSIDE for file in out.iterdir()):
        return
    if not (out / mark).is_file():
        raise UserError(f"--out {str(out)!r} is not empty and does not hold {what}; choose another --out")
    folder = out.resolve().parent
    if (out / "training" / "state.pt").exists() or (
        folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()
    ):
        raise UserError(f"--out {str(out)!r} is a run's checkpoint, which its --resume needs; choose another --out")
    if not force:
        raise UserError(f"--out {str(out)!r} already holds {what}; choose another --out or give --force")


def require_space(folder: str | Path, needed_bytes: int, what: str) -> None:
    """Raises UserError if the file system of `folder` has less than `needed_bytes` free."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise UserError(
            f"no space left for {what}: {str(folder)!r} has {human_bytes(free)} free and needs "
            f"{human_bytes(needed_bytes)}; free some space or choose another --out"
        )


def free_bytes(folder: str | Path) -> int:
    """What is free on the file system that a folder is on, or will be."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def is_out_of_space(error: BaseException) -> bool:
    """Whether an exception, or one it came from, says that the disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(seen)
        if "No space left" in text or "os error 28" in text or "PytorchStreamWriter failed" in text:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def human_bytes(count: float) -> str:
    """`1536` as `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")

"""Checksums: damage on a disk or on the way is told by the file's name, and nobody trains on it.

`xxh3_128` runs at the speed of memory (12 GB/s of a core here; crc32 2, sha256 1). Where the package xxhash is missing,
the second hash that every file has is compared in its place: crc32 in a folder's record, sha256 in a manifest. They find
damage; against somebody who makes two files of one checksum they are no help.

A folder's record is `checksums.json`, with names relative to the folder, so it may be copied and moved. A JSON file is
sealed: its last key is the SHA-256 of its own text, so that no byte of it changes unseen.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_file
from dcoder_cli.base.machine import cores
from dcoder_cli.base.schema import Format

RECORD = "checksums.json"
SEAL = "seal"
_UNSEALED = "0" * 64
_THREADS = 4  # a process; a core hashes faster than most disks read
_PIECE = 2**26  # bytes at a time, so that a large file is no one call that Ctrl-C waits for

Told = Callable[[float], None]  # how many bytes have just been read


class Damaged(UserError):
    """A file whose bytes are not those that were written. `file`: which."""

    def __init__(self, message: str, file: Path) -> None:
        super().__init__(message)
        self.file = file


@dataclass(frozen=True)
class Sums:
    """A file's size and checksums, lower-case hex; `xxh3_128` is missing where it was written without xxhash."""

    bytes: int
    crc32: str
    xxh3_128: str | None = None


@dataclass(frozen=True)
class Recorded:
    """checksums.json: files by their path below the folder, with '/'."""

    files: dict[str, Sums]
    seal: str


_REMEDY = "copy the folder again"
FORMAT = Format("record", Recorded, f"{_REMEDY}, or remove that file and go on without its checks", version=1)


def fast() -> Any | None:
    """The class of xxh3_128, None where its package is missing."""
    try:
        from xxhash import xxh3_128
    except ImportError:
        return None
    return xxh3_128


def sums_of(path: Path) -> Sums:
    """A file's checksums, read once. Raises OSError."""
    crc, whole = 0, (fast() or (lambda: None))()

    def take(piece: Any) -> None:
        nonlocal crc
        crc = zlib.crc32(piece, crc)
        if whole is not None:
            whole.update(piece)

    size = _each_piece(path, take, lambda _: None)
    return Sums(size, f"{crc:08x}", None if whole is None else whole.hexdigest())


def difference(path: Path, hashes: Mapping[str, Any], told: Told = lambda _: None) -> str | None:
    """How a file's bytes are others than its checksums say, None where they are not; the fastest one that we have is compared.

    Args:
        path: the file.
        hashes: of `bytes`, `xxh3_128`, `sha256`, `crc32` those that are known.
        told: progress.

    Raises:
        OSError: it is gone, or cannot be read.
    """
    size, expected = path.stat().st_size, hashes.get("bytes")
    if expected is not None and size != expected:
        return f"is {'truncated' if size < expected else 'too long'} or was changed: {size} bytes, not {expected}"
    other = "is damaged or was changed: its bytes are not those that were written"
    quick = fast() if hashes.get("xxh3_128") else None
    if quick is None and hashes.get("crc32"):
        crc = 0

        def add(piece: Any) -> None:
            nonlocal crc
            crc = zlib.crc32(piece, crc)

        _each_piece(path, add, told)
        return other if f"{crc:08x}" != hashes["crc32"] else None
    name, digest = ("xxh3_128", quick()) if quick is not None else ("sha256", hashlib.sha256())
    if not hashes.get(name):
        return None
    _each_piece(path, digest.update, told)
    return other if digest.hexdigest() != hashes[name] else None


def _each_piece(path: Path, take: Callable[[Any], None], told: Told) -> int:
    """Call `take` with the bytes of a file, mapped and not copied: half the processor time of reading them."""
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if not size:
            return 0
        with closing(mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)) as mapped:
            mapped.madvise(mmap.MADV_SEQUENTIAL)
            with memoryview(mapped) as view:
                for start in range(0, size, _PIECE):
                    with view[start : start + _PIECE] as piece:
                        take(piece)
                        told(len(piece))
    return size


def first_damaged(
    files: Sequence[tuple[Path, Mapping[str, Any]]], what: str, remedy: str, told: Told = lambda _: None
) -> Damaged | None:
    """Read files, several at a time, and compare their checksums; the first of them that is damaged, in their order.

    Args:
        files: each with its checksums, see `differs`.
        what, remedy: the beginning and the end of a message ("shard", "copy or make it again").
        told: progress in bytes, called from several threads.
    """

    def look(one: tuple[Path, Mapping[str, Any]]) -> Damaged | None:
        path, hashes = one
        try:
            why = difference(path, hashes, told)
        except OSError as error:
            why = f"cannot be read: {error.strerror or error}"
        return None if why is None else Damaged(f"{what} {str(path)!r} {why}; {remedy}", path)

    if len(files) < 2:
        return look(files[0]) if files else None
    with ThreadPoolExecutor(min(_THREADS, len(files), cores())) as pool:
        return next((found for found in pool.map(look, files) if found is not None), None)


def write_record(folder: Path, known: Mapping[str, Sums] | None = None) -> None:
    """Write a folder's record of all files in it, but for its texts for people (.md).

    `known`: those that were read already, by another process.
    """
    known = dict(known or {})
    rest = [name for name in names(folder) if name not in known]
    found = {**known, **sums_of_several(folder, rest)}
    files = {name: {key: value for key, value in vars(found[name]).items() if value is not None} for name in found}
    write_sealed(folder / RECORD, {"format_version": FORMAT.version, "files": dict(sorted(files.items()))})


def names(folder: Path) -> list[str]:
    """The files that a record tells of, below a folder."""
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in found if name != RECORD and not name.endswith(".md"))


def sums_of_several(folder: Path, names: Sequence[str]) -> dict[str, Sums]:
    """The checksums of files below a folder, several at a time."""
    if not names:
        return {}
    with ThreadPoolExecutor(min(_THREADS, len(names), cores())) as pool:
        return dict(zip(names, pool.map(lambda name: sums_of(folder / name), names), strict=True))


def read_record(folder: Path) -> Recorded | None:
    """A folder's record; None where it has none, being of another system or of an earlier release.

    Raises:
        UserError: the record is damaged, or of a newer version.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    record = FORMAT.read(file)
    check_seal(file, FORMAT.what, FORMAT.remedy)
    return record


def check(folder: Path, files: Iterable[Path], what: str, remedy: str) -> None:
    """Whether files of a folder are those that its record tells of; without a record, and of others, nothing is known.

    Raises:
        Damaged: one is not, or is gone; the first is named.
    """
    record = read_record(folder)
    if record is None:
        return
    told = {file: record.files.get(file.relative_to(folder).as_posix()) for file in files}
    found = first_damaged([(file, vars(sums)) for file, sums in told.items() if sums is not None], what, remedy)
    if found is not None:
        raise found


def changed(folder: Path, beginnings: tuple[str, ...]) -> list[str]:
    """The files in a folder itself that begin so and are not as its record says, or are gone. Raises UserError."""
    record = read_record(folder)
    if record is None:
        return []
    found = []
    for name, sums in record.files.items():
        if "/" not in name and name.startswith(beginnings):
            try:
                if difference(folder / name, vars(sums)) is not None:
                    found.append(name)
            except OSError:
                found.append(name)
    return found


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """`value` as indented JSON, atomically, with its seal as the last key."""
    text = json.dumps({**value, SEAL: _UNSEALED}, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_bytes(_sealed(text.encode()))


def _sealed(data: bytes) -> bytes:
    before, found, after = data.rpartition(_UNSEALED.encode())
    assert found
    return before + hashlib.sha256(data).hexdigest().encode() + after


def check_seal(path: Path, what: str, remedy: str) -> None:
    """Whether a sealed JSON file is as it was written, byte by byte.

    Raises:
        Damaged: it has no seal, or another one.
    """
    data = jsonl.read(path, what)
    try:
        seal = str(jsonl.as_object(jsonl.parse(data, what), what).get(SEAL))
    except UserError:
        seal = ""
    before, found, after = data.rpartition(seal.encode("utf-8", "replace")) if len(seal) == 64 else (b"", b"", b"")
    if not found or _sealed(before + _UNSEALED.encode() + after) != data:
        raise Damaged(f"{what} {str(path)!r} is damaged or was changed: it is not as it was written; {remedy}", path)

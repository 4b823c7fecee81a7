r"""Reading JSON: the one reader of every file that holds a JSON value a line, or is one.

A line ends at \n and nowhere else: U+2028, U+0085 and their like are text inside a value, though `str.splitlines`
breaks there. A byte-order mark before a line is skipped, .gz and .zst are unpacked, empty lines count but hold nothing.
What cannot be read is one line that names the file and the line.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dcoder_cli.base.errors import UserError, one_line


class Line(NamedTuple):
    """A value and the number of its line, from 1."""

    number: int
    value: Any


class Entry(NamedTuple):
    """A value, its place in a file, from 1, and that place in words, the beginning of a message."""

    number: int
    where: str
    value: Any


def lines(path: str | Path, what: str = "file", torn: bool = False, halves: bool = False) -> Iterator[Line]:
    """The values of a file, in order, read as they are asked for.

    Args:
        path: the file; .gz and .zst are unpacked.
        what: what the user knows it as, for messages ("prompt file").
        torn: leave out a last line that has no end and is no JSON, as a kill leaves it in a file that is appended to.
        halves: take halves of surrogate pairs as they are. For candidates' words, which are judged and not refused.

    Raises:
        UserError: no such file, damaged compression, or a line that is no JSON (see `parse`); names file and line.
    """
    for number, line in raw_lines(path, what):
        try:
            value = parse(line, f"{what} {str(path)!r} line {number}", halves)
        except UserError as error:
            if torn and not line.endswith(b"\n"):
                return
            if told := over_lines(line, number):
                raise UserError(f"{error}{told}") from None
            raise
        yield Line(number, value)


def texts(path: str | Path, what: str = "file") -> Iterator[tuple[int, str]]:
    """The lines of a plain text file that hold more than white space, with their numbers, without their ends.

    Raises:
        UserError: as `lines`, or a line that is not UTF-8.
    """
    for number, line in raw_lines(path, what):
        try:
            yield number, line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{what} {str(path)!r} line {number} is not UTF-8 ({error.reason} at byte {error.start}); {_conversion(line)}"
            ) from None


def raw_lines(path: str | Path, what: str = "file") -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, as bytes with their numbers. Raises UserError as `lines`."""
    number = 0
    try:
        with open_binary(path) as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, line
    except _Damaged as error:
        raise UserError(
            f"{what} {str(path)!r} is damaged after line {number}: {error.why}; copy or make it again"
        ) from None
    except OSError as error:
        raise UserError(f"{what} {str(path)!r} cannot be read: {error.strerror or error}") from None


def objects(
    path: str | Path, what: str = "file", torn: bool = False, halves: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `lines`, where every value must be an object. Raises UserError for another, too."""
    for number, value in lines(path, what, torn, halves):
        yield number, as_object(value, f"{what} {str(path)!r} line {number}")


def table(path: str | Path, what: str = "file") -> Iterator[Entry]:
    """The rows of a file that is one JSON value, a list of rows or a single one, or else has a row a line.

    Raises:
        UserError: as `lines`, and for a file without a value.
    """
    place = f"{what} {str(path)!r}"
    data = read(path, what)
    if not data.strip():
        raise UserError(f"{place} is empty; copy or make it again")
    try:
        value = parse(data, place)
    except _SeveralValues:
        for number, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                yield Entry(number, f"{place} line {number}", parse(line, f"{place} line {number}"))
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield Entry(number, f"{place} entry {number}", row)


def document(path: str | Path, what: str = "file") -> dict[str, Any]:
    """The object that a whole file is: a config, a manifest, a record.

    Raises:
        UserError: as `read` and `parse`, or another kind of value.
    """
    place = f"{what} {str(path)!r}"
    return as_object(parse(read(path, what), place), place)


def as_object(value: Any, where: str) -> dict[str, Any]:
    """`value`, which must be an object. Raises UserError, which begins with `where`."""
    if not isinstance(value, dict):
        raise UserError(f"{where} holds {_kind(value)}, not an object")
    return value


def read(path: str | Path, what: str = "file") -> bytes:
    """All bytes of a file, unpacked. Raises UserError: no such file, or damaged compression."""
    try:
        with open_binary(path) as handle:
            return handle.read()
    except _Damaged as error:
        raise UserError(f"{what} {str(path)!r} is damaged: {error.why}; copy or make it again") from None
    except OSError as error:
        raise UserError(f"{what} {str(path)!r} cannot be read: {error.strerror or error}") from None


def parse(line: bytes | str, where: str, halves: bool = False) -> Any:
    """One line's value.

    Args:
        line: with or without its end.
        where: file and line, the beginning of a message.
        halves: take halves of surrogate pairs.

    Raises:
        UserError: it is not UTF-8 or not JSON, is nested too deeply, or holds half of a surrogate pair, which is no
            character and could not be written again.
    """
    try:
        text = line.decode("utf-8-sig") if isinstance(line, bytes) else line.removeprefix("\ufeff")
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read; write it flatter") from None
    except UnicodeDecodeError as error:
        place = f"at byte {error.start}"
        if number := error.object.count(b"\n", 0, error.start):
            place += f", line {number + 1}"
        raise UserError(f"{where} is not UTF-8 ({error.reason} {place}); {_conversion(error.object)}") from None
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):  # Python takes no whole number of more digits
            raise UserError(
                f"{where} holds a number of more than 4,300 digits; write it as text or leave it out"
            ) from None
        several = error.msg == "Extra data"
        raise (_SeveralValues if several else UserError)(f"{where} is not JSON: {one_line(error)}") from None
    # Only an escape can bring one in, so other lines are not walked.
    if not halves and ("\\ud" in text or "\\uD" in text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UserError(
                f"{where} holds {half}, half of a surrogate pair and no character; write it whole or leave it out"
            ) from None
    return value


def _conversion(data: bytes) -> str:
    """The remedy for what is not UTF-8; a byte-order mark names the encoding."""
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return "convert it from UTF-16, such as with: iconv -f UTF-16 -t UTF-8" if wide else "convert the file"


def over_lines(line: bytes, number: int) -> str:
    """What to add to the error of a line where it begins one value over several lines, or holds a list of rows; else nothing."""
    begins = line.lstrip(b"\xef\xbb\xbf \t").rstrip()
    if number == 1 and (begins in (b"[", b"{", b"[{") or begins[:2] == b"[{"):
        return "; a .jsonl has a row a line, and a list of rows, or a value over several lines, is read of a .json: rename the file"
    return ""


class _SeveralValues(UserError):
    """More than one JSON value where one must stand."""


class _Damaged(UserError):
    """What was compressed does not unpack; `why`: what its reader says."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(f"file {str(path)!r} is damaged: {why}; copy or make it again")
        self.why = why


@contextmanager
def open_binary(path: str | Path) -> Iterator[BinaryIO]:
    """A file opened for reading, .gz and .zst unpacked; iterating gives its lines.

    Raises:
        UserError: its compression is damaged. OSError: as `open`, and for a device that has no end.
    """
    name = str(path).lower()
    try:
        with open(path, "rb") as raw:
            refuse_endless(raw)
            if name.endswith(".gz"):
                with gzip.open(raw) as unpacked:
                    yield unpacked  # type: ignore[misc]
            elif name.endswith(".zst"):
                yield _Zstandard(raw)  # type: ignore[misc]
            else:
                yield raw
    except (EOFError, zlib.error, _BadFrame, gzip.BadGzipFile) as error:
        raise _Damaged(path, one_line(error)) from None


def refuse_endless(raw: BinaryIO) -> None:
    """Raises OSError for /dev/zero, /dev/urandom and their like: reading one ends where the memory does."""
    state = os.fstat(raw.fileno())
    device = stat.S_ISCHR(state.st_mode) and not raw.isatty()
    if device and state.st_rdev != os.stat(os.devnull).st_rdev:
        raise OSError(errno.EINVAL, "it is a device without an end, and no file")


class _BadFrame(Exception):
    """What zstandard says of a file. Its own error would need the package where nothing is packed."""


class _Zstandard:
    """`read` and iteration by lines over a .zst file.

    The library's own stream reader says nothing where a file ends in the middle of a frame; here that is an EOFError.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._blocks, self._rest = self._unpack(raw), b""

    @staticmethod
    def _unpack(raw: BinaryIO) -> Iterator[bytes]:
        import zstandard

        frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
        while data := raw.read(2**18):
            while data:
                begun = True
                try:
                    block = frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise _BadFrame(str(error)) from None
                yield block
                data = frame.unused_data
                if frame.eof:  # another frame may follow
                    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
        if begun:
            raise EOFError("it ends in the middle of a frame")

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            block = next(self._blocks, None)
            if block is None:
                break
            self._rest += block
        size = len(self._rest) if size < 0 else size
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            *whole, self._rest = (self._rest + block).split(b"\n")
            for line in whole:
                yield line + b"\n"
        if self._rest:
            last, self._rest = self._rest, b""
            yield last


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

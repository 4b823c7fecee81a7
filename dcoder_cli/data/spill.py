"""Records of whole numbers on disk, written by many and read back part by part: what is sorted need not fit the memory.

A file holds segments, each sorted by part, then where the parts of each begin, and how many segments and parts there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dcoder_cli.base.files import atomic_file

Numbers = npt.NDArray[np.uint64] | npt.NDArray[np.int64]
Records = npt.NDArray[np.uint64]

_BYTES = 8  # of a number
_SEGMENT = 2**21  # records that a segment has at least, but for the last (ours): 48 MiB of three numbers


class Writer:
    """Writes records of `width` numbers, each to one of `parts` parts."""

    def __init__(self, handle: BinaryIO, width: int, parts: int) -> None:
        self._handle, self._width, self._parts = handle, width, parts
        self._begins: list[npt.NDArray[np.int64]] = []
        self._written = 0
        self._waiting: list[tuple[npt.NDArray[np.int64], Records]] = []
        self._held = 0

    def add(self, parts: npt.NDArray[np.int64], *columns: Numbers) -> None:
        """Write records, given as columns [n], each to its part [n]: there they stand in the order in which they came."""
        records = np.stack([column.astype(np.uint64) for column in columns], 1)
        self._waiting.append((parts, records))
        self._held += len(records)
        if self._held >= _SEGMENT:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        parts = np.concatenate([of for of, _ in self._waiting])
        records = np.concatenate([some for _, some in self._waiting])
        order = np.argsort(parts, kind="stable")
        self._begins.append(self._written + np.searchsorted(parts[order], np.arange(self._parts + 1)))
        self._handle.write(records[order].tobytes())
        self._written += len(records)
        self._waiting, self._held = [], 0

    def end(self) -> None:
        """Write what waits, and where everything stands."""
        self._flush()
        begins = np.array(self._begins, np.int64).reshape(-1, self._parts + 1)
        self._handle.write(begins.tobytes())
        self._handle.write(np.array([len(begins), self._parts], np.int64).tobytes())


@contextmanager
def writing(path: Path, width: int, parts: int) -> Iterator[Writer]:
    """A writer of `path`, which appears at the end, whole.

    Raises:
        OSError: the disk is full.
    """
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        writer = Writer(handle, width, parts)
        yield writer
        writer.end()


def read(paths: Sequence[Path], part: int, width: int) -> Iterator[Records]:
    """The records [n, width] of a part, file by file and segment by segment."""
    for path in paths:
        with open(path, "rb") as handle:
            end = handle.seek(-2 * _BYTES, os.SEEK_END)
            segments, parts = np.fromfile(handle, np.int64, 2).tolist()
            index = end - segments * (parts + 1) * _BYTES
            for segment in range(segments):
                handle.seek(index + (segment * (parts + 1) + part) * _BYTES)
                begin, stop = np.fromfile(handle, np.int64, 2).tolist()
                handle.seek(begin * width * _BYTES)
                yield np.fromfile(handle, np.uint64, (stop - begin) * width).reshape(-1, width)


def together(parts: Iterator[Records], width: int) -> Records:
    """All of some records, [n, width]."""
    return np.concatenate([np.empty((0, width), np.uint64), *parts])

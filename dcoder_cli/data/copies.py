"""Which documents of the finished units are copies of an earlier one: found on disk, with 13 bytes of memory a document.

A document is a copy where an earlier one in source order has the same content (exact), or where an earlier one's signature
agrees with its own in a whole band and, over all places, in at least the threshold's share (near). Whether that earlier one
is a copy itself does not matter, so what is found depends neither on the order of work nor on who does it. Of several it is
a copy of the most similar one, and of equals of the first.

Keys are spilled to files, cut by their highest bits, and each file is sorted in memory by itself; so are pairs of documents
that share a band. Of the documents that share one, each is compared with the first GROUP. Legend: N documents, P permutations,
B bands.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dcoder_cli.data.duplicates import PERMUTATIONS, Signature, are_blank, band_keys, bands, whole_keys

Ids = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

GROUP = 64  # documents of a band's group that later ones are compared with (ours): boilerplate makes groups of millions
_FILE_BYTES = 2**26  # about, of a spilled file, which is sorted in a few times as much memory (ours)
_MOST_FILES = 128  # open at once (ours): well below the usual limit of 1,024
_BUFFERED = 2**17  # bytes of a file that are kept until they are written (ours)
_COMPARED = 2**15  # pairs whose signatures are in memory at once (ours): 64 MiB
_PLACE = np.uint64(48)  # bits of a document's number beside a count of equal places


@dataclass(frozen=True)
class Copies:
    """What was found, in source order.

    Attributes:
        of: [N] the earlier document's number, or -1.
        exact: [N] whether it has the very same content.
        agreeing: [N] in how many of P places the signatures agree, of near copies.
    """

    of: Ids
    exact: npt.NDArray[np.bool_]
    agreeing: npt.NDArray[np.uint16]


def find(
    contents: Sequence[npt.NDArray[np.uint8]],
    signatures: Sequence[Signature],
    exact: bool,
    threshold: float,
    scratch: Path,
) -> Copies:
    """The copies among the documents of all units.

    Args:
        contents: of each unit, in source order: hashes of its documents' contents, [n, 16].
        signatures: likewise, [n, P]; may be mapped files. Unused where `threshold` is 0.
        scratch: a folder of its own for what is sorted, removed at the end: about 16 B bytes a document, for B bands.

    Raises:
        OSError: the disk is full.
    """
    starts = np.cumsum([0, *map(len, contents)])
    count = int(starts[-1])
    found = Copies(np.full(count, -1, np.int64), np.zeros(count, np.bool_), np.zeros(count, np.uint16))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        if exact:
            keys = (np.ascontiguousarray(part).view("<u8") for part in contents)
            for later, first in _same(keys, starts, scratch / "contents"):
                found.of[later] = first
                found.exact[later] = True
        if threshold:
            _near(signatures, starts, threshold, scratch, found)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _near(signatures: Sequence[Signature], starts: Ids, threshold: float, scratch: Path, found: Copies) -> None:
    count = len(found.of)
    # Of equal signatures the first stands for all: it is as similar to any other, and comes before them.
    alone = found.of < 0
    for unit, part in enumerate(signatures):
        alone[starts[unit] : starts[unit + 1]] &= ~are_blank(part)
    signed = (whole_keys(part) for part in signatures)
    for later, first in _same(signed, starts, scratch / "wholes", alone):
        found.of[later], found.agreeing[later] = first, PERMUTATIONS
        alone[later] = False
    number, rows = bands(threshold)
    with _Spill(scratch / "bands", 2, 16 * number * count) as spill:
        for unit, part in enumerate(signatures):
            documents = starts[unit] + np.flatnonzero(alone[starts[unit] : starts[unit + 1]])
            keys = band_keys(part[documents - starts[unit]], number, rows)
            for band in range(number):
                spill.add(spill.by_key(keys[:, band]), keys[:, band], documents)
        with _Spill(scratch / "pairs", 2, 16 * number * count) as pairs:
            for records in spill.files():
                for later, earlier in _pairs(records[:, 0], records[:, 1]):
                    pairs.add(pairs.by_place(later, count), later, earlier)
            for records in pairs.files():
                _compare(_once(records), signatures, starts, threshold, found)


def _same(
    keys: Iterable[Keys], starts: Ids, scratch: Path, chosen: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[Ids, Ids]]:
    """Documents whose key [n, 2] an earlier one has, and the first that has it; of the chosen alone."""
    with _Spill(scratch, 3, 24 * int(starts[-1])) as spill:
        for unit, part in enumerate(keys):
            documents = np.arange(starts[unit], starts[unit + 1])
            if chosen is not None:
                kept = chosen[starts[unit] : starts[unit + 1]]
                documents, part = documents[kept], part[kept]
            spill.add(spill.by_key(part[:, 0]), part[:, 0], part[:, 1], documents)
        for records in spill.files():
            order = np.lexsort((records[:, 1], records[:, 0]))  # stable: documents stay in order
            records = records[order]
            fresh = np.ones(len(records), np.bool_)
            fresh[1:] = (records[1:, :2] != records[:-1, :2]).any(1)
            firsts = records[np.maximum.accumulate(np.where(fresh, np.arange(len(records)), 0)), 2]
            yield records[~fresh, 2].astype(np.int64), firsts[~fresh].astype(np.int64)


def _pairs(keys: Keys, documents: Keys) -> Iterator[tuple[Ids, Ids]]:
    """Every document with those of the first GROUP of its key that come before it."""
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], documents[order].astype(np.int64)
    places = np.arange(len(keys))
    fresh = np.ones(len(keys), np.bool_)
    fresh[1:] = keys[1:] != keys[:-1]
    heads = np.maximum.accumulate(np.where(fresh, places, 0))
    for step in range(GROUP):
        later = np.flatnonzero(places - heads > step)
        if not len(later):
            return
        yield numbers[later], numbers[heads[later] + step]


def _once(pairs: Keys) -> Keys:
    """Pairs [n, 2] sorted by both, each once."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    fresh = np.ones(len(pairs), np.bool_)
    fresh[1:] = (pairs[1:] != pairs[:-1]).any(1)
    return pairs[fresh]


def _compare(pairs: Keys, signatures: Sequence[Signature], starts: Ids, threshold: float, found: Copies) -> None:
    """Note the most similar earlier document of each later one, of pairs [n, 2] sorted by the later one, then the earlier."""
    if not len(pairs):
        return
    later, earlier = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    agreeing = np.empty(len(pairs), np.uint64)
    for at in range(0, len(pairs), _COMPARED):
        part = slice(at, at + _COMPARED)
        agreeing[part] = (_rows(signatures, starts, later[part]) == _rows(signatures, starts, earlier[part])).sum(1)
    # The largest count and, of equal ones, the smallest number, in one maximum.
    mask = (np.uint64(1) << _PLACE) - np.uint64(1)
    scores = (agreeing << _PLACE) | (mask - earlier.astype(np.uint64))
    heads = np.flatnonzero(np.diff(later, prepend=-1))
    best = np.maximum.reduceat(scores, heads)
    near = (best >> _PLACE) / PERMUTATIONS >= threshold
    chosen = later[heads][near]
    found.of[chosen] = (mask - (best[near] & mask)).astype(np.int64)
    found.agreeing[chosen] = (best[near] >> _PLACE).astype(np.uint16)


def _rows(signatures: Sequence[Signature], starts: Ids, documents: Ids) -> Signature:
    """Signatures [n, P] of documents by number."""
    order = np.argsort(documents, kind="stable")
    wanted = documents[order]
    rows = np.empty((len(documents), PERMUTATIONS), np.uint32)
    cuts = np.searchsorted(wanted, starts)
    for unit in np.flatnonzero(np.diff(cuts)).tolist():
        here = slice(cuts[unit], cuts[unit + 1])
        rows[order[here]] = signatures[unit][wanted[here] - starts[unit]]
    return rows


class _Spill:
    """Records of `width` numbers in files that are read back one by one, each in the order in which it was written."""

    def __init__(self, folder: Path, width: int, size: int) -> None:
        """`size`: about how many bytes will be written."""
        self._folder, self._width = folder, width
        wanted = max(1, min(_MOST_FILES, -(-size // _FILE_BYTES)))
        self._bits = (wanted - 1).bit_length()
        self._handles: list[BinaryIO] = []

    def __enter__(self) -> _Spill:
        self._folder.mkdir()
        for file in range(1 << self._bits):
            self._handles.append(self._path(file).open("wb", buffering=_BUFFERED))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.close()
        shutil.rmtree(self._folder)

    def _path(self, file: int) -> Path:
        return self._folder / f"{file:03d}"

    def by_key(self, keys: Keys) -> Ids:
        """The file of each key: all records of a key are in one."""
        return (keys >> np.uint64(64 - self._bits) if self._bits else np.zeros_like(keys)).astype(np.int64)

    def by_place(self, documents: Ids, count: int) -> Ids:
        """The file of each of `count` documents: neighbours are together."""
        return (documents << self._bits) // count

    def add(self, files: Ids, *columns: npt.NDArray[np.uint64] | Ids) -> None:
        """Write records, each to its file."""
        records = np.stack([column.astype(np.uint64) for column in columns], 1)
        order = np.argsort(files, kind="stable")
        cuts = np.searchsorted(files[order], np.arange(len(self._handles) + 1))
        records = records[order]
        for file in np.flatnonzero(np.diff(cuts)):
            self._handles[file].write(records[cuts[file] : cuts[file + 1]].tobytes())

    def files(self) -> Iterator[Keys]:
        """The records [n, width] of each file, which is removed then."""
        for file, handle in enumerate(self._handles):
            handle.close()
            records = np.fromfile(self._path(file), np.uint64).reshape(-1, self._width)
            self._path(file).unlink()
            yield records

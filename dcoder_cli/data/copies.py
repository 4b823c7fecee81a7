"""Which documents of the finished units are copies of an earlier one: found on disk, by any number of workers.

A document is a copy where an earlier one in source order has the same content (exact), or where an earlier one's signature
agrees with its own in a whole band and, over all places, in at least the threshold's share (near). Whether that earlier one
is a copy itself does not matter, so what is found depends neither on the order of work nor on who does it. Of several it is
a copy of the most similar one, and of equals of the first.

Keys are written to files cut by their highest bits, and each part is sorted in memory by itself; so are the pairs of documents
that share a band, cut by the later one's number. Of the documents that share a band, each is compared with the first GROUP.
Legend: N documents, P permutations, B bands.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.data import spill
from dcoder_cli.data.duplicates import PERMUTATIONS, are_blank, band_keys, bands, whole_keys
from dcoder_cli.data.tasks import Here, Place
from dcoder_cli.data.unit_files import UnitFiles

Ids = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

GROUP = 64  # documents of a band's group that later ones are compared with (ours): boilerplate makes groups of millions
# Ours, for about 1 GB in each worker:
_PART_BYTES = 2**26  # of a part, which is sorted in a few times as much memory
_DOCUMENTS = 2**17  # whose keys are made at once, or whose copies are looked for at once, with signatures of 128 MiB
_COMPARED = 2**15  # pairs whose earlier signatures are in memory at once: 32 MiB
_PAIRS = 2**23  # pairs that are gathered before those that occur twice go: 128 MiB
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
    exact: Flags
    agreeing: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class _Work:
    """What every task knows."""

    files: UnitFiles
    scratch: Path
    threshold: float
    bands: tuple[int, int]
    parts: dict[str, int]
    span: int  # how many documents a part of the pairs is for

    def path(self, kind: str, number: int) -> Path:
        return self.scratch / f"{kind}-{number:06d}"

    def by_key(self, kind: str, keys: Keys) -> Ids:
        """The part of each key: all records of a key are in one."""
        bits = (self.parts[kind] - 1).bit_length()
        return (keys >> np.uint64(64 - bits) if bits else np.zeros_like(keys)).astype(np.int64)


def find(
    files: UnitFiles,
    exact: bool,
    threshold: float,
    scratch: Path,
    place: Place | None = None,
    advance: Callable[[float, str], None] = lambda share, doing: None,
) -> Copies:
    """The copies among the documents of all units.

    Args:
        files: with `contents` [n, 16], hashes of the documents, and `signatures` [n, P], unused where `threshold` is 0.
        scratch: a folder of its own for what is sorted, removed at the end: about 16 B bytes a document, for B bands.
        place: where the work runs; None: here.
        advance: is told each share of the work that is done, and what it was.

    Raises:
        OSError: the disk is full.
    """
    count = int(files.starts[-1])
    found = Copies(np.full(count, -1, np.int64), np.zeros(count, np.bool_), np.zeros(count, np.uint16))
    number, rows = bands(threshold) if threshold else (0, 0)
    size = {"contents": 24 * count, "wholes": 24 * count, "bands": 16 * number * count}
    parts = {kind: 1 << (max(1, -(-of // _PART_BYTES)) - 1).bit_length() for kind, of in size.items()}
    parts["pairs"] = max(1, -(-count // _DOCUMENTS))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        work = _Work(files, scratch, threshold, (number, rows), parts, _DOCUMENTS)
        _Finder(work, found, place or Here(), advance).run(exact)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


# Of the time that finding takes, about (ours, measured): where contents and signatures are looked at.
_SHARES = {"contents": 0.05, "same": 0.03, "wholes": 0.12, "equal": 0.05, "bands": 0.35, "pairs": 0.2, "compare": 0.2}


class _Finder:
    """The steps, one after the other: each is many tasks, whose results are noted here."""

    def __init__(self, work: _Work, found: Copies, place: Place, advance: Callable[[float, str], None]) -> None:
        self._work, self._found, self._place, self._advance = work, found, place, advance
        self._groups = work.files.groups(work.span)
        self._whole = 1.0

    def run(self, exact: bool) -> None:
        work, found = self._work, self._found
        steps = ["contents", "same"] * exact + ["wholes", "equal", "bands", "pairs", "compare"] * bool(work.threshold)
        self._whole = sum(_SHARES[step] for step in steps)
        if exact:
            self._spilled("contents", [(group,) for group in self._groups], _contents)
            self._each("same", [("contents", part, len(self._groups)) for part in range(work.parts["contents"])],
                       _same, self._same)  # fmt: skip
            self._forget("contents")
        if not work.threshold:
            return
        # Of equal signatures the first stands for all: it is as similar to any other, and comes before them.
        alone = [(group, found.of[work.files.documents(group)] < 0) for group in self._groups]
        self._spilled("wholes", alone, _wholes)
        self._each("equal", [("wholes", part, len(self._groups)) for part in range(work.parts["wholes"])],
                   _same, self._equal)  # fmt: skip
        self._forget("wholes")
        alone = [(group, found.of[work.files.documents(group)] < 0) for group in self._groups]
        self._spilled("bands", alone, _bands)
        self._spilled("pairs", [(part, len(self._groups)) for part in range(work.parts["bands"])], _pairs)
        self._forget("bands")
        self._each("compare", [(part,) for part in range(work.parts["pairs"])], _compare, self._near)

    def _spilled(self, kind: str, calls: list[tuple[Any, ...]], task: Callable[..., None]) -> None:
        self._each(kind, [(number, *call) for number, call in enumerate(calls)], task, lambda nothing: None)

    def _each(
        self, doing: str, calls: list[tuple[Any, ...]], task: Callable[..., Any], note: Callable[[Any], None]
    ) -> None:
        def done(number: int, result: Any) -> None:
            note(result)
            self._advance(_SHARES[doing] / self._whole / len(calls), doing)

        self._place.run(task, self._work, calls, done)

    def _forget(self, kind: str) -> None:
        for path in self._work.scratch.glob(f"{kind}-*"):
            path.unlink()

    def _same(self, result: tuple[Ids, Ids]) -> None:
        later, first = result
        self._found.of[later] = first
        self._found.exact[later] = True

    def _equal(self, result: tuple[Ids, Ids]) -> None:
        later, first = result
        self._found.of[later], self._found.agreeing[later] = first, PERMUTATIONS

    def _near(self, result: tuple[Ids, Ids, npt.NDArray[np.uint16]]) -> None:
        later, first, agreeing = result
        self._found.of[later], self._found.agreeing[later] = first, agreeing


# The tasks. What they write depends on their call alone.


def _contents(work: _Work, number: int, units: range) -> None:
    with spill.writing(work.path("contents", number), 3, work.parts["contents"]) as out:
        for unit in units:
            keys = np.ascontiguousarray(work.files.array(unit, "contents")).view("<u8")
            documents = np.arange(work.files.starts[unit], work.files.starts[unit + 1])
            out.add(work.by_key("contents", keys[:, 0]), keys[:, 0], keys[:, 1], documents)


def _wholes(work: _Work, number: int, units: range, alone: Flags) -> None:
    with spill.writing(work.path("wholes", number), 3, work.parts["wholes"]) as out:
        for documents, signatures in _signed(work, units, alone):
            keys = whole_keys(signatures)
            out.add(work.by_key("wholes", keys[:, 0]), keys[:, 0], keys[:, 1], documents)


def _bands(work: _Work, number: int, units: range, alone: Flags) -> None:
    with spill.writing(work.path("bands", number), 2, work.parts["bands"]) as out:
        for documents, signatures in _signed(work, units, alone):
            keys = band_keys(signatures, *work.bands).T.reshape(-1)
            out.add(work.by_key("bands", keys), keys, np.tile(documents, work.bands[0]))


def _signed(work: _Work, units: range, alone: Flags) -> Iterator[tuple[Ids, npt.NDArray[np.uint32]]]:
    """Documents of `units` that are still alone and long enough to tell, and their signatures."""
    begin = work.files.documents(units).start
    for unit in units:
        signatures = work.files.array(unit, "signatures")
        first, end = work.files.starts[unit], work.files.starts[unit + 1]
        chosen = np.flatnonzero(alone[first - begin : end - begin] & ~are_blank(signatures))
        yield first + chosen, signatures[chosen]


def _same(work: _Work, kind: str, part: int, files: int) -> tuple[Ids, Ids]:
    """Documents whose key of two numbers an earlier one has, and the first that has it."""
    paths = [work.path(kind, number) for number in range(files)]
    records = spill.together(spill.read(paths, part, 3), 3)
    records = records[np.lexsort((records[:, 1], records[:, 0]))]  # stable: documents stay in order
    fresh = np.ones(len(records), np.bool_)
    fresh[1:] = (records[1:, :2] != records[:-1, :2]).any(1)
    firsts = records[np.maximum.accumulate(np.where(fresh, np.arange(len(records)), 0)), 2]
    return records[~fresh, 2].astype(np.int64), firsts[~fresh].astype(np.int64)


def _pairs(work: _Work, number: int, part: int, files: int) -> None:
    """Write every document with those of the first GROUP of its band's key that come before it."""
    paths = [work.path("bands", file) for file in range(files)]
    records = spill.together(spill.read(paths, part, 2), 2)
    records = records[np.lexsort((records[:, 1], records[:, 0]))]
    keys, documents = records[:, 0], records[:, 1].astype(np.int64)
    places = np.arange(len(keys))
    fresh = np.ones(len(keys), np.bool_)
    fresh[1:] = keys[1:] != keys[:-1]
    heads = np.maximum.accumulate(np.where(fresh, places, 0))
    with spill.writing(work.path("pairs", number), 2, work.parts["pairs"]) as out:
        for step in range(GROUP):
            later = np.flatnonzero(places - heads > step)
            if not len(later):
                return
            out.add(documents[later] // work.span, documents[later], documents[heads[later] + step])


def _compare(work: _Work, part: int) -> tuple[Ids, Ids, npt.NDArray[np.uint16]]:
    """The later documents of a part that are near copies, of which earlier one each, and how many places agree."""
    paths = [work.path("pairs", number) for number in range(work.parts["bands"])]
    pairs = _once(spill.read(paths, part, 2))  # by the earlier one, so that each file is opened for a few pairs at most
    later, earlier = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    mine, place = np.unique(later, return_inverse=True)
    signed = work.files.rows("signatures", mine)
    agreeing = np.empty(len(pairs), np.uint64)
    for at in range(0, len(pairs), _COMPARED):
        some = slice(at, at + _COMPARED)
        others, which = np.unique(earlier[some], return_inverse=True)
        agreeing[some] = (work.files.rows("signatures", others)[which] == signed[place[some]]).sum(1)
    # The largest count and, of equal ones, the smallest number, in one maximum.
    mask = (np.uint64(1) << _PLACE) - np.uint64(1)
    best = np.zeros(len(mine), np.uint64)
    np.maximum.at(best, place, (agreeing << _PLACE) | (mask - earlier.astype(np.uint64)))
    near = (best >> _PLACE) / PERMUTATIONS >= work.threshold
    first = (mask - (best[near] & mask)).astype(np.int64)
    return mine[near], first, (best[near] >> _PLACE).astype(np.uint16)


def _once(pairs: Iterable[Keys]) -> Keys:
    """Pairs [n, 2], sorted by the second number, then the first, each once."""
    kept, waiting, held = np.empty((0, 2), np.uint64), [], 0
    for some in pairs:
        waiting.append(some)
        held += len(some)
        if held > _PAIRS:
            kept, waiting, held = _unique(np.concatenate([kept, *waiting])), [], 0
    return _unique(np.concatenate([kept, *waiting]))


def _unique(pairs: Keys) -> Keys:
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    fresh = np.ones(len(pairs), np.bool_)
    fresh[1:] = (pairs[1:] != pairs[:-1]).any(1)
    return pairs[fresh]

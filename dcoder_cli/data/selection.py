"""Selection: which documents of the finished units are kept, how often, in which split and in which order.

Everything follows from the documents' content and the seed: copies of earlier documents go (copies.py), the split
and the sampling of fractional weights by content hash, and the order of documents by a hash of content and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.data import copies
from dcoder_cli.data.copies import Copies
from dcoder_cli.data.dropped import EXAMPLES
from dcoder_cli.data.duplicates import PERMUTATIONS
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.shards import ArrayFile
from dcoder_cli.data.sources import Source, Unit

Numbers = npt.NDArray[Any]
_HELDOUT, _WEIGHT, _ORDER = 1, 2, 3  # salts: the three choices are independent


@dataclass
class Split:
    """The documents of one split: its source's number, and where each stands in the units' tokens.

    Arrays of equal length, in final order. Held-out documents stand source by source, so that each row has one source.
    """

    source: Numbers
    unit: Numbers
    start: Numbers
    length: Numbers
    prompt_length: Numbers
    suffix_length: Numbers  # -1: a chat, whose answer goes to the end of the row; else what stands after a gap


@dataclass
class Selection:
    """What was chosen, and the counts for the manifest."""

    tokens: list[Numbers]
    splits: dict[str, Split]
    dropped: dict[str, dict[str, Any]]
    stripped: dict[str, int]
    sources: list[dict[str, Any]] = field(default_factory=list)


def mix(values: Numbers, salt: int) -> Numbers:
    """A well mixed 64-bit hash of 64-bit values (the splitmix64 finalizer)."""
    mixed = values.astype(np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def share(values: Numbers, salt: int) -> Numbers:
    """`mix` as numbers in [0, 1)."""
    return (mix(values, salt) >> np.uint64(11)).astype(np.float64) / 2.0**53


def in_heldout(content: bytes, fraction: float, seed: int) -> bool:
    """Whether the document with this content hash is held out, as in `select`."""
    return bool(_held(mix(np.frombuffer(content[:8], "<u8"), seed), fraction)[0])


def _held(base: Numbers, fraction: float) -> Numbers:
    return np.asarray(share(base, _HELDOUT) < fraction)


def select(
    units: Sequence[Unit],
    paths: Sequence[Path],
    sources: Sequence[Source],
    filters: FilterSettings,
    heldout: float,
    seed: int,
    scratch: Path,
) -> Selection:
    """Read the finished units, in order, and choose.

    Memory: about 200 bytes a document. The tokens stay on disk, and so does what `copies.find` sorts, in `scratch`.

    Raises:
        OSError: the disk is full.
    """
    opened = [ArrayFile.open(path).arrays for path in paths]
    contents = [arrays["contents"] for arrays in opened]
    signatures = [arrays["signatures"] for arrays in opened] if filters.near_duplicates else []
    found = copies.find(contents, signatures, filters.exact_duplicates, filters.near_duplicates, scratch)
    starts = np.cumsum([0, *map(len, contents)])
    rows: list[Numbers] = []  # of each unit [n, 6]: unit, start, length, prompt length, suffix length, source
    keys: list[Numbers] = []
    dropped: dict[str, list[Any]] = {}
    stripped: dict[str, int] = {}
    counts = [{"documents_read": 0, "bytes_read": 0, "documents_kept": 0, "tokens": 0} for _ in sources]
    named = _Names(units, paths, sources, starts)
    for number, (unit, arrays) in enumerate(zip(units, opened, strict=True)):
        note = ArrayFile.open(paths[number]).note
        label = named.label(unit)
        count = counts[unit.source]
        count["documents_read"] += note["read"][0]
        count["bytes_read"] += note["read"][1]
        for reason, (documents, size, examples) in note["dropped"].items():
            _add(dropped, reason, documents, size, [label + example for example in examples])
        for licence, times in note["stripped"].items():
            stripped[licence] = stripped.get(licence, 0) + times
        here = slice(starts[number], starts[number + 1])
        kept = found.of[here] < 0
        for reason, gone in (
            ("exact duplicate", found.exact[here]), ("near duplicate", ~kept & ~found.exact[here]),
        ):  # fmt: skip
            if gone.any():
                places = np.flatnonzero(gone)
                examples = [
                    f"{label}{note['names'][place]} (of {named.copied(found, int(starts[number]) + place)})"
                    for place in places[: _room(dropped, reason)].tolist()
                ]
                _add(dropped, reason, len(places), int(arrays["sizes"][gone].sum()), examples)
        lengths = np.array(arrays["lengths"], np.int64)
        suffixes = arrays.get("suffix_lengths")
        table = np.empty((int(kept.sum()), 6), np.int64)
        table[:, 0], table[:, 5] = number, unit.source
        table[:, 1] = (np.cumsum(lengths) - lengths)[kept]
        table[:, 2] = lengths[kept]
        table[:, 3] = arrays["prompt_lengths"][kept]
        table[:, 4] = -1 if suffixes is None else suffixes[kept]
        rows.append(table)
        keys.append(np.ascontiguousarray(contents[number][kept, :8]).view("<u8")[:, 0])
        count["documents_kept"] += len(table)
        count["tokens"] += int(table[:, 2].sum())
    described = [
        {"name": source.label, "weight": source.weight, **count} for source, count in zip(sources, counts, strict=True)
    ]
    report = {
        reason: {"documents": entry[0], "bytes": entry[1], "examples": entry[2]}
        for reason, entry in sorted(dropped.items())
    }
    weights = np.array([source.weight for source in sources])
    splits = _split(np.concatenate(rows), np.concatenate(keys), weights, heldout, seed)
    tokens = [arrays["tokens"] for arrays in opened]
    return Selection(tokens, splits, report, dict(sorted(stripped.items())), described)


@dataclass(frozen=True)
class _Names:
    """Names of documents by their number, read anew for each: all of them would not fit the memory."""

    units: Sequence[Unit]
    paths: Sequence[Path]
    sources: Sequence[Source]
    starts: Numbers

    def label(self, unit: Unit) -> str:
        """What stands before the names of a unit's documents."""
        return f"{self.sources[unit.source].label}/" if len(self.sources) > 1 else ""

    def copied(self, found: Copies, document: int) -> str:
        """What a copy is one of, and how similar they are if not the same."""
        first = int(found.of[document])
        unit = int(np.searchsorted(self.starts, first, "right")) - 1
        names = ArrayFile.open(self.paths[unit]).note["names"]
        name = f"{self.label(self.units[unit])}{names[first - self.starts[unit]]}"
        return name if found.exact[document] else f"{name} ({found.agreeing[document] / PERMUTATIONS:.2f})"


def _room(dropped: Mapping[str, list[Any]], reason: str) -> int:
    """How many examples of a reason are still wanted."""
    return EXAMPLES - len(dropped[reason][2]) if reason in dropped else EXAMPLES


def _add(dropped: dict[str, list[Any]], reason: str, documents: int, size: int, examples: list[str]) -> None:
    entry = dropped.setdefault(reason, [0, 0, []])
    entry[0] += documents
    entry[1] += size
    entry[2].extend(examples[: EXAMPLES - len(entry[2])])


def _split(table: Numbers, keys: Numbers, weights: Numbers, heldout: float, seed: int) -> dict[str, Split]:
    base = mix(keys, seed)
    is_held = _held(base, heldout)
    wanted = weights[table[:, -1]]
    whole = np.floor(wanted).astype(np.int64)
    copies = whole + (share(base, _WEIGHT) < wanted - whole)
    splits: dict[str, Split] = {}
    for name, chosen, times in (
        ("train", ~is_held, copies),
        # Once each: the held-out loss weighs the sources themselves, and all that is held out helps to measure them.
        ("heldout", is_held, np.ones(len(table), np.int64)),
    ):
        picked = np.flatnonzero(chosen)
        picked = np.repeat(picked, times[picked])
        # Copies of a document are told apart by their number, so that they are spread over the order.
        first = np.flatnonzero(np.diff(picked, prepend=-1))
        copy = np.arange(len(picked)) - np.repeat(first, np.diff(np.append(first, len(picked))))
        order = np.argsort(mix(base[picked] + copy.astype(np.uint64), _ORDER), kind="stable")
        picked = picked[order]
        if name == "heldout":
            picked = picked[np.argsort(table[picked, -1], kind="stable")]
        splits[name] = Split(table[picked, -1], *(table[picked, column] for column in range(5)))
    return splits

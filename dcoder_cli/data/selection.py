"""Selection: which documents of the finished units are kept, how often, in which split and in which order.

Everything follows from the documents' content and the seed: copies of earlier documents go (copies.py), the split
and the sampling of fractional weights by content hash, and the order of documents by a hash of content and seed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.base.console import bar
from dcoder_cli.data import copies
from dcoder_cli.data.arrays import ArrayFile
from dcoder_cli.data.copies import Copies
from dcoder_cli.data.dropped import EXAMPLES
from dcoder_cli.data.duplicates import PERMUTATIONS
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.sources import Source, Unit
from dcoder_cli.data.tasks import Place, tell_time
from dcoder_cli.data.unit_files import UnitFiles, unit_path

Numbers = npt.NDArray[Any]
_HELDOUT, _WEIGHT, _ORDER = 1, 2, 3  # salts: the three choices are independent


@dataclass(frozen=True)
class KeptDocuments:
    """The documents that are kept, in source order: arrays [n].

    Attributes:
        unit: which unit's file holds it.
        start: where its tokens begin there.
        length: how many they are.
        prompt_length: of these, the prompt; None where there are no prompts.
        suffix_length: -1 for a chat, whose answer goes to the end of the row; else what stands after a gap. None as above.
        source_of: [units] each unit's source.
    """

    unit: Numbers
    start: Numbers
    length: Numbers
    prompt_length: Numbers | None
    suffix_length: Numbers | None
    source_of: Numbers

    def columns(self, documents: Numbers) -> tuple[Numbers, ...]:
        """unit, start, length and, where there are prompts, prompt_length and suffix_length, of documents by place."""
        columns = (self.unit, self.start, self.length, self.prompt_length, self.suffix_length)
        return tuple(column[documents] for column in columns if column is not None)


@dataclass
class Selection:
    """What was chosen, and the counts for the manifest.

    Attributes:
        splits: of each split the places in `kept`, in final order; one occurs as often as its source's weight says.
            Held-out documents stand source by source, so that each row has one source.
    """

    files: UnitFiles
    kept: KeptDocuments
    splits: dict[str, Numbers]
    dropped: dict[str, dict[str, Any]]
    stripped: dict[str, int]
    sources: list[dict[str, Any]] = field(default_factory=list)


def mix(values: Numbers, salt: int) -> Numbers:
    """A well mixed 64-bit hash of 64-bit values (the splitmix64 finalizer)."""
    mixed = values.astype(np.uint64)  # a copy; then in place, since there may be hundreds of millions
    mixed += np.uint64((salt * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def share(values: Numbers, salt: int) -> Numbers:
    """`mix` as numbers in [0, 1)."""
    return (mix(values, salt) >> np.uint64(11)).astype(np.float64) / 2.0**53


def in_heldout(content: bytes, fraction: float, seed: int) -> bool:
    """Whether the document with this content hash is held out, as in `select`."""
    return bool(_held(mix(np.frombuffer(content[:8], "<u8"), seed), fraction)[0])


def _held(base: Numbers, fraction: float) -> Numbers:
    return np.asarray(share(base, _HELDOUT) < fraction)


def select(
    kind: str,
    units: Sequence[Unit],
    sources: Sequence[Source],
    settings: Any,
    folder: Path,
    scratch: Path,
    place: Place,
) -> Selection:
    """Read the finished units in `folder`, in order, and choose by `settings`: filters, heldout, seed, quiet.

    Memory: about 100 bytes a document. The tokens stay on disk, and so does what `copies.find` sorts, in `scratch`.

    Raises:
        OSError: the disk is full.
    """
    paths = [unit_path(folder, number) for number in range(len(units))]
    files = UnitFiles.open(paths)
    found = _copies(files, settings.filters, scratch, place, settings.quiet)
    columns: dict[str, list[Numbers]] = {"unit": [], "start": [], "length": [], "key": []}
    if kind == "sft":
        columns |= {"prompt_length": [], "suffix_length": []}
    dropped: dict[str, list[Any]] = {}
    stripped: dict[str, int] = {}
    counts = [{"documents_read": 0, "bytes_read": 0, "documents_kept": 0, "tokens": 0} for _ in sources]
    named = _Names(units, paths, sources, files.starts)
    for number, unit in enumerate(units):
        note = ArrayFile.open(paths[number]).note
        label = named.label(unit)
        count = counts[unit.source]
        count["documents_read"] += note["read"][0]
        count["bytes_read"] += note["read"][1]
        for reason, (documents, size, examples) in note["dropped"].items():
            _add(dropped, reason, documents, size, [label + example for example in examples])
        for licence, times in note["stripped"].items():
            stripped[licence] = stripped.get(licence, 0) + times
        here = files.documents(range(number, number + 1))
        kept = found.of[here] < 0
        for reason, gone in (
            ("exact duplicate", found.exact[here]), ("near duplicate", ~kept & ~found.exact[here]),
        ):  # fmt: skip
            if gone.any():
                places = np.flatnonzero(gone)
                examples = [
                    f"{label}{note['names'][place]} (of {named.copied(found, here.start + place)})"
                    for place in places[: _room(dropped, reason)].tolist()
                ]
                _add(dropped, reason, len(places), int(files.array(number, "sizes")[gone].sum()), examples)
        lengths = np.array(files.array(number, "lengths"), np.int64)
        columns["unit"].append(np.full(int(kept.sum()), number, np.uint32))
        columns["start"].append((np.cumsum(lengths) - lengths)[kept])
        columns["length"].append(lengths[kept].astype(np.uint32))
        columns["key"].append(np.ascontiguousarray(files.array(number, "contents")[kept, :8]).view("<u8")[:, 0])
        for name in ("prompt_length", "suffix_length"):
            if name in columns:
                columns[name].append(files.array(number, f"{name}s")[kept].astype(np.int32))
        count["documents_kept"] += int(kept.sum())
        count["tokens"] += int(lengths[kept].sum())
    described = [
        {"name": source.label, "weight": source.weight, **count} for source, count in zip(sources, counts, strict=True)
    ]
    report = {
        reason: {"documents": entry[0], "bytes": entry[1], "examples": entry[2]}
        for reason, entry in sorted(dropped.items())
    }
    whole = {name: np.concatenate(columns.pop(name)) for name in tuple(columns)}
    all_kept = KeptDocuments(
        whole["unit"], whole["start"], whole["length"], whole.get("prompt_length"), whole.get("suffix_length"),
        np.array([unit.source for unit in units], np.uint32),
    )  # fmt: skip
    del found
    weights = np.array([source.weight for source in sources])
    splits = _split(all_kept, whole.pop("key"), weights, settings.heldout, settings.seed)
    return Selection(files, all_kept, splits, report, dict(sorted(stripped.items())), described)


def _copies(files: UnitFiles, filters: FilterSettings, scratch: Path, place: Place, quiet: bool) -> Copies:
    begin = time.monotonic()
    with bar("looking for copies (%)", 100, quiet=quiet, late=True) as progress:
        found = copies.find(
            files, filters.exact_duplicates, filters.near_duplicates, scratch, place,
            lambda share, doing: progress.advance(100 * share, doing),
        )  # fmt: skip
    tell_time(f"looked for copies among {len(found.of):,} documents", begin, quiet)
    return found


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


def _split(kept: KeptDocuments, keys: Numbers, weights: Numbers, heldout: float, seed: int) -> dict[str, Numbers]:
    base = mix(keys, seed)
    del keys
    is_held = _held(base, heldout)
    # Held out once each: the held-out loss weighs the sources themselves, and all that is held out helps to measure them.
    held = _shuffled(base, np.flatnonzero(is_held))
    held = held[np.argsort(kept.source_of[kept.unit[held]], kind="stable")]
    picked = np.flatnonzero(~is_held)
    again = None
    if (weights != 1).any():
        wanted = weights[kept.source_of[kept.unit[picked]]]
        whole = np.floor(wanted).astype(np.int64)
        times = whole + (share(base[picked], _WEIGHT) < wanted - whole)
        picked = np.repeat(picked, times)
        # Repeats of a document are told apart by their number, so that they are spread over the order.
        again = np.arange(len(picked)) - np.repeat(np.cumsum(times) - times, times)
    return {"train": _shuffled(base, picked, again), "heldout": held}


def _shuffled(base: Numbers, picked: Numbers, again: Numbers | None = None) -> Numbers:
    """Places by a hash of each, and of which repeat it is."""
    values = base[picked]
    if again is not None:
        values += again.astype(np.uint64)
    return np.asarray(picked[np.argsort(mix(values, _ORDER), kind="stable")])

"""Selection: which documents of the finished units are kept, how often, in which split and in which order.

Everything follows from the documents' content and the seed: duplicates in source order (the first stays), the split
and the sampling of fractional weights by content hash, and the order of documents by a hash of content and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.data.dropped import EXAMPLES
from dcoder_cli.data.duplicates import Duplicates
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
) -> Selection:
    """Read the finished units, in order, and choose.

    Memory: about 100 bytes a document, plus what `Duplicates` takes. The tokens stay on disk.
    """
    duplicates = Duplicates(filters.exact_duplicates, filters.near_duplicates)
    tokens: list[Numbers] = []
    rows: list[tuple[int, ...]] = []  # unit, start, length, prompt length, suffix length, source
    contents: list[bytes] = []
    dropped: dict[str, list[Any]] = {}
    stripped: dict[str, int] = {}
    counts = [{"documents_read": 0, "bytes_read": 0, "documents_kept": 0, "tokens": 0} for _ in sources]
    for number, (unit, path) in enumerate(zip(units, paths, strict=True)):
        file = ArrayFile.open(path)
        label = f"{sources[unit.source].label}/" if len(sources) > 1 else ""
        count = counts[unit.source]
        count["documents_read"] += file.note["read"][0]
        count["bytes_read"] += file.note["read"][1]
        for reason, (documents, size, examples) in file.note["dropped"].items():
            _add(dropped, reason, documents, size, [label + example for example in examples])
        for licence, times in file.note["stripped"].items():
            stripped[licence] = stripped.get(licence, 0) + times
        tokens.append(file.arrays["tokens"])
        signatures = file.arrays.get("signatures")
        lengths = np.array(file.arrays["lengths"])
        suffixes = file.arrays.get("suffix_lengths")
        starts = np.cumsum(lengths) - lengths
        for index, name in enumerate(file.note["names"]):
            content = file.arrays["contents"][index].tobytes()
            found = duplicates.check(label + name, content, None if signatures is None else signatures[index])
            if found is not None:
                example = f"{label}{name} (of {found[1]})"
                _add(dropped, found[0], 1, int(file.arrays["sizes"][index]), [example])
                continue
            prompt = int(file.arrays["prompt_lengths"][index])
            suffix = -1 if suffixes is None else int(suffixes[index])
            rows.append((number, int(starts[index]), int(lengths[index]), prompt, suffix, unit.source))
            contents.append(content[:8])
            count["documents_kept"] += 1
            count["tokens"] += int(lengths[index])
    table = np.array(rows, np.int64).reshape(-1, 6)
    keys = np.frombuffer(b"".join(contents), "<u8")
    described = [
        {"name": source.label, "weight": source.weight, **count} for source, count in zip(sources, counts, strict=True)
    ]
    report = {
        reason: {"documents": entry[0], "bytes": entry[1], "examples": entry[2]}
        for reason, entry in sorted(dropped.items())
    }
    weights = np.array([source.weight for source in sources])
    splits = _split(table, keys, weights, heldout, seed)
    return Selection(tokens, splits, report, dict(sorted(stripped.items())), described)


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

"""Writing what was selected: the files of each split, and the manifest. Legend: R rows, L row length."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcoder_cli import __version__
from dcoder_cli.base.console import bar
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_file
from dcoder_cli.data.arrays import token_dtype, write_hashed
from dcoder_cli.data.holes import ABSENT, room
from dcoder_cli.data.manifest import FORMAT_VERSION
from dcoder_cli.data.packing import Tokens, pack
from dcoder_cli.data.selection import KeptDocuments, Selection
from dcoder_cli.data.sources import Source
from dcoder_cli.data.tasks import Place, tell_time
from dcoder_cli.data.unit_files import UnitFiles
from dcoder_cli.model.tokenizer import ids_end, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENS_PER_FILE = 2**25  # 128 MiB a file with two 2-byte columns (ours): quick to copy and to check

_UNUSABLE = ("binary", "empty", "not UTF-8", "not an object of columns")  # reasons that no filter is behind

# Settings that are of this machine or do not change the result, or stand elsewhere in the manifest.
_UNTOLD = ("sources", "out", "workers", "ray", "quiet", "overwrite", "tokenizer", "filters", "hard_given")


def describe(kind: str, settings: Any, tokenizer: PreTrainedTokenizerBase, path: str | None) -> dict[str, Any]:
    """The first part of a manifest: format, tokenizer, settings. No path of this machine, no time."""
    name = "tokenizer" if path is None else path
    if Path(name).exists():
        name = Path(os.path.realpath(name)).name
    filters = asdict(settings.filters)
    filters.pop("benchmarks")
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "dcoder": __version__,
        "tokenizer": {"name": name, "hash": tokenizer_hash(tokenizer), "vocab_size": ids_end(tokenizer)},
        "settings": {key: value for key, value in asdict(settings).items() if key not in _UNTOLD},
        "filters": filters,
    }


def nothing_left(what: str, remedy: str, read: int, dropped: str, sources: Sequence[Source]) -> UserError:
    """What to raise where nothing is left to train on: `what` and why, or that the sources hold no row at all."""
    if not read:
        names = ", ".join(repr(source.location) for source in sources)
        return UserError(f"no row to read: {names} {'is' if len(sources) == 1 else 'are'} empty; copy or make it again")
    if dropped and all(one.partition(" ")[2] in _UNUSABLE for one in dropped.split(", ")):
        remedy = "mend the files: text that is not empty, in UTF-8, rows as objects of columns"
    else:
        remedy = f"loosen {remedy}"
    return UserError(f"no {what} is left to train on (dropped: {dropped or 'none'}); {remedy}")


def check_left(files: list[dict[str, Any]], chosen: Selection, sources: Sequence[Source]) -> None:
    """Raises UserError, with the reasons, where nothing is left for training."""
    if not any(entry["split"] == "train" for entry in files):
        reasons = ", ".join(f"{entry['documents']} {reason}" for reason, entry in chosen.dropped.items())
        read = sum(source["documents_read"] for source in chosen.sources)
        raise nothing_left("document", "the filters or --heldout", read, reasons, sources)


@dataclass(frozen=True)
class _Layout:
    """What every task that writes a file knows. `rows`: of a full file."""

    files: UnitFiles
    kind: str
    length: int
    rows: int
    dtype: type[Any]
    ids: dict[str, int]

    def read(self, unit: Tokens, start: Tokens, length: Tokens) -> list[Tokens]:
        """The tokens of documents, in their order; each unit's file is opened once."""
        read: list[Tokens] = [np.empty(0, self.dtype)] * len(unit)
        order = np.lexsort((start, unit))
        heads = np.flatnonzero(np.diff(unit[order].astype(np.int64), prepend=-1))
        for some in np.split(order, heads[1:]):
            tokens = self.files.array(int(unit[some[0]]), "tokens") if len(some) else np.empty(0, self.dtype)
            for document in some.tolist():
                begin = int(start[document])
                read[document] = np.array(tokens[begin : begin + int(length[document])])
        return read


def write_rows(
    kind: str,
    folder: Path,
    chosen: Selection,
    settings: Any,
    vocab_size: int,
    special: dict[str, Any],
    place: Place,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Write the files of every split that has documents, many at once; returns the manifest's `files` and `splits`."""
    length = settings.seq_len
    layout = _Layout(
        chosen.files, kind, length, max(1, _TOKENS_PER_FILE // length), token_dtype(vocab_size),
        {name: entry["id"] for name, entry in special.items()},
    )  # fmt: skip
    begin = time.monotonic()
    files: list[dict[str, Any]] = []
    splits: dict[str, dict[str, int]] = {}
    for name, picked in chosen.splits.items():
        if not len(picked):
            continue
        rows = padding = number = 0
        for source, part in _parts(name, picked, chosen.kept):
            for entry in _write_part(layout, folder, name, number, chosen.kept, part, place, settings.quiet):
                filling = entry.pop("padding")
                files.append({**entry, **source})
                if source and kind == "pretrain":
                    files[-1]["padding"] = filling
                number, rows, padding = number + 1, rows + entry["rows"], padding + filling
        tokens = rows * length - padding
        splits[name] = {"rows": rows, "documents": len(picked), "tokens": tokens, "padding_tokens": padding}
    for leftover in folder.glob(".*.tmp"):  # of a machine that was lost
        leftover.unlink()
    tell_time(f"wrote {len(files):,} files", begin, settings.quiet)
    return files, splits


def with_taught_tokens(kind: str, chosen: Selection, length: int) -> list[dict[str, Any]]:
    """The sources, each with its `taught_tokens`: those of training rows that a model learns to predict, repeats and samples as its weight says.

    Documents count with their EOS; of an instruction row, all that follows the prompt counts, or the room of its gap.
    """
    kept, train = chosen.kept, chosen.splits["train"]
    taught = kept.length[train].astype(np.int64) + 1
    if kept.prompt_length is not None and kept.suffix_length is not None:
        prompt, suffix = kept.prompt_length[train], kept.suffix_length[train]
        taught = np.where(suffix < 0, length - prompt, room(taught - 1 - prompt - suffix))
    sources = kept.source_of[kept.unit[train]]
    return [{**one, "taught_tokens": int(taught[sources == number].sum())} for number, one in enumerate(chosen.sources)]


def _parts(name: str, picked: Tokens, kept: KeptDocuments) -> Iterator[tuple[dict[str, Any], Tokens]]:
    """The training split whole; the held-out one source by source, with what its files' entries say of that."""
    if name == "train":
        yield {}, picked
        return
    sources = kept.source_of[kept.unit[picked]]
    for source in np.unique(sources).tolist():
        yield {"source": source}, picked[sources == source]


def _write_part(
    layout: _Layout,
    folder: Path,
    split: str,
    first: int,
    kept: KeptDocuments,
    picked: Tokens,
    place: Place,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Write the files of some documents, numbered from `first`; returns their entries, in order."""
    count, calls = (_packed_calls if layout.kind == "pretrain" else _padded_calls)(layout, kept, picked)
    entries: dict[int, dict[str, Any]] = {}
    paths = [folder / f"{split}-{first + number:05d}.safetensors" for number in range(count)]
    with bar(f"writing {split} rows (files)", count, quiet=quiet, late=True) as progress:

        def done(number: int, entry: dict[str, Any]) -> None:
            entries[number] = entry
            progress.advance(1)

        place.run(_write, layout, ((path, split, *call) for path, call in zip(paths, calls, strict=True)), done)
    return [entries[number] for number in range(count)]


Calls = tuple[int, Iterator[tuple[Any, ...]]]  # how many files, and what each is made of


def _packed_calls(layout: _Layout, kept: KeptDocuments, picked: Tokens) -> Calls:
    """The documents that each file of packed rows has a part of, and how many tokens of the first are in the file before."""
    sizes = kept.length[picked].astype(np.int64) + 1  # with EOS
    ends = np.cumsum(sizes)
    capacity = layout.rows * (layout.length - ("bos" in layout.ids))
    begins = range(0, int(ends[-1]), capacity)

    def calls() -> Iterator[tuple[Any, ...]]:
        for begin in begins:
            first = int(np.searchsorted(ends, begin, "right"))
            last = int(np.searchsorted(ends, begin + capacity, "left")) + 1
            yield begin - int(ends[first] - sizes[first]), *kept.columns(picked[first:last])

    return len(begins), calls()


def _padded_calls(layout: _Layout, kept: KeptDocuments, picked: Tokens) -> Calls:
    """The documents of each file of rows of their own."""
    begins = range(0, len(picked), layout.rows)
    return len(begins), ((0, *kept.columns(picked[begin : begin + layout.rows])) for begin in begins)


def _write(layout: _Layout, path: Path, split: str, skipped: int, *columns: Tokens) -> dict[str, Any]:
    """Write a file; returns its entry, with its padding."""
    if layout.kind == "pretrain":
        documents = layout.read(*columns)
        documents[0] = documents[0][skipped:]
        ids = layout.ids
        block = next(pack(documents, layout.length, ids["eos"], layout.dtype, layout.rows, ids.get("bos")))
        arrays, filling = {"tokens": block.tokens, "document_ids": block.document_ids}, block.padding
    else:
        arrays, filling = _padded(layout, *columns)
    with atomic_file(path) as temporary:
        hashes = write_hashed(temporary, arrays, {"kind": layout.kind, "split": split})
    return {"file": path.name, "split": split, "rows": len(arrays["tokens"]), **hashes, "padding": filling}


def _padded(
    layout: _Layout, unit: Tokens, start: Tokens, length: Tokens, prompts: Tokens, suffixes: Tokens
) -> tuple[dict[str, Tokens], int]:
    shape = (len(unit), layout.length)
    tokens_RL = np.full(shape, layout.ids["pad"], layout.dtype)
    eligible_RL = np.ones(shape, np.uint8)
    for row, tokens_L in enumerate(layout.read(unit, start, length)):
        size, first, suffix = len(tokens_L), int(prompts[row]), int(suffixes[row])
        tokens_RL[row, :size] = tokens_L
        eligible_RL[row, :first] = 0
        if suffix >= 0:
            hole = size - suffix
            after = first + int(room(np.array(hole - first)))
            tokens_RL[row, hole:after] = layout.ids["pad"]
            tokens_RL[row, hole : min(hole + 1, after)] = layout.ids["end_of_turn"]
            tokens_RL[row, after : after + suffix] = tokens_L[hole:]
            eligible_RL[row, after : after + suffix] = 0
            eligible_RL[row, after + suffix :] = ABSENT
    return {"tokens": tokens_RL, "eligible": eligible_RL}, int(layout.length * len(unit) - length.sum(dtype=np.int64))

"""Shards: folders of safetensors files with rows of tokens, and the manifest that describes them.

A folder holds `manifest.json` and `SPLIT-NNNNN.safetensors` files, SPLIT being `train` or `heldout`. Kinds:

- `pretrain`: `tokens` [rows, L] and `document_ids` [rows, L] uint16 (the document's index within its row).
- `sft`: `tokens` [rows, L] and `eligible` [rows, L] uint8 (1: the answer, its end of turn, the pads after it; of a gap see `holes`).
- `rl`: no rows; `prompts.jsonl`, read with `dcoder_cli.data.rl.load_prompts`.

A held-out file holds one source's rows; its manifest entry names the source by number, and counts the padding at its end.
`tokens` are uint16, or uint32 where the vocabulary has more than 65,535 entries. A set made on n machines is a folder
of n such folders, `shard-00001-of-0000n` and so on, and reads as one.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcoder_cli.base import checksums, console
from dcoder_cli.base.errors import UserError
from dcoder_cli.data.arrays import Array, ArrayFile, token_dtype
from dcoder_cli.data.manifest import hashes_of, part_folders, read_manifest

SPLITS = ("train", "heldout")
COLUMNS = {"pretrain": ("tokens", "document_ids"), "sft": ("tokens", "eligible")}
LONGEST_ROW = 65_536  # document_ids are uint16 and a row of L tokens may hold L documents
_OPEN = 128  # files of a set, of two columns each (ours): a process may have 1,024 on most machines
_AGAIN = "copy the data again, or make it again with: dcoder tokenize"


@dataclass(frozen=True)
class SourceRows:
    """One source's rows in a split.

    Attributes:
        name: the source's.
        rows: their indices.
        share: of what training teaches, from this source (of those with rows here); they add up to 1.
    """

    name: str
    rows: tuple[int, ...]
    share: float


class ShardSet:
    """The rows of one split, read from disk as they are asked for. Safe to pickle and to use after a fork.

    Attributes:
        manifest: the manifest (of the first part, where the set has several).
        kind: `pretrain` or `sft`.
        sequence_length, vocab_size, tokenizer_hash: as in the manifest.
        sources: the rows of each source; empty where that is not known (training rows, shards of before it was written).
        padding: row index -> tokens at the row's end that only fill it.
        files: each file with its checksums.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        manifest: dict[str, Any],
        files: list[tuple[Path, dict[str, str]]],
        rows: list[int],
        sources: list[SourceRows],
        padding: dict[int, int],
    ) -> None:
        self.folder, self.split, self.manifest = folder, split, manifest
        self.kind: str = manifest["kind"]
        self.sequence_length: int = manifest["sequence_length"]
        self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
        self.tokenizer_hash: str = manifest["tokenizer"]["hash"]
        self.sources, self.padding = sources, padding
        self.files = files
        self._ends = list(itertools.accumulate(rows))
        self._open: dict[int, dict[str, Array]] = {}

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> ShardSet:
        """Open and check a split: every file's header, size, columns, row count and row length.

        Raises:
            UserError: no such folder or split, parts that do not belong together, or a damaged file (named).
        """
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        first: dict[str, Any] | None = None
        files: list[tuple[Path, dict[str, str]]] = []
        rows: list[int] = []
        entries: list[dict[str, Any]] = []
        manifests: list[dict[str, Any]] = []
        for part in part_folders(Path(folder)):
            manifest = read_manifest(part)
            manifests.append(manifest)
            first = first or manifest
            if manifest["kind"] == "rl":
                raise UserError(f"{str(folder)!r} holds prompts for dcoder grpo (kind rl), not rows of tokens")
            for key in ("kind", "sequence_length", "tokenizer"):
                if manifest[key] != first[key]:
                    raise UserError(f"{str(part)!r} does not belong with the other parts: its {key} differs")
            if len(manifest.get("sources", [])) != len(first.get("sources", [])):
                raise UserError(f"{str(part)!r} does not belong with the other parts: it has other sources")
            for entry in manifest["files"]:
                if entry["split"] == split:
                    _check_rows(part / entry["file"], entry["rows"], manifest)
                    files.append((part / entry["file"], hashes_of(entry)))
                    rows.append(entry["rows"])
                    entries.append(entry)
        assert first is not None
        if not files:
            raise UserError(f"{str(folder)!r} has no {split} rows; make some with: dcoder tokenize --heldout 0.01")
        padding = {
            end - 1: entry["padding"]
            for entry, end in zip(entries, itertools.accumulate(rows), strict=True)
            if entry.get("padding")
        }
        return cls(Path(folder), split, first, files, rows, _source_rows(manifests, entries), padding)

    def has_split(self, split: str) -> bool:
        """Whether the folder also has rows of `split`."""
        parts = part_folders(self.folder)
        return any(entry["split"] == split for part in parts for entry in read_manifest(part)["files"])

    def __len__(self) -> int:
        return self._ends[-1]

    def rows(self, indices: Sequence[int]) -> dict[str, Array]:
        """The rows at `indices`, in that order: each column as [len(indices), L], copied, in its stored type."""
        columns = COLUMNS[self.kind]
        out: dict[str, list[Array]] = {name: [] for name in columns}
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            file = bisect.bisect_right(self._ends, index)
            start = self._ends[file - 1] if file else 0
            for name in columns:
                out[name].append(np.array(self._opened(file)[name][index - start]))  # a copy: the file may be closed
        if not len(indices):
            shape = (0, self.sequence_length)
            return {name: np.empty(shape, token_dtype(self.vocab_size)) for name in columns}
        found = {name: np.stack(parts) for name, parts in out.items()}
        self._check_ids(indices, found["tokens"])
        return found

    def _opened(self, file: int) -> dict[str, Array]:
        """A file's arrays; of those that are open the one longest unused is closed, since sets have thousands."""
        arrays = self._open.pop(file, None)
        if arrays is None:
            arrays = ArrayFile.open(self.files[file][0]).arrays
            if len(self._open) >= _OPEN:
                self._open.pop(next(iter(self._open)))
        self._open[file] = arrays
        return arrays

    def _check_ids(self, indices: Sequence[int], tokens_NL: Array) -> None:
        """Raises UserError for an id that no token has: an index out of range in the middle of a step."""
        for index, lowest, highest in zip(indices, tokens_NL.min(-1), tokens_NL.max(-1), strict=True):
            if lowest < 0 or highest >= self.vocab_size:
                file = self.files[bisect.bisect_right(self._ends, index)][0]
                raise UserError(
                    f"shard {str(file)!r} has the id {lowest if lowest < 0 else highest} in row {index} of its split, and its "
                    f"manifest a vocabulary of {self.vocab_size}; make it again with the tokenizer that the manifest names"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a mapped file would travel as a copy of its content


def damage(sets: Sequence[ShardSet], share: slice = slice(None), quiet: bool = False) -> checksums.Damaged | None:
    """Read the files of some sets and compare their checksums: the first that is damaged, named, or None.

    `share`: of the list of all files, those to read; processes share them.
    """
    files = [one for rows in sets for one in rows.files][share]
    size = sum(path.stat().st_size for path, _ in files)
    with console.bar("checking data (MiB)", round(size / 2**20, 1), quiet=quiet, late=True) as bar:
        return checksums.first_damaged(files, "shard", _AGAIN, lambda read: bar.advance(read / 2**20))


def _source_rows(manifests: list[dict[str, Any]], entries: list[dict[str, Any]]) -> list[SourceRows]:
    """The rows of each source, over the parts of a set; empty where a file's source, or a source's share, is not told."""
    if any("source" not in entry for entry in entries):
        return []
    described = manifests[0]["sources"]
    taught = [
        sum(manifest["sources"][number].get("taught_tokens") or 0 for manifest in manifests)
        for number in range(len(described))
    ]
    rows: dict[int, list[int]] = {}
    start = 0
    for entry in entries:
        rows.setdefault(entry["source"], []).extend(range(start, start + entry["rows"]))
        start += entry["rows"]
    total = sum(taught[number] for number in rows)
    if not total:  # everything held out is of sources that training has nothing of
        return []
    return [
        SourceRows(described[number]["name"], tuple(rows[number]), taught[number] / total) for number in sorted(rows)
    ]


def _check_rows(path: Path, rows: int, manifest: dict[str, Any]) -> None:
    stored = ArrayFile.open(path).stored
    expected = (rows, manifest["sequence_length"])
    for name in COLUMNS[manifest["kind"]]:
        shape = stored[name].shape if name in stored else None
        if shape != expected:
            raise UserError(
                f"shard {str(path)!r} has {name} of shape {shape}, its manifest says {expected}; copy or make it again"
            )

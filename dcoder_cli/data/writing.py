"""Writing what was selected: the files of each split, and the manifest. Legend: R rows, L row length."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcoder_cli import __version__
from dcoder_cli.base.errors import UserError
from dcoder_cli.data.holes import ABSENT, room
from dcoder_cli.data.manifest import FORMAT_VERSION
from dcoder_cli.data.packing import pack
from dcoder_cli.data.selection import Selection, Split
from dcoder_cli.data.shards import token_dtype, write_hashed
from dcoder_cli.data.sources import Source
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


def write_rows(
    kind: str, folder: Path, chosen: Selection, length: int, vocab_size: int, special: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Write the files of every split that has documents; returns the manifest's `files` and `splits`."""
    files: list[dict[str, Any]] = []
    splits: dict[str, dict[str, int]] = {}
    dtype = token_dtype(vocab_size)
    blocks = _pretrain_blocks if kind == "pretrain" else _sft_blocks
    for name, split in chosen.splits.items():
        if not len(split.unit):
            continue
        number = rows = padding = 0
        for source, part in _parts(name, split):
            for arrays, filling in blocks(chosen, part, length, dtype, special):
                path = folder / f"{name}-{number:05d}.safetensors"
                hashes = write_hashed(path, arrays, {"kind": kind, "split": name})
                count = len(arrays["tokens"])
                files.append({"file": path.name, "split": name, "rows": count, **hashes, **source})
                if source and kind == "pretrain":
                    files[-1]["padding"] = filling
                number, rows, padding = number + 1, rows + count, padding + filling
        tokens = rows * length - padding
        splits[name] = {"rows": rows, "documents": len(split.unit), "tokens": tokens, "padding_tokens": padding}
    return files, splits


def taught_tokens(kind: str, chosen: Selection, length: int) -> list[int]:
    """For each source the tokens of training rows that a model learns to predict, repeats and samples as its weight says.

    Documents count with their EOS; of an instruction row, all that follows the prompt counts, or the room of its gap.
    """
    train = chosen.splits["train"]
    gap = room(train.length - train.prompt_length - train.suffix_length)
    answer = np.where(train.suffix_length < 0, length - train.prompt_length, gap)
    taught = train.length + 1 if kind == "pretrain" else answer
    return [int(taught[train.source == source].sum()) for source in range(len(chosen.sources))]


def _parts(name: str, split: Split) -> Iterator[tuple[dict[str, Any], Split]]:
    """The training split whole; the held-out one source by source, with what its files' entries say of that."""
    if name == "train":
        yield {}, split
        return
    for source in np.unique(split.source).tolist():
        mine = split.source == source
        arrays = (split.source, split.unit, split.start, split.length, split.prompt_length, split.suffix_length)
        yield {"source": source}, Split(*(array[mine] for array in arrays))


Block = tuple[dict[str, Any], int]


def _pretrain_blocks(
    chosen: Selection, split: Split, length: int, dtype: Any, special: dict[str, Any]
) -> Iterator[Block]:
    documents = (
        chosen.tokens[unit][start : start + size]
        for unit, start, size in zip(split.unit.tolist(), split.start.tolist(), split.length.tolist(), strict=True)
    )
    bos = special["bos"]["id"] if "bos" in special else None
    for block in pack(documents, length, special["eos"]["id"], dtype, max(1, _TOKENS_PER_FILE // length), bos):
        yield {"tokens": block.tokens, "document_ids": block.document_ids}, block.padding


def _sft_blocks(chosen: Selection, split: Split, length: int, dtype: Any, special: dict[str, Any]) -> Iterator[Block]:
    at_once = max(1, _TOKENS_PER_FILE // length)
    for begin in range(0, len(split.unit), at_once):
        rows = range(begin, min(begin + at_once, len(split.unit)))
        tokens_RL = np.full((len(rows), length), special["pad"]["id"], dtype)
        eligible_RL = np.ones((len(rows), length), np.uint8)
        filling = 0
        for row, sample in enumerate(rows):
            start, size = int(split.start[sample]), int(split.length[sample])
            tokens_L = chosen.tokens[split.unit[sample]][start : start + size]
            tokens_RL[row, :size] = tokens_L
            eligible_RL[row, : split.prompt_length[sample]] = 0
            if (suffix := int(split.suffix_length[sample])) >= 0:
                first, hole = int(split.prompt_length[sample]), size - suffix
                after = first + int(room(np.array(hole - first)))
                tokens_RL[row, hole:after] = special["pad"]["id"]
                tokens_RL[row, hole : min(hole + 1, after)] = special["end_of_turn"]["id"]
                tokens_RL[row, after : after + suffix] = tokens_L[hole:]
                eligible_RL[row, after : after + suffix] = 0
                eligible_RL[row, after + suffix :] = ABSENT
            filling += length - size
        yield {"tokens": tokens_RL, "eligible": eligible_RL}, filling

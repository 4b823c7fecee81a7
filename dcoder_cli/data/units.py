"""One unit of work: read its records, filter them, tokenize them, and leave the result as one file.

Runs in any process. What a unit's file holds depends on the unit and the settings alone, so any number of workers,
in any order, before or after a stop, leaves the same files.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dcoder_cli.base.files import atomic_file
from dcoder_cli.data import code_pairs
from dcoder_cli.data.arrays import token_dtype, write_arrays
from dcoder_cli.data.decontaminate import Contamination
from dcoder_cli.data.dropped import BadRow, Dropped
from dcoder_cli.data.duplicates import PERMUTATIONS, signatures
from dcoder_cli.data.filters import FilterSettings, judge_document
from dcoder_cli.data.formats import ChatEncoder, Rendered, sample_of
from dcoder_cli.data.holes import Gap, room
from dcoder_cli.data.ngrams import Hashes, word_codes
from dcoder_cli.data.records import Record, TextMapping, read_records
from dcoder_cli.data.sources import Piece, Unit
from dcoder_cli.data.unit_files import unit_path
from dcoder_cli.model.encoding import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_CHARACTERS = 2**20
_OF_GAPS = np.uint64(0x5BD1E995)  # any number: words of gaps are no words of chats


@dataclass(frozen=True)
class TokenizeJob:
    """What every worker needs to know. Travels to other processes.

    Attributes:
        texts: pretrain: encodes the documents.
        tokenizer: sft: renders and encodes the chats. As an object, since to find its class again would bring torch.
    """

    kind: Literal["pretrain", "sft"]
    folder: str
    filters: FilterSettings
    mapping: TextMapping
    texts: TextEncoder | None
    tokenizer: PreTrainedTokenizerBase | None
    vocab_size: int
    contamination: Contamination | None
    sequence_length: int
    system: str | None = None
    code_gaps: float | None = (
        None  # sft from code: the share of functions that become a gap too; None: rows as they are
    )


@dataclass
class _Result:
    tokens: list[Any] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    suffix_lengths: list[int] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    signatures: list[Any] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    read: list[int] = field(default_factory=lambda: [0, 0])
    dropped: Dropped = field(default_factory=Dropped)
    stripped: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class UnitWorker:
    """Processes units of one job."""

    def __init__(self, job: TokenizeJob) -> None:
        self.job = job
        self._dtype = token_dtype(job.vocab_size)
        self._chat = ChatEncoder(job.tokenizer, job.system) if job.tokenizer is not None else None

    def __reduce__(self) -> tuple[type[UnitWorker], tuple[TokenizeJob]]:
        return UnitWorker, (self.job,)

    def process(self, index: int, unit: Unit) -> int:
        """Do one unit and write its file; returns the bytes of text read.

        Raises:
            UserError: a damaged source.
            EnginesDiffer: see `TextEncoder.encode`.
        """
        result = _Result()
        waiting: list[tuple[str, str, Rendered | None]] = []
        characters = 0
        for piece in unit.pieces:
            for record in self._records(piece):
                kept = self._consider(piece, record, result)
                if kept is not None:
                    waiting.append(kept)
                    characters += len(kept[1])
                if characters > _BATCH_CHARACTERS:
                    self._finish(waiting, result)
                    waiting, characters = [], 0
        self._finish(waiting, result)
        self._write(unit_path(self.job.folder, index), result)
        return result.read[1]

    def _records(self, piece: Piece) -> Iterator[Record]:
        return read_records(piece) if self.job.code_gaps is None else code_pairs.rows(piece, self.job.code_gaps)

    def _consider(self, piece: Piece, record: Record, result: _Result) -> tuple[str, str, Rendered | None] | None:
        """(name, text, rendered sample) of a record worth tokenizing; else None, and the reason is noted."""
        rendered: Rendered | None = None
        text, problem = "", record.problem
        if isinstance(record.value, str):
            text = record.value
        elif problem is None:
            try:
                if self._chat is not None:
                    sample = sample_of(record.value, record.name)
                    rendered = self._chat.render_gap(sample) if isinstance(sample, Gap) else self._chat.render(sample)
                    if self.job.code_gaps is not None:
                        rendered = rendered._replace(about=record.value["code"])
                    text, problem = rendered.prompt + rendered.answer + (rendered.suffix or ""), rendered.reason
                else:
                    text = self.job.mapping.text(record.value, record.name)
            except BadRow as bad:
                problem = bad.reason
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        result.read[0] += 1
        result.read[1] += size
        if problem is None and not text.isascii() and _has_lone_surrogate(text):
            problem = "not UTF-8"
        if problem is not None:
            result.dropped.add(problem, record.name, size=size)
            return None
        python = piece.form != "text" or piece.name.endswith((".py", ".pyi", ".py.gz", ".py.zst"))
        if rendered is None:
            verdict = judge_document(text, self.job.filters, piece.is_source, python)
            if verdict.stripped is not None:
                result.stripped[verdict.stripped] += 1
            if verdict.reason is not None:
                result.dropped.add(verdict.reason, record.name, verdict.detail, size)
                return None
            text = verdict.text
        return record.name, text, rendered

    def _finish(self, waiting: list[tuple[str, str, Rendered | None]], result: _Result) -> None:
        """Decontaminate and tokenize a batch, and add it to the result."""
        sketched = bool(self.job.filters.near_duplicates)
        kept: list[tuple[str, str, Rendered | None]] = []
        codes: list[Hashes] = []
        for name, text, rendered in waiting:
            if self.job.contamination is not None or sketched:
                of_text = word_codes(text)
                found = self.job.contamination.find(of_text) if self.job.contamination is not None else None
                if found is not None:
                    result.dropped.add(f"contaminated by {found.partition(':')[0]}", name, found, _size(text))
                    continue
                codes.append(_sketched(of_text, rendered))
            kept.append((name, text, rendered))
        sketches: Iterable[Any] = signatures(codes) if sketched else repeat(None, len(kept))
        for (name, text, rendered), signature, (tokens, prompt, suffix) in zip(
            kept, sketches, self._encode(kept), strict=True
        ):
            length = len(tokens)
            if suffix >= 0:
                hole = length - prompt - suffix
                length += int(room(np.array(hole))) - hole
            if self.job.kind == "sft" and length > self.job.sequence_length:
                result.dropped.add("longer than the row", name, f"{length} tokens", _size(text))
                continue
            data = text.encode("utf-8")
            result.tokens.append(tokens)
            result.prompt_lengths.append(prompt)
            result.suffix_lengths.append(suffix)
            content = (
                data if suffix < 0 or rendered is None else "\0".join((*rendered[:2], rendered.suffix or "")).encode()
            )
            result.contents.append(hashlib.blake2b(content, digest_size=16).digest())
            result.sizes.append(len(data))
            result.names.append(name)
            if signature is not None:
                result.signatures.append(signature)

    def _encode(self, kept: list[tuple[str, str, Rendered | None]]) -> list[tuple[Any, int, int]]:
        """(token ids, how many of them are the prompt, and how many stand after a gap; -1 where there is none) of each text."""
        if self._chat is None:
            assert self.job.texts is not None
            return [(ids, 0, -1) for ids in self.job.texts.encode([text for _, text, _ in kept])]
        samples = [rendered for _, _, rendered in kept if rendered is not None]
        chats = self._chat.encode([one for one in samples if one.suffix is None])
        encoded = []
        for sample in samples:
            prompt, answer, suffix = (*next(chats), None) if sample.suffix is None else self._chat.encode_gap(sample)
            ids = np.array([*prompt, *answer, *(suffix or ())], self._dtype)
            encoded.append((ids, len(prompt), -1 if suffix is None else len(suffix)))
        return encoded

    def _write(self, path: Path, result: _Result) -> None:
        count = len(result.tokens)
        empty = np.empty(0, self._dtype)
        arrays = {
            "tokens": np.concatenate([empty, *result.tokens]),
            "lengths": np.array([len(tokens) for tokens in result.tokens], np.int64),
            "prompt_lengths": np.array(result.prompt_lengths, np.int64),
            "suffix_lengths": np.array(result.suffix_lengths, np.int64),
            "contents": np.frombuffer(b"".join(result.contents), np.uint8).reshape(count, 16),
            "sizes": np.array(result.sizes, np.int64),
        }
        if self.job.filters.near_duplicates:
            arrays["signatures"] = np.array(result.signatures, np.uint32).reshape(count, PERMUTATIONS)
        note = {
            "names": result.names,
            "read": result.read,
            "dropped": result.dropped.entries,
            "stripped": dict(sorted(result.stripped.items())),
        }
        with atomic_file(path) as temporary:
            write_arrays(temporary, arrays, note)


def _sketched(of_text: Hashes, rendered: Rendered | None) -> Hashes:
    """The words by which near duplicates are told: of rows from code the function, and gaps resemble gaps alone."""
    if rendered is None:
        return of_text
    told = word_codes(rendered.about) if rendered.about else of_text
    return told if rendered.suffix is None else told ^ _OF_GAPS


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False

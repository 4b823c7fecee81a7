"""Instruction rows from the documents that a corpus trains on, and from no document that it holds out.

Requests and gaps from their functions, and fragments of their text with all but the first line to denoise: a model that
learns chats alone forgets code (SmolLM2-135M, 101 steps without fragments: held-out loss 4.9 -> 6.3).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dcoder_cli.base.files import write_jsonl

_LEAST_LINES = 4  # of a fragment (ours)
_MOST_DOCUMENTS = 20_000  # kept in memory (ours); their order is drawn, so the first ones are of all sources


class Documents:
    """Documents that a pretraining folder trains on, as text, in the order of its rows; `seed`: of the fragments."""

    def __init__(self, corpus: Path, tokenizer: Path, seed: int) -> None:
        from dcoder_cli.data.formats import ChatEncoder
        from dcoder_cli.data.packing import unpack
        from dcoder_cli.data.shards import ShardSet
        from dcoder_cli.model.text import decode
        from dcoder_cli.model.tokenizer import load_tokenizer

        shards, words = ShardSet.open(corpus, "train"), load_tokenizer(tokenizer)
        self._chat = ChatEncoder(words)
        special = shards.manifest["special_tokens"]
        bos = special["bos"]["id"] if "bos" in special else None
        rows = (row for place in range(len(shards)) for row in shards.rows([place])["tokens"])
        found = islice(unpack(rows, special["eos"]["id"], bos), _MOST_DOCUMENTS)
        self._texts = [decode(words, ids) for ids in found]
        self._seed = seed

    def write_pairs(self, folder: Path, count: int, most: int) -> int:
        """Write up to `count` requests and gaps of at most `most` tokens to `folder/pairs.jsonl`; returns how many there are."""
        from dcoder_cli.data import code_pairs
        from dcoder_cli.data.sources import parse_sources, plan_units

        texts = folder / "documents.jsonl"
        write_jsonl(texts, ({"text": text} for text in self._texts))
        units, _ = plan_units(parse_sources((str(texts),)))
        records = (
            record for unit in units for piece in unit.pieces for record in code_pairs.rows(piece, code_pairs.CODE_GAPS)
        )
        usable = (record.value for record in records if record.problem is None and isinstance(record.value, dict))
        plain = ({key: row[key] for key in row if key != "code"} for row in usable)
        return _write(folder / "pairs.jsonl", (row for row in plain if 0 < self._tokens(row) <= most), count)

    def write_fragments(self, folder: Path, count: int, most: int) -> int:
        """Likewise, of fragments, to `folder/fragments.jsonl`: at most one a document, in an order that is drawn."""
        texts = list(self._texts)
        random.Random(self._seed).shuffle(texts)
        found = (self._fragment(text, most, place) for place, text in enumerate(texts))
        return _write(folder / "fragments.jsonl", (row for row in found if row is not None), count)

    def _fragment(self, text: str, most: int, place: int) -> dict[str, Any] | None:
        """As many whole lines, from one that is drawn on, as `most` tokens hold."""
        lines = text.split("\n")
        first = random.Random(f"{self._seed} {place}").randrange(max(1, len(lines) - _LEAST_LINES))
        row: dict[str, Any] | None = None
        for last in range(first + _LEAST_LINES, len(lines) + 1):
            longer = {"prefix": lines[first] + "\n", "hole": "\n".join(lines[first + 1 : last]), "suffix": ""}
            if not 0 < self._tokens(longer) <= most:
                break
            row = longer
        return row if row is not None and row["hole"].strip() else None

    def _tokens(self, row: Mapping[str, Any]) -> int:
        """Of a row as `dcoder tokenize sft` encodes it; 0 where it would be dropped."""
        from dcoder_cli.data.formats import sample_of
        from dcoder_cli.data.holes import Gap, room

        sample = sample_of(dict(row), "")
        if isinstance(sample, Gap):
            rendered = self._chat.render_gap(sample)
            if rendered.reason:
                return 0
            prefix, hole, suffix = map(len, self._chat.encode_gap(rendered))
            return prefix + int(room(np.array(hole))) + suffix
        rendered = self._chat.render(sample)
        return 0 if rendered.reason else sum(map(len, next(self._chat.encode([rendered]))))


def _write(path: Path, rows: Iterator[dict[str, Any]], count: int) -> int:
    found = list(islice(rows, count))
    write_jsonl(path, found)
    return len(found)

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

from dcoder_cli.base.files import write_jsonl

_LEAST_LINES = 4  # of a fragment (ours)


class Documents:
    """The documents that a pretraining folder trains on, as text, in the order of its rows; `seed`: of the fragments."""

    def __init__(self, corpus: Path, tokenizer: Path, seed: int) -> None:
        from dcoder_cli.data.packing import unpack
        from dcoder_cli.data.shards import ShardSet
        from dcoder_cli.model.text import decode
        from dcoder_cli.model.tokenizer import load_tokenizer

        shards, self._words = ShardSet.open(corpus, "train"), load_tokenizer(tokenizer)
        special = shards.manifest["special_tokens"]
        bos = special["bos"]["id"] if "bos" in special else None
        rows = (row for place in range(len(shards)) for row in shards.rows([place])["tokens"])
        self._texts = [decode(self._words, ids) for ids in unpack(rows, special["eos"]["id"], bos)]
        self._seed = seed

    def write_pairs(self, folder: Path, count: int, room: int) -> int:
        """Write up to `count` requests and gaps of at most `room` tokens to `folder/pairs.jsonl`; returns how many there are."""
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
        return _write(folder / "pairs.jsonl", (row for row in plain if self._tokens(row) <= room), count)

    def write_fragments(self, folder: Path, count: int, room: int) -> int:
        """Likewise, of fragments, to `folder/fragments.jsonl`: at most one a document, in an order that is drawn."""
        texts = list(self._texts)
        random.Random(self._seed).shuffle(texts)
        found = (self._fragment(text, room, place) for place, text in enumerate(texts))
        return _write(folder / "fragments.jsonl", (row for row in found if row is not None), count)

    def _fragment(self, text: str, room: int, place: int) -> dict[str, Any] | None:
        """As many whole lines, from one that is drawn on, as `room` tokens hold."""
        lines = text.split("\n")
        first = random.Random(f"{self._seed} {place}").randrange(max(1, len(lines) - _LEAST_LINES))
        row: dict[str, Any] | None = None
        for last in range(first + _LEAST_LINES, len(lines) + 1):
            longer = {"prefix": lines[first] + "\n", "hole": "\n".join(lines[first + 1 : last]), "suffix": ""}
            if self._tokens(longer) > room:
                break
            row = longer
        return row if row is not None and row["hole"].strip() else None

    def _tokens(self, row: Mapping[str, Any]) -> int:
        words: Any = self._words
        if "messages" in row:
            return len(words(words.apply_chat_template(row["messages"], tokenize=False))["input_ids"])
        return 1 + sum(len(words(text)["input_ids"]) for text in row.values() if isinstance(text, str))


def _write(path: Path, rows: Iterator[dict[str, Any]], count: int) -> int:
    found = list(islice(rows, count))
    write_jsonl(path, found)
    return len(found)

"""Requests and gaps from the functions of the documents that a corpus trains on, and of no document that it holds out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from dcoder_cli.base.files import write_jsonl


def write_pairs(corpus: Path, tokenizer: Path, folder: Path, count: int, room: int) -> int:
    """Write up to `count` rows of at most `room` tokens to `folder/pairs.jsonl`; returns how many there are."""
    from dcoder_cli.data import code_pairs
    from dcoder_cli.data.packing import unpack
    from dcoder_cli.data.shards import ShardSet
    from dcoder_cli.data.sources import parse_sources, plan_units
    from dcoder_cli.model.text import decode
    from dcoder_cli.model.tokenizer import load_tokenizer

    shards, words = ShardSet.open(corpus, "train"), load_tokenizer(tokenizer)
    special = shards.manifest["special_tokens"]
    bos = special["bos"]["id"] if "bos" in special else None
    rows = (row for place in range(len(shards)) for row in shards.rows([place])["tokens"])
    texts = folder / "documents.jsonl"
    write_jsonl(texts, ({"text": decode(words, ids)} for ids in unpack(rows, special["eos"]["id"], bos)))
    units, _ = plan_units(parse_sources((str(texts),)))
    records = (
        record for unit in units for piece in unit.pieces for record in code_pairs.rows(piece, code_pairs.CODE_GAPS)
    )
    usable = (record.value for record in records if record.problem is None and isinstance(record.value, dict))
    fitting = (
        row
        for row in ({key: row[key] for key in row if key != "code"} for row in usable)
        if _tokens(words, row) <= room
    )
    found = list(islice(fitting, count))
    write_jsonl(folder / "pairs.jsonl", found)
    return len(found)


def _tokens(tokenizer: Any, row: Mapping[str, Any]) -> int:
    if "messages" in row:
        return len(tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False))["input_ids"])
    return 1 + sum(len(tokenizer(text)["input_ids"]) for text in row.values() if isinstance(text, str))

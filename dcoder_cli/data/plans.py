"""What `dcoder tokenize` would do, as `--dry-run` tells it: sources, sizes, and for plain text an estimate of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import human_bytes
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.data.arrays import token_dtype
from dcoder_cli.data.formats import sample_of
from dcoder_cli.data.records import TextMapping, first_record, texts_of
from dcoder_cli.data.sources import Source, Unit
from dcoder_cli.model.tokenizer import ids_end

_SAMPLED = 1_000_000  # characters of each source (ours): enough for tokens a character within a few percent
_UNKNOWN = ("parquet", "hub")  # whose bytes are not those of the text


def plan_of(
    kind: str, settings: Any, tokenizer: Any | None, sources: Sequence[Source], units: Sequence[Unit], out: Path
) -> RunPlan:
    """What is read and where it goes; `settings` are a dataclass."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in ("sources", "out", "quiet")}
    plan = RunPlan(f"tokenize {kind}", chosen)
    found: list[dict[str, Any]] = []
    for number, source in enumerate(sources):
        mine = [unit for unit in units if unit.source == number]
        files, size = len({piece.path for unit in mine for piece in unit.pieces}), sum(unit.bytes for unit in mine)
        found.append({"source": source.location, "weight": source.weight, "files": files, "bytes": size})
    told = [
        f"{one['source']}: "
        + (f"{one['files']:,} files, {human_bytes(one['bytes'])}" if one["bytes"] else "size unknown")
        for one in found
    ]
    plan.add("sources", found, "; ".join(told))
    plan.add("units", len(units), f"{len(units):,}, for that many workers at most")
    if tokenizer is not None:
        plan.add("tokenizer", {"name": str(settings.tokenizer), "vocab_size": ids_end(tokenizer)},
                 f"{settings.tokenizer}: {ids_end(tokenizer):,} tokens")  # fmt: skip
    else:
        plan.add(
            "tokenizer", {"train": settings.train_tokenizer}, f"trained first: {settings.train_tokenizer:,} tokens"
        )
    plan.add("out", str(out))
    return plan


def estimate_tokens(
    plan: RunPlan,
    tokenizer: Any | None,
    sources: Sequence[Source],
    units: Sequence[Unit],
    mapping: TextMapping,
    sequence_length: int,
) -> None:
    """Tokens, rows and bytes before anything is dropped, from the first million characters of each source."""
    if tokenizer is None:
        plan.add("tokens", None, "not known before the tokenizer is trained")
        return
    tokens = 0.0
    for number in range(len(sources)):
        mine = [unit for unit in units if unit.source == number]
        if not mine:
            continue
        if any(_compressed(piece.path) or piece.form in _UNKNOWN for unit in mine for piece in unit.pieces):
            plan.add("tokens", None, "not estimated: compressed files, Parquet or hub data")
            return
        characters, counted = 0, 0
        for text in texts_of(mine, mapping):
            counted += len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False))
            characters += len(text.encode("utf-8", "replace"))
            if characters >= _SAMPLED:
                break
        if characters:
            tokens += counted / characters * sum(unit.bytes for unit in mine) * sources[number].weight
    size = np.dtype(token_dtype(ids_end(tokenizer))).itemsize
    plan.add(
        "tokens", {"estimate": round(tokens), "rows": round(tokens / sequence_length)},
        f"about {tokens:,.0f}, {tokens / sequence_length:,.0f} rows of {sequence_length:,}, before anything is dropped",
    )  # fmt: skip
    plan.add_disk(Path(plan.facts["out"][0]), 2 * tokens * (size + 2), "the tokens, twice while they are written")


def _compressed(path: str) -> bool:
    return path.endswith((".gz", ".zst"))


def check_first(
    sources: Sequence[Source], units: Sequence[Unit], read: Callable[[dict[str, Any], str], object]
) -> None:
    """Read the first record of each source, so that a wrong column shows at once. Raises UserError for one."""
    for number, source in enumerate(sources):
        first = next(unit for unit in units if unit.source == number)
        record = first_record(first.pieces)
        if record is None:
            continue
        if isinstance(record.value, dict):
            read(record.value, record.name)
        elif read is sample_of:
            raise UserError(
                f"source {source.location!r} holds text files; sft needs .jsonl, .json, .parquet or hub:NAME, or --from-code"
            )

"""`bench tokenize`: `dcoder tokenize pretrain`, filters off, beside a loop that encodes document after document.

Both read the same file of JSON lines and write their rows. Ours shuffles documents, so those that its rows hold are compared,
not the rows. R rows, L tokens of each.
"""

from __future__ import annotations

import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_jsonl
from dcoder_cli.data.arrays import token_dtype
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.manifest import read_manifest
from dcoder_cli.data.packing import unpack
from dcoder_cli.data.pipeline import PretrainSettings, tokenize_pretrain
from dcoder_cli.data.records import TextMapping, texts_of
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.data.sources import parse_sources, plan_units
from dcoder_cli.model.tokenizer import load_tokenizer, train_tokenizer
from dcoder_cli.timing import race, report

_ROW = 1024  # tokens of a row (ours)
_VOCABULARY = 4096  # of a tokenizer that is trained here (ours)
_EXCLUDED = ("site-packages", "dist-packages", "test", "tests", "idlelib")  # of Python's own library
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class TokenizeBench:
    """What is measured.

    Attributes:
        sources: as `dcoder tokenize` takes them; none: Python's own library.
        megabytes: text that is taken of them, at most.
        tokenizer: a folder or hub id; None: one is trained on the text.
        workers: processes that tokenize.
    """

    sources: Sequence[str] = ()
    megabytes: float = 4.0
    tokenizer: str | None = None
    workers: int = 1
    repeats: int = 5


def runs(asked: TokenizeBench) -> int:
    """How often `on_run` will be called."""
    return race.RUNS_ASIDE + 2 * asked.repeats


def bench(asked: TokenizeBench, on_run: Callable[[str], None]) -> dict[str, Any]:
    """The document of report.py.

    Raises:
        UserError: a wrong setting, source or tokenizer.
    """
    race.check_repeats(asked.repeats)
    for name, value in (("--megabytes", asked.megabytes), ("--workers", asked.workers)):
        if not value > 0:
            raise UserError(f"{name} {value:g} must be above 0")
    if asked.tokenizer is not None:
        load_tokenizer(asked.tokenizer)
    texts = list(_texts(asked))
    if not texts:
        raise UserError(f"source {asked.sources[0]!r} holds no text; name one that does")
    with tempfile.TemporaryDirectory(prefix="dcoder-bench-") as name:
        return _measured(asked, texts, Path(name), on_run)


def _texts(asked: TokenizeBench) -> Iterator[str]:
    """Texts of the sources, in order, up to the megabytes; the last is cut."""
    exclude = () if asked.sources else _EXCLUDED
    sources = parse_sources(asked.sources or [sysconfig.get_paths()["stdlib"]])
    units, _ = plan_units(sources, (), exclude)
    left = int(asked.megabytes * 1e6)
    for text in texts_of(units, TextMapping()):
        if not text.strip():
            continue
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _measured(asked: TokenizeBench, texts: list[str], folder: Path, on_run: Callable[[str], None]) -> dict[str, Any]:
    tokenizer = asked.tokenizer
    if tokenizer is None:
        tokenizer = str(folder / "tokenizer")
        train_tokenizer(texts, _VOCABULARY).save_pretrained(tokenizer)
    source = folder / "texts.jsonl"
    write_jsonl(source, ({"text": text} for text in texts))
    filters = FilterSettings(False, 0.0, code_filters="none", max_document_bytes=2**62)
    settings = PretrainSettings(
        (str(source),), str(folder / "ours"), tokenizer, seq_len=_ROW, heldout=0.0, workers=asked.workers,
        filters=filters, bos=False, overwrite=True, quiet=True,
    )  # fmt: skip
    ours, plain = partial(_ours, settings), partial(_plain, source, tokenizer, folder / "plain.npy")
    works = (race.Work(ours, partial(_documents, ours)), race.Work(plain, plain))
    timings = race.race(works, asked.repeats, _CPU, on_run, alone=asked.workers == 1)
    mine, (his, engine) = timings[0].result, (timings[1].result, _engine(settings))
    count = sum(map(len, his))
    size = sum(len(text.encode()) for text in texts)
    what = {"documents": len(texts), "megabytes": round(size / 1e6, 3), "workers": asked.workers}
    rates = tuple({"megabytes_per_second": race.spread([size / 1e6 / wall for wall in one.wall])} for one in timings)
    vocabulary = len(load_tokenizer(tokenizer))
    named = asked.tokenizer or "trained here"
    subject = {"tokenizer": f"{named} ({vocabulary:,} tokens)", "engine": engine}
    found = report.case(what, "tokens", count, *timings, agree(mine, his), (rates[0], rates[1]))
    return report.document("tokenize", subject, _CPU, None, asked.repeats, [found])


def _ours(settings: PretrainSettings) -> dict[str, Any]:
    shutil.rmtree(settings.out, ignore_errors=True)
    return tokenize_pretrain(settings)


def _documents(ours: Callable[[], dict[str, Any]]) -> list[list[int]]:
    """The documents in the rows that ours wrote."""
    manifest = ours()
    shards = ShardSet.open(ours.args[0].out, "train")  # type: ignore[attr-defined]
    return list(unpack(shards.rows(range(len(shards)))["tokens"], manifest["special_tokens"]["eos"]["id"]))


def _engine(settings: PretrainSettings) -> str:
    return str(read_manifest(settings.out)["engine"])


def _plain(source: Path, tokenizer: str, out: Path) -> list[list[int]]:
    """Each document's ids, in order; the rows are written, the last filled up."""
    loaded = load_tokenizer(tokenizer)
    backend, end = loaded.backend_tokenizer, loaded.eos_token_id
    backend.encode_special_tokens = True  # in a document they are text
    backend.no_truncation()
    documents, flat = [], []
    for _, value in jsonl.objects(source, "texts"):
        ids = backend.encode(value["text"], add_special_tokens=False).ids
        documents.append(ids)
        flat += [*ids, end]
    flat += [end] * (-len(flat) % _ROW)
    np.save(out, np.array(flat, token_dtype(len(loaded))).reshape(-1, _ROW))
    return documents


def agree(ours: list[list[int]], plain: list[list[int]]) -> report.Agreement:
    """Whether both made the same ids of the same documents, in any order."""
    mine, his = sorted(ours), sorted(plain)
    equal = sum(one == other for one, other in zip(mine, his, strict=False))
    tokens = sum(map(len, his))
    numbers = {"documents": len(his), "equal_documents": equal, "tokens": tokens}
    if mine == his:
        return report.Agreement(True, f"agree: all {tokens:,} ids of {len(his):,} documents", numbers)
    words = f"DISAGREE: {len(his):,} documents by the plain loop, {len(mine):,} by dcoder, and their ids differ"
    return report.Agreement(False, words, numbers)

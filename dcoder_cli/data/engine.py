"""Tokenizing the units, by an engine that is proven before the first document and given up should it ever differ."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dcoder_cli.base.console import bar, note
from dcoder_cli.data.arrays import token_dtype
from dcoder_cli.data.records import TextMapping, texts_of
from dcoder_cli.data.sources import Unit
from dcoder_cli.data.tasks import Place
from dcoder_cli.data.unit_files import unit_path
from dcoder_cli.data.units import TokenizeJob, UnitWorker
from dcoder_cli.model.encoding import EnginesDiffer, TextEncoder, choose
from dcoder_cli.model.tokenizer import ids_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text on which the engines are compared before they are used (ours): 0.1 s.
_SAMPLED_UNITS, _SAMPLED_CHARACTERS = 32, 2**14
_MEGABYTE = 1e6


def choose_encoder(
    tokenizer: PreTrainedTokenizerBase, units: Sequence[Unit], mapping: TextMapping
) -> tuple[TextEncoder, str]:
    """What encodes the documents of `units`, and the name of its engine for the manifest.

    From here on `tokenizer` reads special tokens as text: it is the encoder's.

    Raises:
        UserError: a source is damaged.
    """
    size = sum(unit.bytes if unit.pieces[0].form != "hub" else sys.maxsize for unit in units)
    return choose(tokenizer.backend_tokenizer, token_dtype(ids_end(tokenizer)), size, _sample(units, mapping))


def _sample(units: Sequence[Unit], mapping: TextMapping) -> Iterator[str]:
    """Texts from all over the data; of the hub from its first part alone, since each is a connection."""
    local = [unit for unit in units if unit.pieces[0].form != "hub"] or units[:1]
    for unit in local[:: max(1, len(local) // _SAMPLED_UNITS)]:
        left = _SAMPLED_CHARACTERS
        for text in texts_of([unit], mapping):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def run_proven(
    job: TokenizeJob,
    engine: str,
    units: Sequence[Unit],
    place: Place,
    quiet: bool,
    forget: Callable[[], None],
) -> str:
    """Process every unit whose file is not there yet; returns the name of the engine that made the ids.

    Should tiktoken differ from `tokenizers` after all, `forget` removes what it made and `tokenizers` does all.
    """
    try:
        _run_units(job, units, place, quiet)
    except EnginesDiffer as difference:
        assert job.texts is not None
        note(f"{difference}: starting afresh with tokenizers alone")
        forget()
        _run_units(replace(job, texts=job.texts.without_tiktoken()), units, place, quiet)
        return f"tokenizers ({difference})"
    return engine


def _run_units(job: TokenizeJob, units: Sequence[Unit], place: Place, quiet: bool) -> None:
    """Process every unit whose file is not there yet.

    Raises:
        UserError: what a worker raised, such as a damaged source.
        WorkFailed: a worker was killed.
        OSError: the disk is full, or cannot be written.
    """
    waiting = [index for index in range(len(units)) if not unit_path(job.folder, index).exists()]
    total = sum(unit.bytes for unit in units)
    done = total - sum(units[index].bytes for index in waiting)
    begin, read = time.monotonic(), 0
    with bar("tokenizing (MB)", round(total / _MEGABYTE, 1) or None, done / _MEGABYTE, quiet) as progress:

        def add(number: int, size: int) -> None:
            nonlocal read
            read += size
            rate = read / _MEGABYTE / max(time.monotonic() - begin, 1e-3)
            progress.advance(units[waiting[number]].bytes / _MEGABYTE, f"{rate:.1f} MB/s")

        if waiting:
            place.run(UnitWorker.process, UnitWorker(job), ((index, units[index]) for index in waiting), add)
    seconds = time.monotonic() - begin
    if not quiet and waiting:
        note(f"tokenized {read / _MEGABYTE:.1f} MB in {seconds:.1f} s ({read / _MEGABYTE / seconds:.1f} MB/s)")

"""Which engine makes the ids of a run: proven before the first document, and given up should it ever differ."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dcoder_cli.base.console import note
from dcoder_cli.data.parallel import run_units
from dcoder_cli.data.records import TextMapping, texts_of
from dcoder_cli.data.shards import token_dtype
from dcoder_cli.data.sources import Unit
from dcoder_cli.data.units import TokenizeJob
from dcoder_cli.model.encoding import EnginesDiffer, TextEncoder, choose
from dcoder_cli.model.tokenizer import ids_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text on which the engines are compared before they are used (ours): 0.1 s.
_SAMPLED_UNITS, _SAMPLED_CHARACTERS = 32, 2**14


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
    workers: int,
    quiet: bool,
    forget: Callable[[], None],
    ray: str | None = None,
) -> str:
    """`run_units`, and the name of the engine that made the ids.

    Should tiktoken differ from `tokenizers` after all, `forget` removes what it made and `tokenizers` does all.
    """
    try:
        run_units(job, units, workers, quiet, ray)
    except EnginesDiffer as difference:
        assert job.texts is not None
        note(f"{difference}: starting afresh with tokenizers alone")
        forget()
        run_units(replace(job, texts=job.texts.without_tiktoken()), units, workers, quiet, ray)
        return f"tokenizers ({difference})"
    return engine

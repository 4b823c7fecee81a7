"""From sources to shards: plan, process units in parallel, select, pack, describe.

The result is the same, byte for byte, for any number of workers and after any number of stops. A compressed file is read by
one worker, and its tokens stay in its memory until it ends: many files of some 100 MB are better than one of 10 GB.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli import __version__
from dcoder_cli.base.console import note
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_folder, check_replaceable, require_space
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.data import cluster
from dcoder_cli.data.code_pairs import CODE_GAPS, check_tables
from dcoder_cli.data.decontaminate import load_contamination
from dcoder_cli.data.engine import choose_encoder, run_proven
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.formats import ChatEncoder, sample_of
from dcoder_cli.data.manifest import MANIFEST, parse_part, part_name, write_manifest
from dcoder_cli.data.plans import check_first, estimate_tokens, plan_of
from dcoder_cli.data.records import TextMapping, texts_of
from dcoder_cli.data.selection import select
from dcoder_cli.data.shards import LONGEST_ROW
from dcoder_cli.data.sources import Source, Unit, parse_sources, plan_units
from dcoder_cli.data.units import TokenizeJob
from dcoder_cli.data.workspace import Workspace, open_workspace
from dcoder_cli.data.writing import check_left, describe, with_taught_tokens, write_rows
from dcoder_cli.model.tokenizer import DREAM_BOS, ids_end, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRAINING_BYTES = 100 * 2**20  # text a tokenizer is trained on (ours): more changes few merges


@dataclass(frozen=True)
class PretrainSettings:
    """Settings of `dcoder tokenize pretrain`. `workers` 0: one for each core. `ray`: a cluster's address, instead. `shard`: this machine, as i/n."""

    sources: tuple[str, ...]
    out: str
    tokenizer: str | None = None
    train_tokenizer: int | None = None
    tokenizer_digits: int = 1  # Qwen2's; longest run of digits in one token of a trained tokenizer
    seq_len: int = 4096  # DiffuCoder B.1
    seed: int = 0
    heldout: float = 0.005  # ours: enough rows for the loss per band of t at any real size
    workers: int = 0
    ray: str | None = None
    shard: str = "1/1"
    mapping: TextMapping = field(default_factory=TextMapping)
    extensions: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    filters: FilterSettings = field(default_factory=FilterSettings)
    eos_token: str | None = None
    bos: bool | None = None  # begin rows with the tokenizer's BOS; None: where it is Dream's
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class SftSettings:
    """Settings of `dcoder tokenize sft`."""

    sources: tuple[str, ...]
    out: str
    tokenizer: str
    seq_len: int = 2048  # DiffuCoder B.1
    seed: int = 0
    heldout: float = 0.005  # ours, as above
    workers: int = 0
    ray: str | None = None
    shard: str = "1/1"
    pad_token: str | None = None
    system: str | None = None
    from_code: bool = False
    gaps: float = CODE_GAPS
    extensions: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    # Instructions resemble each other by design, and their length is bounded by the row: only exact copies go.
    filters: FilterSettings = field(default_factory=lambda: FilterSettings(near_duplicates=0.0, code_filters="none"))
    overwrite: bool = False
    quiet: bool = False


Settings = PretrainSettings | SftSettings


def tokenize_pretrain(settings: PretrainSettings) -> dict[str, Any]:
    """Sources to packed rows in `settings.out`; returns the manifest.

    Raises:
        UserError: anything wrong with the settings, the sources, the tokenizer or the disk.
    """
    _check_pretrain(settings)
    return _run("pretrain", settings, settings.mapping)


def _check_pretrain(settings: PretrainSettings) -> None:
    settings.mapping.check()
    if (settings.tokenizer is None) == (settings.train_tokenizer is None):
        raise UserError("give either --tokenizer T or --train-tokenizer SIZE")


def tokenize_sft(settings: SftSettings) -> dict[str, Any]:
    """Chat data to padded rows in `settings.out`; returns the manifest. Raises UserError as `tokenize_pretrain`."""
    return _run("sft", settings, TextMapping())


def _run(kind: str, settings: Settings, mapping: TextMapping) -> dict[str, Any]:
    ready = _ready(kind, settings, mapping)
    out, tokenizer, sources, units, mine = ready.out, ready.tokenizer, ready.sources, ready.units, ready.mine
    contamination, notes = ready.contamination, ready.notes
    for message in notes if not settings.quiet else ():
        note(message)
    with open_workspace(out, settings.overwrite) as workspace:
        plan = _plan(kind, settings, units, tokenizer)
        if workspace.resume(plan, settings.quiet) and not settings.quiet:
            note(f"going on from {workspace.root}")
        if tokenizer is None:
            assert isinstance(settings, PretrainSettings)
            tokenizer = _trained(workspace, settings, units, mapping)
            _check_length(settings.seq_len, tokenizer)
        texts, engine = choose_encoder(tokenizer, mine, mapping) if kind == "pretrain" else (None, "tokenizers")
        job = TokenizeJob(
            kind="sft" if kind == "sft" else "pretrain",
            folder=str(workspace.units),
            filters=settings.filters,
            mapping=mapping,
            texts=texts,
            tokenizer=tokenizer if kind == "sft" else None,
            vocab_size=ids_end(tokenizer),
            contamination=contamination,
            sequence_length=settings.seq_len,
            system=settings.system if isinstance(settings, SftSettings) else None,
            code_gaps=settings.gaps if isinstance(settings, SftSettings) and settings.from_code else None,
        )
        special = _special_tokens(settings, tokenizer)
        with cluster.open_place(settings.workers, mine, settings.ray, workspace.root) as place:
            engine = run_proven(job, engine, mine, place, settings.quiet, workspace.forget_units)
            chosen = select(kind, mine, sources, settings, workspace.units, workspace.copies, place)
            files, splits = write_rows(kind, workspace.result, chosen, settings, ids_end(tokenizer), special, place)
        check_left(files, chosen, sources)
        if isinstance(settings, PretrainSettings) and settings.train_tokenizer is not None:
            tokenizer.save_pretrained(workspace.result / "tokenizer")
        manifest = {
            **describe(kind, settings, tokenizer, settings.tokenizer),
            "sequence_length": settings.seq_len,
            "special_tokens": special,
            "engine": engine,
            "splits": splits,
            "sources": with_taught_tokens(kind, chosen, settings.seq_len),
            "dropped": chosen.dropped,
            "licence_headers_stripped": chosen.stripped,
            "files": files,
        }
        manifest = write_manifest(workspace.result, manifest)
        workspace.publish()
    return manifest


@dataclass(frozen=True)
class _Ready:
    """What is known once the input is checked, before anything is written."""

    out: Path
    tokenizer: PreTrainedTokenizerBase | None
    sources: list[Source]
    units: list[Unit]
    mine: list[Unit]
    contamination: Any
    notes: list[str]


def _ready(kind: str, settings: Settings, mapping: TextMapping) -> _Ready:
    settings.filters.check()
    cluster.check(settings.ray)
    if not 0 <= settings.heldout < 1:
        raise UserError(f"--heldout {settings.heldout} must be a share from 0 to below 1")
    index, count = parse_part(settings.shard)
    out = Path(settings.out) / part_name(index, count) if count > 1 else Path(settings.out)
    tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer is not None else None
    _check_length(settings.seq_len, tokenizer)
    sources = parse_sources(settings.sources)
    units, notes = plan_units(sources, settings.extensions, settings.exclude)
    mine = units[index - 1 :: count]
    if not mine:
        raise UserError(f"--shard {settings.shard} has no work: the sources make {len(units)} units")
    contamination = None
    if settings.filters.decontaminate:
        filters = settings.filters
        contamination = load_contamination(filters.decontaminate, filters.benchmarks, filters.decontaminate_ngram)
    if isinstance(settings, SftSettings) and settings.from_code:
        if not 0 <= settings.gaps <= 1:
            raise UserError(f"--gaps {settings.gaps} must be a share from 0 to 1")
        check_tables(sources, units)
    else:
        check_first(sources, units, _reader(kind, mapping))
    size = sum(unit.bytes for unit in mine)
    require_space(out.parent, size // 4, "the tokens")  # a lower bound: dense code takes about half its size
    return _Ready(out, tokenizer, sources, units, mine, contamination, notes)


def plan_pretrain(settings: PretrainSettings) -> RunPlan:
    """What `tokenize_pretrain` would do, once its input is checked; nothing is written. Raises UserError as it does."""
    _check_pretrain(settings)
    return _planned("pretrain", settings, settings.mapping)


def plan_sft(settings: SftSettings) -> RunPlan:
    """As `plan_pretrain`, of `tokenize_sft`."""
    return _planned("sft", settings, TextMapping())


def _planned(kind: str, settings: Settings, mapping: TextMapping) -> RunPlan:
    ready = _ready(kind, settings, mapping)
    check_replaceable(ready.out, settings.overwrite, MANIFEST, "finished data")
    if ready.tokenizer is not None:
        _special_tokens(settings, ready.tokenizer)
    plan = plan_of(kind, settings, ready.tokenizer, ready.sources, ready.mine, ready.out)
    if kind == "pretrain":
        estimate_tokens(plan, ready.tokenizer, ready.sources, ready.mine, mapping, settings.seq_len)
    return plan


def _check_length(length: int, tokenizer: PreTrainedTokenizerBase | None) -> None:
    longest = LONGEST_ROW
    if tokenizer is not None and tokenizer.model_max_length < LONGEST_ROW:
        longest = tokenizer.model_max_length
    if not 8 <= length <= longest:
        raise UserError(f"--seq-len {length} must be from 8 to {longest}")


def _reader(kind: str, mapping: TextMapping) -> Callable[[dict[str, Any], str], object]:
    return mapping.text if kind == "pretrain" else sample_of


def _plan(kind: str, settings: Settings, units: Sequence[Unit], tokenizer: Any) -> dict[str, Any]:
    """What decides the result, to tell whether earlier work still counts. Knows changed files by size and time."""
    stamps = hashlib.sha256()
    for unit in units:
        for piece in unit.pieces:
            status = os.stat(piece.path) if piece.form != "hub" else None
            stamp = (status.st_size, status.st_mtime_ns) if status is not None else (0, 0)
            stamps.update(repr((unit.source, piece, stamp)).encode())
    chosen = replace(settings, out="", workers=0, ray=None, quiet=False, overwrite=False)
    full = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest() if tokenizer is not None else ""
    plan = {
        "dcoder": __version__,
        "kind": kind,
        "settings": asdict(chosen),
        "units": stamps.hexdigest(),
        "tokenizer": full,
    }
    loaded: dict[str, Any] = json.loads(json.dumps(plan))
    return loaded


def _trained(
    workspace: Workspace, settings: PretrainSettings, units: Sequence[Unit], mapping: TextMapping
) -> PreTrainedTokenizerBase:
    """The tokenizer trained on the sources, all machines' parts included; trained once, then read back."""
    if not workspace.tokenizer.is_dir():
        total = sum(unit.bytes for unit in units)
        step = max(1, -(-total // _TRAINING_BYTES))  # every step-th unit, so that all sources are heard
        begin = time.monotonic()
        assert settings.train_tokenizer is not None
        trained = train_tokenizer(
            texts_of(units[::step], mapping), settings.train_tokenizer, digits=settings.tokenizer_digits
        )
        with atomic_folder(workspace.tokenizer) as folder:
            trained.save_pretrained(folder)
        if not settings.quiet:
            note(f"trained a tokenizer of {len(trained)} tokens in {time.monotonic() - begin:.0f} s")
    return load_tokenizer(workspace.tokenizer)


def _special_tokens(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The ids the rows use, each with its token. Raises UserError for one the tokenizer does not have."""

    def entry(token: str, option: str) -> dict[str, Any]:
        index = tokenizer.backend_tokenizer.token_to_id(token)
        if index is None:
            raise UserError(f"{option} {token!r} is not in the tokenizer's vocabulary")
        return {"id": index, "token": token}

    eos = settings.eos_token if isinstance(settings, PretrainSettings) else None
    if eos is None and tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-text token; name one with --eos-token")
    special: dict[str, Any] = {"eos": entry(str(eos or tokenizer.eos_token), "--eos-token")}
    if isinstance(settings, PretrainSettings) and settings.bos is not False:
        bos = tokenizer.bos_token
        if settings.bos and bos is None:
            raise UserError("the tokenizer has no BOS token to begin rows with; leave out --bos")
        if bos is not None and (settings.bos or bos == DREAM_BOS):
            special["bos"] = entry(str(bos), "--bos: the tokenizer's")
    pad = str(tokenizer.pad_token) if tokenizer.pad_token is not None else None
    if isinstance(settings, SftSettings):
        end = ChatEncoder(tokenizer, settings.system).end_of_turn
        special["end_of_turn"] = {"id": end.id, "token": end.token}
        if settings.pad_token is not None:
            pad = settings.pad_token
        elif pad in (None, tokenizer.eos_token) and "<|dlm_pad|>" in tokenizer.get_vocab():
            pad = "<|dlm_pad|>"  # DiffuCoder's own pad, trained to end and fill the answer
        if pad is None:
            raise UserError("the tokenizer has no pad token; name one with --pad-token")
    if pad is not None:
        special["pad"] = entry(pad, "--pad-token")
    return special

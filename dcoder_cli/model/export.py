"""A checkpoint as a folder that other people's code loads: what goes into it, checked first and then written whole or not at all.

Weights are copied file by file, or cast one file at a time; `training/` stays behind. config.json is written as the family's
public code reads it, with `auto_map` to that code where it computes the same (public_code.py); tokenizer files as
transformers 4 reads them, for which that code was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base import checksums, jsonl
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_folder, require_space, write_json
from dcoder_cli.base.functions import short
from dcoder_cli.base.runs import model_labels
from dcoder_cli.model import adapters, checkpoint, identity, portable_tokenizer, storing
from dcoder_cli.model.agreement import check_stored
from dcoder_cli.model.layouts import BLOCKS, Layout, layout_of, other_shift, shift_of, transformers_config
from dcoder_cli.model.loading import choose_dtype, empty_network
from dcoder_cli.model.public_code import rope
from dcoder_cli.model.special_ids import SpecialIds, resolve

_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_CHUNK = 2**24  # bytes copied at a time

Told = Callable[[float], None]  # how many bytes have just been written


@dataclass(frozen=True)
class Weight:
    """A weight to be exported: the file it is in, and its format in the new one where no other is asked for."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Export:
    """A checkpoint that can be exported.

    Attributes:
        name, folder: as it was asked for, and where it lies.
        layout, config, ids, tokenizer: of the checkpoint; config.json as it will be written.
        generation: generation_config.json as it will be written.
        weights: stored name -> where and how; of an adapter alone those of the model below it.
        weights_id: see identity.py.
        parameters: how many numbers there are, as stored.
        stored_as: the number format of the weights, "mixed" of several.
        dtype: the one to write, None: as stored.
        why_not: why there is no `auto_map`, "" where there is one.
        context, vocab_size: tokens of a row, rows of the embedding.
    """

    name: str
    folder: Path
    layout: Layout
    config: dict[str, Any]
    ids: SpecialIds
    tokenizer: Any | None
    generation: dict[str, Any]
    weights: dict[str, Weight]
    weights_id: str
    parameters: int
    stored_as: str
    dtype: torch.dtype | None
    why_not: str
    context: int
    vocab_size: int

    @property
    def auto_map(self) -> dict[str, str] | None:
        """Of config.json."""
        return self.config.get("auto_map")

    @property
    def written_as(self) -> str:
        """The number format of the exported weights."""
        return self.stored_as if self.dtype is None else _name(self.dtype)

    @property
    def merges(self) -> bool:
        """Whether the checkpoint holds an adapter alone, which is merged with the model below it."""
        return adapters.stands_alone(self.folder)

    @property
    def bytes(self) -> int:
        """What the exported weights take."""
        return sum(torch.Size(one.shape).numel() * (self.dtype or one.dtype).itemsize for one in self.weights.values())


def plan(name: str, dtype: str | None = None) -> Export:
    """Read and check a checkpoint for its export; nothing is written.

    Args:
        name: a folder, a run folder (its last checkpoint) or a hub id.
        dtype: of the exported weights; None leaves them as stored, so that what was measured is what is published
            (a float32 checkpoint of 7B takes 30 GB and its bfloat16 copy, as the published ones are, 15).

    Raises:
        UserError: the checkpoint is missing, broken, or its config and weights do not belong together.
    """
    folder = checkpoint.find(name).resolve()  # a run that goes on moves its `last`
    source = checkpoint.read_config(folder)
    layout = layout_of(source, name)
    tokenizer = checkpoint.read_tokenizer(folder)
    ids, _ = resolve(source, tokenizer, layout.diffusion, name)
    theirs = transformers_config(source, layout)
    below = adapters.below(folder)
    check_stored(below, empty_network(source, layout, "sdpa", torch.device("cpu")), layout, name)
    weights = _weights(below)
    if adapters.stands_alone(folder):
        merged = adapters.base_of(folder).stored_dtype
        weights = {key: Weight(one.file, one.shape, merged) for key, one in weights.items()}
    chosen = None if dtype is None else choose_dtype(dtype, source, torch.device("cpu"))
    formats = {one.dtype for one in weights.values()}
    if formats == {chosen}:
        chosen = None
    stored_as = _name(formats.pop()) if len(formats) == 1 else "mixed"
    why_not = _why_not(source, layout, theirs)
    config = _config(source, layout, theirs, ids)
    if layout.public is not None and not why_not:
        config["auto_map"] = layout.public.auto_map
    written = stored_as if chosen is None else _name(chosen)
    if written != "mixed":
        config["dtype"] = config["torch_dtype"] = written
    return Export(
        name, folder, layout, config, ids, tokenizer, _generation(folder, config, int(theirs.vocab_size)), weights, identity.weights_id(folder),
        sum(torch.Size(one.shape).numel() for one in weights.values()), stored_as, chosen, why_not,
        int(theirs.max_position_embeddings), int(theirs.vocab_size),
    )  # fmt: skip


def write(export: Export, out: Path, texts: Mapping[str, str], told: Told | None = None) -> None:
    """Write the folder, all of it or none of it.

    Args:
        export: from `plan`.
        out: the folder to make (replaced if it exists).
        texts: more files, name -> content.
        told: progress.

    Raises:
        UserError: no room on the disk, a damaged file, or a number that the new format cannot hold.
    """
    require_space(out, export.bytes + 2**20, "the exported weights")
    below = adapters.below(export.folder)
    if not export.merges:  # where it does, they are checked as they are read
        files = sorted({one.file for one in export.weights.values()})
        checkpoint.check_files(below, [below / checkpoint.INDEX, *files])
        checkpoint.tell_of_changes(below)
    with atomic_folder(out) as temporary:
        _write_weights(export, temporary, told or (lambda _: None))
        write_json(temporary / "config.json", export.config)
        write_json(temporary / "generation_config.json", export.generation)
        if export.tokenizer is not None:
            portable_tokenizer.write(export.folder, temporary, export.tokenizer)
        if (export.folder / adapters.FOLDER).is_dir():
            _write_adapter(export.folder / adapters.FOLDER, temporary / adapters.FOLDER)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        checksums.write_record(temporary)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _why_not(source: Mapping[str, Any], layout: Layout, theirs: Any) -> str:
    if not layout.diffusion:
        return f"transformers' own {BLOCKS[layout.blocks].network} loads it"
    if layout.public is None:
        return f"the family {layout.name} names no public code"
    if shift_of(source, layout) != layout.shift:
        return other_shift(layout)
    package = layout.public.package
    return layout.public.cannot(theirs) or (
        "" if package is None else f"its code is the package {package} ({layout.public.repository}); import that first"
    )


def _config(source: Mapping[str, Any], layout: Layout, theirs: Any, ids: SpecialIds) -> dict[str, Any]:
    """config.json: what it says, completed by what the public code would otherwise fill in by itself."""
    # Left out: classes of the folder it came from, this machine's path, and rope, which is written anew below.
    left_out = ("auto_map", "_name_or_path", "rope_parameters", "rope_scaling")
    config = {key: value for key, value in source.items() if key not in left_out}
    if not layout.diffusion:
        return {**config, "architectures": [BLOCKS[layout.blocks].network], **rope(theirs)}
    if layout.public is not None:
        config.update(layout.public.to_config(theirs))
    for key in ("mask", "pad", "bos", "eos"):
        if config.get(f"{key}_token_id") is None:
            config[f"{key}_token_id"] = getattr(ids, key)
    recorded = source.get("dcoder")
    config["dcoder"] = {**(recorded if isinstance(recorded, dict) else {}), "shift": shift_of(source, layout)}
    return config


def _generation(folder: Path, config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """generation_config.json: Dream's loader wants the file, and its ids stand in for those that a call leaves out."""
    file = folder / "generation_config.json"
    checkpoint.read_answer_length(folder)  # refuses a broken file
    found = jsonl.document(file) if file.is_file() else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    for key in names:
        value = found.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(one) is not int or not 0 <= one < rows for one in ids):
            raise UserError(
                f"{str(file)!r} has {key} = {short(value)}, which is no id below {rows}; mend it or remove it"
            )
    return {**{key: config[key] for key in names if config.get(key) is not None}, **found}


def _weights(folder: Path) -> dict[str, Weight]:
    found = {}
    for key, one in checkpoint.stored_weights(folder).items():
        if one.dtype not in _STORED:
            raise UserError(
                f"weight {key!r} in {str(one.file)!r} is {one.dtype}, which dcoder does not export; use float32, bfloat16 or float16"
            )
        found[key] = Weight(one.file, one.shape, _STORED[one.dtype])
    return found


def _write_weights(export: Export, folder: Path, told: Told) -> None:
    files = sorted({one.file for one in export.weights.values()})
    if not export.merges and export.dtype is None and all(map(_readable, files)):
        for file in files:
            _copy(file, folder / file.name, told)
        index = files[0].parent / checkpoint.INDEX
        if index.is_file():
            _copy(index, folder / index.name, told)
        return
    merged: dict[str, Tensor] = {}
    if export.merges:  # as every command reads it: whole
        cpu, number = torch.device("cpu"), next(iter(export.weights.values())).dtype
        merged = {
            export.layout.to_stored(key): value
            for key, value in adapters.read_weights(export.folder, export.layout, cpu, number).items()
        }
    empty = {
        key: torch.empty(one.shape, dtype=export.dtype or one.dtype, device="meta")
        for key, one in export.weights.items()
    }
    with ExitStack() as stack:
        opened = {} if export.merges else {file: stack.enter_context(_open(file)) for file in files}

        def whole(key: str) -> Tensor:
            value = merged[key] if export.merges else opened[export.weights[key].file].get_tensor(key)
            told(empty[key].numel() * empty[key].element_size())
            return _cast(value, empty[key].dtype, key)

        storing.write_weights(folder, empty, whole, True)


def _readable(file: Path) -> bool:
    """Whether transformers 4 takes the file as it is: it wants the framework's name in the header."""
    with _open(file) as handle:
        return (handle.metadata() or {}).get("format") == "pt"


def _open(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="pt", device="cpu")


def _cast(value: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    cast = value.to(dtype)
    if dtype == torch.float16 and not bool(torch.isfinite(cast).all()) and bool(torch.isfinite(value).all()):
        raise UserError(f"weight {key!r} has numbers beyond float16's {torch.finfo(dtype).max:g}; use --dtype bfloat16")
    return cast


def _copy(source: Path, target: Path, told: Told) -> None:
    try:
        with open(source, "rb") as reader, open(target, "wb") as writer:
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)
                told(len(chunk))
    except FileNotFoundError:
        raise UserError(f"{str(source)!r} went away meanwhile; does its run still keep that checkpoint?") from None


def _write_adapter(source: Path, target: Path) -> None:
    """The adapter as peft reads it; of the model that it lies on, a hub id or a short name, no path of this machine."""
    target.mkdir()
    for file in sorted(one for one in source.iterdir() if one.is_file()):
        if file.suffix != ".json":
            _copy(file, target / file.name, lambda _: None)
            continue
        values = jsonl.document(file)
        for key in ("base_model_name_or_path", "model"):
            if isinstance(values.get(key), str):
                values[key] = _public_name(values[key])
        write_json(target / file.name, values)


def _public_name(model: str) -> str:
    return model if not Path(model).is_absolute() and not Path(model).exists() else model_labels([model])[0]

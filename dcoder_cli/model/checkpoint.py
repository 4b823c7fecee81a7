"""Checkpoints on disk: finding them (folder, hub cache, hub), reading and writing their parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base import checksums, console, jsonl
from dcoder_cli.base.checksums import Damaged
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.runs import checkpoint_of
from dcoder_cli.model import formats
from dcoder_cli.model.layouts import Layout
from dcoder_cli.model.tokenizer import load_tokenizer

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_TEXTS = (  # config and tokenizer, which people edit
    "config.", "generation_config.", "tokenizer", "special_tokens", "added_tokens", "vocab.", "merges.", "chat_template",
)  # fmt: skip
INDEX = "model.safetensors.index.json"


def find(name: str) -> Path:
    """The folder of a checkpoint given as a folder, a run folder (its last) or a hub id (downloaded, or in the hub cache).

    Raises:
        UserError: the run has no checkpoint, or there is no such folder and the hub does not have it or cannot be reached.
    """
    path = checkpoint_of(Path(name).expanduser())
    if path.is_dir():
        return _checkpoint(path, name)
    if path.exists():
        raise formats.no_folder(path, name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"model {name!r} is no folder here and no hub id (owner/name); check the path")
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:
        raise UserError(
            f"model {name!r} is no folder here and the hub gave nothing ({type(error).__name__}); check the name and the network"
        ) from None
    return _checkpoint(path, name)


def _checkpoint(folder: Path, name: str) -> Path:
    """A folder that is a checkpoint as far as its names tell. Raises UserError for another."""
    if not (folder / "config.json").is_file():
        raise formats.no_config(folder, name)
    formats.refuse_pointers(folder, "config.json")
    formats.refuse_adapter(folder, name)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder. Raises UserError if it is broken."""
    config = jsonl.document(folder / "config.json", "config")
    if config.get("dcoder") is None:  # no section, and one that is empty
        config.pop("dcoder", None)
    elif not isinstance(config["dcoder"], dict):
        raise UserError(f"{str(folder / 'config.json')!r} has 'dcoder', which is no section of names; mend it")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or single.

    Raises:
        UserError: one is missing, or it is not clear which are meant.
    """
    single, index = folder / "model.safetensors", folder / INDEX
    files = [single]
    if index.is_file():
        files = [folder / name for name in _listed(index)]
        parts = {file for file in folder.glob("model-*-of-*.safetensors") if file.is_file()}
        spare = parts - set(files) or ({single} if single.is_file() else set()) - set(files)
        if spare:
            raise UserError(
                f"weights file {str(min(spare))!r} lies beside {index.name}, which does not name it; "
                "remove what is not of this checkpoint"
            )
    for file in files:
        if not file.is_file():
            hint = formats.instead(folder) if files == [single] else formats.broken_off(folder)
            hint = hint or "; copy the checkpoint again"
            raise Damaged(f"weights file {str(file)!r} is missing{hint}", file)
    return files


def _listed(index: Path) -> list[str]:
    """The files of a list of weights. Raises UserError where it is none."""
    formats.refuse_pointers(index.parent, index.name)
    try:
        names = sorted(set(jsonl.document(index)["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{str(index)!r} is no list of weights and their files; copy the checkpoint again") from None
    return names


def read_weights(folder: Path, layout: Layout, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights by transformers key, read straight to `device` and cast to `dtype`.

    Raises:
        UserError: a file is truncated or no safetensors file.
    """
    weights = dict(each_weight(folder, layout, device, dtype))
    tell_of_changes(folder)  # all could be read: what cannot be is one line
    return weights


@dataclass(frozen=True)
class Stored:
    """A weight as the files hold it; `dtype` as safetensors names it, such as BF16."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def stored_weights(folder: Path) -> dict[str, Stored]:
    """All weights by their stored names, from the files' headers, in the order of `each_weight`.

    Raises:
        UserError: a file is truncated or no safetensors file, or two hold one weight.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as handle:
                for key in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    part = handle.get_slice(key)
                    if key in found:
                        raise UserError(
                            f"weight {key!r} is in {found[key].file.name!r} and in {file.name!r} of {str(folder)!r}; "
                            "remove the file that is not of this checkpoint"
                        )
                    found[key] = Stored(file, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise broken(file, error) from None
    return found


def weight_shapes(folder: Path, layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shapes of `stored_weights` by transformers key. Raises UserError as it does."""
    return {layout.to_ours(key): one.shape for key, one in stored_weights(folder).items()}


def each_weight(folder: Path, layout: Layout, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its transformers key, read straight to `device` and cast to `dtype`, one at a time.

    Raises:
        UserError: a file is truncated, no safetensors file, or not as the folder's checksums have it.
    """
    from safetensors import SafetensorError, safe_open

    check_files(folder, [folder / INDEX])
    for file in weight_files(folder):
        check_files(folder, [file])  # one at a time: what was just read is read again from memory
        try:
            with safe_open(file, framework="pt", device=str(device)) as handle:
                for key in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    yield layout.to_ours(key), handle.get_tensor(key).to(dtype)
        except (SafetensorError, OSError) as error:
            raise broken(file, error) from None


def check_files(folder: Path, files: Iterable[Path], what: str = "weights file") -> None:
    """Whether files of a checkpoint are as they were written, by its checksums.json; one without is taken as it is.

    Raises:
        Damaged: one is not; it is named.
    """
    checksums.check(folder, files, what, f"copy the checkpoint again, or if you replaced it, remove {checksums.RECORD}")


def tell_of_changes(folder: Path) -> None:
    """A line of warning where config or tokenizer are not as they were written: edited, which is allowed, or damaged."""
    names = checksums.changed(folder, _TEXTS)
    told = f"{', '.join(names)} of {str(folder)!r} changed since the checkpoint was written; copy it again, or if you made the change, all is well"
    if names and told not in _told:
        _told.add(told)
        console.warn(told)


_told: set[str] = set()  # so that a folder that is read twice is told of once


def broken(file: Path, error: Exception) -> UserError:
    """The refusal of a weights file that cannot be read."""
    if formats.is_pointer(file):
        return formats.pointer(file)
    why = f"is truncated or not safetensors ({one_line(error)})"
    return Damaged(f"weights file {str(file)!r} {why}; copy it again", file)


def read_tokenizer(folder: Path) -> Any | None:
    """The tokenizer in a checkpoint folder; None where it has none."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", *formats.SLOW_TOKENIZERS)
    if not any(file.exists() for name in names for file in folder.glob(name)):
        return None
    return load_tokenizer(folder)


def read_answer_length(folder: Path) -> int | None:
    """`max_new_tokens` of a folder's generation_config.json: the answer that the model was taught to write; None if unsaid.

    Raises:
        UserError: the file is broken, or the number is none.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    try:
        value = jsonl.document(file).get("max_new_tokens")
    except UserError as error:
        raise UserError(f"{error}; mend it or remove it") from None
    if value is not None and (type(value) is not int or value < 1):
        raise UserError(f"max_new_tokens = {value!r} in {str(file)!r} must be a number of tokens, at least 1; mend it")
    return None if value is None else int(value)


def local_answer_length(name: str) -> int | None:
    """`read_answer_length` of a checkpoint that lies here, before it is loaded; None for one that may be on the hub.

    Raises:
        UserError: as `find` and `read_answer_length`.
    """
    return read_answer_length(find(name)) if Path(name).expanduser().is_dir() else None

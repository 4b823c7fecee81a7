"""The adapter of a LoRA checkpoint: its folder as peft reads it, and the weights of a checkpoint that holds nothing else.

    adapter/adapter_config.json, adapter_model.safetensors   peft's (`PeftModel.from_pretrained(base, folder)`)
    adapter/base.json                                        ours: the model below, by name, number format and content

A merged weight is W + alpha / rank * B A, in float32, stored in W's number format. No peft is needed to read one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from dcoder_cli.base.checksums import Damaged
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_json
from dcoder_cli.base.schema import Format, Least
from dcoder_cli.model import checkpoint
from dcoder_cli.model.layouts import Layout

FOLDER = "adapter"  # of a checkpoint
_WEIGHTS, _CONFIG, _BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
_PREFIX = "base_model.model."  # peft's, before every key


@dataclass(frozen=True)
class Base:
    """What an adapter lies on.

    Attributes:
        model: an absolute folder, or a hub id.
        dtype: how its weights are held: float32, bfloat16 or nf4 (made from bfloat16).
        sha256: of those weights, see `fingerprint`.
    """

    model: str
    dtype: str
    sha256: str

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of merged weights, and of the base before it is made 4-bit."""
        return torch.float32 if self.dtype == "float32" else torch.bfloat16


@dataclass(frozen=True)
class AdapterShape:
    """What merging needs of peft's adapter_config.json."""

    r: Annotated[int, Least(1)]
    lora_alpha: float


_AGAIN = "copy the checkpoint again"
_OF_BASE = Format("adapter's base", Base, _AGAIN)
_SHAPE = Format("adapter's config", AdapterShape, _AGAIN)


@dataclass(frozen=True)
class Adapter:
    """A model's adapter: its shape, what it lies on, and whether checkpoints hold the merged model beside it."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base: Base
    save_merged: bool


def base_name(name: str) -> str:
    """A model's name for `Base`: the folder itself where it is one (a run moves on from its last checkpoint), or the hub id."""
    return str(checkpoint.find(name).resolve()) if Path(name).expanduser().exists() else name


def fingerprint(weights: Mapping[str, Tensor], tied: bool) -> str:
    """SHA-256 over weights on the CPU: by key, format, shape and bytes. A tied head is the embedding, stored or not."""

    def digest(key: str) -> bytes:
        value = weights[key].detach().contiguous()
        head = f"{key} {value.dtype} {tuple(value.shape)}".encode()
        return hashlib.sha256(head + hashlib.sha256(value.view(torch.uint8).numpy().data).digest()).digest()

    keys = sorted(key for key in weights if "rotary_emb" not in key and not (tied and key == "lm_head.weight"))
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock: 15 GB in seconds, not half a minute
        return hashlib.sha256(b"".join(pool.map(digest, keys))).hexdigest()


def peft_key(key: str, layout: Layout) -> str:
    """peft's name of an adapter's weight, `...q_proj.lora_A.weight`, on the checkpoint as it is stored."""
    module, _, part = key.rpartition(".lora_")
    return f"{_PREFIX}{stored_module(module, layout)}.lora_{part}"


def stored_module(module: str, layout: Layout) -> str:
    """A linear layer's name in the checkpoint as it is stored: other families have other names than transformers' blocks."""
    return layout.to_stored(f"{module}.weight").removesuffix(".weight")


def write(folder: Path, state: Mapping[str, Tensor], layout: Layout, config: Mapping[str, Any], base: Base) -> None:
    """Write the adapter's folder.

    Args:
        folder: made here.
        state: float32 weights by `MODULE.lora_A.weight` and `MODULE.lora_B.weight`, modules by transformers' names.
        config: peft's.
        base: what it lies on.
    """
    from safetensors.torch import save_file

    folder.mkdir()
    stored = {peft_key(key, layout): value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(stored, folder / _WEIGHTS, metadata={"format": "pt"})
    write_json(folder / _CONFIG, dict(config))
    write_json(folder / _BASE, asdict(base))


def read(folder: Path, layout: Layout) -> tuple[dict[str, Tensor], Mapping[str, Any], Base]:
    """What `write` wrote: state, peft's config, base. Raises whatever a damaged file raises; the caller names the folder."""
    from safetensors.torch import load_file

    checkpoint.check_files(folder.parent, [folder / name for name in (_WEIGHTS, _CONFIG, _BASE)], "adapter file")
    stored = load_file(folder / _WEIGHTS)
    state = {}
    for key, value in stored.items():
        module, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
        state[f"{layout.to_ours(f'{module}.weight').removesuffix('.weight')}.lora_{part}"] = value
    return state, _SHAPE.document(folder / _CONFIG), _OF_BASE.read(folder / _BASE)


def stands_alone(folder: Path) -> bool:
    """Whether a checkpoint folder holds an adapter and no merged weights."""
    return (folder / FOLDER).is_dir() and not any(folder.glob("*.safetensors"))


def weight_files(folder: Path) -> list[Path]:
    """The adapter's own."""
    return [folder / FOLDER / _WEIGHTS]


def below(folder: Path) -> Path:
    """The folder of the weights that a checkpoint's adapter lies on, at the bottom of several. Raises UserError where it is gone."""
    while stands_alone(folder):
        folder = _find_base(folder, base_of(folder))
    return folder


def read_weights(folder: Path, layout: Layout, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights of a checkpoint by transformers key: those it holds, or those of the model below with its adapter merged.

    They are the same numbers either way.

    Raises:
        UserError: a file is damaged, or the model that an adapter lies on is not there, or not what it was.
    """
    if not stands_alone(folder):
        return checkpoint.read_weights(folder, layout, device, dtype)
    from safetensors import SafetensorError

    base = base_of(folder)
    below_it = _find_base(folder, base)
    weights = read_weights(below_it, layout, torch.device("cpu"), base.stored_dtype)
    tied = bool(layout.to_config(checkpoint.read_config(below_it)).get("tie_word_embeddings"))
    if fingerprint(weights, tied) != base.sha256:
        raise UserError(
            f"model {base.model!r} is not what the adapter in {str(folder)!r} was trained on (its weights differ); give it back its weights"
        )
    try:
        state, config, _ = read(folder / FOLDER, layout)
        scale = config["lora_alpha"] / config["r"]
        for key in [key for key in state if ".lora_A." in key]:
            name = key.replace(".lora_A.", ".")
            weights[name] = merge(weights[name], state[key], state[key.replace(".lora_A.", ".lora_B.")], scale)
    except Damaged:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"the adapter in {str(folder)!r} cannot be read ({type(error).__name__})") from None
    return {key: value.to(device, dtype) for key, value in weights.items()}


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A, computed in the wider of their formats, in W's."""
    return (weight + (b @ a) * scale).to(weight.dtype)


def base_of(folder: Path) -> Base:
    """What a checkpoint's adapter lies on. Raises UserError where that cannot be read."""
    return _OF_BASE.read(folder / FOLDER / _BASE)


def _find_base(folder: Path, base: Base) -> Path:
    try:
        return checkpoint.find(base.model)
    except UserError as error:
        raise UserError(
            f"{str(folder)!r} holds an adapter alone (lora.save_merged false), and of the model that it lies on: {error}"
        ) from None

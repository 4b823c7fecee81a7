"""Loading a checkpoint: the device and the number format, an empty network, and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.model import adapters, attention, checkpoint, identity, recordable
from dcoder_cli.model.agreement import check_stored, check_weights
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.layouts import Layout, layout_of, network_of, rotary_of, transformers_config
from dcoder_cli.model.special_ids import resolve

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device given, else cuda, else mps, else cpu. Raises UserError if it is not there."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"device {str(device)!r} is not available here; use cpu" + (" or cuda" if torch.cuda.is_available() else "")
        ) from None
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, config: dict[str, Any], device: torch.device) -> torch.dtype:
    """The dtype given, else float32 on a CPU and the checkpoint's own on an accelerator. Raises UserError for an unknown name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        recorded = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
        return torch.float32 if device.type == "cpu" else _DTYPES.get(recorded, torch.bfloat16)
    name = _DTYPE_NAMES.get(dtype, dtype)
    if name not in _DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; use float32, bfloat16 or float16")
    return _DTYPES[name]


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str = "sdpa",
    cuda_graphs: bool = False,
) -> Model:
    """Load a checkpoint of any layout of `layouts.LAYOUTS` from a folder, the hub cache or the hub.

    Args:
        path: a folder or a hub id.
        device: default: cuda, else mps, else cpu.
        dtype: default: float32 on a CPU, the checkpoint's own on an accelerator.
        attention: sdpa, flash_attention_2, flex or eager.
        cuda_graphs: decode by recorded evaluations; see decoding/graphs.py.

    A checkpoint that holds a LoRA adapter alone is loaded with the model it lies on, merged.

    Raises:
        UserError: the checkpoint is missing, truncated, of an unknown kind or without a mask token.
    """
    place = choose_device(device)
    model = skeleton(path, place, attention)
    if cuda_graphs:
        recordable.check(model, place)
        model.cuda_graphs = True
    folder = checkpoint.find(model.name)
    number = choose_dtype(dtype, model.config, place)
    model.weights_id = identity.weights_id(folder)
    fill(model.network, adapters.read_weights(folder, model.layout, place, number), model.name)
    return model


def skeleton(path: str | Path, device: torch.device, attention: str = "sdpa", stored: bool = True) -> Model:
    """A checkpoint as `load` gives it, with weights on the meta device, float32 and without values.

    `stored`: look at what its files hold; without, a folder needs none.

    Raises:
        UserError: as `load`, but for damage within the weights, of which the files' headers alone are read.
    """
    name = str(path)
    folder = checkpoint.find(name)
    config = checkpoint.read_config(folder)
    layout = layout_of(config, name)
    tokenizer = checkpoint.read_tokenizer(folder)
    ids, findings = resolve(config, tokenizer, layout.diffusion, name)
    network = empty_network(config, layout, attention, device)
    if network.config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    if stored:
        check_stored(adapters.below(folder), network, layout, name)
    answer_length = checkpoint.read_answer_length(folder)
    return Model(network.eval(), config, layout, ids, findings, tokenizer, name, attention, answer_length)


def empty_network(config: dict[str, Any], layout: Layout, implementation: str, device: torch.device) -> Any:
    """The transformers module of a config with weights on the meta device. Raises UserError for a missing attention."""
    check_attention(implementation, device)
    theirs = transformers_config(config, layout)
    attention.use(theirs, implementation)
    with torch.device("meta"):
        network = network_of(theirs, layout)
    with device:  # the rotary angles are computed, not stored
        network.model.rotary_emb = rotary_of(network, theirs, layout)
    for block in network.model.layers:
        block.self_attn.is_causal = not layout.diffusion
    return network


def fill(network: Any, weights: dict[str, Tensor], name: str) -> None:
    """Put weights into an empty network, tying the head where the config says so. Raises UserError on a mismatch."""
    check_weights(network, {key: value.shape for key, value in weights.items()}, name)
    if network.config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    expected = network.state_dict()
    network.load_state_dict({key: weights[key] for key in expected}, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    if network.config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight


def check_attention(implementation: str, device: torch.device) -> None:
    """Raises UserError if an attention implementation is unknown or cannot run here."""
    if implementation not in attention.IMPLEMENTATIONS:
        raise UserError(f"attention {implementation!r} is unknown; use {', '.join(attention.IMPLEMENTATIONS)}")
    if implementation == "flash_attention_2":
        if device.type != "cuda":
            raise UserError(f"flash_attention_2 needs a CUDA device, not {device.type}; use sdpa")
        if not attention.flash_attention_available():
            raise UserError(
                "flash_attention_2 needs the package flash-attn; install it with `pip install 'dcoder[flash]'`, or use sdpa"
            )

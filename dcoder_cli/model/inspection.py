"""What a checkpoint is, what is odd about it and what it needs: read from its config and headers, no weights loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.model import adapters, checkpoint
from dcoder_cli.model.agreement import check_stored
from dcoder_cli.model.layouts import layout_of, other_shift, shift_of, transformers_config
from dcoder_cli.model.loading import empty_network
from dcoder_cli.model.special_ids import resolve

GIB = 1024**3


def inspect(name: str) -> dict[str, Any]:
    """Architecture, special ids, conflicts and memory needs of a checkpoint.

    Memory is for the weights and the optimiser alone; activations come on top.

    Raises:
        UserError: the checkpoint is missing or broken.
    """
    folder = checkpoint.find(name)
    config = checkpoint.read_config(folder)
    layout = layout_of(config, name)
    tokenizer = checkpoint.read_tokenizer(folder)
    theirs = transformers_config(config, layout)
    findings: list[dict[str, str]] = []
    ids: dict[str, Any] = {}
    try:
        special, found = resolve(config, tokenizer, layout.diffusion, name)
        ids = {key: value for key, value in vars(special).items() if key not in ("stops", "tokens")} | {
            "stops": sorted(special.stops)
        }
        findings = [vars(finding) for finding in found]
    except UserError as error:
        findings = [{"subject": "special ids", "message": str(error)}]
    if layout.public is not None and shift_of(config, layout) != layout.shift:
        findings.append({"subject": "shift", "message": other_shift(layout)})
    parameters, dtypes = count_parameters(adapters.below(folder))
    try:
        network = empty_network(config, layout, "sdpa", torch.device("cpu"))
        check_stored(adapters.below(folder), network, layout, name)
    except UserError as error:
        findings.append({"subject": "weights", "message": str(error)})
    if tokenizer is None:
        findings.append({"subject": "tokenizer", "message": "there is none here; the model works with ids only"})
    tokens = (
        {key: tokenizer.convert_ids_to_tokens(value) for key, value in ids.items() if isinstance(value, int)}
        if tokenizer is not None
        else {}
    )
    return {
        "name": name,
        "system": layout.name,
        "kind": "diffusion" if layout.diffusion else "ar",
        "shift": shift_of(config, layout),
        "record": config.get("dcoder", {}),
        "parameters": parameters,
        "dtypes": dtypes,
        "hidden_size": theirs.hidden_size,
        "layers": theirs.num_hidden_layers,
        "heads": theirs.num_attention_heads,
        "kv_heads": theirs.num_key_value_heads,
        "intermediate_size": theirs.intermediate_size,
        "vocab_size": theirs.vocab_size,
        "tokenizer_size": None if tokenizer is None else len(tokenizer),
        "context": theirs.max_position_embeddings,
        "tied_head": bool(theirs.tie_word_embeddings),
        "ids": ids,
        "tokens": tokens,
        "findings": findings,
        "memory_gib": memory(parameters),
    }


def memory(parameters: int) -> dict[str, float]:
    """GiB for weights in bfloat16 and float32, and for training with AdamW (float32 weights, gradients, two moments)."""
    return {
        "load_bfloat16": round(2 * parameters / GIB, 3),
        "load_float32": round(4 * parameters / GIB, 3),
        "train_adamw": round(16 * parameters / GIB, 3),
    }


def count_parameters(folder: Path) -> tuple[int, list[str]]:
    """Parameters and number formats, from the headers of the weight files. Raises UserError for a broken file."""
    total, dtypes = 0, set()
    for one in checkpoint.stored_weights(folder).values():
        total += math.prod(one.shape)
        dtypes.add(one.dtype)
    return total, sorted(dtypes)

"""Models with random weights, and the tokenizers that are given to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.model.backbone import Model
from dcoder_cli.model.layouts import layout_of
from dcoder_cli.model.loading import choose_dtype, empty_network
from dcoder_cli.model.special_ids import resolve
from dcoder_cli.model.tokenizer import load_tokenizer


def random_model(
    config: dict[str, Any], tokenizer: Any | None, seed: int, name: str, dtype: str | None = None
) -> Model:
    """A model of a config.json with freshly drawn weights: normal with the config's initializer_range, norms 1, biases 0."""
    layout = layout_of(config, name)
    ids, findings = resolve(config, tokenizer, layout.diffusion, name)
    device = torch.device("cpu")
    network = empty_network(config, layout, "sdpa", device)
    source = torch.Generator().manual_seed(seed)
    number = choose_dtype(dtype, {}, device)
    spread = float(config.get("initializer_range", 0.02))
    weights: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        if key.endswith("bias"):
            weights[key] = torch.zeros(value.shape, dtype=number)
        elif value.dim() == 1:
            weights[key] = torch.ones(value.shape, dtype=number)
        else:
            weights[key] = (torch.randn(value.shape, generator=source) * spread).to(number)
    network.load_state_dict(weights, assign=True)
    if network.config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    return Model(network.eval(), config, layout, ids, findings, tokenizer, name, "sdpa")


def ar_config_with_tokenizer(config: dict[str, Any], tokenizer: Any | None) -> dict[str, Any]:
    """`config` with the special ids of a tokenizer."""
    ids = {} if tokenizer is None else {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**config, **{key: value for key, value in ids.items() if value is not None}}


def tokenizer_of(path: str) -> Any:
    """A tokenizer from a folder or the hub; a checkpoint folder's own, or its `tokenizer` subfolder."""
    folder = Path(path)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file() and (folder / "tokenizer").is_dir():
        folder = folder / "tokenizer"
        return load_tokenizer(folder)
    return load_tokenizer(path)

"""A model's shape, which the memory formula is made of: read from its config alone; weights stay on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.model.sizes import SIZES, config_of

TINY_VOCABULARY = 1536  # of `tiny`, whose vocabulary is the tokenizer's: presets/cpu-tiny.yaml trains one of 1536


@dataclass(frozen=True)
class Shape:
    """What the formula reads of a model. Counts are of numbers, not bytes.

    Attributes:
        name: what was asked for.
        hidden, layers, intermediate, vocab: D, the number of blocks, F, V.
        queries, keys: width of all query heads together, and of all key heads; `heads`: query heads.
        tied: whether head and embedding are one table.
        parameters: all of them, a tied table once.
        table: V x D.
        block: parameters of one block; `matrices`: those of its linear layers.
        context: the longest row it was made for.
        linear: (name, outputs, inputs) of a block's linear layers, which LoRA may adapt.
    """

    name: str
    hidden: int
    layers: int
    intermediate: int
    vocab: int
    queries: int
    keys: int
    heads: int
    tied: bool
    parameters: int
    table: int
    block: int
    matrices: int
    context: int
    linear: tuple[tuple[str, int, int], ...]

    @property
    def root(self) -> int:
        """Parameters outside the blocks: embedding, last norm, and the head where it is not tied."""
        return self.parameters - self.layers * self.block

    def adapters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of LoRA's A and B over all blocks: rank x (inputs + outputs) a layer."""
        return self.layers * rank * sum(out + into for name, out, into in self.linear if name in targets)


def shape_of(config: dict[str, Any], name: str) -> Shape:
    """The shape of a config.json of any layout, from the network it makes on the meta device.

    Raises:
        UserError: a layout that dcoder does not read, or a key that is missing.
    """
    import torch
    from torch import nn

    from dcoder_cli.model.layouts import layout_of
    from dcoder_cli.model.loading import empty_network

    network = empty_network(config, layout_of(config, name), "sdpa", torch.device("meta"))
    theirs = network.config
    tied = bool(theirs.tie_word_embeddings)
    table = theirs.vocab_size * theirs.hidden_size
    first = network.model.layers[0]
    linear = tuple(
        (path.rsplit(".", 1)[-1], module.out_features, module.in_features)
        for path, module in first.named_modules()
        if isinstance(module, nn.Linear)
    )
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    every = {id(one): one.numel() for one in network.parameters()}
    return Shape(
        name, theirs.hidden_size, theirs.num_hidden_layers, theirs.intermediate_size, theirs.vocab_size,
        theirs.num_attention_heads * head_dim, theirs.num_key_value_heads * head_dim, theirs.num_attention_heads, tied,
        sum(every.values()) - (table if tied and network.lm_head.weight is not network.model.embed_tokens.weight else 0),
        table, sum(one.numel() for one in first.parameters()), sum(out * into for _, out, into in linear),
        theirs.max_position_embeddings, linear,
    )  # fmt: skip


def read_config(model: str) -> dict[str, Any]:
    """config.json of a size's name (model/sizes.py), of a checkpoint's folder, or a config.json itself. Nothing is downloaded.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    if model.lower() in SIZES:
        size = model.lower()
        return config_of(size, TINY_VOCABULARY if SIZES[size].vocab_size is None else None)
    from dcoder_cli.base.runs import checkpoint_of

    path = Path(model).expanduser()
    file = path if path.is_file() else checkpoint_of(path) / "config.json"
    if not file.is_file():
        raise UserError(
            f"model {model!r} is no size, no folder with a config.json and no config.json{nearest(model, list(SIZES))}; "
            "nothing is downloaded"
        )
    return jsonl.document(file, "config")

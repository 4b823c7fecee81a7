"""How LLaDA's checkpoints name what Llama's blocks compute: their config and their weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.functions import short

Config = Mapping[str, Any]


def to_config(config: Config) -> dict[str, Any]:
    unsupported = [
        key
        for key in (
            "alibi",
            "include_bias",
            "include_qkv_bias",
            "attention_layer_norm",
            "bias_for_layer_norm",
            "input_emb_norm",
            "scale_logits",
            "multi_query_attention",
            "clip_qkv",
        )
        if config.get(key)
    ]
    published = {"block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True}
    unsupported += [
        f"{key} = {short(config[key])}" for key, value in published.items() if _given(config, key, value) != value
    ]
    if unsupported:
        raise UserError(
            f"this LLaDA config uses {', '.join(unsupported)}, which no published LLaDA has; dcoder reads the published layout only"
        )
    return {
        "vocab_size": _given(config, "embedding_size", None) or config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": _width(config),
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": _given(config, "n_kv_heads", config["n_heads"]),
        "max_position_embeddings": _given(config, "max_sequence_length", 4096),
        "rms_norm_eps": _given(config, "rms_norm_eps", 1e-5),
        "rope_theta": _given(config, "rope_theta", 5e5),
        "tie_word_embeddings": _given(config, "weight_tying", False),
    }


def _given(config: Config, key: str, default: Any) -> Any:
    """A value of a config, or its default where that is null or left out."""
    value = config.get(key)
    return default if value is None else value


def _width(config: Config) -> Any:
    if config.get("mlp_hidden_size") is not None:
        return config["mlp_hidden_size"]
    width = config["mlp_ratio"] * config["d_model"]
    return int(width) if width == int(width) else width


NAMES = {
    "vocab_size": "embedding_size or vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "max_sequence_length",
    "tie_word_embeddings": "weight_tying",
}


_BLOCK = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_TOP = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_BLOCK_BACK = {ours: theirs for theirs, ours in _BLOCK.items()}
_TOP_BACK = {ours: theirs for theirs, ours in _TOP.items()}


def to_ours(key: str) -> str:
    if key in _TOP:
        return _TOP[key]
    match = re.fullmatch(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight", key)
    if match and match[2] in _BLOCK:
        return f"model.layers.{match[1]}.{_BLOCK[match[2]]}.weight"
    return key


def to_stored(key: str) -> str:
    if key in _TOP_BACK:
        return _TOP_BACK[key]
    match = re.fullmatch(r"model\.layers\.(\d+)\.([\w.]+)\.weight", key)
    if match and match[2] in _BLOCK_BACK:
        return f"model.transformer.blocks.{match[1]}.{_BLOCK_BACK[match[2]]}.weight"
    return key

"""Named sizes for random initialisation: a small-scale model and the shapes of Qwen2.5-Coder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError


@dataclass(frozen=True)
class Size:
    """The shape of a Qwen2-architecture model.

    `vocab_size` is None where the tokenizer decides it.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab_size: int | None
    tied: bool
    context: int
    rope_theta: float


# The public config.json of Qwen/Qwen2.5-Coder-{0.5B,1.5B,3B,7B,14B,32B}; tiny is ours (see presets/cpu-tiny.yaml).
SIZES: dict[str, Size] = {
    "tiny": Size(160, 3, 5, 5, 320, None, True, 512, 1e4),
    "qwen2.5-coder-0.5b": Size(896, 24, 14, 2, 4864, 151936, True, 32768, 1e6),
    "qwen2.5-coder-1.5b": Size(1536, 28, 12, 2, 8960, 151936, True, 32768, 1e6),
    "qwen2.5-coder-3b": Size(2048, 36, 16, 2, 11008, 151936, True, 32768, 1e6),
    "qwen2.5-coder-7b": Size(3584, 28, 28, 4, 18944, 152064, False, 32768, 1e6),
    "qwen2.5-coder-14b": Size(5120, 48, 40, 8, 13824, 152064, False, 32768, 1e6),
    "qwen2.5-coder-32b": Size(5120, 64, 40, 8, 27648, 152064, False, 32768, 1e6),
}


def config_of(name: str, vocab_size: int | None = None) -> dict[str, Any]:
    """config.json of an AR (Qwen2) model of a named size.

    Args:
        name: a key of SIZES.
        vocab_size: rows of the embedding; required where the size leaves it to the tokenizer.

    Raises:
        UserError: an unknown size, or a vocabulary that the shape does not have.
    """
    if name not in SIZES:
        raise UserError(f"size {name!r} is unknown{nearest(name, list(SIZES))}")
    size = SIZES[name]
    rows = size.vocab_size or vocab_size
    if rows is None:
        raise UserError(f"size {name!r} takes its vocabulary from a tokenizer; give --tokenizer or --train-tokenizer")
    if vocab_size is not None and vocab_size > rows:
        raise UserError(
            f"the tokenizer has {vocab_size} tokens but size {name!r} only {rows} rows; choose another size"
        )
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": rows,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": size.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": size.rope_theta,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "tie_word_embeddings": size.tied,
        "use_sliding_window": False,
    }

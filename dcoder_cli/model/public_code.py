"""The code that a family's authors publish: where AutoModel finds it, and the config.json that it reads.

`auto_map` in config.json may name a class of another repository, `OWNER/NAME--file.Class`: the form that transformers itself
writes for models whose code lies elsewhere (`get_class_from_dynamic_module`). So a folder of ours needs no copy of the code.

The public code fills what config.json leaves out with defaults of its own, which are not ours (LLaDA's are GPT-2's), and was
written before transformers 5 moved rope_theta into rope_parameters: every key that it reads is written, where it reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublicCode:
    """A family's public modelling code.

    Attributes:
        repository: on the hub; its files hold the classes.
        classes: transformers' auto class -> file.Class.
        transformers: the version that its authors name in their README.
        sampler: the model's method that decodes; None where a script beside it does.
        to_config: the transformers config that computes the model here -> the keys that the public code reads.
        cannot: why the public code would compute something else, None where it computes the same.
        package: the Python package whose import registers the classes with AutoModel; None where config.json's `auto_map`
            names files of the repository.
        other_shift: how its sampler is told of weights of the other shift; None where it cannot be.
    """

    repository: str
    classes: Mapping[str, str]
    transformers: str
    sampler: str | None
    to_config: Callable[[Any], dict[str, Any]]
    cannot: Callable[[Any], str | None]
    package: str | None = None
    other_shift: str | None = None

    @property
    def auto_map(self) -> dict[str, str]:
        """What config.json says, where no package has to be imported first."""
        return {auto: f"{self.repository}--{place}" for auto, place in self.classes.items()}


def rope(theirs: Any) -> dict[str, Any]:
    """`rope_theta`, and of scaled angles `rope_scaling`, as transformers 4 reads them, of a transformers 5 config."""
    parameters = dict(theirs.rope_parameters)
    theta = parameters.pop("rope_theta")
    scaled = parameters.get("rope_type", "default") != "default"
    return {"rope_theta": theta, **({"rope_scaling": parameters} if scaled else {})}


def _odd_heads(theirs: Any) -> str | None:
    heads, hidden = theirs.num_attention_heads, theirs.hidden_size
    size = getattr(theirs, "head_dim", None) or hidden // heads
    if size * heads == hidden:
        return None
    return f"the public code wants heads of hidden_size / heads = {hidden} / {heads} numbers, and these have {size}"


def _dream_config(theirs: Any) -> dict[str, Any]:
    """DreamConfig's arguments (configuration_dream.py)."""
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_dropout",
    )  # fmt: skip
    return {
        "architectures": ["DreamModel"],
        **{key: getattr(theirs, key) for key in kept},
        **rope(theirs),
        "tie_word_embeddings": bool(theirs.tie_word_embeddings),
        "use_sliding_window": False,
        "use_cache": False,
    }


def _a2d_config(network: str) -> Callable[[Any], dict[str, Any]]:
    """Arguments of the transformers config that dLLM's derives from, which is the one that computes it here."""

    def keys(theirs: Any) -> dict[str, Any]:
        kept = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_bias", "mlp_bias",
            "attention_dropout",
        )  # fmt: skip
        return {
            "architectures": [network],
            **{key: getattr(theirs, key) for key in kept if getattr(theirs, key, None) is not None},
            **rope(theirs),
            "tie_word_embeddings": bool(theirs.tie_word_embeddings),
            "use_sliding_window": False,
            "use_cache": False,
        }

    return keys


def _a2d(network: str) -> PublicCode:
    return PublicCode(
        "github.com/ZHZisZZ/dllm", {"AutoModel": network, "AutoModelForMaskedLM": network}, "4.57.0", None, _a2d_config(network),
        lambda _: None, package="dllm", other_shift="right_shift_logits=True",
    )  # fmt: skip


def _llada_config(theirs: Any) -> dict[str, Any]:
    """ModelConfig's fields (configuration_llada.py), of the published block type."""
    return {
        "architectures": ["LLaDAModelLM"],
        "embedding_size": theirs.vocab_size,
        "d_model": theirs.hidden_size,
        "mlp_hidden_size": theirs.intermediate_size,
        "n_layers": theirs.num_hidden_layers,
        "n_heads": theirs.num_attention_heads,
        "n_kv_heads": theirs.num_key_value_heads,
        "max_sequence_length": theirs.max_position_embeddings,
        "rms_norm_eps": theirs.rms_norm_eps,
        "rope_theta": rope(theirs)["rope_theta"],
        "weight_tying": bool(theirs.tie_word_embeddings),
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "activation_type": "silu",
        "rope": True,
        "rope_full_precision": True,
        "use_cache": False,
        **dict.fromkeys(("attention_dropout", "residual_dropout", "embedding_dropout"), 0.0),
        **dict.fromkeys(
            ("alibi", "include_bias", "include_qkv_bias", "attention_layer_norm", "bias_for_layer_norm", "input_emb_norm",
             "scale_logits"),
            False,
        ),
    }  # fmt: skip


# Repositories and class names: config.json of Dream-org/Dream-v0-Instruct-7B (DiffuCoder's names the same files of its own) and
# of GSAI-ML/LLaDA-8B-Instruct. Versions: the READMEs of DreamLM/Dream and ML-GSAI/LLaDA. Tried on tiny models, on a CPU:
# transformers 4.46.2 gives our float32 logits bit for bit with either; 5.24 cannot make Dream's rotary angles (KeyError 'default').
DREAM = PublicCode(
    "Dream-org/Dream-v0-Instruct-7B",
    {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "4.46.2",
    "diffusion_generate",
    _dream_config,
    _odd_heads,
)
LLADA = PublicCode(
    "GSAI-ML/LLaDA-8B-Instruct",
    {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "4.38.2",
    None,
    _llada_config,
    _odd_heads,
)
# dllm/pipelines/a2d/models of ZHZisZZ/dllm, and the checkpoints dllm-hub/*-diffusion-mdlm-v0.1 (config.json's model_type, mask token
# in the tokenizer). Those repositories hold a copy of the file, but it imports the package, so no auto_map to it loads alone.
A2D_QWEN2, A2D_QWEN3, A2D_LLAMA = (_a2d(f"A2D{family}LMHeadModel") for family in ("Qwen2", "Qwen3", "Llama"))

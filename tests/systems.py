"""Tiny random checkpoints of every system, each written as its authors' code writes it, beside the network that computes it.

Nothing of dcoder's layouts is used here: config.json and the names of weights are written out, and the reference is a class of
transformers with an attention mask of ours.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers import make_tokenizer
from safetensors.torch import save_file
from torch import Tensor

_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "initializer_range": 0.2, "rms_norm_eps": 1e-6,
}  # fmt: skip
_LLADA = {
    "model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm", "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out", "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}  # fmt: skip


@dataclass(frozen=True)
class System:
    """A family of checkpoints.

    Attributes:
        name: a row's.
        network: whose transformers class computes it: Qwen2, Llama or Qwen3.
        model_type: in its config.json.
        diffusion, shift: as dcoder must see it.
        system: as `dcoder inspect` names it.
        rule: in which order it decodes.
        changes: over the sizes.
        config: more of config.json.
    """

    name: str
    network: str
    model_type: str
    diffusion: bool
    shift: bool
    system: str
    rule: str = "entropy"
    changes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


_HEADS = {"head_dim": 16}  # 4 heads of 16 numbers in a stream of 32
SYSTEMS = (
    System("Dream", "Qwen2", "Dream", True, True, "Dream"),
    # its tokenizer pads with a token of its own, its config.json names another
    System("DiffuCoder", "Qwen2", "Dream", True, True, "Dream", config={"pad_token_id": 0}),
    System("LLaDA", "Llama", "llada", True, False, "LLaDA", "confidence", {"num_key_value_heads": 4}),
    System("A2D-Qwen2", "Qwen2", "a2d-qwen2", True, False, "A2D-Qwen2", "confidence", {"tie_word_embeddings": True}),
    System("A2D-Qwen3", "Qwen3", "a2d-qwen3", True, False, "A2D-Qwen3", "confidence", {**_HEADS, "tie_word_embeddings": True}),
    System("A2D-Llama", "Llama", "a2d-llama", True, False, "A2D-Llama", "confidence"),
    System("Qwen2", "Qwen2", "qwen2", False, True, "Qwen2 (AR)", changes={"tie_word_embeddings": True}),
    System("Qwen3", "Qwen3", "qwen3", False, True, "Qwen3 (AR)", changes={**_HEADS, "tie_word_embeddings": True}),
    System("Llama", "Llama", "llama", False, True, "Llama (AR)"),
)  # fmt: skip
# Within the families: heads tied or not, keys shared by query heads or not, biases.
VARIANTS = (
    System("Qwen2, MHA, untied", "Qwen2", "qwen2", False, True, "Qwen2 (AR)", changes={"num_key_value_heads": 4}),
    System("Llama, MHA, tied", "Llama", "llama", False, True, "Llama (AR)",
           changes={"num_key_value_heads": 4, "tie_word_embeddings": True}),
    System("Llama, biases", "Llama", "llama", False, True, "Llama (AR)", changes={"attention_bias": True, "mlp_bias": True}),
    System("Qwen3, MHA, untied", "Qwen3", "qwen3", False, True, "Qwen3 (AR)", changes={**_HEADS, "num_key_value_heads": 4}),
    System("Qwen3, biases", "Qwen3", "qwen3", False, True, "Qwen3 (AR)", changes={**_HEADS, "attention_bias": True}),
    System("Qwen3, YaRN", "Qwen3", "qwen3", False, True, "Qwen3 (AR)", changes={
        **_HEADS,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    }),
)  # fmt: skip


def tokenizer_of(system: System) -> Any:
    """A small tokenizer with the tokens that the family has."""
    tokenizer = make_tokenizer()
    if system.diffusion:
        added = {"mask_token": "<|mask|>", "pad_token": "<|dlm_pad|>", "bos_token": "<|beginoftext|>"}
        tokenizer.add_special_tokens(added)
    return tokenizer


def make(system: System, folder: Path) -> Any:
    """Write the checkpoint; the network of transformers that computes it is returned."""
    import transformers

    tokenizer = tokenizer_of(system)
    sizes = {"vocab_size": len(tokenizer), "tie_word_embeddings": False, **_SIZES, **system.changes}
    torch.manual_seed(len(system.name))
    config = getattr(transformers, f"{system.network}Config")(**sizes, eos_token_id=0, pad_token_id=None)
    network = getattr(transformers, f"{system.network}ForCausalLM")(config).eval()
    with torch.no_grad():  # norms and biases that do something
        for key, value in network.named_parameters():
            if value.dim() == 1:
                value.normal_(1.0 if "norm" in key else 0.0, 0.3)
    ids = {"eos_token_id": 0, "pad_token_id": tokenizer.pad_token_id}
    if system.diffusion and not system.model_type.startswith("a2d"):  # which leaves the mask to its tokenizer
        ids["mask_token_id"] = tokenizer.mask_token_id
    written = {
        **sizes,
        "rope_theta": 1e4,
        "hidden_act": "silu",
        **ids,
        "model_type": system.model_type,
        **system.config,
    }
    if "rope_parameters" in written:  # as transformers 4 wrote it, and most of the hub has it
        written["rope_scaling"] = {
            key: value for key, value in written.pop("rope_parameters").items() if key != "rope_theta"
        }
    weights = {
        key: value
        for key, value in network.state_dict().items()
        if key != "lm_head.weight" or not sizes["tie_word_embeddings"]
    }
    if system.model_type == "llada":
        written = {
            "model_type": "llada", "vocab_size": sizes["vocab_size"], "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4,
            "mlp_hidden_size": 48, "max_sequence_length": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "weight_tying": False, **ids,
        }  # fmt: skip
        weights = {_llada(key): value for key, value in weights.items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(written))
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save_pretrained(folder)
    return network


def _llada(key: str) -> str:
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", key)
    if block:
        return f"model.transformer.blocks.{block[1]}.{_LLADA[block[2]]}.weight"
    return f"model.transformer.{_LLADA[key.removesuffix('.weight')]}.weight"


@torch.no_grad()
def logits(network: Any, ids_L: list[int], causal: bool, shift: bool) -> Tensor:
    """Row i is the distribution of token i. [L, V]."""
    length = len(ids_L)
    mask_LL = torch.zeros(length, length)
    if causal:
        mask_LL += torch.full_like(mask_LL, torch.finfo(torch.float32).min).triu(1)
    made_LV = network(torch.tensor([ids_L]), attention_mask=mask_LL[None, None], use_cache=False).logits[0]
    return torch.cat([made_LV[:1], made_LV[:-1]]) if shift else made_LV


def decoded(
    network: Any, prompt: list[int], tokens: int, mask: int, shift: bool, rule: str
) -> tuple[list[int], list[int]]:
    """The plainest denoising: a token a step, the surest first. Its tokens, and the step of each."""
    canvas, step_of = prompt + [mask] * tokens, [0] * tokens
    for step in range(tokens):
        logits_LV = logits(network, canvas, False, shift)
        logits_LV[:, mask] = -torch.inf
        p_LV = torch.softmax(logits_LV.double(), dim=-1)
        score_L = p_LV.amax(-1) if rule == "confidence" else torch.xlogy(p_LV, p_LV).sum(-1)
        place = max((i for i, one in enumerate(canvas) if one == mask), key=lambda i: float(score_L[i]))
        canvas[place] = int(p_LV[place].argmax())
        step_of[place - len(prompt)] = step
    return canvas[len(prompt) :], step_of


def greedy(network: Any, prompt: list[int], tokens: int, stops: set[int]) -> list[int]:
    """The plainest AR decoding, to the first stop token."""
    canvas = list(prompt)
    while len(canvas) < len(prompt) + tokens and (len(canvas) == len(prompt) or canvas[-1] not in stops):
        canvas.append(int(logits(network, [*canvas, 0], True, True)[-1].argmax()))
    return canvas[len(prompt) :]


def spread(prompt: str, text: str) -> float:
    """A reward that differs between any two texts of a random model."""
    return sum(map(ord, text)) % 97

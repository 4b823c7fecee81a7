"""AR checkpoint -> diffusion checkpoint in the layout that its blocks become, and models with random weights."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.layouts import BLOCKS, LAYOUTS, Layout
from dcoder_cli.model.loading import empty_network
from dcoder_cli.model.public_code import rope
from dcoder_cli.model.special_ids import also_means, resolve
from dcoder_cli.model.tokenizer import DREAM_BOS, ids_end

# The names of Dream's and DiffuCoder's added tokens, in the order of their ids. `dcoder tokenize pretrain` begins rows with
# that BOS, at the place that a shifted model never predicts.
NEW_TOKENS = {"bos": DREAM_BOS, "mask": "<|mask|>", "pad": "<|dlm_pad|>"}
# New rows make the vocabulary a multiple of this, the tile of a GPU's matrix units (NVIDIA's guide to matrix products:
# 64 entries of 2 bytes are the 128 bytes that tensor cores read at full speed).
ROWS_MULTIPLE = 64


@dataclass(frozen=True)
class Additions:
    """What a conversion adds to the vocabulary.

    Attributes:
        mask_id: the mask token's id, needed where the model has no tokenizer; None adds a token.
        rows_multiple: where the vocabulary grows, to a multiple of this.
    """

    mask_id: int | None = None
    rows_multiple: int = ROWS_MULTIPLE


def to_diffusion(model: Model, add: Additions = Additions()) -> Model:
    """A diffusion model with an AR model's weights: bidirectional attention, mask, pad and BOS tokens, the shift recorded.

    Tokens that the tokenizer lacks are added in the vocabulary's spare rows, or in new rows where there are none. Their
    embedding, and their row of the head, is the mean of the tokens in use plus a thousandth of their spread: an average
    token, so the first steps neither predict it nor are thrown off by it. Rows that no token uses are recorded, and the
    sampler never commits one.

    Args:
        model: an AR model from `load`.
        add: what is added.

    Raises:
        UserError: the model is a diffusion model already, or has no tokenizer and no `mask_id` was given.
    """
    made = diffusion_config(model, add)
    config, layout, tokenizer = made.config, made.layout, made.tokenizer
    weights = dict(model.network.state_dict())
    _initialise_rows(weights, made)
    network = empty_network(config, layout, model.implementation, model.device)
    _add_missing_biases(weights, network)
    network.load_state_dict(weights, assign=True)
    if config.get("tie_word_embeddings"):
        network.lm_head.weight = network.model.embed_tokens.weight
    special, findings = resolve(config, tokenizer, True, model.name)
    return Model(network.eval(), config, layout, special, findings, tokenizer, model.name, model.implementation)


@dataclass(frozen=True)
class DiffusionConfig:
    """What a diffusion model made of an AR model is like.

    Attributes:
        config: config.json; `vocab_size` has room for the new tokens.
        layout: the one it is written in.
        tokenizer: with them, or None.
        used: ids that the AR model's tokenizer has.
        new: ids of the tokens added above those.
    """

    config: dict[str, Any]
    layout: Layout
    tokenizer: Any | None
    used: frozenset[int] = frozenset()
    new: tuple[int, ...] = ()


def diffusion_config(model: Model, add: Additions = Additions()) -> DiffusionConfig:
    """What `to_diffusion` would make, but for the weights, which are not looked at. Args and errors are its."""
    if model.is_diffusion:
        raise UserError(f"{model.name!r} is a diffusion checkpoint already ({model.layout.name}); nothing to convert")
    layout = _becomes(model)
    config = _diffusion_config(model, layout)
    config["dcoder"] = {
        "shift": True,
        "origin": Path(model.name).name if Path(model.name).expanduser().exists() else model.name,
        "stage": "converted",
    }
    tokenizer, mask_id = copy.deepcopy(model.tokenizer), add.mask_id
    if mask_id is not None:
        _check_mask_id(model, mask_id)
    if tokenizer is None:
        if mask_id is None:
            raise UserError(f"{model.name!r} has no tokenizer to add a mask token to; give --mask-id")
        config["mask_token_id"] = mask_id
        return DiffusionConfig(config, layout, None)
    used = frozenset(tokenizer.get_vocab().values())
    ids = _add_tokens(tokenizer, mask_id)
    config.update({f"{name}_token_id": value for name, value in ids.items()})
    new = tuple(sorted(set(ids.values()) - used))
    tokens = ids_end(tokenizer)
    if new and (new[0] <= max(used) or tokens != new[-1] + 1):
        raise UserError(
            f"the tokenizer of {model.name!r} gives new tokens ids that others have or had ({', '.join(map(str, new))}, where "
            f"the largest in use is {max(used)}); number its tokens without holes"
        )
    if tokens > config["vocab_size"]:
        config["vocab_size"] = -(-tokens // add.rows_multiple) * add.rows_multiple
    if tokens < config["vocab_size"]:
        config["dcoder"]["tokens"] = tokens
    return DiffusionConfig(config, layout, tokenizer, used, new)


def _check_mask_id(model: Model, mask_id: int) -> None:
    """Raises UserError where `--mask-id` is no row, or one that means something else."""
    if not 0 <= mask_id < model.vocab_size:
        raise UserError(f"--mask-id {mask_id} lies outside the vocabulary of {model.vocab_size}")
    if model.tokenizer is not None and model.tokenizer.convert_ids_to_tokens(mask_id) is None:
        raise UserError(f"--mask-id {mask_id} is no token of the tokenizer; leave it out, and one is added")
    others = {what.replace("_", " "): getattr(model.ids, what) for what in ("eos", "end_of_turn", "pad", "bos")}
    also = also_means(mask_id, others, model.tokenizer, model.name)
    if also is None and mask_id in model.ids.stops:
        also = "a token at which text ends", "text cannot end there"
    if also is not None:
        remedy = "choose another" if model.tokenizer is None else "leave it out, and a token is added"
        raise UserError(f"--mask-id {mask_id} of {model.name!r} is {also[0]}: {also[1]}; {remedy}")


def _becomes(model: Model) -> Layout:
    """The diffusion layout that an AR model is converted into. Raises UserError where it cannot hold the model."""
    blocks, arguments = model.layout.blocks, model.layout.to_config(model.config)
    becomes = BLOCKS[blocks].becomes
    if becomes is None:
        raise UserError(
            f"{model.name!r} is of blocks ({blocks}) that no diffusion layout computes; it cannot be converted"
        )
    layout = LAYOUTS[becomes]
    biases = [key for key in ("attention_bias", "mlp_bias") if arguments.get(key)]
    if biases and layout.blocks != blocks:
        raise UserError(
            f"{model.name!r} sets {' and '.join(biases)}, weights that the {layout.name} layout does not have; it cannot be converted"
        )
    if not layout.plain:
        return layout
    activation = arguments.get("hidden_act", "silu")
    if activation != "silu":
        raise UserError(
            f"{model.name!r} computes otherwise ({blocks}, {activation}) than the {layout.name} layout ({layout.blocks}, silu); "
            "it cannot be converted"
        )
    head_dim = arguments.get("head_dim")
    if head_dim and head_dim * arguments["num_attention_heads"] != arguments["hidden_size"]:
        raise UserError(
            f"{model.name!r} has head_dim {head_dim}, which the {layout.name} layout cannot express; it cannot be converted"
        )
    scaled = (arguments.get("rope_scaling") or {}, arguments.get("rope_parameters") or {})
    kinds = {str(part.get("rope_type", part.get("type", "default"))) for part in scaled if part}
    if kinds - {"default"}:
        raise UserError(
            f"{model.name!r} scales its rotary angles ({', '.join(sorted(kinds))}), which the {layout.name} layout does not have; it cannot be converted"
        )
    return layout


def _diffusion_config(model: Model, layout: Layout) -> dict[str, Any]:
    """config.json in the layout that the model is converted into, every key written that its public code reads."""
    arguments, theirs = model.layout.to_config(model.config), model.network.config
    left_out = {"rope_scaling", "rope_parameters"}
    if layout.plain:
        left_out |= {
            "attention_bias",
            "mlp_bias",
            "head_dim",
            "original_max_position_embeddings",
            "partial_rotary_factor",
        }
    kept = {key: value for key, value in arguments.items() if value is not None and key not in left_out}
    kept.update(rope(theirs))
    if not layout.plain and getattr(theirs, "head_dim", None) is not None:
        kept["head_dim"] = theirs.head_dim
    kept.setdefault("num_key_value_heads", theirs.num_key_value_heads)
    kept.setdefault("tie_word_embeddings", bool(theirs.tie_word_embeddings))
    kept.setdefault("rms_norm_eps", theirs.rms_norm_eps)
    kept.setdefault("max_position_embeddings", theirs.max_position_embeddings)
    kept.setdefault("hidden_act", "silu")
    ids = {
        key: model.config[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if model.config.get(key) is not None
    }
    if isinstance(ids.get("eos_token_id"), list):
        several = ids.pop("eos_token_id")
        if several:
            ids["eos_token_id"] = several[0]
    return {
        **kept,
        **ids,
        "model_type": next(key for key, value in LAYOUTS.items() if value is layout),
        **({} if layout.public is None else {"architectures": layout.public.to_config(theirs)["architectures"]}),
        "use_cache": False,
        "attention_dropout": 0.0,
    }


def _add_tokens(tokenizer: Any, mask_id: int | None) -> dict[str, int]:
    """Ids of bos, mask and pad, adding the tokens that are missing. Pad must not be eos: stage 3 teaches its meaning."""
    known = tokenizer.get_vocab()
    result: dict[str, int] = {}
    for name, text in NEW_TOKENS.items():
        current = getattr(tokenizer, f"{name}_token", None)
        if name == "mask" and mask_id is not None:
            current = tokenizer.convert_ids_to_tokens(mask_id)
        elif current is None or (name == "pad" and current == tokenizer.eos_token):
            current = text
            if text not in known:
                _place(tokenizer, text)
                tokenizer.add_special_tokens({f"{name}_token": text})
        setattr(tokenizer, f"{name}_token", current)
        result[name] = int(tokenizer.convert_tokens_to_ids(current))
    return result


def _place(tokenizer: Any, text: str) -> None:
    """Give a token that will be added the id above all in use.

    `tokenizers` gives it the number of tokens, which is another's id where ids have holes; a token that the model's own
    vocabulary knows keeps the id that it has there. No text of another token becomes it: no merge makes it.
    """
    end = ids_end(tokenizer)
    if end == len(tokenizer):
        return
    from tokenizers import Tokenizer

    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    if not isinstance(whole["model"].get("vocab"), dict):
        return  # a list, whose places are the ids; `diffusion_config` refuses what comes of it
    whole["model"]["vocab"][text] = end
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(whole))


def _add_missing_biases(weights: dict[str, Tensor], network: Any) -> None:
    """Llama has no query, key and value biases, the Dream layout does: zeros compute the same."""
    for key in network.state_dict():
        if key.endswith(".bias") and key not in weights:
            weights[key] = torch.zeros_like(weights[key.removesuffix("bias") + "weight"][:, 0])


def _places(ids: frozenset[int], device: torch.device) -> Any:
    """What takes the rows of these ids from a table: a slice where they have no holes."""
    end = max(ids, default=-1) + 1
    return slice(0, end) if len(ids) == end else torch.tensor(sorted(ids), device=device)


def _initialise_rows(weights: dict[str, Tensor], made: DiffusionConfig) -> None:
    """Give the new rows an average token's values in the embedding and the head, growing both if they are too short."""
    if not made.new:
        return
    rows = made.config["vocab_size"]
    source = torch.Generator().manual_seed(0)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        old_VD = weights[key]
        known_VD = old_VD[_places(made.used, old_VD.device)].float()
        mean_D, spread_D = known_VD.mean(dim=0), known_VD.std(dim=0)
        grown_VD = (
            torch.cat([old_VD, mean_D.to(old_VD).expand(rows - old_VD.shape[0], -1)])
            if rows > old_VD.shape[0]
            else old_VD.clone()
        )
        for row in made.new:
            noise_D = torch.randn(spread_D.shape, generator=source).to(spread_D.device)
            grown_VD[row] = (mean_D + 1e-3 * spread_D * noise_D).to(old_VD)
        weights[key] = grown_VD
    if made.config.get("tie_word_embeddings"):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

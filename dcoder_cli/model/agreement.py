"""Whether the weights that a folder stores are those of its config: their names, shapes and number formats, and which are shared.

A stored weight is never left out without a word: what is unknown, twice there or another than the config says is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.model import checkpoint
from dcoder_cli.model.layouts import Layout

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_FORMATS = ("F64", "F32", "BF16", "F16")  # as safetensors names them; all else is quantised, or no weight of ours
_ROWS = 4096  # of a table compared at a time

# What a wrapper puts before every name, or several one before another: which it is, and what to save in place of it.
_PREFIXES = {
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "its full state dict"),
    "module.": ("DDP, FSDP or DeepSpeed", "model.module"),
    "base_model.model.": ("peft", "model.merge_and_unload()"),
    "model.language_model.": ("a model of pictures and text", "its language model"),
    "language_model.": ("a model of pictures and text", "its language model"),
    "model.model.": ("a class around the model", "the model inside it"),
}


def check_stored(folder: Path, network: Any, layout: Layout, name: str) -> None:
    """Whether a folder's weights are a network's, told by the files' headers.

    Args:
        folder: of the weights; of an adapter alone that of the model below it.
        network: on any device, without values.
        name: the checkpoint, for messages.

    Raises:
        UserError: as `check_weights`; a weight in a number format that is none of floating point; a head that is said to be
            the embedding and is stored with other values.
    """
    stored = checkpoint.stored_weights(folder)
    for key, one in stored.items():
        if one.dtype not in _FORMATS:
            raise UserError(
                f"weight {key!r} of {name!r} is stored as {one.dtype}: quantised, or no weight; "
                "give the checkpoint that it was made from, in bfloat16 or float32"
            )
    named: dict[str, str] = {}
    for key in stored:
        ours = layout.to_ours(key)
        if ours in named:
            raise UserError(f"checkpoint {name!r} stores {named[ours]!r} and {key!r}, which are one weight; remove one")
        named[ours] = key
    check_weights(network, {ours: stored[key].shape for ours, key in named.items()}, name)
    if network.config.tie_word_embeddings and HEAD in named and not _same(stored, named[HEAD], named[EMBEDDING]):
        said = layout.names.get("tie_word_embeddings", "tie_word_embeddings")
        raise UserError(
            f"config.json of {name!r} says {said} true, but {named[HEAD]!r} is stored and is not the embedding; "
            f"set {said} to false to use it, or remove it from the weights"
        )


def check_weights(network: Any, shapes: Mapping[str, Sequence[int]], name: str) -> None:
    """Whether weights of these shapes, by transformers key, are a network's. A tied head may be missing.

    Raises:
        UserError: one is missing, unknown or of another shape.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if network.config.tie_word_embeddings and HEAD not in shapes:
        del expected[HEAD]
    missing = sorted(set(expected) - set(shapes))
    extra = sorted(key for key in set(shapes) - set(expected) if "rotary_emb" not in key)
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has the unknown weight {extra[0]!r}"
        raise UserError(
            f"checkpoint {name!r} {what} ({len(missing)} missing, {len(extra)} unknown); {_why(missing, extra, expected)}"
        )
    for key, shape in expected.items():
        if tuple(shapes[key]) != shape:
            raise UserError(
                f"weight {key!r} of {name!r} has shape {tuple(shapes[key])} but the config says {shape}; "
                "its config and weights do not belong together"
            )


def _why(missing: Sequence[str], extra: Sequence[str], expected: Mapping[str, Any]) -> str:
    """What is wrong where names differ, as far as they tell it."""
    if list(missing) == [HEAD] and not extra:
        return "no head is stored; set tie_word_embeddings to true if it is the embedding, or copy the checkpoint again"
    if extra and all(f"model.{key}" in missing for key in extra):
        return "its names lack the prefix 'model.': it is the model without its head; save the whole one"
    for key in extra:
        before = next((key.removesuffix(name) for name in missing if key.endswith(name)), "")
        for prefix, (wrapper, inside) in _PREFIXES.items():
            if before.startswith(prefix):
                return f"its names begin with {before!r}, which {wrapper} put there; save {inside}, or take that off the names"
    layers = sum(".layers." in key for key in (*missing, *extra))
    if layers == len(missing) + len(extra) and not (missing and extra):
        kinds = {key.split(".layers.", 1)[1].split(".", 1)[-1] for key in (*missing, *extra)}
        known = {key.split(".layers.", 1)[1].split(".", 1)[-1] for key in expected if ".layers." in key}
        if missing or kinds <= known:
            more = "fewer" if missing else "more"
            if all(kind.endswith("bias") for kind in kinds):
                return f"the weights have {more} biases than its config says; they do not belong together"
            return f"the weights have {more} layers or parts than its config says; they do not belong together"
    return "its config and weights do not belong together"


def _same(stored: Mapping[str, checkpoint.Stored], first: str, second: str) -> bool:
    """Whether two stored tables of one shape hold the same numbers; read a few rows at a time."""
    from safetensors import SafetensorError, safe_open

    one, other = stored[first], stored[second]
    try:
        with safe_open(one.file, framework="pt") as left, safe_open(other.file, framework="pt") as right:
            a, b = left.get_slice(first), right.get_slice(second)
            for start in range(0, one.shape[0], _ROWS):
                rows, others = a[start : start + _ROWS].double(), b[start : start + _ROWS].double()
                if not bool(((rows == others) | (rows.isnan() & others.isnan())).all()):
                    return False
    except (SafetensorError, OSError) as error:
        raise checkpoint.broken(one.file, error) from None
    return True

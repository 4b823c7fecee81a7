"""What the values that make a network may be, before transformers is given them.

Its releases differ in what they refuse of another kind, and none minds a size that no machine holds: 10^12 layers are begun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.functions import short


class Kind(NamedTuple):
    """A kind of value: in words, and whether a value is of it."""

    says: str
    holds: Callable[[Any], bool]


def _whole(most: int) -> Kind:
    return Kind(f"a whole number from 1 to {most:,}", lambda value: type(value) is int and 1 <= value <= most)


def _number(says: str, fits: Callable[[float], bool]) -> Kind:
    return Kind(says, lambda value: type(value) in (int, float) and math.isfinite(value) and fits(value))


_FLAG = Kind("true or false", lambda value: type(value) is bool)
_WIDTH = _whole(2**20)  # the widest public model has 53,248 (Llama 3.1 405B)
_SECTION = Kind("a section of names", lambda value: isinstance(value, Mapping))

# By the names of transformers' config. Bounds are ours: an order of magnitude beyond any public model.
KINDS: Mapping[str, Kind] = {
    "vocab_size": _whole(2**24),
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _whole(1024),
    "num_attention_heads": _whole(2**14),
    "num_key_value_heads": _whole(2**14),
    "head_dim": _whole(2**14),
    "max_position_embeddings": _whole(2**31),
    "original_max_position_embeddings": _whole(2**31),
    "rms_norm_eps": _number("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "rope_theta": _number("a number above 0", lambda value: value > 0),
    "partial_rotary_factor": _number("a number above 0, at most 1", lambda value: 0 < value <= 1),
    "initializer_range": _number("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "attention_dropout": _number("a number from 0 to below 1", lambda value: 0 <= value < 1),
    "tie_word_embeddings": _FLAG,
    "attention_bias": _FLAG,
    "mlp_bias": _FLAG,
    "hidden_act": Kind("the name of an activation", lambda value: type(value) is str),
    "rope_scaling": _SECTION,
    "rope_parameters": _SECTION,
}


def check(arguments: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Whether a network can be made of these arguments of a transformers config; what is null or left out has a default there.

    Args:
        names: argument -> its name in the layout's config.json, where that is another.

    Raises:
        UserError: a value is of another kind, out of all bounds, or heads do not go into each other.
    """
    for key, kind in KINDS.items():
        value = arguments.get(key)
        if value is not None and not kind.holds(value):
            raise UserError(f"config.json has {names.get(key, key)} = {short(value)}; it must be {kind.says}")
    hidden, heads = arguments["hidden_size"], arguments["num_attention_heads"]
    groups = arguments.get("num_key_value_heads") or heads
    if heads > hidden:
        raise UserError(f"config.json has {heads} heads on a hidden size of {hidden}; each needs numbers of its own")
    if heads % groups:
        raise UserError(f"config.json has {heads} heads and {groups} key/value heads, which do not go into them")


def check_rope(theirs: Any, network: str) -> None:
    """Whether transformers knows how a config's rotary angles are scaled.

    Args:
        theirs: a transformers config.
        network: the name of its causal LM, for the message.

    Raises:
        UserError: it does not.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kinds = sorted({"default", *ROPE_INIT_FUNCTIONS})
    kind = (theirs.rope_parameters or {}).get("rope_type")
    if kind not in kinds:
        raise UserError(
            f"config.json scales its rotary angles by {short(kind)}, which transformers' {network} does not; "
            f"it has {', '.join(kinds)}"
        )


def check_angles(rotary: Any, head_dim: int) -> None:
    """Whether a rotary embedding turns all numbers of a head, by angles that are numbers. Raises UserError."""
    frequencies = rotary.inv_freq
    finite = frequencies.is_meta or bool(frequencies.isfinite().all())
    if 2 * frequencies.numel() != head_dim or not finite or not math.isfinite(rotary.attention_scaling):
        raise UserError(
            f"config.json scales its rotary angles into {2 * frequencies.numel()} numbers of a head of {head_dim}"
            f"{'' if finite else ', which are not finite'}; mend rope_scaling or rope_parameters"
        )

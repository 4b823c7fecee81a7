"""The checkpoint layouts we read and write, and how each maps onto the blocks of transformers.

Dream and DiffuCoder are Qwen2.5 blocks with a bidirectional mask; LLaDA is Llama's blocks under other
names; A2D (dLLM's) is an AR family's own blocks with a bidirectional mask; AR checkpoints are Qwen2, Qwen3 or Llama as
they are. A layout is a config translation plus a key map.
Another family is one more entry here, in LAYOUTS and where its blocks are new in BLOCKS: nothing else knows a family by
name (docs/extending.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.functions import short
from dcoder_cli.model import config_values, formats, llada
from dcoder_cli.model.public_code import A2D_LLAMA, A2D_QWEN2, A2D_QWEN3, DREAM, LLADA, PublicCode

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Blocks:
    """Whose transformers code computes a layout.

    Attributes:
        config, network: names of the config class and of the causal-LM class in transformers.
        becomes: the diffusion layout, a key of LAYOUTS, that `dcoder convert` writes of an AR model of these blocks: one
            whose blocks compute the same from the same weights, biases that are missing being 0. None: it writes none.
    """

    config: str
    network: str
    becomes: str | None


BLOCKS = {
    "qwen2": Blocks("Qwen2Config", "Qwen2ForCausalLM", becomes="Dream"),
    "llama": Blocks("LlamaConfig", "LlamaForCausalLM", becomes="Dream"),
    # Queries and keys are normed by themselves: no layout of Dream's has a place for those weights.
    "qwen3": Blocks("Qwen3Config", "Qwen3ForCausalLM", becomes="a2d-qwen3"),
}


@dataclass(frozen=True)
class Layout:
    """How one family of checkpoints is stored.

    Attributes:
        name: shown to people.
        blocks: whose transformers blocks compute it, a key of BLOCKS.
        diffusion: masked-diffusion (True) or AR (False).
        shift: whether hidden state i-1 predicts token i, unless the checkpoint records otherwise.
        to_config: config.json -> keyword arguments of the transformers config.
        to_ours: stored key -> transformers key.
        to_stored: transformers key -> stored key.
        rule: the unmasking rule of the system's own evaluation.
        protocol: whose way of asking `dcoder eval` takes for its scores; None = by the checkpoint's name.
        public: the authors' code, which `dcoder export` points to; None for what transformers itself computes.
        plain: whether its public code knows only heads of hidden_size / heads numbers, rotary angles that are not scaled
            and SiLU: `dcoder convert` refuses to write another model so.
        names: argument of the transformers config -> key of config.json, where that is another.
    """

    name: str
    blocks: str
    diffusion: bool
    shift: bool
    to_config: Callable[[Config], dict[str, Any]]
    to_ours: Callable[[str], str]
    to_stored: Callable[[str], str]
    rule: str = "entropy"  # DiffuCoder B.2
    protocol: Literal["diffucoder", "dream", "qwen", "llada"] | None = None
    public: PublicCode | None = None
    plain: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


_QWEN_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "initializer_range",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_dropout",
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "original_max_position_embeddings",
    "partial_rotary_factor",
)
# What null means to transformers is not its default: as many key/value heads as heads.
_NULL_SAYS = ("num_key_value_heads", "head_dim")


def _qwen_config(config: Config) -> dict[str, Any]:
    if config.get("use_sliding_window"):
        raise UserError(
            "config.json sets use_sliding_window, which no diffusion system uses and dcoder does not support; set it to false"
        )
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise UserError(
            f"config.json has layer_types = {short(kinds)}; dcoder computes full attention alone, so every one must be 'full_attention'"
        )
    return {
        key: config[key] for key in _QWEN_KEYS if config.get(key) is not None or (key in config and key in _NULL_SAYS)
    }


def _same(key: str) -> str:
    return key


# `model_type` in config.json -> layout. Shifts: Dream and DiffuCoder read hidden state i-1, LLaDA and A2D do not
# (dLLM's samplers and trainers have right_shift_logits, off by default, and no config.json of theirs says which).
LAYOUTS: dict[str, Layout] = {
    "Dream": Layout("Dream", "qwen2", True, True, _qwen_config, _same, _same, public=DREAM, plain=True),
    "llada": Layout(
        "LLaDA", "llama", True, False, llada.to_config, llada.to_ours, llada.to_stored,
        rule="confidence", protocol="llada", public=LLADA, names=llada.NAMES,  # low-confidence remasking: LLaDA's own sampler
    ),
    # low_confidence remasking: dLLM's examples/a2d and its evaluation
    "a2d-qwen2": Layout("A2D-Qwen2", "qwen2", True, False, _qwen_config, _same, _same, rule="confidence", public=A2D_QWEN2),
    "a2d-qwen3": Layout("A2D-Qwen3", "qwen3", True, False, _qwen_config, _same, _same, rule="confidence", public=A2D_QWEN3),
    "a2d-llama": Layout("A2D-Llama", "llama", True, False, _qwen_config, _same, _same, rule="confidence", public=A2D_LLAMA),
    "qwen2": Layout("Qwen2 (AR)", "qwen2", False, True, _qwen_config, _same, _same),
    "qwen3": Layout("Qwen3 (AR)", "qwen3", False, True, _qwen_config, _same, _same),
    "llama": Layout("Llama (AR)", "llama", False, True, _qwen_config, _same, _same),
}  # fmt: skip


def layout_of(config: Config, name: str) -> Layout:
    """The layout of a checkpoint by its `model_type`. Raises UserError for one we cannot read."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in LAYOUTS:
        made = config.get("architectures")
        made = f" ({made[0]})" if isinstance(made, list) and made and isinstance(made[0], str) else ""
        raise UserError(
            f"model_type {short(model_type)} of {name!r}{made} is not supported; dcoder reads {', '.join(LAYOUTS)}"
        )
    formats.refuse_quantised(config, name)
    layout = LAYOUTS[model_type]
    if not layout.diffusion and not config.get("is_causal", True):
        raise UserError(
            f"config.json of {name!r} sets is_causal = {short(config['is_causal'])}: it attends to both sides, so it is no AR model; "
            "give one that generates text"
        )
    return layout


def shift_of(config: Config, layout: Layout) -> bool:
    """Whether hidden state i-1 predicts token i: what the checkpoint records, else its layout's rule.

    Raises:
        UserError: what it records is neither true nor false ("false" would count as true).
    """
    recorded = config.get("dcoder")
    if isinstance(recorded, Mapping) and "shift" in recorded:
        shift = recorded["shift"]
        if type(shift) is not bool:
            raise UserError(f"config.json has dcoder.shift = {short(shift)}; it must be true or false")
        return shift
    return layout.shift


def other_shift(layout: Layout) -> str:
    """What to know of weights whose shift is not that of their layout's public code."""
    here, there = ("i", "i-1") if layout.shift else ("i-1", "i")
    told = layout.public.other_shift if layout.public is not None else None
    return (
        f"hidden state {here} predicts token i in these weights, and the public sampler reads hidden state {there}"
        + (f" unless it is given {told}" if told else "")
    )


def arguments_of(config: Config, layout: Layout) -> dict[str, Any]:
    """A checkpoint's config as arguments of the transformers config. Raises UserError where a key is missing or no number."""
    with _described(layout):
        try:
            arguments = layout.to_config(config)
            for key in _SIZES:
                if arguments.get(key) is None:
                    raise KeyError(layout.names.get(key, key))
        except KeyError as error:
            raise UserError(f"config.json lacks {error.args[0]!r}, which the {layout.name} layout needs") from None
    config_values.check(arguments, layout.names)
    return arguments


_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def transformers_config(config: Config, layout: Layout) -> Any:
    """The transformers config that computes a checkpoint. Raises UserError for keys that are missing or make none."""
    import transformers

    arguments = arguments_of(config, layout)
    blocks = BLOCKS[layout.blocks]
    with _described(layout):
        # A section is changed by the config that it is given to: ours stays as it is stored.
        result = getattr(transformers, blocks.config)(**copy.deepcopy(arguments))
    config_values.check_rope(result, blocks.network)
    result.is_causal = not layout.diffusion
    return result


def network_of(theirs: Any, layout: Layout) -> Any:
    """The causal-LM of transformers that a transformers config describes. Raises UserError where it describes none."""
    import transformers

    with _described(layout):
        return getattr(transformers, BLOCKS[layout.blocks].network)(theirs)


def rotary_of(network: Any, theirs: Any, layout: Layout) -> Any:
    """A network's rotary embedding anew, on the device that is set: its angles are computed, not stored. Raises UserError."""
    with _described(layout):
        rotary = type(network.model.rotary_emb)(theirs)
        head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
        config_values.check_angles(rotary, head_dim)
    return rotary


@contextmanager
def _described(layout: Layout) -> Iterator[None]:
    """What transformers makes of a value of another kind than it expects differs by release; here it is one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = one_line(error)[-200:]
        raise UserError(f"config.json describes no network of the {layout.name} layout: {told}; mend it") from None

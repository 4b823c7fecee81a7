"""LoRA (arXiv 2106.09685) by peft: low-rank adapters in a model's frozen blocks.

The network keeps its modules; an adapted linear layer computes W x + alpha / rank * B A x. With the adapter off it is the
model it began as, which stage 4 takes as its reference. Checkpoints hold W + alpha / rank * B A as copies: merging in
place and undoing it would leave rounding errors in the live weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcoder_cli.base.errors import UserError
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model import checkpoint
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.convert import NEW_TOKENS
from dcoder_cli.training.config import LoraConfig

_NAME = "default"  # peft's name of the one adapter


def check_stage(stage: int) -> None:
    """Raises UserError for a stage without LoRA, or where peft is not installed."""
    if stage < 2:
        raise UserError(
            f"stage {stage} cannot train with lora, which freezes the embeddings and with them the new mask token's; use --set lora=null, and lora from stage 2 on"
        )
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError("lora needs the package peft; install it with `pip install 'dcoder[lora]'`") from None


def check_embeddings(model: Model, stage: int) -> None:
    """Refuse a model of ours in which a token that the stage needs is still as `dcoder convert` made it: an average token.

    The mask token trains from stage 1 on, a new pad token in stage 3. A frozen average row of the head can hardly win over
    the rows it is the average of: at small scale, stage 3 with LoRA brought the pads' probability to 0.1, in full to 0.9998.

    Raises:
        UserError: such a model, by the stage that its config records.
    """
    trained = (model.config.get("dcoder") or {}).get("stage")
    new_pad = model.tokenizer is not None and model.tokenizer.pad_token == NEW_TOKENS["pad"]
    if trained in ("converted", "random"):
        token, first = "mask", 1
    elif trained in ("adapt", "mid") and stage >= 3 and new_pad:
        token, first = "pad", 3
    else:
        return
    raise UserError(
        f"lora freezes the embeddings, and that of the new {token} token in {model.name!r} ({trained}) has not been trained; run stage {first} without lora first"
    )


def add_adapter(model: Model, config: LoraConfig, seed: int) -> None:
    """Freeze a model and put an adapter into its blocks. B starts at 0, so the model computes what it did.

    Args:
        model: changed in place.
        config: see LoraConfig.
        seed: of A, drawn as LoRA's public code does; the global generator is neither read nor moved.

    Raises:
        UserError: the blocks have no linear layer of a name in `target_modules`.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    blocks = model.network.model.layers
    linear = {name.rsplit(".", 1)[-1] for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    for name in config.target_modules:
        if name not in linear:
            raise UserError(
                f"lora.target_modules names {name!r}, which {model.name!r} does not have; its linear layers are {', '.join(sorted(linear))}"
            )
    theirs = PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.target_modules))
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(theirs, model.network, _NAME)
    source = generator(seed, "lora")
    for layer in _adapted(model).values():
        nn.init.kaiming_uniform_(layer.lora_A[_NAME].weight, a=math.sqrt(5), generator=source)
        nn.init.zeros_(layer.lora_B[_NAME].weight)


def is_adapted(model: Model) -> bool:
    """Whether a model has an adapter."""
    return bool(_adapted(model))


@contextmanager
def adapter_off(model: Model) -> Iterator[None]:
    """The model without its adapter, as it was before LoRA. Changes nothing where there is none."""
    layers = list(_adapted(model).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merged_weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """The weights of the model without LoRA that computes the same, by its keys, on the CPU; the live ones are not touched."""
    layers = _adapted(model)
    for key, value in model.network.state_dict().items():
        module, _, kind = key.rpartition(".base_layer.")
        if module and kind == "weight":
            value = value + layers[module].get_delta_weight(_NAME)
        if not _is_adapters(key):
            yield key.replace(".base_layer.", "."), value.cpu()


def adapter_state(model: Model) -> dict[str, Tensor]:
    """The adapter's own weights, for `training/adapter.pt`."""
    return {key: value for key, value in model.network.state_dict().items() if _is_adapters(key)}


def load_adapter(model: Model, folder: Path) -> None:
    """Put the adapter of a checkpoint into a model prepared by `add_adapter`, and check that both make its weights.

    Raises:
        UserError: the adapter is damaged, or the model below it is not the one that the run began with.
    """
    try:
        state = torch.load(folder / "training" / "adapter.pt", map_location="cpu", weights_only=True)
        model.network.load_state_dict({**model.network.state_dict(), **state})
    except Exception as error:
        raise UserError(
            f"the adapter in {str(folder)!r} cannot be read ({type(error).__name__}); remove that folder to resume from the one before"
        ) from None
    stored = checkpoint.read_weights(folder, model.layout, torch.device("cpu"), torch.float32)
    for key, value in merged_weights(model):
        # The tolerance is for a product B A that was computed on another device.
        if key in stored and not torch.allclose(value, stored[key], rtol=1e-5, atol=1e-6):
            raise UserError(
                f"model {model.name!r} is not what this run began with ({key} differs), and LoRA resumes on top of that; give it back its weights or start anew"
            )


def _adapted(model: Model) -> dict[str, Any]:
    return {name: module for name, module in model.network.named_modules() if hasattr(module, "lora_A")}


def _is_adapters(key: str) -> bool:
    return ".lora_A." in key or ".lora_B." in key

"""LoRA (arXiv 2106.09685) by peft: low-rank adapters in a model's frozen blocks.

The network keeps its modules; an adapted linear layer computes W x + alpha / rank * B A x. With the adapter off it is the
model it began as, which stage 4 takes as its reference. Checkpoints hold the adapter, and W + alpha / rank * B A as copies:
merging in place and undoing it would leave rounding errors in the live weights.

The frozen W are float32, bfloat16 or 4 bits (`LoraConfig.base_dtype`). What is small stays float32 whatever W is: A and B,
which train, the norms, and the embeddings' output, so the residual stream too. Under bfloat16 autocast, W stored in
bfloat16 and the same W in float32 then give the same numbers, bit for bit.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcoder_cli.base.checksums import Damaged
from dcoder_cli.base.errors import UserError
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model import adapters, checkpoint
from dcoder_cli.model.adapters import Adapter, Base
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.convert import NEW_TOKENS
from dcoder_cli.training.config import LoraConfig
from dcoder_cli.training.gathered import whole

_NAME = "default"  # peft's name of the one adapter
_OLDER = Path(
    "training", "adapter.pt"
)  # where earlier releases kept it, beside a merged model and without a record of the base


def check(config: LoraConfig, precision: str, stage: int, device: torch.device) -> None:
    """Raises UserError for a stage without LoRA, a base that cannot be held here, or where peft is not installed."""
    if stage < 2:
        raise UserError(
            f"stage {stage} cannot train with lora, which freezes the embeddings and with them the new mask token's; use --set lora=null, and lora from stage 2 on"
        )
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError("lora needs the package peft; install it with `pip install 'dcoder[lora]'`") from None
    if config.base(precision) == "nf4":
        if device.type != "cuda":
            raise UserError(f"lora.base_dtype = nf4 needs a CUDA device, not {device.type}; use bfloat16")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "lora.base_dtype = nf4 needs the package bitsandbytes; install it with `pip install 'dcoder[gpu]'`, or use bfloat16"
            )


def base_dtype(config: LoraConfig, precision: str, last: Path | None) -> str:
    """float32, bfloat16 or nf4: how a run holds its frozen weights, which goes on from the checkpoint `last`."""
    if last is not None and not (last / adapters.FOLDER).is_dir():
        return "float32"  # the one there was when it began
    return config.base(precision)


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


def add_adapter(model: Model, config: LoraConfig, seed: int, dtype: str = "float32") -> None:
    """Freeze a model and put an adapter into its blocks. B starts at 0, so the model computes what it did.

    Args:
        model: on the CPU, its weights in the format of `dtype` (bfloat16 for nf4: they become 4-bit on their way to the GPU).
            Changed in place.
        config: see LoraConfig.
        seed: of A, drawn as LoRA's public code does; the global generator is neither read nor moved.
        dtype: float32, bfloat16 or nf4, see `base_dtype`.

    Raises:
        UserError: the blocks have no linear layer of a name in `target_modules`.
    """
    from peft import inject_adapter_in_model

    _adaptable(model, config)
    content = adapters.fingerprint(model.network.state_dict(), model.network.config.tie_word_embeddings)
    base = Base(adapters.base_name(model.name), dtype, content)
    model.adapter = Adapter(config.rank, config.alpha, config.target_modules, base, config.save_merged)
    _keep_small_parts_float32(model)
    if dtype == "nf4":
        _make_four_bit(model)
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(_peft_config(model.adapter, list(config.target_modules)), model.network, _NAME)
    source = generator(seed, "lora")
    for layer in _adapted(model).values():
        for part in (layer.lora_A, layer.lora_B):
            part.to(torch.float32)  # peft makes them in W's format, too coarse for what an optimiser adds to them
        nn.init.kaiming_uniform_(layer.lora_A[_NAME].weight, a=math.sqrt(5), generator=source)
        nn.init.zeros_(layer.lora_B[_NAME].weight)


def _adaptable(model: Model, config: LoraConfig) -> list[nn.Linear]:
    """The linear layers that get an adapter. Raises UserError for a name that no layer has."""
    linear = [
        (name.rsplit(".", 1)[-1], module)
        for name, module in model.network.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    known = {name for name, _ in linear}
    for name in config.target_modules:
        if name not in known:
            raise UserError(
                f"lora.target_modules names {name!r}, which {model.name!r} does not have; its linear layers are {', '.join(sorted(known))}"
            )
    return [module for name, module in linear if name in config.target_modules]


def planned_numbers(model: Model, config: LoraConfig) -> int:
    """Parameters of the adapter that a model without one would get: rank x (inputs + outputs) a layer.

    Raises:
        UserError: as `add_adapter`.
    """
    return sum(config.rank * (layer.in_features + layer.out_features) for layer in _adaptable(model, config))


def _peft_config(adapter: Adapter, target_modules: list[str]) -> Any:
    from peft import LoraConfig as PeftConfig

    return PeftConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=target_modules)


def _keep_small_parts_float32(model: Model) -> None:
    """Norms, and what the embeddings give out: with them the residual stream. Nothing changes in a float32 model."""
    for module in model.network.modules():
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    if model.dtype == torch.bfloat16:
        model.network.get_input_embeddings().register_forward_hook(_in_float32)


def _in_float32(module: nn.Module, arguments: Any, value: Tensor) -> Tensor:
    return value.float()


def _make_four_bit(model: Model) -> None:
    """The blocks' linear layers in bitsandbytes' NF4, the scales quantised again, as QLoRA does (arXiv 2305.14314, 3)."""
    import bitsandbytes as bnb

    for block in model.network.model.layers:
        for name, old in list(block.named_modules()):
            if not isinstance(old, nn.Linear):
                continue
            new = bnb.nn.Linear4bit(
                old.in_features, old.out_features, bias=old.bias is not None, compute_dtype=torch.bfloat16,
                compress_statistics=True, quant_type="nf4", device="meta",
            )  # fmt: skip
            new.weight = bnb.nn.Params4bit(
                old.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new
            )
            new.bias = old.bias
            parent, _, child = name.rpartition(".")
            setattr(block.get_submodule(parent), child, new)
    model.network.is_loaded_in_4bit = True  # peft adapts bitsandbytes' layers in a network that says so


def is_adapted(model: Model) -> bool:
    """Whether a model has an adapter."""
    return model.adapter is not None


@contextmanager
def adapter_off(model: Model) -> Iterator[None]:
    """The model without its adapter, as it was before LoRA. Changes nothing where there is none."""
    layers = list(_adapted(model).values())
    for layer in layers:
        layer.enable_adapters(False)
        # peft freezes what it switches off; FSDP asks at its first forward, which this may be, what will have gradients.
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merged_weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """The weights of the model without LoRA that computes the same, by its keys, on the CPU; the live ones are not touched.

    Sums are float32, results in the format of the frozen weights (nf4: bfloat16).
    Under FSDP2 all processes go through them together: each is gathered in its turn.
    """
    layers = _adapted(model)
    for key, value in model.network.named_parameters(remove_duplicate=False):
        if _is_adapters(key):
            continue
        module, _, kind = key.rpartition(".base_layer.")
        value = whole(_readable(value, model.dtype)).detach()
        if module and kind == "weight":
            layer = layers[module]
            a, b = whole(layer.lora_A[_NAME].weight), whole(layer.lora_B[_NAME].weight)
            value = adapters.merge(value, a, b, layer.scaling[_NAME])
        yield key.replace(".base_layer.", "."), value.to("cpu", model.dtype)


def merged_bytes(model: Model) -> int:
    """What `merged_weights` take in a file: every weight once, in the format of the frozen ones."""
    assert model.adapter is not None
    numbers = 0
    for key, value in model.network.named_parameters():
        packed = getattr(value, "quant_state", None)
        if not _is_adapters(key):
            numbers += math.prod((value if packed is None else packed).shape)
    return numbers * model.dtype.itemsize


def _readable(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as numbers: 4-bit ones are unpacked."""
    state = getattr(value, "quant_state", None)
    if state is None:
        return value
    import bitsandbytes as bnb

    return bnb.functional.dequantize_4bit(value.data, state).to(dtype)  # type: ignore[no-any-return]


def adapter_state(model: Model) -> dict[str, Tensor]:
    """The adapter's own weights, by the network's keys: the live ones, or under FSDP2 gathered by all processes together."""
    return {key: whole(value) for key, value in model.network.state_dict().items() if _is_adapters(key)}


def write_adapter(model: Model, state: dict[str, Tensor], folder: Path) -> None:
    """Write `adapter/` of a checkpoint, as peft reads it, on one process; `state`: of `adapter_state`."""
    assert model.adapter is not None
    state = {key.replace(f".{_NAME}.", "."): value for key, value in state.items()}
    modules = [adapters.stored_module(name, model.layout) for name in _adapted(model)]
    # A short name stands for every layer that ends in it: in another family's checkpoint that may be too many.
    short = modules == list(_adapted(model))
    config = _peft_config(model.adapter, sorted(model.adapter.target_modules) if short else modules)
    config.base_model_name_or_path, config.inference_mode = model.adapter.base.model, True
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    adapters.write(folder / adapters.FOLDER, state, model.layout, values, model.adapter.base)


@torch.no_grad()
def load_adapter(model: Model, folder: Path) -> None:
    """Put the adapter of a checkpoint into a model prepared by `add_adapter`, and check that it was trained on that model.

    Raises:
        UserError: the adapter is damaged, or the model below it is not the one that the run began with.
    """
    assert model.adapter is not None
    older = (folder / _OLDER).is_file()
    try:
        if older:
            state = torch.load(folder / _OLDER, map_location="cpu", weights_only=True)
        else:
            stored, _, base = adapters.read(folder / adapters.FOLDER, model.layout)
            state = {key.replace(".weight", f".{_NAME}.weight"): value for key, value in stored.items()}
        live = adapter_state(model)
        if set(state) != set(live):
            raise ValueError("other layers")
        for key, value in live.items():
            value.copy_(state[key])
    except Damaged:
        raise
    except Exception as error:
        told = f"the adapter in {str(folder)!r} cannot be read ({type(error).__name__}); copy the checkpoint again"
        raise Damaged(told, folder / adapters.FOLDER) from None
    differs = _differs_from_older(model, folder) if older else None
    if not older and base.dtype != model.adapter.base.dtype:
        raise UserError(
            f"this run began with base weights in {base.dtype}, and they would now be {model.adapter.base.dtype}; leave precision as it was"
        )
    if not older and base.sha256 != model.adapter.base.sha256:
        differs = "its weights differ"
    if differs:
        raise UserError(
            f"model {model.name!r} is not what this run began with ({differs}), and LoRA resumes on top of that; give it back its weights or start anew"
        )


def _differs_from_older(model: Model, folder: Path) -> str | None:
    """Which weight shows that a checkpoint without a record of its base was trained on another: none if none does."""
    stored = checkpoint.read_weights(folder, model.layout, torch.device("cpu"), torch.float32)
    for key, value in merged_weights(model):
        # The tolerance is for a product B A that was computed on another device.
        if key in stored and not torch.allclose(value, stored[key], rtol=1e-5, atol=1e-6):
            return f"{key} differs"
    return None


def _adapted(model: Model) -> dict[str, Any]:
    return {name: module for name, module in model.network.named_modules() if hasattr(module, "lora_A")}


def _is_adapters(key: str) -> bool:
    return ".lora_A." in key or ".lora_B." in key

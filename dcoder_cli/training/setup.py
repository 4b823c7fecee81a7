"""What a training run is set up from: Accelerate, and the model with its adapter and attention."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.model import attention, kernels
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import check_attention, choose_device, load, skeleton
from dcoder_cli.model.outline import outline
from dcoder_cli.training import lora, optimizers
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig

# How long one process waits for another (ours): rollouts of a large model may end further apart than NCCL's ten minutes. One
# that has died ends all at once, by the launcher.
_PATIENCE = timedelta(hours=2)


def make_accelerator(precision: str, device: str | None, track: str | None, run: Path) -> Any:
    """The Accelerator of a run; `accelerate launch` and torchrun decide everything else about it.

    Raises:
        UserError: the device, the precision or the tracker is not to be had, or the launcher decides for another device.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    asked = None if device is None else choose_device(device)
    on_cpu = asked is not None and asked.type == "cpu"
    if on_cpu and torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if asked is not None and asked.index is not None and not on_cpu:
        if console.world_size() > 1:
            raise UserError(f"--device {device} is one device, and each process has its own; give {asked.type}")
        torch.cuda.set_device(asked)  # Accelerate takes the current one
    if track is not None:
        _check_tracker(track)
    try:
        accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            cpu=on_cpu,
            log_with=track,
            project_dir=str(run),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"precision {precision!r} cannot run here: {error}") from None
    if asked is not None and accelerator.device.type != asked.type:
        raise UserError(
            f"--device {device}, but Accelerate's configuration gives {accelerator.device.type}; change one of them"
        )
    return accelerator


def _check_tracker(track: str) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    if track not in [str(kind.value) for kind in LoggerType]:
        raise UserError(
            f"--track {track!r} is unknown; use one of {', '.join(sorted(str(kind) for kind in LOGGER_TYPE_TO_CLASS))}"
        )
    from accelerate.tracking import get_available_trackers

    if track not in [str(kind.value) for kind in get_available_trackers()]:
        raise UserError(f"--track {track} needs the package {track}; install it with `pip install {track}`")


def load_model(
    accelerator: Any,
    run: RunFolder,
    resume: bool,
    name: str,
    config: StageConfig | GrpoConfig,
    stage: int,
    spread: bool,
    dry: bool = False,
) -> Model:
    """The model to train, float32 on the CPU: `name`, or the run's last checkpoint when resuming.

    Where weights are `spread` over processes they are left on the meta device; `Context.prepare` fills them. In a `dry` run
    they stay there, and without an adapter: files are looked at as far as their headers.

    With LoRA it is `name` in both cases, with the adapter put in: a checkpoint's weights have the adapter merged. Its
    frozen weights are read straight into the format that they are held in.

    Raises:
        UserError: the model or its adapter cannot be read, the stage cannot train it with LoRA, or a library that the
            settings ask for is missing or cannot run here (told before anything is read).
    """
    optimizers.check(config.optimizer)
    kernels.check(config.kernels, accelerator.device)
    last = run.checkpoint(run.last()) if resume and run.last() else None
    if config.lora is None:
        if dry:
            model = outline(last or name)
        elif spread:
            model = skeleton(last or name, torch.device("cpu"))
        else:
            model = load(last or name, device="cpu", dtype="float32")
        model.name = name
        return model
    lora.check(config.lora, config.precision, stage, accelerator.device)
    held = lora.base_dtype(config.lora, config.precision, last)
    if spread and (held == "nf4" or config.optimizer.name != "adamw"):
        what = "lora.base_dtype = nf4" if held == "nf4" else f"optimizer.name = {config.optimizer.name}"
        raise UserError(f"{what} does not run under FSDP; use bfloat16 and adamw, or DDP (distributed_type: MULTI_GPU)")
    try:
        if dry:
            model = outline(name)
        else:
            model = load(name, device="cpu", dtype="float32" if held == "float32" else "bfloat16")
    except UserError as error:
        raise UserError(
            f"LoRA resumes on top of the model it began with, but {error}" if resume else str(error)
        ) from None
    lora.check_embeddings(model, stage)
    if dry:
        lora.planned_numbers(model, config.lora)
        return model
    lora.add_adapter(model, config.lora, config.seed, held)
    if last is not None:
        lora.load_adapter(model, last)
    return model


def set_attention(model: Model, implementation: str, device: torch.device) -> None:
    """Switch a loaded model to an attention implementation. Raises UserError where it cannot train on `device`."""
    check_attention(implementation, device)
    if implementation == "flex" and device.type == "cpu":
        raise UserError("attention = flex has no backward pass on a CPU (PyTorch's flex_attention); use sdpa")
    model.implementation = implementation
    attention.use(model.network, implementation)


def recompute_activations(network: Any) -> None:
    """Keep what each block was given and compute the rest again in the backward pass."""
    enable = getattr(network, "activation_checkpointing_enable", None)
    if enable is None:  # its name before transformers 5.24
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})


def freeze_embeddings(model: Model) -> None:
    """Leave token embeddings and head out of training."""
    for part in (model.network.get_input_embeddings(), model.network.lm_head):
        part.requires_grad_(False)

"""What a training run is set up from: Accelerate, the model with its adapter and attention, the optimiser and its schedule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.model.backbone import Model, check_attention, load
from dcoder_cli.training import lora
from dcoder_cli.training.config import OptimizerConfig, StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig


def make_accelerator(precision: str, device: str | None, track: str | None, run: Path) -> Any:
    """The Accelerator of a run; `accelerate launch` and torchrun decide everything else about it."""
    from accelerate import Accelerator

    if device == "cpu" and torch.cuda.is_available():
        import os

        os.environ["ACCELERATE_USE_CPU"] = "true"
    if track is not None:
        _check_tracker(track)
    try:
        return Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            cpu=device == "cpu",
            log_with=track,
            project_dir=str(run),
            step_scheduler_with_optimizer=False,
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"precision {precision!r} cannot run here: {error}") from None


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
    accelerator: Any, run: RunFolder, resume: bool, name: str, config: StageConfig | GrpoConfig, stage: int
) -> Model:
    """The model to train, float32 on the CPU: `name`, or the run's last checkpoint when resuming.

    With LoRA it is `name` in both cases, with the adapter put in: a checkpoint's weights have the adapter merged.

    Raises:
        UserError: the model or its adapter cannot be read, or the stage cannot train it with LoRA.
    """
    last = run.checkpoint(run.last()) if resume and run.last() else None
    if config.lora is None:
        model = load(last or name, device="cpu", dtype="float32")
        model.name = name
        return model
    lora.check_stage(stage)
    if is_sharded(accelerator):
        raise UserError("lora is not made for FSDP and DeepSpeed; launch it with DDP (--multi_gpu)")
    try:
        model = load(name, device="cpu", dtype="float32")
    except UserError as error:
        raise UserError(
            f"LoRA resumes on top of the model it began with, but {error}" if resume else str(error)
        ) from None
    lora.check_embeddings(model, stage)
    lora.add_adapter(model, config.lora, config.seed)
    if last is not None:
        lora.load_adapter(model, last)
    return model


def set_attention(model: Model, implementation: str, device: torch.device) -> None:
    """Switch a loaded model to an attention implementation. Raises UserError where it cannot train on `device`."""
    check_attention(implementation, device)
    if implementation == "flex" and device.type == "cpu":
        raise UserError("attention = flex has no backward pass on a CPU (PyTorch's flex_attention); use sdpa")
    model.implementation = implementation
    model.network.config._attn_implementation = {"flex": "flex_attention"}.get(implementation, implementation)


def freeze_embeddings(model: Model) -> None:
    """Leave token embeddings and head out of training."""
    for part in (model.network.get_input_embeddings(), model.network.lm_head):
        part.requires_grad_(False)


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, the fused kernel where it exists."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = config.fused and parameters[0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Linear warmup, then a cosine to `floor` times the peak at the last step, or constant. `step` counts from 0."""
    warmup = min(config.warmup(total_steps), total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    return config.learning_rate * (
        config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give all parameter groups a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def is_sharded(accelerator: Any) -> bool:
    """Whether weights or optimiser states are spread over processes (FSDP, DeepSpeed)."""
    return str(accelerator.distributed_type).rsplit(".", 1)[-1] in ("FSDP", "DEEPSPEED")

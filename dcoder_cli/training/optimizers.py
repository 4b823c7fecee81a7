"""The optimiser of a training and the schedule of its learning rate."""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import torch
from torch import nn

from dcoder_cli.base.errors import UserError
from dcoder_cli.training.config import OptimizerConfig


def check(config: OptimizerConfig) -> None:
    """Raises UserError where an 8-bit optimiser is asked for and no package that has one is installed."""
    if config.name == "adamw-8bit" and not _eight_bit_libraries():
        raise UserError(
            "optimizer.name = adamw-8bit needs the package bitsandbytes or torchao; install it with `pip install 'dcoder[gpu]'`, or use --set optimizer.name=adamw"
        )


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over what trains in a module; weight decay on matrices only, the fused kernel where it exists."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    if config.name == "adamw-8bit":
        return _eight_bit(groups, settings)
    fused = config.fused and parameters[0].device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, fused=fused, **settings)


def _eight_bit_libraries() -> list[str]:
    """Those that are installed. bitsandbytes has kernels of its own, torchao compiles its step at the first one."""
    return [name for name in ("bitsandbytes", "torchao") if importlib.util.find_spec(name) is not None]


def _eight_bit(groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    library = _eight_bit_libraries()[0]
    kind = importlib.import_module(f"{library}.optim").AdamW8bit
    # Checkpoints keep a group's entries, and with them whose state it is. bitsandbytes wants no empty group.
    return kind([{**group, "library": library} for group in groups if group["params"]], **settings)  # type: ignore[no-any-return]


def check_state(optimizer: Any) -> None:
    """Raises UserError where the state that an optimiser has loaded is another library's, which it cannot step from."""
    plain = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper holds it
    saved, now = plain.param_groups[0].get("library", "torch"), type(plain).__module__.split(".")[0]
    if saved != now:
        raise UserError(
            f"the checkpoint's optimiser is of {saved}, and here it would be of {now}; install {saved} to resume"
        )


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
        if isinstance(group["lr"], torch.Tensor):  # torchao's, which its compiled step reads
            group["lr"].fill_(value)
        else:
            group["lr"] = value

"""The optimiser of a training and the schedule of its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from dcoder_cli.training.config import OptimizerConfig


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

"""What stage 4 writes down of a step: metrics over all processes, sample completions, seconds per phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.diffusion.trajectory import Trajectory
from dcoder_cli.training.grpo_config import GrpoConfig
from dcoder_cli.training.rollouts import Rollout, flat_groups, monitors

Monitor = Callable[[Sequence[Trajectory]], dict[str, float]]


def step_metrics(
    accelerator: Any,
    rollouts: Sequence[Rollout],
    sums: Tensor,
    config: GrpoConfig,
    completions: int,
    monitor: Monitor | None,
) -> dict[str, float]:
    """Means over the step, over all processes."""
    updates = completions * config.inner_iterations
    local = monitors(rollouts)
    local["flat_groups"] = flat_groups(rollouts, config.group_size)
    if monitor is not None:
        local.update(monitor([item.trajectory for item in rollouts]))
    names = sorted(local)
    values = torch.tensor([local[name] for name in names], dtype=torch.float64)
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values.float().to(accelerator.device), reduction="mean").double().cpu()
        norm = sums[5].clone()
        sums = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum").double().cpu()
        sums[5] = norm
    metrics = dict(zip(names, values.tolist(), strict=True))
    for index, name in enumerate(("loss", "kl", "clipped_low", "clipped_high", "ratio")):
        # A completion that the updates leave out has neither loss, KL nor clipping; its ratio was never computed.
        metrics[name] = float(sums[index]) / (float(sums[6]) if name == "ratio" else updates)
    metrics["skipped"] = 1 - float(sums[6]) / updates
    metrics["grad_norm"] = float(sums[5]) / config.inner_iterations
    return metrics


def sample_record(item: Rollout, prompt: dict[str, Any]) -> dict[str, Any]:
    parts = {name: None if value != value else value for name, value in item.reward.parts.items()}
    return {
        "task_id": prompt.get("task_id"),
        "prompt": prompt.get("messages", prompt.get("prompt")),
        "text": item.trajectory.text,
        "reveal_step": item.trajectory.reveal_step,
        "rewards": parts,
        "status": item.reward.status,
        "tests": prompt.get("tests", {}).get("hidden"),
    }


class Clock:
    """Seconds of the phases of a step."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self._began

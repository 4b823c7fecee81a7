"""What stage 4 writes down of a step: metrics over all processes, sample completions, seconds per phase."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.rewards import says_passed
from dcoder_cli.training.grpo.rollouts import Rollout

Monitor = Callable[[Sequence[Trajectory]], dict[str, float]]


def step_metrics(
    accelerator: Any,
    rollouts: Sequence[Rollout],
    sums: Tensor,
    config: GrpoConfig,
    completions: int,
    divisor: int,
    monitor: Monitor | None,
) -> dict[str, float]:
    """Numbers of the step, over the completions of all processes.

    Args:
        sums: over the updates: the five sums of a Loss, gradient norms, completions and units (see `grpo_loss.units`) taught.
        completions, divisor: completions and units of the whole rollout.

    Rewards are means and standard deviations over the completions that the judge had no trouble with.
    """
    updates = completions * config.inner_iterations
    moments = _moments(rollouts)
    shares = _shares(rollouts, config)
    if monitor is not None:
        shares.update(monitor([item.trajectory for item in rollouts]))
    moments_K3 = torch.tensor(list(moments.values()), dtype=torch.float64)
    shares_S = torch.tensor(list(shares.values()), dtype=torch.float64)
    if accelerator.num_processes > 1:
        norm = sums[5].clone()
        moments_K3, sums = (_over_processes(accelerator, value, "sum") for value in (moments_K3, sums))
        shares_S = _over_processes(accelerator, shares_S, "mean")
        sums[5] = norm
    metrics: dict[str, float] = {}
    for name, (total, squares, count) in zip(moments, moments_K3.tolist(), strict=True):
        mean = total / count if count else math.nan
        metrics[name] = mean
        metrics[f"{name}_std"] = math.sqrt(max(0.0, squares / count - mean**2)) if count else math.nan
    metrics.update(zip(shares, shares_S.tolist(), strict=True))
    for index, name in enumerate(("loss", "kl", "clipped_low", "clipped_high", "ratio")):
        # A completion that the updates leave out has neither loss, KL nor clipping; its ratio was never computed.
        metrics[name] = float(sums[index]) / (float(sums[7]) if name == "ratio" else divisor * config.inner_iterations)
    metrics["skipped"] = 1 - float(sums[6]) / updates
    metrics["grad_norm"] = float(sums[5]) / config.inner_iterations
    return metrics


def _over_processes(accelerator: Any, values: Tensor, how: str) -> Tensor:
    reduced: Tensor = accelerator.reduce(values.float().to(accelerator.device), reduction=how)
    return reduced.double().cpu()


def _moments(rollouts: Sequence[Rollout]) -> dict[str, tuple[float, float, int]]:
    """For the total and each part of the reward: sum, sum of squares and number of known values."""
    columns = {"reward": [item.reward.total for item in rollouts]}
    for name in rollouts[0].reward.parts:
        columns[f"reward_{name}"] = [item.reward.parts[name] for item in rollouts]
    result = {}
    for name, column in columns.items():
        known = [value for value in column if not math.isnan(value)]
        result[name] = (sum(known), sum(value**2 for value in known), len(known))
    return result


def _shares(rollouts: Sequence[Rollout], config: GrpoConfig) -> dict[str, float]:
    """Means over completions: what the judge said, length, unfinished share, entropy; and the share of flat groups."""
    count = len(rollouts)
    scored = [value for item in rollouts for value in item.trajectory.entropy[: item.completion.scored]]
    passed = sum(item.reward.status == "passed" for item in rollouts) / count
    return {
        **({"passed": passed} if says_passed(config.rewards) else {}),
        "judge_trouble": sum(math.isnan(item.reward.total) for item in rollouts) / count,
        "length": sum(item.completion.scored for item in rollouts) / count,
        "unfinished": sum(not item.trajectory.settings["finished"] for item in rollouts) / count,
        "entropy": sum(scored) / max(1, len(scored)),
        "flat_groups": flat_groups(rollouts, config.group_size),
    }


def flat_groups(rollouts: Sequence[Rollout], group: int) -> float:
    """Share of groups in which every known reward is the same: they carry no policy gradient."""
    groups = [rollouts[start : start + group] for start in range(0, len(rollouts), group)]
    flat = sum(
        len({item.reward.total for item in members if not math.isnan(item.reward.total)}) <= 1 for members in groups
    )
    return flat / len(groups)


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
        "answer": prompt.get("answer"),
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

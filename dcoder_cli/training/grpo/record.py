"""What stage 4 writes down of a step: metrics over all processes, sample completions, seconds per phase."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.loss import Loss
from dcoder_cli.training.grpo.rewards import says_passed
from dcoder_cli.training.grpo.rollouts import Rollout
from dcoder_cli.training.totals import totals

Monitor = Callable[[Sequence[Trajectory]], dict[str, float]]


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


@dataclass
class UpdateSums:
    """What the updates of a step add up, on one process.

    Attributes:
        loss, kl, clipped_low, clipped_high, ratio: the sums of a `Loss`.
        grad_norm: norms of the whole update's gradients, the same on all processes.
        completions, units: how many were taught, as `grpo_loss.units` counts.
    """

    loss: float = 0.0
    kl: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    ratio: float = 0.0
    grad_norm: float = 0.0
    completions: int = 0
    units: int = 0

    def add(self, part: Loss, completions: int) -> None:
        """Add the loss of a micro-batch of so many completions."""
        parts = torch.stack([part.loss.detach(), part.kl, part.clipped_low, part.clipped_high, part.ratio])
        loss, kl, low, high, ratio = parts.tolist()
        self.loss += loss
        self.kl += kl
        self.clipped_low += low
        self.clipped_high += high
        self.ratio += ratio
        self.completions += completions
        self.units += part.count


@dataclass(frozen=True)
class StepResult:
    """A step that is done, on one process.

    Attributes:
        rollouts: its completions, group after group.
        chosen: the place of each group's prompt among all prompts.
        sums: of its updates.
        divisor: what one update's losses were divided by: completions or tokens of the rollout, over all processes.
        learning_rate: of its updates.
        clock: its seconds so far.
    """

    rollouts: list[Rollout]
    chosen: list[int]
    sums: UpdateSums
    divisor: int
    learning_rate: float
    clock: Clock


def step_metrics(accelerator: Any, done: StepResult, config: GrpoConfig, monitor: Monitor | None) -> dict[str, float]:
    """Numbers of the step, over the completions of all processes.

    Rewards are means and standard deviations over the completions that the judge had no trouble with.
    """
    rollouts, sums = done.rollouts, done.sums
    columns = _reward_columns(rollouts)
    counts = _counts(rollouts, config)
    # Each process has as many groups and completions as another, so the mean over all is the mean of their means.
    shares = {"flat_groups": flat_groups(rollouts, config.group_size)}
    if monitor is not None:
        shares.update(monitor([item.trajectory for item in rollouts]))
    grad_norm = sums.grad_norm
    seen = totals(
        accelerator,
        {
            **{
                f"{name}: {what}": value for name, column in columns.items() for what, value in _moments(column).items()
            },
            **{f"count: {name}": value for name, value in counts.items()},
            **{f"share: {name}": value for name, value in shares.items()},
            **{f"update: {name}": value for name, value in vars(sums).items()},
        },
    )
    metrics: dict[str, float] = {}
    for name in columns:
        known = seen[f"{name}: known"]
        mean = seen[f"{name}: sum"] / known if known else math.nan
        metrics[name] = mean
        metrics[f"{name}_std"] = math.sqrt(max(0.0, seen[f"{name}: squares"] / known - mean**2)) if known else math.nan
    metrics.update(_means({name: seen[f"count: {name}"] for name in counts}))
    metrics.update({name: seen[f"share: {name}"] / accelerator.num_processes for name in shares})
    for name in ("loss", "kl", "clipped_low", "clipped_high"):
        metrics[name] = seen[f"update: {name}"] / (done.divisor * config.inner_iterations)
    # A completion that the updates leave out has neither loss, KL nor clipping; its ratio was never computed.
    metrics["ratio"] = seen["update: ratio"] / seen["update: units"] if seen["update: units"] else 1.0
    updates = config.prompts_per_step * config.group_size * config.inner_iterations
    metrics["skipped"] = 1 - seen["update: completions"] / updates
    metrics["grad_norm"] = grad_norm / config.inner_iterations
    return metrics


def _reward_columns(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """The total and each part of the reward, one number a completion."""
    columns = {"reward": [item.reward.total for item in rollouts]}
    for name in rollouts[0].reward.parts:
        columns[f"reward_{name}"] = [item.reward.parts[name] for item in rollouts]
    return columns


def _moments(column: Sequence[float]) -> dict[str, float]:
    """Sum, sum of squares and number of the known values."""
    known = [value for value in column if not math.isnan(value)]
    return {"sum": sum(known), "squares": sum(value**2 for value in known), "known": len(known)}


def _counts(rollouts: Sequence[Rollout], config: GrpoConfig) -> dict[str, float]:
    """What is counted or summed over completions; `_means` divides."""
    scored = [value for item in rollouts for value in item.trajectory.entropy[: item.completion.scored]]
    passed = sum(item.reward.status == "passed" for item in rollouts)
    return {
        **({"passed": passed} if says_passed(config.rewards) else {}),
        "judge_trouble": sum(math.isnan(item.reward.total) for item in rollouts),
        "length": sum(item.completion.scored for item in rollouts),
        "unfinished": sum(not item.trajectory.settings["finished"] for item in rollouts),
        "entropy": sum(scored),
        "entropies": len(scored),
        "completions": len(rollouts),
    }


def _means(counts: Mapping[str, float]) -> dict[str, float]:
    """What the judge said, length and unfinished share a completion; the entropy a token at which it was committed."""
    result = {}
    for name, value in counts.items():
        if name not in ("completions", "entropies"):
            result[name] = value / (max(1, counts["entropies"]) if name == "entropy" else counts["completions"])
    return result


def flat_groups(rollouts: Sequence[Rollout], group: int) -> float:
    """Share of groups in which every known reward is the same: they carry no policy gradient."""
    groups = [rollouts[start : start + group] for start in range(0, len(rollouts), group)]
    flat = sum(
        len({item.reward.total for item in members if not math.isnan(item.reward.total)}) <= 1 for members in groups
    )
    return flat / len(groups)


FLAT = 0.95  # ours: the share of groups without spread from which a run is told that it learns nothing, or next to it
WINDOW = 10  # ours: steps that it must last


def flat_warning(shares: Sequence[float], rewards: Mapping[str, float], with_kl: bool) -> str | None:
    """What to say where the last steps had next to no group whose completions earned different rewards; None where they had.

    Args:
        shares: `flat_groups` of the steps so far, or the last of them.
        rewards: of the configuration.
        with_kl: whether a KL term still moves the weights.
    """
    mean = sum(shares) / len(shares) if shares else 0.0
    if mean < FLAT:
        return None
    moves = "only the KL term moves the weights" if with_kl else "no weight moves"
    learned = (
        f"nothing was learned from rewards ({moves})" if mean == 1.0 else "next to nothing was learned from rewards"
    )
    return (
        f"in {mean:.0%} of the groups of the last {len(shares)} step(s) all completions earned the same reward, so {learned}; "
        f"look at samples/, and at the reward {', '.join(rewards)}: tests too easy or too hard, a constant, or an answer format that is never met"
    )


def sample_record(item: Rollout, prompt: Mapping[str, Any]) -> dict[str, Any]:
    """A line of samples/: a completion beside what it was asked and what it earned."""
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

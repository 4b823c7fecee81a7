"""Held-out scores of stage 4: one sample a prompt at the evaluation temperature, judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dcoder_cli.decoding.sampler import generate
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.rewards import Rewarder, says_passed

TEMPERATURE, TOP_P = 0.2, 0.95  # DiffuCoder B.2
_SEED = 1234  # the same samples' draws in every evaluation, so that they compare


def evaluate(
    accelerator: Any,
    model: Model,
    prompts: Sequence[dict[str, Any]],
    ids: Sequence[list[int]],
    config: GrpoConfig,
    rewarder: Rewarder,
) -> dict[str, float]:
    """Mean reward, their count, and pass@1 where a reward says so, over the first `evaluate_prompts` held-out prompts."""
    count = min(config.evaluate_prompts, len(prompts))
    mine = range(accelerator.process_index, count, accelerator.num_processes)
    model.eval()
    pending = {}

    def judge(trajectory: Any) -> None:
        pending[trajectory.id] = rewarder.submit(prompts[int(trajectory.id)], trajectory.text)

    with accelerator.autocast():
        generate(
            model,
            [ids[index] for index in mine],
            max_new_tokens=config.rollout.max_new_tokens,
            steps=config.rollout.steps,
            rule=config.rollout.rule,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=_SEED,
            ids=[str(index) for index in mine],
            seeds=list(mine),
            batch_size=config.rollout.batch_size,
            on_done=judge,
        )
    rewards = [rewarder.result(pending[str(index)]) for index in mine]
    known = [reward for reward in rewards if reward.total == reward.total]
    sums = torch.tensor(
        [sum(r.status == "passed" for r in known), sum(r.total for r in known), len(known)], dtype=torch.float64
    )
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum").double().cpu()
    total = max(1.0, float(sums[2]))
    passed = {"pass@1": float(sums[0]) / total} if says_passed(config.rewards) else {}
    return {**passed, "reward": float(sums[1]) / total, "prompts": int(sums[2])}

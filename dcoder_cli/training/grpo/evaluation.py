"""Held-out scores of stage 4: one sample a prompt at the evaluation temperature, judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dcoder_cli.decoding.requests import Settings
from dcoder_cli.decoding.sampler import decode
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.rewards import Rewarder, says_passed
from dcoder_cli.training.totals import totals

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
    settings = Settings(
        max_new_tokens=config.rollout.max_new_tokens,
        steps=config.rollout.steps,
        rule=config.rollout.rule,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        seed=_SEED,
    )

    def judge(trajectory: Any) -> None:
        pending[trajectory.id] = rewarder.submit(prompts[int(trajectory.id)], trajectory.text)

    with accelerator.autocast():
        decode(
            model,
            [ids[index] for index in mine],
            settings,
            ids=[str(index) for index in mine],
            seeds=list(mine),
            batch_size=config.rollout.batch_size,
            on_done=judge,
        )
    rewards = rewarder.results([pending[str(index)] for index in mine])
    known = [reward for reward in rewards if not math.isnan(reward.total)]
    seen = totals(
        accelerator,
        {
            "passed": sum(reward.status == "passed" for reward in known),
            "reward": sum(reward.total for reward in known),
            "prompts": len(known),
        },
    )
    divisor = max(1.0, seen["prompts"])
    passed = {"pass@1": seen["passed"] / divisor} if says_passed(config.rewards) else {}
    return {**passed, "reward": seen["reward"] / divisor, "prompts": int(seen["prompts"])}

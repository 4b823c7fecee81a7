"""One step of stage 4, from top to bottom (DiffuCoder 5, Algorithm 1).

    prompts -> rollouts -> rewards -> advantages_B -> masks of every update -> old and reference logp_bL
            -> [logp_bL -> clipped loss + KL -> gradients -> judged, then the weights move] x inner iterations

Shapes, on one process: B completions, G of each prompt, b of them in a micro-batch, L tokens of the longest completion.
Every draw has its own generator: rollouts from (step, place), masks from (step, inner iteration, place), so a resumed run, and
one on more processes, is the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.data.batches import RowOrder
from dcoder_cli.diffusion.coupled import MaskSettings
from dcoder_cli.diffusion.estimators import make_passes
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import sharded
from dcoder_cli.training.context import Context
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import EntryLogProbs, Plan, log_probabilities, plan_rows, scored_mask, smallest
from dcoder_cli.training.grpo.loss import advantages, grpo_loss, units
from dcoder_cli.training.grpo.record import Clock, StepResult, UpdateSums
from dcoder_cli.training.grpo.reference import move_reference
from dcoder_cli.training.grpo.rewards import Rewarder
from dcoder_cli.training.grpo.rollouts import Rollout, load_rollouts, roll_out, save_rollouts
from dcoder_cli.training.lora import adapter_off


@dataclass(frozen=True)
class Learner:
    """What the steps of a run share: the run with its policy, the prompts and their order, the rewards, the reference."""

    context: Context
    config: GrpoConfig
    prompts: list[dict[str, Any]]
    prompt_ids: list[list[int]]
    order: RowOrder
    rewarder: Rewarder
    reference: EntryLogProbs | None

    @property
    def reference_is_a_copy(self) -> bool:
        """Whether the reference has weights of its own: with LoRA it is the policy with the adapter off."""
        return self.reference is not None and self.reference.model is not self.context.model


@dataclass
class Part:
    """A micro-batch of one update. `old_bL` None: the update's own log-probabilities; `reference_bL` None: no KL term.

    `counts` False: it weighs nothing, and only keeps step with the other processes.
    """

    completions: int
    plan: Plan
    advantages_b: Tensor
    scored_bL: Tensor
    old_bL: Tensor | None = None
    reference_bL: Tensor | None = None
    counts: bool = True


def take_step(learner: Learner, step: int, total_steps: int) -> StepResult:
    """Roll out, score, and update `inner_iterations` times.

    Args:
        step: from 0.
        total_steps: of the run; the learning rate follows from both.

    Raises:
        WorkFailed: the judge fails for good, or the loss or a gradient became NaN or infinite; see `Context.update`.
    """
    context, config, reference = learner.context, learner.config, learner.reference
    accelerator, module, model = context.accelerator, context.module, context.model
    clock = Clock()

    # 1. This process's prompts, a group of completions for each, and what they earned.
    mine = config.prompts_per_step // context.processes
    first = accelerator.process_index * mine
    chosen = [learner.order.at(step * config.prompts_per_step + first + place) for place in range(mine)]
    rollouts = _sampled(learner, step, first, chosen, clock)
    clock.lap("judge")

    # 2. Advantages within each group; completions that would teach nothing are left out of the updates.
    advantages_B = torch.tensor(_advantages(rollouts, config))
    taught = _taught(advantages_B, config)
    divisor = int(context.sum(units([item.completion.scored for item in rollouts], config.loss_normaliser)))

    # 3. Fresh masks for every update, the same ones for the new, the old and the reference log-probabilities.
    micro_batches = [taught[place : place + config.micro_batch] for place in range(0, len(taught), config.micro_batch)]
    # Every backward pass, and of a sharded module every forward, is a collective: who has less to teach runs some of no weight.
    most = context.largest(len(micro_batches)) if context.sharded else 1
    idle = max(0, most - len(micro_batches))
    updates = [
        [
            *(_part(learner, rollouts, advantages_B, places, step, inner) for places in micro_batches),
            *(_part(learner, rollouts, advantages_B, [0], step, inner, counts=False) for _ in range(idle)),
        ]
        for inner in range(config.inner_iterations)
    ]
    model.train()  # adds nothing (there is no dropout), but activation checkpointing needs it
    for part in chain(*updates[1:]):  # in the first update the old policy is the new one, so nothing is computed twice
        part.old_bL = _frozen(accelerator, module, part.plan)
    clock.lap("old")
    if reference is not None:
        with adapter_off(model):
            for part in chain(*updates):
                part.reference_bL = _frozen(accelerator, reference, part.plan)
        if context.sharded:
            sharded.at_rest(reference)
    clock.lap("reference")

    # 4. The updates: gradients of all micro-batches, judged over all processes before any weight moves.
    sums = UpdateSums()
    for parts in updates:
        loss_sum = 0.0
        for index, part in enumerate(parts):
            with context.collecting(last=index == len(parts) - 1):
                with accelerator.autocast():
                    logp_bL = log_probabilities(module, part.plan, accelerator.device)
                loss = grpo_loss(
                    logp_bL, logp_bL.detach() if part.old_bL is None else part.old_bL, part.reference_bL,
                    part.advantages_b, part.scored_bL, config.clip, config.kl_coef, config.loss_normaliser,
                )  # fmt: skip
                # Gradients are averaged over processes.
                accelerator.backward(loss.loss / divisor * context.processes if part.counts else loss.loss * 0.0)
            if part.counts:
                sums.add(loss, part.completions)
                loss_sum += float(loss.loss.detach()) / divisor
        update = context.update(step, total_steps, loss_sum)
        sums.grad_norm += update.grad_norm
        # The reference may move between two updates on one rollout: the next rollout is the first to see it.
        context.state["updates"] += 1
        if reference is not None and config.reference_sync and context.state["updates"] % config.reference_sync == 0:
            move_reference(reference, model, config.reference_alpha)
    clock.lap("update")
    return StepResult(rollouts, chosen, sums, divisor, update.learning_rate, clock)


def _sampled(learner: Learner, step: int, first: int, chosen: Sequence[int], clock: Clock) -> list[Rollout]:
    """A group of scored completions for each chosen prompt; those that a killed run kept are not sampled again."""
    context, config = learner.context, learner.config
    share = f"{context.accelerator.process_index + 1}-of-{context.processes}"
    kept = context.folder.path / "rollouts" / f"step-{step}-{share}.jsonl"
    context.model.eval()
    prompts, ids = [learner.prompts[index] for index in chosen], [learner.prompt_ids[index] for index in chosen]
    # Entered and left by all together, whoever of them has kept rollouts; in between each decodes at its own pace.
    with sharded.gathered(context.module, smallest(context.accelerator.device)), context.accelerator.autocast():
        if kept.is_file():
            return load_rollouts(kept)
        rollouts = roll_out(
            context.model, prompts, ids, first * config.group_size, step, config, learner.rewarder,
            on_decoded=partial(clock.lap, "rollout"),
        )  # fmt: skip
    save_rollouts(kept, rollouts)
    return rollouts


def _advantages(rollouts: Sequence[Rollout], config: GrpoConfig) -> list[float]:
    result: list[float] = []
    for place in range(0, len(rollouts), config.group_size):
        totals = [item.reward.total for item in rollouts[place : place + config.group_size]]
        result += advantages(totals, config.advantage, config.scale_advantage)
    return result


def _taught(advantages_B: Tensor, config: GrpoConfig) -> list[int]:
    """Places of the completions that the updates need: without a KL term, an advantage of 0 has no gradient at all."""
    if config.kl_coef > 0:
        return list(range(len(advantages_B)))
    taught: list[int] = advantages_B.nonzero()[:, 0].tolist()
    return taught


def _part(
    learner: Learner,
    rollouts: Sequence[Rollout],
    advantages_B: Tensor,
    places: list[int],
    step: int,
    inner: int,
    counts: bool = True,
) -> Part:
    """A micro-batch with masks drawn for (step, inner iteration, completion)."""
    items = [rollouts[place] for place in places]
    device = learner.context.accelerator.device
    return Part(
        len(items),
        _plan(learner.context.model, items, learner.config, step, inner),
        advantages_B[places].to(device),
        scored_mask([item.completion for item in items]).to(device),
        counts=counts,
    )


def _plan(model: Model, items: Sequence[Rollout], config: GrpoConfig, step: int, inner: int) -> Plan:
    assert model.ids.mask is not None
    settings = MaskSettings(config.pairs, config.t_range, config.prompt_mask)
    passes = [
        make_passes(
            config.estimator, len(item.completion.tokens), len(item.completion.prompt),
            generator(config.seed, "masks", step, inner, item.place), settings,
        )
        for item in items
    ]  # fmt: skip
    pad = model.ids.pad if model.ids.pad is not None else 0
    return plan_rows([item.completion for item in items], passes, model.ids.mask, pad)


@torch.no_grad()
def _frozen(accelerator: Any, module: Any, plan: Plan) -> Tensor:
    """Log-probabilities [b, L] without gradients."""
    with accelerator.autocast():
        return log_probabilities(module, plan, accelerator.device)

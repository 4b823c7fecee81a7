"""Stage 4: coupled-GRPO (DiffuCoder 5, Algorithm 1) and its baselines, one flat loop.

Shapes: B completions, N completion tokens, G completions of one prompt. Every draw has its own generator: rollouts from
(step, place), masks from (step, inner iteration, place), so a resumed run, and one on more processes, is the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base import console
from dcoder_cli.base.config import to_dict
from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.base.files import write_jsonl
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.data.batches import RowOrder
from dcoder_cli.data.rl import load_prompts
from dcoder_cli.data.shards import read_manifest
from dcoder_cli.diffusion.coupled import make_passes
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.execution.judge import Judge
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import setup
from dcoder_cli.training.denoise import set_attention
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import EntryLogProbs, Plan, log_probabilities, plan_rows, scored_mask
from dcoder_cli.training.grpo.evaluation import evaluate
from dcoder_cli.training.grpo.loss import advantages, grpo_loss, units
from dcoder_cli.training.grpo.record import Clock, Monitor, sample_record, step_metrics
from dcoder_cli.training.grpo.reference import load_reference, make_reference, move_reference
from dcoder_cli.training.grpo.rewards import Rewarder, check_prompts, probe
from dcoder_cli.training.grpo.rollouts import (
    Rollout,
    check_sampling,
    encode_prompts,
    forget_rollouts,
    load_rollouts,
    roll_out,
    save_rollouts,
)
from dcoder_cli.training.lora import adapter_off

# What the rollouts of a step depend on, beside the weights.
_OF_ROLLOUTS = ("seed", "prompts_per_step", "group_size", "rollout", "rewards", "format", "precision")


@dataclass(frozen=True)
class Result:
    """How stage 4 ended; `before` and `after` are evaluations on the held-out prompts (None without them)."""

    steps: int
    reward: float
    before: dict[str, float] | None
    after: dict[str, float] | None
    seconds: float
    checkpoint: Path
    stopped: str | None


def train(
    model_name: str,
    data: str,
    out: str,
    config: GrpoConfig,
    resume: bool = False,
    device: str | None = None,
    track: str | None = None,
    quiet: bool = False,
    monitor: Monitor | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
    unsafe: bool = False,
) -> Result:
    """Run stage 4 in a run folder.

    Args:
        model_name: an instruction-tuned diffusion checkpoint.
        data: a folder from `dcoder tokenize rl`.
        out, resume, device, track, quiet: as in `denoise.train`.
        config: see GrpoConfig.
        monitor: more numbers to log about the rollouts' trajectories (their AR-ness, say).
        on_step: called with (step, total, metrics) on the first process.
        unsafe: agree to run model-written code without a sandbox where none holds.

    Raises:
        UserError: anything wrong with the input, before the first rollout.
        WorkFailed: the judge fails for good, or the loss became NaN.
    """
    prompts = load_prompts(data, "train")
    heldout = load_prompts(data, "heldout") if _has_heldout(data) else []
    check_prompts([*prompts, *heldout], config.rewards)
    check_sampling(config)
    run = RunFolder.check(out, resume)
    start = run.last() if resume else 0
    with Judge(unsafe=unsafe) if "code" in config.rewards else nullcontext() as judge:
        rewarder = Rewarder(config.rewards, judge, config.format == "strict")
        probe(rewarder, prompts[0])
        accelerator = setup.make_accelerator(config.precision, device, track, run.path)
        if setup.is_sharded(accelerator):
            raise UserError(
                "stage 4 decodes with the whole model on each process, which FSDP and DeepSpeed do not give; launch it with DDP (--multi_gpu)"
            )
        if config.prompts_per_step % accelerator.num_processes:
            raise UserError(
                f"prompts_per_step = {config.prompts_per_step} must be a multiple of the {accelerator.num_processes} processes"
            )
        model = setup.load_model(accelerator, run, resume, model_name, config, 4)
        if not model.is_diffusion:
            raise UserError(
                f"stage 4 trains a diffusion model but {model_name!r} is an AR checkpoint; convert and tune it first"
            )
        prompt_ids = encode_prompts(model, prompts, config.rollout.max_new_tokens)
        heldout_ids = encode_prompts(model, heldout, config.rollout.max_new_tokens)
        setup.check_space(run, model, config.keep_checkpoints, copies=int(config.kl_coef > 0 and config.lora is None))
        total_steps = config.steps or max(1, round(config.epochs * len(prompts) / config.prompts_per_step))
        return _loop(
            _Run(accelerator, run, model, prompts, prompt_ids, heldout, heldout_ids, rewarder, config),
            start, total_steps, resume, data, track, quiet, monitor, on_step,
        )  # fmt: skip


@dataclass
class _Run:
    accelerator: Any
    folder: RunFolder
    model: Model
    prompts: list[dict[str, Any]]
    prompt_ids: list[list[int]]
    heldout: list[dict[str, Any]]
    heldout_ids: list[list[int]]
    rewarder: Rewarder
    config: GrpoConfig


def _loop(
    this: _Run,
    start: int,
    total_steps: int,
    resume: bool,
    data: str,
    track: str | None,
    quiet: bool,
    monitor: Monitor | None,
    on_step: Callable[[int, int, dict[str, float]], None] | None,
) -> Result:
    accelerator, run, model, config = this.accelerator, this.folder, this.model, this.config
    model.to(accelerator.device)
    set_attention(model, config.attention, accelerator.device)
    if config.activation_checkpointing:
        model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not config.train_embeddings:
        setup.freeze_embeddings(model)
    module = EntryLogProbs(model)
    module, optimizer = accelerator.prepare(module, setup.make_optimizer(module, config.optimizer))
    reference = make_reference(model, config)
    copied = reference is not None and reference.model is not model
    state: dict[str, Any] = {"before": None, "tail": [], "updates": 0}
    if start:
        state = setup.load_training_state(accelerator, run.checkpoint(start), optimizer)
        state.setdefault("updates", start * config.inner_iterations)  # checkpoints of before it was counted
        if reference is not None and copied:
            load_reference(reference, run.checkpoint(start) / "training" / "reference.pt", config.kl_coef)
    record = {
        "stage": 4, "model": model.name, "data": str(data), "config": to_dict(config),
        "reward_sources": this.rewarder.sources(),
    }  # fmt: skip
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.make()
        for name in ("samples", "rollouts"):
            (run.path / name).mkdir(exist_ok=True)
        if resume:
            run.cut_after(start)
            forget_rollouts(run.path / "rollouts", start if _same_rollouts(run, record) else None)
        run.write_config(record)
    accelerator.wait_for_everyone()
    if track is not None:
        accelerator.init_trackers("dcoder", config={"stage": 4})
    order = RowOrder(len(this.prompts), config.seed)
    mine = config.prompts_per_step // accelerator.num_processes
    completions = config.prompts_per_step * config.group_size
    began, stopped, after = time.perf_counter(), None, None
    if this.heldout and state["before"] is None:
        state["before"] = evaluate(accelerator, model, this.heldout, this.heldout_ids, config, this.rewarder)
        if accelerator.is_main_process:
            run.append("metrics", {"step": 0, "heldout": state["before"]})
    step = start
    with setup.stoppable() as stop, console.bar("stage 4 (grpo)", total_steps, start, quiet) as bar:
        while step < total_steps:
            clock = Clock()
            # 1. Rollouts and rewards of this process's prompts.
            first = accelerator.process_index * mine
            chosen = [order.at(step * config.prompts_per_step + first + place) for place in range(mine)]
            share = f"{accelerator.process_index + 1}-of-{accelerator.num_processes}"
            kept = run.path / "rollouts" / f"step-{step}-{share}.jsonl"
            if kept.is_file():
                rollouts = load_rollouts(kept)
            else:
                model.eval()
                prompts, ids = [this.prompts[index] for index in chosen], [this.prompt_ids[index] for index in chosen]
                with accelerator.autocast():
                    rollouts = roll_out(
                        model, prompts, ids, first * config.group_size, step, config, this.rewarder,
                        on_decoded=partial(clock.lap, "rollout"),
                    )  # fmt: skip
                save_rollouts(kept, rollouts)
            clock.lap("judge")
            advantage_B = torch.tensor(_advantages(rollouts, config))
            # 2. Masks for every inner iteration; old and reference log-probabilities with the same masks.
            taught = _taught(advantage_B, config)
            parts = [taught[place : place + config.micro_batch] for place in range(0, len(taught), config.micro_batch)]
            plans = [
                [_plan(model, [rollouts[index] for index in part], config, step, inner) for part in parts]
                for inner in range(config.inner_iterations)
            ]
            # Train mode would add nothing (no dropout) but activation checkpointing needs it.
            model.train()
            # The first inner iteration's old log-probabilities are its new ones, so they are not computed twice.
            old = [
                [None if inner == 0 else _frozen(accelerator, module, plan) for plan in row]
                for inner, row in enumerate(plans)
            ]
            clock.lap("old")
            with adapter_off(model):
                reference_logps = [
                    [None if reference is None else _frozen(accelerator, reference, plan) for plan in row]
                    for row in plans
                ]
            clock.lap("reference")
            # 3. The inner updates.
            sums = torch.zeros(8, dtype=torch.float64)
            divisor = _summed(accelerator, units([r.completion.scored for r in rollouts], config.loss_normaliser))
            for inner in range(config.inner_iterations):
                loss_sum = 0.0
                for index, (part, plan) in enumerate(zip(parts, plans[inner], strict=True)):
                    with nullcontext() if index == len(parts) - 1 else accelerator.no_sync(module):
                        with accelerator.autocast():
                            new_BN = log_probabilities(module, plan, accelerator.device)
                        old_BN = old[inner][index]
                        scored_BN = scored_mask([rollouts[place].completion for place in part]).to(accelerator.device)
                        advantage_b = advantage_B[part].to(accelerator.device)
                        loss = grpo_loss(
                            new_BN, new_BN.detach() if old_BN is None else old_BN, reference_logps[inner][index],
                            advantage_b, scored_BN, config.clip, config.kl_coef, config.loss_normaliser,
                        )  # fmt: skip
                        accelerator.backward(loss.loss / divisor * accelerator.num_processes)
                    values = (loss.loss.detach(), loss.kl, loss.clipped_low, loss.clipped_high, loss.ratio)
                    sums[:5] += torch.stack([value.double().cpu() for value in values])
                    sums[6] += len(part)
                    sums[7] += loss.count
                    loss_sum += float(loss.loss.detach())
                if loss_sum != loss_sum:
                    raise WorkFailed(
                        f"the loss became NaN at step {step + 1}; lower optimizer.learning_rate and resume from the last checkpoint"
                    )
                setup.set_learning_rate(optimizer, setup.learning_rate(config.optimizer, step, total_steps))
                sums[5] += float(
                    accelerator.clip_grad_norm_(module.parameters(), config.optimizer.max_grad_norm or float("inf"))
                )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                # The reference may move between two updates on one rollout: the next rollout is the first to see it.
                state["updates"] += 1
                if reference is not None and config.reference_sync and state["updates"] % config.reference_sync == 0:
                    move_reference(reference.model, model, config.reference_alpha)
            step += 1
            clock.lap("update")
            # 4. Record.
            metrics = step_metrics(accelerator, rollouts, sums, config, completions, divisor, monitor)
            state["tail"] = [*state["tail"], metrics["reward"]][-max(1, total_steps // 10) :]
            if accelerator.is_main_process:
                run.append("metrics", {"step": step, **metrics, "learning_rate": optimizer.param_groups[0]["lr"]})
                run.append(
                    "timings",
                    {
                        "step": step,
                        **clock.laps,
                        "tokens_per_second": round(sum(len(r.completion.tokens) for r in rollouts) / clock.total(), 1),
                    },
                )
                if config.samples_every and (step - 1) % config.samples_every == 0:
                    write_jsonl(
                        run.path / "samples" / f"step-{step}.jsonl",
                        (
                            sample_record(item, this.prompts[chosen[place // config.group_size]])
                            for place, item in enumerate(rollouts)
                        ),
                    )
            if track is not None:
                accelerator.log(metrics, step=step)
            passed = f"  passed {metrics['passed']:.0%}" if "passed" in metrics else ""
            bar.advance(1, f"reward {metrics['reward']:.3f}{passed}  kl {metrics['kl']:.4f}")
            if on_step is not None and accelerator.is_main_process:
                on_step(step, total_steps, metrics)
            # 5. Evaluate, stop, checkpoint.
            ends = step == total_steps
            if this.heldout and (ends or (config.evaluate_every and step % config.evaluate_every == 0)):
                after = evaluate(accelerator, model, this.heldout, this.heldout_ids, config, this.rewarder)
                if accelerator.is_main_process:
                    run.append("metrics", {"step": step, "heldout": after})
            if stop.agreed(accelerator):
                stopped = "asked"
            if ends or stopped or (config.checkpoint_every and step % config.checkpoint_every == 0):
                extra = {"reference.pt": reference.state_dict()} if reference is not None and copied else {}
                setup.save_checkpoint(accelerator, run, step, module, model, optimizer, state, "grpo", extra)
                if accelerator.is_main_process:
                    run.prune(config.keep_checkpoints)
                    forget_rollouts(run.path / "rollouts", step)
            if stopped:
                break
    if track is not None:
        accelerator.end_training()
    tail = state["tail"] or [float("nan")]
    return Result(
        step, sum(tail) / len(tail), state["before"], after, time.perf_counter() - began, run.checkpoint(step), stopped
    )


def _has_heldout(data: str) -> bool:
    return any(entry["split"] == "heldout" for entry in read_manifest(data)["files"])


def _same_rollouts(run: RunFolder, record: dict[str, Any]) -> bool:
    """Whether the run samples and scores as it did before: a resumed run may have been given other settings or data.

    `record` is what the run folder will note of it. A user's own reward may have been mended under the same name.
    """
    before = run.config()
    parts = ("model", "data", "reward_sources")
    return all(before.get(name) == record[name] for name in parts) and all(
        before.get("config", {}).get(name) == record["config"][name] for name in _OF_ROLLOUTS
    )


def _advantages(rollouts: Sequence[Rollout], config: GrpoConfig) -> list[float]:
    result: list[float] = []
    for place in range(0, len(rollouts), config.group_size):
        totals = [item.reward.total for item in rollouts[place : place + config.group_size]]
        result += advantages(totals, config.advantage, config.scale_advantage)
    return result


def _summed(accelerator: Any, count: int) -> int:
    """The sum over processes."""
    if accelerator.num_processes == 1:
        return count
    return int(accelerator.reduce(torch.tensor(count, device=accelerator.device), reduction="sum"))


def _taught(advantage_B: Tensor, config: GrpoConfig) -> list[int]:
    """Places of the completions that the updates need: without a KL term, an advantage of 0 has no gradient at all.

    One stays in any case: every process has to take part in the backward pass.
    """
    if config.kl_coef > 0:
        return list(range(len(advantage_B)))
    return advantage_B.nonzero()[:, 0].tolist() or [0]


def _plan(model: Model, part: Sequence[Rollout], config: GrpoConfig, step: int, inner: int) -> Plan:
    """Rows of a micro-batch, with masks drawn for (step, inner iteration, completion)."""
    assert model.ids.mask is not None
    passes = [
        make_passes(
            config.estimator, len(item.completion.tokens), len(item.completion.prompt),
            generator(config.seed, "masks", step, inner, item.place), config.pairs, config.t_range, config.prompt_mask,
        )
        for item in part
    ]  # fmt: skip
    pad = model.ids.pad if model.ids.pad is not None else 0
    return plan_rows([item.completion for item in part], passes, model.ids.mask, pad)


@torch.no_grad()
def _frozen(accelerator: Any, module: Any, plan: Plan) -> Tensor:
    with accelerator.autocast():
        return log_probabilities(module, plan, accelerator.device)

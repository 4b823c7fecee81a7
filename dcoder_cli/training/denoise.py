"""Stages 0-3: AR pre-training, adaptation, mid-training and instruction tuning, one flat loop.

Shapes: B rows, L length, N masked positions. The loss of a step is that of the whole global batch, whatever the
number of processes and accumulation steps: sums are divided by the global denominator, not averaged by part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.data.batches import RowOrder, RowRules, answer_length, check_fit
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.model import lean
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import damage, plans
from dcoder_cli.training.config import STAGE_NAMES, StageConfig
from dcoder_cli.training.context import Context, DryRun
from dcoder_cli.training.evaluation import evaluate
from dcoder_cli.training.feed import Feed
from dcoder_cli.training.objective import TokenLoss, sent, token_losses
from dcoder_cli.training.record import Preset
from dcoder_cli.training.tracking import Tracking


@dataclass(frozen=True)
class StageResult:
    """How a stage ended.

    Attributes:
        stage: its name.
        steps: optimiser steps done in all.
        tokens: tokens read in all.
        loss: mean training loss of the last tenth of the steps.
        heldout: the last held-out evaluation, or None without held-out rows.
        seconds: wall-clock time of this process.
        checkpoint: the last checkpoint.
        stopped: None, "early" (no better held-out loss), "reached" (the held-out loss of `stop_at_loss`) or "asked"
            (Ctrl-C; resumable).
    """

    stage: str
    steps: int
    tokens: int
    loss: float
    heldout: dict[str, Any] | None
    seconds: float
    checkpoint: Path
    stopped: str | None


def train(
    stage: int,
    model_name: str,
    data: str,
    out: str,
    config: StageConfig,
    resume: bool = False,
    device: str | None = None,
    track: Tracking | None = None,
    quiet: bool = False,
    on_step: Callable[[int, int, float], None] | None = None,
    preset: Preset | None = None,
) -> StageResult:
    """Run a training stage in a run folder.

    Args:
        stage: 0 (ar), 1 (adapt), 2 (mid) or 3 (sft).
        model_name: the checkpoint to start from.
        data: shard folder: kind pretrain for stages 0-2, sft for stage 3.
        out: run folder.
        config: see StageConfig.
        resume: go on from the run folder's last checkpoint; the same metrics as if it had not stopped.
        device: "cpu" forces it; None lets Accelerate choose.
        track: where the run is tracked.
        quiet: no progress bar.
        on_step: called with (step, total, loss) after each step on the first process.
        preset: the preset that `config` began with, for environment.json.

    Raises:
        UserError: anything wrong with the input, before the first step.
        WorkFailed: the loss or a gradient became NaN or infinite; see `Context.update`.
    """
    ready = _ready(stage, model_name, data, out, config, resume, device, track, preset, quiet=quiet)
    context, shards, heldout, total_steps = ready.context, ready.shards, ready.heldout, ready.total_steps
    model, accelerator = context.model, context.accelerator
    if config.compile:  # block by block: one graph serves all, and gradients are reduced while others are computed
        for block in model.network.model.layers:
            block.compile()
    else:
        lean.keep_less(model.network)
    context.prepare(TokenLoss(model), {"best": None, "waited": 0, "tail": []})
    context.begin()
    module, state = context.module, context.state
    mask_id = model.ids.mask if stage > 0 else None
    rules = RowRules(
        config.seed,
        _filler(model),
        keep_first=model.shift,
        truncate_share=config.truncate_share,
        clean_prefix_share=config.clean_prefix_share,
        conditional_phase_in=config.conditional_phase_in if stage == 3 else 0.0,
    )
    mine = config.global_batch // context.processes
    places = range(accelerator.process_index * mine, (accelerator.process_index + 1) * mine)
    order = RowOrder(len(shards), config.seed)
    feed = Feed(shards, rules, config, stage, mask_id, order, places, accelerator.device)
    tokens_a_step = config.global_batch * shards.sequence_length
    began, stopped, heldout_now = time.perf_counter(), None, state.get("heldout")

    module.train()
    step = context.start
    with context.running(total_steps, quiet) as bar, feed.steps(step, total_steps) as upcoming:
        while step < total_steps:
            step_began = time.perf_counter()
            # 1. This process's rows, noised on the CPU: each row's noise depends on (seed, step, row) alone.
            rows = next(upcoming)
            denominator = context.divisor(rows.denominator)
            pattern_LL = None if rows.pattern_LL is None else sent(rows.pattern_LL, accelerator.device)
            # 2. Forward and backward, gradients synchronised once.
            loss_sum = torch.zeros((), device=accelerator.device)
            for index, example in enumerate(rows.examples):
                with context.collecting(last=index == len(rows.examples) - 1):
                    with accelerator.autocast():
                        weighted, _ = token_losses(
                            module, example, pattern_LL, stage == 0, config.isolate_documents, accelerator.device
                        )
                    loss = weighted / denominator
                    accelerator.backward(loss * context.processes)  # gradients are averaged over processes
                loss_sum += loss.detach()
            # 3. Update.
            update = context.update(step, total_steps, loss_sum)
            step += 1
            # 4. Record.
            state["tail"] = [*state["tail"], update.loss][-max(1, total_steps // 10) :]
            seconds = time.perf_counter() - step_began
            if step % config.log_every == 0 or step == total_steps:
                context.log(
                    step,
                    {"tokens": step * tokens_a_step, "loss": update.loss, "learning_rate": update.learning_rate, "grad_norm": update.grad_norm},
                    {"seconds": round(seconds, 5), "tokens_per_second": round(tokens_a_step / seconds, 1)},
                )  # fmt: skip
            bar.advance(1, f"loss {update.loss:.3f}  {tokens_a_step / seconds:,.0f} tok/s")
            if on_step is not None and context.is_first:
                on_step(step, total_steps, update.loss)
            # 5. Evaluate, stop, checkpoint.
            better = heldout is None
            if heldout is not None and (step == total_steps or _due(step, config.evaluate_every)):
                heldout_now = evaluate(accelerator, module, heldout, config, rules, mask_id)
                better = state["best"] is None or heldout_now["loss"] < state["best"]
                state["best"], state["waited"] = (
                    (heldout_now["loss"], 0) if better else (state["best"], state["waited"] + 1)
                )
                context.log_heldout(step, heldout_now)
                if config.early_stopping and state["waited"] >= config.early_stopping:
                    stopped = "early"
                if config.stop_at_loss is not None and heldout_now["loss"] <= config.stop_at_loss:
                    stopped = "reached"
            if context.stop_asked():
                stopped = "asked"
            ends = stopped is not None or step == total_steps
            if ends or _due(step, config.checkpoint_every) or (better and heldout is not None):
                state["heldout"] = heldout_now
                context.save(step, best=better or context.folder.linked("best") is None)
            if stopped:
                break
    tail = state["tail"] or [float("nan")]
    return StageResult(
        context.name, step, step * tokens_a_step, sum(tail) / len(tail), heldout_now, time.perf_counter() - began,
        context.folder.checkpoint(step), stopped,
    )  # fmt: skip


def plan(
    stage: int,
    model_name: str,
    data: str,
    out: str,
    config: StageConfig,
    dry: DryRun,
    resume: bool = False,
    device: str | None = None,
    track: Tracking | None = None,
    preset: Preset | None = None,
) -> RunPlan:
    """What `train` would do, once all of its checks have passed; nothing is written and no weight is read.

    Args are those of `train`, and `dry`: the processes that it would have. Raises UserError as `train`.
    """
    ready = _ready(stage, model_name, data, out, config, resume, device, track, preset, dry)
    return plans.of_stage(ready.context, ready.shards, ready.heldout, ready.total_steps)


@dataclass(frozen=True)
class _Ready:
    """All that is checked before the first weight moves."""

    context: Context
    shards: ShardSet
    heldout: ShardSet | None
    total_steps: int


def _ready(
    stage: int,
    model_name: str,
    data: str,
    out: str,
    config: StageConfig,
    resume: bool,
    device: str | None,
    track: Tracking | None,
    preset: Preset | None,
    dry: DryRun | None = None,
    quiet: bool = True,
) -> _Ready:
    shards = ShardSet.open(data, "train")
    heldout = ShardSet.open(data, "heldout") if shards.has_split("heldout") else None
    if config.stop_at_loss is not None and heldout is None:
        raise UserError(
            f"stop_at_loss = {config.stop_at_loss} needs held-out rows and {data!r} has none; tokenize with --heldout"
        )
    total_steps = config.total_steps(len(shards))
    if stage == 1:
        config.check_annealing(total_steps)
    context = Context.open(
        stage, STAGE_NAMES[stage], model_name, data, out, config, resume, device, track, preset, dry
    )  # fmt: skip
    if config.check_data and dry is None:
        damage.check_data([shards] if heldout is None else [shards, heldout], quiet)
    model = context.load_model(model_name)
    _check(stage, model, shards, config, context.processes)
    model.answer_length = answer_length(shards)
    context.check_space()
    return _Ready(context, shards, heldout, total_steps)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check(stage: int, model: Model, shards: ShardSet, config: StageConfig, processes: int) -> None:
    check_fit(shards, model, "sft" if stage == 3 else "pretrain", f"{stage} ({STAGE_NAMES[stage]})")
    if stage == 0 and model.is_diffusion:
        raise UserError(f"stage 0 trains an AR model but {model.name!r} is a diffusion checkpoint; give an AR one")
    if stage > 0 and not model.is_diffusion:
        raise UserError(
            f"stage {stage} trains a diffusion model but {model.name!r} is an AR checkpoint; convert it first with `dcoder convert {model.name}`"
        )
    if config.global_batch % processes:
        raise UserError(f"global_batch = {config.global_batch} must be a multiple of the {processes} processes")
    if config.anneal_steps and stage == 1 and config.attention == "flash_attention_2":
        raise UserError(
            "attention = flash_attention_2 has no kernel for annealed masks; use --set attention=sdpa or flex, or anneal_steps=0"
        )


def _filler(model: Model) -> int:
    return model.ids.pad if model.ids.pad is not None else 0

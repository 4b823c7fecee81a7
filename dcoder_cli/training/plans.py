"""What a training run would do, as `--dry-run` tells it: rows, steps, tokens, memory and disk."""

from __future__ import annotations

import math

from dcoder_cli.base import config as configs
from dcoder_cli.base import presets
from dcoder_cli.base.files import human_bytes
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.base.presets import Hardware
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.training import lora
from dcoder_cli.training.config import OptimizerConfig, StageConfig
from dcoder_cli.training.context import Context
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.memory import foresee
from dcoder_cli.training.memory.case import ROWS, Case
from dcoder_cli.training.memory.pieces import Spread
from dcoder_cli.training.memory.shape import shape_of


def of_stage(context: Context, shards: ShardSet, heldout: ShardSet | None, total_steps: int) -> RunPlan:
    """Stages 0 to 3."""
    config, length = context.config, shards.sequence_length
    assert isinstance(config, StageConfig)
    plan = _begun(context)
    held = f", {len(heldout):,} held out" if heldout is not None else ", none held out"
    plan.add(
        "data", {"folder": str(shards.folder), "rows": len(shards), "sequence_length": length, "heldout": len(heldout or ())},
        f"{shards.folder}: {len(shards):,} rows of {length:,} tokens{held}",
    )  # fmt: skip
    mine = config.global_batch // context.processes
    rows = min(config.micro_batch, mine)
    accumulated = math.ceil(mine / rows)
    _add_processes(plan, context)
    plan.add(
        "batch", {"rows": config.global_batch, "micro_batch": rows, "accumulated": accumulated},
        f"{config.global_batch:,} rows a step: {accumulated:,} micro-batches of {rows} on each process",
    )  # fmt: skip
    _add_steps(plan, context, total_steps)
    tokens = config.global_batch * length
    plan.add(
        "tokens", {"a_step": tokens, "in_all": tokens * total_steps},
        f"{tokens:,} a step, {tokens * total_steps:,} in all: {total_steps * config.global_batch / len(shards):.3g} times the data",
    )  # fmt: skip
    _add_rate(plan, config.optimizer, total_steps)
    _add_disk(plan, context)
    _add_memory(plan, context, {"pretrain": length, "sft": length})
    return plan


def of_grpo(context: Context, prompts: list[list[int]], heldout: list[list[int]], total_steps: int) -> RunPlan:
    """Stage 4; prompts as ids."""
    config = context.config
    assert isinstance(config, GrpoConfig)
    plan = _begun(context)
    longest = max(len(ids) for ids in [*prompts, *heldout])
    plan.add(
        "data", {"folder": context.record["data"], "prompts": len(prompts), "heldout": len(heldout), "longest": longest},
        f"{context.record['data']}: {len(prompts):,} prompts of at most {longest} tokens, {len(heldout):,} held out",
    )  # fmt: skip
    _add_processes(plan, context)
    rollout = config.rollout
    completions = config.prompts_per_step * config.group_size
    plan.add(
        "batch", {"prompts": config.prompts_per_step, "completions": completions},
        f"{config.prompts_per_step} prompts x {config.group_size} completions a step = {completions:,}, each learned from "
        f"{config.inner_iterations} time{'s' if config.inner_iterations > 1 else ''}",
    )  # fmt: skip
    _add_steps(plan, context, total_steps)
    new = completions * rollout.max_new_tokens
    plan.add(
        "tokens", {"sampled_a_step": new, "sampled_in_all": new * total_steps},
        f"at most {new:,} sampled a step, {new * total_steps:,} in all: {total_steps * config.prompts_per_step / len(prompts):.3g} "
        f"times the prompts; mode {rollout.mode}",
    )  # fmt: skip
    plan.add(
        "rewards", dict(config.rewards), ", ".join(f"{name} {weight:g}" for name, weight in config.rewards.items())
    )
    _add_rate(plan, config.optimizer, total_steps * config.inner_iterations)
    _add_disk(plan, context, copies=int(config.holds_reference))
    _add_memory(plan, context, {"prompt": longest})
    return plan


def _begun(context: Context) -> RunPlan:
    model, config = context.model, context.config
    command = "grpo" if context.stage == 4 else f"train-stage {context.stage} ({context.name})"
    plan = RunPlan(command, configs.to_dict(config))
    if context.preset is not None and context.preset.note is not None:
        plan.add("preset", context.preset.name, context.preset.note)
    count = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if config.lora is not None:
        trained = lora.planned_numbers(model, config.lora)
    part = "all of them train" if trained == count else f"{trained:,} train"
    plan.add(
        "model", {"name": model.name, "layout": model.layout.name, "parameters": count, "trained": trained},
        f"{model.name}: {model.layout.name}, {count:,} parameters, {part}",
    )  # fmt: skip
    return plan


def _add_processes(plan: RunPlan, context: Context) -> None:
    way = {"one": "", "fsdp": ", sharing the weights (FSDP2)", "ddp": ", each with all weights (DDP)"}[_spread(context)]
    plan.add("processes", {"count": context.processes, "spread": _spread(context)}, f"{context.processes}{way}")


def _spread(context: Context) -> Spread:
    return "fsdp" if context.sharded else "ddp" if context.processes > 1 else "one"


def _add_steps(plan: RunPlan, context: Context, total_steps: int) -> None:
    left = max(0, total_steps - context.start)
    told = f"{total_steps:,}"
    if context.start:
        told += f"; {context.start:,} are done and {left:,} are left"
    plan.add("steps", {"total": total_steps, "done": context.start, "left": left}, told)


def _add_rate(plan: RunPlan, config: OptimizerConfig, updates: int) -> None:
    warmup = config.warmup(updates)
    plan.add(
        "learning_rate", {"peak": config.learning_rate, "warmup": warmup, "updates": updates},
        f"{config.learning_rate:g} after {warmup:,} of {updates:,} updates, then {config.schedule}",
    )  # fmt: skip
    if warmup >= updates:
        plan.warnings.append(
            f"the learning rate rises to the end: {warmup:,} steps of warm-up and {updates:,} updates; lower optimizer.warmup_steps"
        )


def _add_disk(plan: RunPlan, context: Context, copies: int = 0) -> None:
    one, kept = context.checkpoint_bytes(copies), context.config.keep_checkpoints + 2
    plan.add_disk(
        context.folder.path, one * kept,
        f"{kept} checkpoints of {human_bytes(one)} (those kept, the best, one being written)",
    )  # fmt: skip


def _add_memory(plan: RunPlan, context: Context, rows: dict[str, int]) -> None:
    config = context.config
    section = "grpo" if context.stage == 4 else f"stage{context.stage}"
    device = context.accelerator.device
    given = foresee.room(device, context.processes, _hardware(context))
    cpu = given is None or given.cpu
    shape = shape_of(context.model.config, context.model.name)
    foresee.add_memory(
        plan, Case(section, shape, config, _spread(context), context.processes, {**ROWS, **rows}, cpu), given
    )


def _hardware(context: Context) -> Hardware | None:
    """What the preset of the run is made for, where it says so."""
    name = None if context.preset is None else context.preset.name
    if name is None or "hardware" not in presets.load(name):
        return None
    return presets.hardware(name)

"""What all training stages share: Accelerate, the optimiser, its schedule, checkpoints and stopping."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcoder_cli.base.config import to_dict
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_folder, require_space
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.model import checkpoint as checkpoints
from dcoder_cli.model.backbone import Model, load
from dcoder_cli.training import lora
from dcoder_cli.training.config import OptimizerConfig, StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig


def make_accelerator(precision: str, device: str | None, track: str | None, run: Path) -> Any:
    """The Accelerator of a run; `accelerate launch` and torchrun decide everything else about it."""
    from accelerate import Accelerator

    if device == "cpu" and torch.cuda.is_available():
        import os

        os.environ["ACCELERATE_USE_CPU"] = "true"
    if track is not None:
        _check_tracker(track)
    try:
        return Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no",
            cpu=device == "cpu",
            log_with=track,
            project_dir=str(run),
            step_scheduler_with_optimizer=False,
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"precision {precision!r} cannot run here: {error}") from None


def _check_tracker(track: str) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    if track not in [str(kind.value) for kind in LoggerType]:
        raise UserError(
            f"--track {track!r} is unknown; use one of {', '.join(sorted(str(kind) for kind in LOGGER_TYPE_TO_CLASS))}"
        )
    from accelerate.tracking import get_available_trackers

    if track not in [str(kind.value) for kind in get_available_trackers()]:
        raise UserError(f"--track {track} needs the package {track}; install it with `pip install {track}`")


def load_model(
    accelerator: Any, run: RunFolder, resume: bool, name: str, config: StageConfig | GrpoConfig, stage: int
) -> Model:
    """The model to train, float32 on the CPU: `name`, or the run's last checkpoint when resuming.

    With LoRA it is `name` in both cases, with the adapter put in: a checkpoint's weights have the adapter merged.

    Raises:
        UserError: the model or its adapter cannot be read, or the stage cannot train it with LoRA.
    """
    if resume:
        before, now = run.config()["config"], to_dict(config)
        for key in ("lora", "train_embeddings"):  # they decide which weights the optimiser knows
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{key} = {now.get(key)} cannot change on resuming: the run began with {before.get(key)}; leave it out"
                )
    last = run.checkpoint(run.last()) if resume and run.last() else None
    if config.lora is None:
        model = load(last or name, device="cpu", dtype="float32")
        model.name = name
        return model
    lora.check_stage(stage)
    if is_sharded(accelerator):
        raise UserError("lora is not made for FSDP and DeepSpeed; launch it with DDP (--multi_gpu)")
    try:
        model = load(name, device="cpu", dtype="float32")
    except UserError as error:
        raise UserError(
            f"LoRA resumes on top of the model it began with, but {error}" if resume else str(error)
        ) from None
    lora.check_embeddings(model, stage)
    lora.add_adapter(model, config.lora, config.seed)
    if last is not None:
        lora.load_adapter(model, last)
    return model


def freeze_embeddings(model: Model) -> None:
    """Leave token embeddings and head out of training."""
    for part in (model.network.get_input_embeddings(), model.network.lm_head):
        part.requires_grad_(False)


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


def is_sharded(accelerator: Any) -> bool:
    """Whether weights or optimiser states are spread over processes (FSDP, DeepSpeed)."""
    return str(accelerator.distributed_type).rsplit(".", 1)[-1] in ("FSDP", "DEEPSPEED")


def checkpoint_bytes(model: Model, copies: int = 0) -> int:
    """What one checkpoint takes on disk: float32 weights, two Adam moments of those that train, and `copies` (a reference)."""
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    return copies * weights + sum(
        (12 if parameter.requires_grad else 4) * parameter.numel() for parameter in model.parameters()
    )


def check_space(run: RunFolder, model: Model, kept: int, copies: int = 0) -> None:
    """Raises UserError now if the checkpoints to come will not fit: `kept`, the best, and one being written."""
    require_space(run.path, checkpoint_bytes(model, copies) * (kept + 2), f"{kept + 2} checkpoints")


def save_checkpoint(
    accelerator: Any,
    run: RunFolder,
    step: int,
    module: Any,
    model: Model,
    optimizer: Any,
    state: dict[str, Any],
    stage: str,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoints/step-N`: a loadable model folder, and in `training/` what resuming needs. Whole or not at all.

    `extra`: more files of `training/`, each a value for torch.save.
    """
    target = run.checkpoint(step)
    weights = _full_weights(accelerator, module, model)
    if is_sharded(accelerator):
        # Every process writes its part of the optimiser; the folder is put in place by the first.
        temporary = target.with_name(f".{target.name}.sharded.tmp")
        accelerator.save_state(str(temporary / "training" / "accelerate"))
        if accelerator.is_main_process:
            _write_parts(temporary, model, weights, state, stage)
            temporary.rename(target)
    elif accelerator.is_main_process:
        require_space(run.path, checkpoint_bytes(model, len(extra or {})), "a checkpoint")
        with atomic_folder(target) as temporary:
            (temporary / "training").mkdir()
            files = {"optimizer.pt": optimizer.state_dict(), **(extra or {})}
            if lora.is_adapted(model):
                files["adapter.pt"] = lora.adapter_state(model)
            for name, value in files.items():
                torch.save(value, temporary / "training" / name)
            _write_parts(temporary, model, weights, state, stage)
    if accelerator.is_main_process:
        run.link("last", step)
    accelerator.wait_for_everyone()
    return target


def _full_weights(accelerator: Any, module: Any, model: Model) -> dict[str, Any]:
    """By transformers key, adapters merged; under FSDP every process takes part and the first has them."""
    if lora.is_adapted(model):
        return dict(lora.merged_weights(model)) if accelerator.is_main_process else {}
    full = accelerator.get_state_dict(module)
    return {key.removeprefix("model.network."): value for key, value in full.items()} if full else {}


def _write_parts(folder: Path, model: Model, weights: dict[str, Any], state: dict[str, Any], stage: str) -> None:
    checkpoints.write_into(folder, model.stored_config(stage=stage), weights, model.layout, model.tokenizer)
    (folder / "training").mkdir(exist_ok=True)
    torch.save({**state, "torch_rng": torch.get_rng_state()}, folder / "training" / "state.pt")


def load_training_state(accelerator: Any, folder: Path, optimizer: Any) -> dict[str, Any]:
    """Optimiser, RNG and counters of a checkpoint. The weights were loaded with the model, or come with the shards.

    Raises:
        UserError: the checkpoint's training state is damaged.
    """
    try:
        if is_sharded(accelerator):
            accelerator.load_state(str(folder / "training" / "accelerate"))
        else:
            optimizer.load_state_dict(
                torch.load(folder / "training" / "optimizer.pt", map_location="cpu", weights_only=True)
            )
        state: dict[str, Any] = torch.load(folder / "training" / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"training state in {str(folder)!r} cannot be read ({type(error).__name__}); remove that folder to resume from the one before"
        ) from None
    torch.set_rng_state(state["torch_rng"])
    return state


class Stop:
    """Set by Ctrl-C or a polite kill: the loop ends after its step, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False

    def agreed(self, accelerator: Any) -> bool:
        """Whether any process was asked to stop."""
        if accelerator.num_processes == 1:
            return self.asked
        flag = torch.tensor(float(self.asked), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop; a second one stops at once."""
    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)

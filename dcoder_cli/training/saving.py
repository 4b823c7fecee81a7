"""Checkpoints of a training: a loadable model folder, and in `training/` what resuming needs. Whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_folder, require_space, share
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.model import checkpoint as checkpoints
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import lora, optimizers
from dcoder_cli.training.setup import is_sharded


def checkpoint_bytes(model: Model, copies: int = 0) -> int:
    """What one checkpoint takes on disk: weights, two Adam moments of those that train, and `copies` (a reference).

    An adapter lies beside the merged weights, or alone.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if model.adapter is None:
        return (copies + 1) * 4 * sum(parameter.numel() for parameter in model.parameters()) + 8 * trained
    return (lora.merged_bytes(model) if model.adapter.save_merged else 0) + 12 * trained


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
    state: Mapping[str, Any],
    stage: str,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoints/step-N` and point `last` to it; all processes take part and wait for it.

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
            share(temporary)
            temporary.rename(target)
    elif accelerator.is_main_process:
        require_space(run.path, checkpoint_bytes(model, len(extra or {})), "a checkpoint")
        with atomic_folder(target) as temporary:
            (temporary / "training").mkdir()
            files = {"optimizer.pt": optimizer.state_dict(), **(extra or {})}
            if lora.is_adapted(model):
                lora.write_adapter(model, temporary)
            for name, value in files.items():
                torch.save(value, temporary / "training" / name)
            _write_parts(temporary, model, weights, state, stage)
    if accelerator.is_main_process:
        run.link("last", step)
    accelerator.wait_for_everyone()
    return target


def _full_weights(accelerator: Any, module: Any, model: Model) -> dict[str, Any]:
    """By transformers key, adapters merged; under FSDP every process takes part and the first has them.

    Empty where a checkpoint holds the adapter alone.
    """
    if model.adapter is not None:
        wanted = model.adapter.save_merged and accelerator.is_main_process
        return dict(lora.merged_weights(model)) if wanted else {}
    full = accelerator.get_state_dict(module)
    return {key.removeprefix("model.network."): value for key, value in full.items()} if full else {}


def _write_parts(folder: Path, model: Model, weights: dict[str, Any], state: Mapping[str, Any], stage: str) -> None:
    config = model.stored_config(stage=stage)
    checkpoints.write_into(folder, config, weights, model.layout, model.tokenizer, model.answer_length)
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
    optimizers.check_state(optimizer)
    torch.set_rng_state(state["torch_rng"])
    return state

"""Checkpoints of a training: a loadable model folder, and in `training/` what resuming needs. Whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from dcoder_cli.base import checksums
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.files import atomic_folder, put_in_place, require_space
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.base.schema import Format
from dcoder_cli.model import storing
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import damage, lora, optimizers, sharded
from dcoder_cli.training.config import LoraConfig
from dcoder_cli.training.gathered import load_whole_state, whole, whole_state

OPTIMIZER_PARTS = "optimizer"  # the folder of torch.distributed.checkpoint, of a sharded run


def checkpoint_bytes(model: Model, copies: int = 0) -> int:
    """What one checkpoint takes on disk: weights, two Adam moments of those that train, and `copies` (a reference).

    An adapter lies beside the merged weights, or alone.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if model.adapter is None:
        return (copies + 1) * 4 * sum(parameter.numel() for parameter in model.parameters()) + 8 * trained
    return (lora.merged_bytes(model) if model.adapter.save_merged else 0) + 12 * trained


def planned_bytes(model: Model, config: LoraConfig, precision: str) -> int:
    """As `checkpoint_bytes`, of a model that has not got its adapter yet."""
    number = 4 if config.base(precision) == "float32" else 2
    merged = number * sum(parameter.numel() for parameter in model.parameters()) if config.save_merged else 0
    return merged + 12 * lora.planned_numbers(model, config)


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

    `extra`: more of `training/`: values for torch.save under file names, and sharded modules under folder names.
    """
    target = run.checkpoint(step)
    first = bool(accelerator.is_main_process)
    if sharded.is_sharded(module):
        for one in (module, *(extra or {}).values()):
            sharded.at_rest(one)
    if model.adapter is not None:
        _save_adapted(run, target, model, optimizer, state, stage, first, sharded.is_sharded(module))
    elif sharded.is_sharded(module):
        _save_sharded(accelerator, run, target, module, model, optimizer, state, stage, extra or {})
    elif first:
        files = {"optimizer.pt": optimizer.state_dict(), **(extra or {})}
        full = accelerator.get_state_dict(module)
        weights = {key.removeprefix("model.network."): value for key, value in full.items()}
        with _whole(run, target, model, weights, files, state, stage):
            pass
    if first:
        run.link("last", step)
    accelerator.wait_for_everyone()
    return target


def _save_sharded(
    accelerator: Any,
    run: RunFolder,
    target: Path,
    module: Any,
    model: Model,
    optimizer: Any,
    state: Mapping[str, Any],
    stage: str,
    extra: Mapping[str, Any],
) -> None:
    """Weights gathered one by one for the first process; the optimiser in parts, one of each process."""
    first = bool(accelerator.is_main_process)
    temporary = target.with_name(f".{target.name}.sharded.tmp")
    if first:
        require_space(run.path, checkpoint_bytes(model, len(extra)), "a checkpoint")
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed in here
        (temporary / "training").mkdir(parents=True)
    accelerator.wait_for_everyone()
    config = model.stored_config(stage=stage)
    weights = model.network.state_dict()
    names = storing.stored_names(weights, config, model.layout)
    shapes = {
        name: torch.empty(weights[key].shape, dtype=weights[key].dtype, device="meta") for name, key in names.items()
    }
    storing.write_weights(temporary, shapes, lambda name: whole(weights[names[name]]), first)
    sharded.save_optimizer(temporary / "training" / OPTIMIZER_PARTS, module, optimizer)
    for name, one in extra.items():
        sharded.save_weights(temporary / "training" / name, one)
    accelerator.wait_for_everyone()
    parts = _sums_of_parts(accelerator, temporary)
    if first:
        storing.write_beside(temporary, config, model.tokenizer, model.answer_length)
        _write_state(temporary, state)
        checksums.write_record(temporary, parts)
        put_in_place(temporary, target)


def _sums_of_parts(accelerator: Any, folder: Path) -> dict[str, checksums.Sums]:
    """The checksums of what each process has just written, read by it: of another node's it has nothing in memory."""
    mine = [name for name in checksums.names(folder) if Path(name).name.startswith(f"__{accelerator.process_index}_")]
    told: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(told, checksums.sums_of_several(folder, mine))
    return {name: sums for one in told for name, sums in one.items()}


def _save_adapted(
    run: RunFolder,
    target: Path,
    model: Model,
    optimizer: Any,
    state: Mapping[str, Any],
    stage: str,
    first: bool,
    spread: bool,
) -> None:
    """The adapter as peft reads it, its optimiser, and where it is wanted the merged model.

    They are small: whole, in the same files for any number of processes, which gather them together.
    """
    assert model.adapter is not None
    adapter, moments = lora.adapter_state(model), whole_state(optimizer)
    merged = lora.merged_weights(model) if model.adapter.save_merged and (first or spread) else iter(())
    weights: dict[str, Any] = {}
    for key, value in merged:  # each gathered in its turn
        if first:
            weights[key] = value
    if first:
        with _whole(run, target, model, weights, {"optimizer.pt": moments}, state, stage) as temporary:
            lora.write_adapter(model, adapter, temporary)


@contextmanager
def _whole(
    run: RunFolder,
    target: Path,
    model: Model,
    weights: Mapping[str, Any],
    files: Mapping[str, Any],
    state: Mapping[str, Any],
    stage: str,
) -> Iterator[Path]:
    """A checkpoint that one process writes, all of it or none of it; what the caller adds goes in with it."""
    require_space(run.path, checkpoint_bytes(model, len(files) - 1), "a checkpoint")
    with atomic_folder(target) as temporary:
        (temporary / "training").mkdir()
        for name, value in files.items():
            torch.save(value, temporary / "training" / name)
        yield temporary
        config = model.stored_config(stage=stage)
        storing.write_into(temporary, config, weights, model.layout, model.tokenizer, model.answer_length)
        _write_state(temporary, state)
        checksums.write_record(temporary)


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    (folder / "training").mkdir(exist_ok=True)
    torch.save({**state, "torch_rng": torch.get_rng_state()}, folder / "training" / "state.pt")


@dataclass(frozen=True)
class SavedState:
    """state.pt: what both loops count, and of the one and the other. Numbers may be NaN."""

    torch_rng: torch.Tensor
    tail: list[Any]
    best: float | None = None
    waited: int = 0
    heldout: dict[str, Any] | None = None
    before: dict[str, Any] | None = None
    updates: int | None = None
    flat: list[Any] | None = None


_STATE = Format("training state", SavedState, "copy the checkpoint again")


def load_training_state(folder: Path, module: Any, optimizer: Any) -> dict[str, Any]:
    """Optimiser, RNG and counters of a checkpoint, saved on any number of processes, sharded or not.

    The weights were loaded with the model.

    Raises:
        Damaged: the checkpoint's training state is.
    """
    training = folder / "training"
    damage.check_state(folder, [OPTIMIZER_PARTS, "optimizer.pt", "state.pt"])
    try:
        if (training / OPTIMIZER_PARTS).is_dir():
            sharded.load_optimizer(training / OPTIMIZER_PARTS, module, optimizer)
        else:
            value = torch.load(training / "optimizer.pt", map_location="cpu", weights_only=True)
            load_whole_state(optimizer, value)
        state: dict[str, Any] = torch.load(training / "state.pt", map_location="cpu", weights_only=True)
        _STATE.check(state, "state.pt")
        torch.set_rng_state(state["torch_rng"])
    except Exception as error:
        why = one_line(error) if isinstance(error, UserError) else type(error).__name__
        raise checksums.Damaged(
            f"training state in {str(folder)!r} cannot be read ({why}); copy the checkpoint again",
            training,
        ) from None
    optimizers.check_state(optimizer)
    told = {field.name: field.default for field in fields(SavedState) if field.default is not MISSING}
    return {**told, **state}

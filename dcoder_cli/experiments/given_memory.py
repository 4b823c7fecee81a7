"""What of a stage's settings changes where the memory is too small for them: as `dcoder presets fit` would choose."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import human_bytes
from dcoder_cli.training.config import LoraConfig, StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig

if TYPE_CHECKING:
    from dcoder_cli.training.memory.fit import Choice
    from dcoder_cli.training.memory.foresee import Room

LORA_RATE = 3e-4  # learning rate of adapters: LoRA's public code for RoBERTa; see LoraConfig

_Config = TypeVar("_Config", StageConfig, GrpoConfig)


def precision(device: str | None) -> Literal["bf16", "fp32"]:
    """Of all trainings of a run: bf16 on a GPU."""
    import torch

    return "bf16" if device != "cpu" and torch.cuda.is_available() else "fp32"


def check_room(model: dict[str, Any], device: str | None) -> None:
    """Raises UserError where stage 1, which trains all weights, has no room for a model whatever else changes."""
    import torch

    from dcoder_cli.experiments.budget import ROW, ROWS_A_STEP

    row = ROW["cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"]
    fitted("stage1", model, StageConfig(global_batch=ROWS_A_STEP[0], precision=precision(device)), row, device)


def fitted(section: str, model: dict[str, Any], config: _Config, row: int, device: str | None) -> tuple[_Config, str]:
    """The settings that fit this machine, and how they differ from `config`, or "" where they do not.

    What is tried, in this order: micro-batches and activation checkpointing, LoRA (stages 2 and 4: stage 1 trains the new mask
    token's embedding and stage 3 the new pad's, which LoRA freezes), AdamW in 8 bits.

    Args:
        section: stage1 to stage3, or grpo. model: its config.json.
        row: tokens of a row, or of a prompt.

    Raises:
        UserError: nothing does.
    """
    from dcoder_cli.model.loading import choose_device
    from dcoder_cli.training.memory import foresee
    from dcoder_cli.training.memory.case import ROWS, Case
    from dcoder_cli.training.memory.fit import Fit, fit
    from dcoder_cli.training.memory.shape import shape_of

    given = foresee.room(choose_device(device), 1)
    if given is None:
        return config, ""
    shape = shape_of(model, "the model")
    case = Case(section, shape, config, rows=dict.fromkeys(ROWS, row), cpu=given.cpu)
    found: Fit = fit(case, given.gib, given.cpu)
    if found.fits:
        return config, ""
    ways: list[Choice | None] = [found.fastest, *found.otherwise]
    chosen = next((way for way in ways if way is not None and _can(way, section, given)), None)
    if chosen is None:
        raise UserError(
            f"stage {section[-1] if section != 'grpo' else 4} takes {human_bytes(found.estimate.total)} for a model of "
            f"{shape.parameters / 1e6:,.0f}M parameters, of {human_bytes(found.budget)} that can be planned with on {given.of}; "
            "use a smaller model, or several GPUs by `dcoder train-stage` (`dcoder presets fit` tells which)"
        )
    taken: Any = chosen.case.config
    if taken.lora is not None:
        taken = replace(taken, optimizer=replace(taken.optimizer, learning_rate=LORA_RATE))
    return taken, chosen.told()


def _can(way: Choice, section: str, given: Room) -> bool:
    """Whether it needs one device, trains what the section must, and needs packages that are here."""
    config: Any = way.case.config
    if way.case.gpus > 1:
        return False
    if isinstance(config.lora, LoraConfig) and (section == "stage3" or importlib.util.find_spec("peft") is None):
        return False
    if getattr(config.optimizer, "name", "") == "adamw-8bit":
        from dcoder_cli.training import optimizers

        try:
            optimizers.check(config.optimizer)
        except UserError:
            return False
        return not given.cpu  # their kernels are a GPU's
    return True

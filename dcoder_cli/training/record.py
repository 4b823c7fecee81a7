"""A run's record, config.yaml: which stage, model, data and settings it is. Both loops write it, resuming checks it. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base.config import build, read_yaml, to_dict
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.run_files import read_run
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig

# Settings by which a step knows its rows and the optimiser its weights: with others, the steps counted so far would be
# another run's. `steps` and the learning rate may change: they are of the steps to come.
_FIXED = ("seed", "global_batch", "prompts_per_step", "lora", "train_embeddings")
# What is optimised: with another in mid-run, config.yaml would tell of a run that never was, and its curves join two.
_OBJECTIVE = (
    "estimator", "pairs", "t_range", "prompt_mask", "advantage", "scale_advantage", "loss_normaliser", "rewards", "format",
    "weighting", "cart_p", "normalizer", "t_min",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """The preset below a run's settings. `note`: why this one, where the user named none; told when the run begins."""

    name: str
    note: str | None = None


def resolved(stage: int, *layers: Mapping[str, Any]) -> StageConfig | GrpoConfig:
    """A stage's settings of merged layers. Raises UserError for a key or a value that is wrong."""
    settings: type[StageConfig | GrpoConfig] = GrpoConfig if stage == 4 else StageConfig
    return build(settings, *layers, where=f"the configuration of stage {stage}")


def make(stage: int, model: str, data: str, config: StageConfig | GrpoConfig, **more: Any) -> dict[str, Any]:
    """What config.yaml says of a run.

    Args:
        stage: 0-4.
        model: the checkpoint it starts from, as it was given.
        data: the folder from `dcoder tokenize`, as it was given.
        config: the settings, resolved.
        more: what else the loop wants to know on resuming.

    Raises:
        UserError: the data's manifest cannot be read.
    """
    from dcoder_cli.data.manifest import fingerprint

    return {
        "stage": stage,
        "model": str(model),
        "data": str(data),
        "data_sha256": fingerprint(data),
        "config": to_dict(config),
        **more,
    }


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any], begun: bool = True) -> None:
    """Whether a run may go on as it is now asked to.

    Args:
        before: the record in its folder.
        now: the one that would take its place, of `make`.
        begun: whether it has a checkpoint to go on from, rather than to begin anew.

    Raises:
        UserError: something differs that decides which rows a step reads, or which weights it moves.
    """
    old = to_dict(
        resolved(now["stage"], before["config"])
    )  # with this release's defaults for what an older one did not know
    for key in _FIXED:
        if key in old and _decides(old[key]) != _decides(now["config"][key]):
            raise UserError(_fixed(*_difference(key, _decides(now["config"][key]), _decides(old[key]))))
    for key in _OBJECTIVE if begun else ():
        if key in old and old[key] != now["config"][key]:
            raise UserError(
                f"{key} = {now['config'][key]} cannot change on resuming: it decides what is learned, and the run began with {old[key]}; "
                "leave it out, or begin another run with --model at this one's checkpoints/last"
            )
    if old["optimizer"]["name"] != now["config"]["optimizer"]["name"]:
        raise UserError(_fixed(f"optimizer.name = {now['config']['optimizer']['name']}", old["optimizer"]["name"]))
    # An adapter needs the model it began with, wherever that lies now, and knows it by its content (lora.load_adapter).
    if now["config"]["lora"] is None and not _same_place(before["model"], now["model"]):
        raise UserError(_fixed(f"--model {now['model']!r}", repr(before["model"])))
    # By content where it is known, so that a folder may move. Records of before it was written have the name alone.
    content = before.get("data_sha256")
    if content is None and not _same_place(before["data"], now["data"]):
        raise UserError(_fixed(f"--data {now['data']!r}", repr(before["data"])))
    if content is not None and content != now["data_sha256"]:
        if _same_place(before["data"], now["data"]):
            raise UserError(
                f"--data {now['data']!r} holds other rows than when the run began; start another run with another --out"
            )
        raise UserError(_fixed(f"--data {now['data']!r}", repr(before["data"])))


def _decides(value: Any) -> Any:
    """A setting without what only says how checkpoints are written."""
    return {key: one for key, one in value.items() if key != "save_merged"} if isinstance(value, dict) else value


def _difference(name: str, now: Any, before: Any) -> tuple[str, Any]:
    """What differs, as `name = value`, and its value before: of long settings the part that does."""
    if isinstance(now, dict) and isinstance(before, dict):
        for key in {**now, **before}:
            if now.get(key) != before.get(key):
                return _difference(f"{name}.{key}", now.get(key), before.get(key))
    return f"{name} = {now}", before


def _fixed(now: str, before: Any) -> str:
    return f"{now} cannot change on resuming: the run began with {before}; leave it out"


def _same_place(one: str, other: str) -> bool:
    return one == other or os.path.realpath(Path(one).expanduser()) == os.path.realpath(Path(other).expanduser())


def of_run(out: Path, stage: int) -> dict[str, Any]:
    """The record of a run that is to go on.

    Raises:
        UserError: there is none, or it is of another stage.
    """
    if not (out / "config.yaml").is_file():
        raise UserError(
            f"run folder {str(out)!r} has no config.yaml, so there is nothing to resume; start without --resume"
        )
    record = read_run(out / "config.yaml")
    found = record["stage"]
    if found != stage:
        other = "resume it with `dcoder train-stage`" if stage == 4 else "resume it with that stage"
        other = "resume it with `dcoder grpo`" if found == 4 else other
        raise UserError(f"run folder {str(out)!r} holds stage {found}, not {stage}; {other}")
    return record


def of_file(path: Path, stage: int) -> dict[str, Any]:
    """What --config names: a run's config.yaml, or a file of a stage's settings, which is a record of nothing else.

    Raises:
        UserError: the file cannot be read, or is of another stage.
    """
    values = read_yaml(path)
    if not {"stage", "config"} <= values.keys():
        return {"config": values}
    if values["stage"] != stage:
        raise UserError(f"--config {str(path)!r} is of a run of stage {values['stage']}, not {stage}")
    return values


def device_name(accelerator: Any) -> str:
    """What this process trains on: a GPU by its name."""
    import torch

    device = accelerator.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

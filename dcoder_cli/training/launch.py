"""From options to a run: which settings, model, data and tracker. `train-stage` and `grpo` ask here. Torch-free until it counts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcoder_cli.base import config as configs
from dcoder_cli.base import presets
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.training import record as records
from dcoder_cli.training.record import Preset
from dcoder_cli.training.tracking import Tracking


@dataclass(frozen=True)
class LaunchOptions:
    """What both commands ask for, as it was given; None where an option was left out."""

    out: Path
    model: str | None
    data: str | None
    preset: str | None
    config: Path | None
    settings: Sequence[str]
    resume: bool
    track: str | None
    run_name: str | None
    more: Mapping[str, Any] = field(default_factory=dict)  # settings that have an option of their own


@dataclass(frozen=True)
class Launch:
    """What they come to.

    Attributes:
        settings: the layers merged, not yet checked against the stage's dataclass.
        model, data: as the loop takes them.
        preset: the preset below the other layers; None for a run that goes on or is repeated.
        tracking: where the run is tracked, None where it is not.
    """

    settings: dict[str, Any]
    model: str
    data: str
    preset: Preset | None
    tracking: Tracking | None


def resolve(stage: int, command: str, options: LaunchOptions) -> Launch:
    """Put the layers together: a preset (or the run that goes on) < --config < --set.

    `--config RUN/config.yaml` repeats that run: all of its settings, and its model and data where none are given.

    Args:
        stage: 0-4.
        command: how the user calls it, for the messages: `train-stage 1`.
        options: what was given.

    Raises:
        UserError: an option without effect, a model or data that nothing names, a file or folder that is not what it should be.
    """
    before = records.of_run(options.out, stage) if options.resume else {}
    file = records.of_file(options.config, stage) if options.config else {"config": {}}
    repeated = "stage" in file
    if options.preset is not None and (options.resume or repeated):
        why = "--resume: a run keeps its settings" if options.resume else "the --config of a run"
        raise UserError(f"--preset {options.preset} has no effect beside {why}; leave it out")
    model = options.model or before.get("model") or file.get("model")
    data = options.data or before.get("data") or file.get("data")
    if model is None or data is None:
        raise UserError(
            f"stage {stage} needs {'--model' if model is None else '--data'}; see `dcoder {command} --help`"
        )
    if repeated and not options.resume:
        for flag, given, name in (("--model", options.model, model), ("--data", options.data, data)):
            _check_there(options.config, flag, given, name)
    above = configs.merge(file["config"], configs.parse_assignments(options.settings), options.more)
    preset: Preset | None = None
    layer = before.get("config", {})
    if not options.resume and not repeated:
        part = "grpo" if stage == 4 else f"stage{stage}"
        if options.preset is None:
            _check_settings(stage, part, above)
        preset = Preset(options.preset) if options.preset else _by_size(model)
        layer = presets.section(preset.name, part)
    return Launch(configs.merge(layer, above), model, data, preset, _tracking(options, before.get("tracking")))


def _check_there(config: Path | None, flag: str, given: str | None, name: str) -> None:
    """A path in a run's record was good where that run was started. A hub id (owner/name) is looked for later."""
    hub = flag == "--model" and name.count("/") == 1 and not name.startswith((".", "~"))
    if given is None and not hub and not Path(name).expanduser().exists():
        raise UserError(f"--config {str(config)!r} names {name!r}, which is not here; give {flag}")


# The model that each preset for one machine is made for (their headers), and its parameters, counted from its shape
# (model/sizes.py: the public config.json; tiny with quickstart's vocabulary).
MODELS = {
    "cpu-tiny": ("tiny", 1.02e6),
    "gpu-24gb": ("Qwen2.5-Coder-0.5B", 0.49e9),
    "gpu-80gb": ("Qwen2.5-Coder-3B", 3.09e9),
    "8x80gb": ("Qwen2.5-Coder-7B", 7.62e9),
}


def nearest_preset(parameters: int) -> str:
    """The preset whose model is nearest in size, as a ratio (ours)."""
    return min(MODELS, key=lambda name: max(MODELS[name][1] / parameters, parameters / MODELS[name][1]))


def _check_settings(stage: int, part: str, above: Mapping[str, Any]) -> None:
    """Raises UserError for settings that are wrong whichever preset they go on, before the model is looked for or downloaded."""
    wrong = []
    for name in MODELS:
        try:
            records.resolved(stage, presets.section(name, part), above)
        except UserError as error:
            wrong.append(error)
    if len(wrong) == len(MODELS):
        raise wrong[0]


def _by_size(model: str) -> Preset:
    from dcoder_cli.model.checkpoint import find
    from dcoder_cli.model.inspection import count_parameters

    parameters, _ = count_parameters(find(model))
    name = nearest_preset(max(1, parameters))
    note = (
        f"no --preset: the settings of {name}, whose model ({MODELS[name][0]}) is nearest in size to "
        f"{model} ({_short(parameters)} parameters); `dcoder presets show {name}` shows them"
    )
    return Preset(name, note)


def _short(count: float) -> str:
    """`494000000` as `494M`."""
    for unit in ("", "K", "M", "B"):
        if count < 1000 or unit == "B":
            break
        count /= 1000
    return f"{count:.3g}{unit}"


def _tracking(options: LaunchOptions, before: dict[str, str] | None) -> Tracking | None:
    """A run that was tracked goes on being tracked when it is resumed, under the same name, unless --track is "none"."""
    if options.track == "none":
        if before is None or options.run_name is not None:
            raise UserError(
                "--track none ends the tracking of a run that was tracked, when it is resumed; leave it out"
            )
        return None
    if options.track is None and before is None:
        if options.run_name is not None:
            raise UserError(f"--run-name {options.run_name!r} names the run in a tracker; give --track too")
        return None
    if before is None:
        assert options.track is not None
        return Tracking(
            options.track, options.run_name or Path(os.path.realpath(options.out)).name, uuid.uuid4().hex[:16]
        )
    if options.run_name not in (None, before["name"]):
        raise UserError(
            f"--run-name {options.run_name!r} cannot change on resuming: the run began as {before['name']!r}; leave it out"
        )
    return Tracking(options.track or before["tracker"], before["name"], before["id"])


def launch_section(options: LaunchOptions) -> dict[str, Any]:
    """The launch section, an Accelerate configuration, of the preset, or of the one that a run to be resumed began with.

    Empty where there is none.
    """
    name = options.preset
    if options.resume and (starts := RunFolder(options.out).starts()):
        name = next((start["preset"] for start in starts if start.get("preset")), None)
    if name is None:
        return {}
    return presets.launch(name)

"""`dcoder train-stage`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console, presets
from dcoder_cli.base.errors import UserError, WorkFailed

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def train_stage(
    stage: Annotated[str, typer.Argument(help="0 or ar, 1 or adapt, 2 or mid, 3 or sft.")],
    model: Annotated[str | None, typer.Option("--model", help="Checkpoint to start from: folder or hub id.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Shards from `dcoder tokenize`: pretrain, or sft for stage 3.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("run"),
    preset: Annotated[
        str,
        typer.Option(
            "--preset", help="A preset's name (see `dcoder presets`) or a YAML file; a resumed run keeps its own."
        ),
    ] = "cpu-tiny",
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with keys of this stage; wins over the preset.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, wins over all; repeatable.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu to stay off a GPU.")] = None,
    track: Annotated[
        str | None, typer.Option("--track", help="An Accelerate tracker, for example tensorboard.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, no progress bar.")] = False,
) -> None:
    """Train stage 0 (ar), 1 (adapt), 2 (mid) or 3 (sft).

    Examples:

      dcoder train-stage 1 --preset gpu-80gb --model start-1.5b --data shards --out runs/adapt

      dcoder train-stage 1 --out runs/adapt --resume
    """
    from dcoder_cli.training.config import StageConfig, stage_number

    number = stage_number(stage)
    recorded = _recorded(out) if resume else {}
    if recorded and recorded.get("stage") != number:
        raise UserError(
            f"run folder {str(out)!r} holds stage {recorded.get('stage')}, not {number}; resume it with that stage"
        )
    layers: list[dict[str, Any]] = [recorded["config"]] if recorded else [presets.section(preset, f"stage{number}")]
    layers += [configs.read_yaml(config)] if config else []
    layers += [configs.parse_assignments(settings or [])]
    resolved = configs.build(StageConfig, *layers, where=f"the configuration of stage {number}")
    model, data = model or recorded.get("model"), data or recorded.get("data")
    if model is None or data is None:
        raise UserError(
            f"stage {number} needs {'--model' if model is None else '--data'}; see `dcoder train-stage --help`"
        )
    from dcoder_cli.training.denoise import train
    from dcoder_cli.training.evaluation import told

    result = train(number, model, data, str(out), resolved, resume, device, track, quiet=json)
    if result.stopped == "asked":
        raise WorkFailed(
            f"stopped at step {result.steps}; go on with `dcoder train-stage {stage} --out {out} --resume`"
        )
    if json:
        console.emit_json({**vars(result), "checkpoint": str(result.checkpoint)})
        return
    heldout = f", {told(result.heldout, 4)}" if result.heldout else ""
    early = {
        "early": " (stopped early: the held-out loss no longer fell)",
        "reached": " (stopped at the held-out loss asked for)",
    }.get(result.stopped or "", "")
    console.stdout().print(
        f"stage {number} ({result.stage}) done: {result.steps} steps, {result.tokens:,} tokens, loss {result.loss:.4f}{heldout}, "
        f"{result.seconds:.0f} s{early}\n{result.checkpoint}",
        markup=False,
    )


def _recorded(out: Path) -> dict[str, Any]:
    if not (out / "config.yaml").is_file():
        raise UserError(
            f"run folder {str(out)!r} has no config.yaml, so there is nothing to resume; start without --resume"
        )
    return configs.read_yaml(out / "config.yaml")

"""`dcoder train-stage`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console
from dcoder_cli.base.errors import Stopped

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
        str | None,
        typer.Option(
            "--preset",
            help="A preset's name (see `dcoder presets`) or a YAML file [the one nearest to the model's size].",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="YAML file with keys of this stage; wins over the preset. RUN/config.yaml repeats that run.",
        ),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, wins over all; repeatable.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu to stay off a GPU.")] = None,
    track: Annotated[
        str | None,
        typer.Option(
            "--track",
            help="An Accelerate tracker, for example tensorboard; a resumed run keeps its own [none ends that].",
        ),
    ] = None,
    run_name: Annotated[
        str | None, typer.Option("--run-name", help="The run's name in the tracker [the run folder's].")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, no progress bar.")] = False,
) -> None:
    """Train stage 0 (ar), 1 (adapt), 2 (mid) or 3 (sft).

    Examples:

      dcoder train-stage 1 --preset gpu-80gb --model start-1.5b --data shards --out runs/adapt

      dcoder train-stage 1 --out runs/adapt --resume

      dcoder train-stage 1 --config runs/adapt/config.yaml --set seed=1 --out runs/again
    """
    from dcoder_cli.training import launch
    from dcoder_cli.training.config import StageConfig, stage_number

    number = stage_number(stage)
    options = launch.Options(out, model, data, preset, config, settings or [], resume, track, run_name)
    asked = launch.resolve(number, f"train-stage {stage}", options)
    resolved = configs.build(StageConfig, asked.settings, where=f"the configuration of stage {number}")
    from dcoder_cli.training.denoise import train
    from dcoder_cli.training.evaluation import told

    result = train(
        number, asked.model, asked.data, str(out), resolved, resume, device, asked.tracking, quiet=json,
        preset=asked.preset,
    )  # fmt: skip
    if result.stopped == "asked":
        raise Stopped(f"stopped at step {result.steps}; go on with `dcoder train-stage {stage} --out {out} --resume`")
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

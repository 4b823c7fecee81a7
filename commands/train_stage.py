"""`dcoder train-stage`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console, options
from dcoder_cli.base.errors import StoppedByUser

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def train_stage(
    stage: Annotated[str, typer.Argument(help="0 or ar, 1 or adapt, 2 or mid, 3 or sft.")],
    model: options.Model = None,
    data: options.Shards = None,
    out: options.Out = Path("run"),
    preset: options.Preset = None,
    config: options.Config = None,
    settings: options.Set = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    nproc: options.NProc = None,
    device: options.Device = None,
    track: options.Track = None,
    run_name: options.RunName = None,
    json: options.Json = False,
) -> None:
    """Train stage 0 (ar), 1 (adapt), 2 (mid) or 3 (sft).

    Examples:

      dcoder train-stage 1 --preset gpu-80gb --model start-1.5b --data shards --out runs/adapt

      dcoder train-stage 1 --preset 8x80gb --nproc 8 --model start-7b --data shards --out runs/adapt

      dcoder train-stage 1 --preset 8x80gb --nproc 8 --model start-7b --data shards --out runs/adapt --dry-run

      dcoder train-stage 1 --out runs/adapt --resume

      dcoder train-stage 1 --config runs/adapt/config.yaml --set seed=1 --out runs/again
    """
    from dcoder_cli.training import launch, launcher, unused
    from dcoder_cli.training.config import StageConfig, stage_number

    number = stage_number(stage)
    chosen = launch.LaunchOptions(out, model, data, preset, config, settings or [], resume, track, run_name)
    asked = launch.resolve(number, f"train-stage {stage}", chosen)
    resolved = configs.build(StageConfig, asked.settings, where=f"the configuration of stage {number}")
    unused.refuse(chosen.settings, number, resolved)
    if dry_run:
        from dcoder_cli.base import plan as plans
        from dcoder_cli.training import denoise

        dry = launcher.planned(nproc, launch.launch_section(chosen))
        found = denoise.plan(
            number, asked.model, asked.data, str(out), resolved, dry, resume, device, asked.tracking, asked.preset
        )  # fmt: skip
        return plans.show(found, json)
    launcher.spread(nproc, device, launch.launch_section(chosen))
    from dcoder_cli.training.denoise import train
    from dcoder_cli.training.evaluation import told

    result = train(
        number, asked.model, asked.data, str(out), resolved, resume, device, asked.tracking, quiet=json,
        preset=asked.preset,
    )  # fmt: skip
    if result.stopped == "asked":
        raise StoppedByUser(
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
        f"stage {number} ({result.stage}) done: {result.steps} steps, {result.tokens:,} tokens, loss {result.loss:.4f} "
        f"(mean of the last tenth of the steps){heldout}, {result.seconds:.0f} s{early}\n{result.checkpoint}",
        markup=False,
    )

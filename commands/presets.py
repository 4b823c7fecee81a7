"""`dcoder presets`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dcoder_cli.base import console, options, presets
from dcoder_cli.base.errors import UserError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Show the presets for GPU sizes, what fits a GPU, and a job for Slurm."""


@app.command("list")
def list_presets(json: options.Json = False) -> None:
    """Name every preset and what it is for."""
    rows = {name: _headline(name) for name in presets.names()}
    if json:
        console.emit_json({"presets": rows})
        return
    for name, line in rows.items():
        console.stdout().print(f"{name:14}  {line}", markup=False)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The preset.")],
    section: Annotated[
        str | None, typer.Option("--section", help="Only this section, for example launch (an Accelerate config file).")
    ] = None,
    json: options.Json = False,
) -> None:
    """Print a preset: what it changes, the commands to run, every value."""
    values: Any = presets.load(name)
    if section is not None:
        if section not in values:
            raise UserError(f"preset {name!r} has no section {section!r}; it has {', '.join(values)}")
        values = values[section]
    if json:
        console.emit_json({"preset": name, "section": section, "values": values})
    elif section is not None:
        import yaml

        console.stdout().print(yaml.safe_dump(values, sort_keys=False), end="", markup=False)
    else:
        console.stdout().print(presets.text(name), end="", markup=False)


@app.command()
def fit(
    preset: options.Preset = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="A size such as qwen2.5-coder-7b, a checkpoint's folder or a config.json [the preset's]."
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="GPUs over all machines [the preset's].")] = None,
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", help="Of one card, in GB as it is sold [the preset's].")
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="0 to 3, ar to sft, grpo, generate or eval; repeatable [all of the preset's]."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Tokens of a row; of a prompt from grpo on [the preset's].")
    ] = None,
    assignments: options.Set = None,
    json: options.Json = False,
) -> None:
    """Count what a stage takes of each GPU's memory, by part, and name the settings that fit.

    Without a preset: the settings of the one whose model is nearest in size. Nothing is loaded or downloaded.

    Examples:

      dcoder presets fit --preset 8x80gb

      dcoder presets fit --model qwen2.5-coder-7b --gpus 1 --gpu-memory 80 --stage 3
    """
    from dcoder_cli.base.config import parse_assignments
    from dcoder_cli.training.memory import ask

    asked = ask.FitQuestion(preset, model, gpus, gpu_memory, stage or (), parse_assignments(assignments or ()), tokens)
    found = ask.answer(asked)
    if json:
        console.emit_json(ask.as_json(found))
        return
    for line in ask.table(found):
        console.stdout().print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def slurm(
    name: Annotated[str, typer.Argument(help="The preset.")],
    stage: Annotated[str, typer.Option("--stage", help="0 to 3, ar to sft, grpo or eval.")],
    model: options.Model = None,
    data: options.Shards = None,
    out: options.MaybeOut = None,
    time: Annotated[str | None, typer.Option("--time", help="Slurm's limit, such as 24:00:00.")] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Slurm's.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Slurm's.")] = None,
    json: options.Json = False,
) -> None:
    """Print a Slurm job for a command of a preset's header, on its nodes. Submitted again, it goes on.

    Examples:

      dcoder presets slurm 8x80gb --stage adapt --time 24:00:00 > adapt.sh && sbatch adapt.sh
    """
    from dcoder_cli.training.slurm import SlurmJob, script

    given = {"model": model, "data": data, "out": None if out is None else str(out)}
    job = SlurmJob(
        name, stage, {key: value for key, value in given.items() if value is not None}, time, partition, account
    )
    text = script(job)
    if json:
        console.emit_json({"script": text})
    else:
        console.stdout().print(text, end="", markup=False, soft_wrap=True)


def _headline(name: str) -> str:
    return presets.text(name).splitlines()[0].removeprefix("#").strip()

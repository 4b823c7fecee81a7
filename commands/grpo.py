"""`dcoder grpo`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console
from dcoder_cli.base.errors import Stopped, UserError
from dcoder_cli.diffusion.estimators import ESTIMATORS

if TYPE_CHECKING:
    from dcoder_cli.training.launch import Launch

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def grpo(
    model: Annotated[str | None, typer.Option("--model", help="Instruction-tuned diffusion checkpoint.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Prompts with tests or answers, from `dcoder tokenize rl`.")
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
            "--config", help="YAML file with keys of stage 4; wins over the preset. RUN/config.yaml repeats that run."
        ),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, wins over all; repeatable.")] = None,
    estimator: Annotated[
        str | None, typer.Option("--estimator", help=f"{', '.join(ESTIMATORS)}, or module:function, your own.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            help="NAME=WEIGHT: code, format, math, or module:function (weight 1 if not given); replaces the preset's; repeatable.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    variance: Annotated[
        bool,
        typer.Option(
            "--measure-variance",
            help="Train nothing: errors of every estimator against three truths, as a table and a picture.",
        ),
    ] = False,
    draws: Annotated[
        int | None,
        typer.Option("--draws", help="With --measure-variance: estimates by each estimator, with fresh masks [32]."),
    ] = None,
    unsafe_exec: Annotated[
        bool, typer.Option("--unsafe-exec", help="Run model-written code without a sandbox where none holds.")
    ] = False,
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
    """Train stage 4 with coupled-GRPO or one of its baselines.

    Examples:

      dcoder tokenize rl acecode.jsonl --tokenizer runs/sft/checkpoints/last --out data/rl

      dcoder grpo --preset gpu-80gb --model runs/sft/checkpoints/last --data data/rl --out runs/grpo

      dcoder grpo --measure-variance --model runs/sft/checkpoints/last --data data/rl --out variance
    """
    from dcoder_cli.training import launch
    from dcoder_cli.training.grpo.config import GrpoConfig

    if draws is not None and not variance:
        raise UserError(f"--draws {draws} is of --measure-variance; leave it out")
    ours = estimator if estimator in ESTIMATORS else None  # it measures all of ours anyway, and yours beside them
    for name, value in (("--resume", resume), ("--estimator", ours), ("--track", track), ("--run-name", run_name)):
        if variance and value:
            raise UserError(f"{name} does not go with --measure-variance, which trains nothing and measures them all")
    rewards = dict(_weight(text) for text in reward or [])
    more = {"estimator": estimator} if estimator else {}
    options = launch.Options(out, model, data, preset, config, settings or [], resume, track, run_name, more)
    asked = launch.resolve(4, "grpo", options)
    merged = {**asked.settings, "rewards": rewards} if rewards else asked.settings
    resolved = configs.build(GrpoConfig, merged, where="the configuration of stage 4")
    if variance:
        return _measure(asked, out, resolved, 32 if draws is None else draws, device, unsafe_exec, json)
    from dcoder_cli.analysis.arness import arness
    from dcoder_cli.training.grpo.train import train

    def order(trajectories: Any) -> dict[str, float]:
        numbers = arness(trajectories, local_k=1, global_k=1)
        return {"local_arness@1": numbers["local"]["mean"][0], "global_arness@1": numbers["global"]["mean"][0]}

    result = train(
        asked.model, asked.data, str(out), resolved, resume, device, asked.tracking, quiet=json, monitor=order,
        unsafe=unsafe_exec, preset=asked.preset,
    )  # fmt: skip
    if result.stopped == "asked":
        raise Stopped(f"stopped at step {result.steps}; go on with `dcoder grpo --out {out} --resume`")
    if json:
        console.emit_json({**vars(result), "checkpoint": str(result.checkpoint)})
        return
    held = ""
    if result.before and result.after:
        name, form = ("pass@1", ".1%") if "pass@1" in result.after else ("reward", ".3f")
        before, after = (format(value[name], form) for value in (result.before, result.after))
        held = f", held-out {name} {before} -> {after} ({result.after['prompts']} prompts)"
    console.stdout().print(
        f"stage 4 (grpo) done: {result.steps} steps, reward {result.reward:.3f}{held}, {result.seconds:.0f} s\n{result.checkpoint}",
        markup=False,
    )


def _measure(asked: Launch, out: Path, config: Any, draws: int, device: str | None, unsafe: bool, json: bool) -> None:
    from dataclasses import asdict

    from dcoder_cli.analysis.plots import save
    from dcoder_cli.analysis.variance_plot import estimator_variance
    from dcoder_cli.base.files import write_json
    from dcoder_cli.training.grpo.variance import TRUTHS, measure

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} exists already; choose another folder")
    notes = [asked.preset.note] if asked.preset is not None and asked.preset.note is not None else []

    def announce(text: str) -> None:  # the input is checked when it is first called
        for line in () if json else (*notes, text):
            console.note(line)
        notes.clear()

    lab = measure(asked.model, asked.data, config, draws, device=device, announce=announce, unsafe=unsafe)
    out.mkdir(parents=True, exist_ok=True)
    record = {"model": asked.model, "data": asked.data, "config": configs.to_dict(config), **asdict(lab)}
    write_json(out / "variance.json", record)
    save(estimator_variance(lab.rows), out, "variance")
    if json:
        console.emit_json(record)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("estimator", "passes", *TRUTHS, "unseen", "grad noise", "cosine", "of one"):
        table.add_column(name, header_style="bold", justify="left" if name == "estimator" else "right")
    for row in lab.rows:
        gradient = (row.gradient_noise, row.gradient_cosine, row.gradient_cosine_one)
        table.add_row(
            row.estimator, str(row.passes), *(f"{row.error[truth]:.4f}" for truth in TRUTHS), f"{row.unseen:.0%}",
            *("" if value is None else f"{value:.3f}" for value in gradient),
        )  # fmt: skip
    console.stdout().print(table)
    console.stdout().print(
        f"\n{lab.completions} completions of {lab.prompts} prompts, {lab.draws} draws each; {lab.seconds:.0f} s"
        "\nown, path, masks: mean squared error of one estimate of a token's log-probability (nats^2) against the estimator's"
        "\n  own expectation (its variance), the log-probability along the decoding path, and the mean over masks of all ratios"
        f"\n  (known to {lab.masks_standard_error:.3f} nats); tokens that one step committed share its context in path"
        "\nunseen: tokens that only the full mask sees"
        "\ngrad noise: E|g - mean|^2 / |mean|^2 over mask draws; cosine of the mean gradient, and of one draw's, with that of"
        f"\n  {lab.truth_draws} draws of the coupled estimator"
        f"\n{out / 'variance.json'}, {out / 'variance.png'}",
        markup=False,
    )


def _weight(text: str) -> tuple[str, float]:
    name, equals, weight = text.rpartition("=")
    if not equals and ":" in text:
        return text, 1.0
    try:
        if not name or not math.isfinite(float(weight)):
            raise ValueError
        return name, float(weight)
    except ValueError:
        raise UserError(
            f"--reward {text!r} must be NAME=WEIGHT with a finite weight, for example code=2.0, or module:function"
        ) from None

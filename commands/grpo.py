"""`dcoder grpo`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcoder_cli.base import config as configs
from dcoder_cli.base import console, options
from dcoder_cli.base.errors import StoppedByUser, UserError
from dcoder_cli.base.options import Needs
from dcoder_cli.diffusion.estimators import ESTIMATORS

if TYPE_CHECKING:
    from dcoder_cli.training.launch import Launch

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


NEEDS = (
    Needs(("draws",), lambda call: call["variance"], "it is of --measure-variance; leave it out"),
    Needs(
        ("resume", "track", "run_name", "dry_run"), lambda call: not call["variance"],
        "--measure-variance trains nothing; leave it out",
    ),
    Needs(("nproc",), lambda call: not call["variance"], "--measure-variance runs in one process; leave it out"),
    Needs(  # one's own is measured beside ours
        ("estimator",), lambda call: not call["variance"] or call["estimator"] not in ESTIMATORS,
        "--measure-variance measures all of ours; leave it out",
    ),
    Needs(
        ("unsafe_exec",), lambda call: "code" in call.get("rewards", ("code",)),  # known once the config is read
        "no reward of this run executes code; leave it out",
    ),
)  # fmt: skip


@app.command()
def grpo(
    context: typer.Context,
    model: options.Model = None,
    data: options.Shards = None,
    out: options.Out = Path("run"),
    preset: options.Preset = None,
    config: options.Config = None,
    settings: options.Set = None,
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
    resume: options.Resume = False,
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
    unsafe_exec: options.UnsafeExec = False,
    dry_run: options.DryRun = False,
    nproc: options.NProc = None,
    device: options.Device = None,
    track: options.Track = None,
    run_name: options.RunName = None,
    json: options.Json = False,
) -> None:
    """Train stage 4 with coupled-GRPO or one of its baselines.

    Examples:

      dcoder tokenize rl acecode.jsonl --tokenizer runs/sft/checkpoints/last --out data/rl

      dcoder grpo --preset gpu-80gb --model runs/sft/checkpoints/last --data data/rl --out runs/grpo

      dcoder grpo --measure-variance --model runs/sft/checkpoints/last --data data/rl --out variance
    """
    from dcoder_cli.training import launch, launcher, unused
    from dcoder_cli.training.grpo.config import GrpoConfig

    written = options.given(context)
    options.refuse_unused(written, context.params, NEEDS)
    rewards = dict(_weight(text) for text in reward or [])
    for option, given, key in (("--estimator", estimator, "estimator"), ("--reward", reward, "rewards")):
        for name, text in options.given_by_set(settings).items():
            if given and name.partition(".")[0] == key:
                raise UserError(f"{text} is given beside {option}; give one of them")
    more = {"estimator": estimator} if estimator else {}
    chosen = launch.LaunchOptions(out, model, data, preset, config, settings or [], resume, track, run_name, more)
    asked = launch.resolve(4, "grpo", chosen)
    merged = {**asked.settings, "rewards": rewards} if rewards else asked.settings
    resolved = configs.build(GrpoConfig, merged, where="the configuration of stage 4")
    options.refuse_unused(written, {**context.params, "rewards": resolved.rewards}, NEEDS)
    unused.refuse(chosen.settings, 4, resolved)
    if dry_run:
        from dcoder_cli.base import plan as plans
        from dcoder_cli.training.grpo import train as stage4

        dry = launcher.planned(nproc, launch.launch_section(chosen))
        found = stage4.plan(
            asked.model, asked.data, str(out), resolved, dry, resume, device, asked.tracking, unsafe_exec, asked.preset
        )  # fmt: skip
        return plans.show(found, json)
    launcher.spread(nproc, device, launch.launch_section(chosen))
    if variance and console.world_size() > 1:
        raise UserError("--measure-variance runs in one process; start it without a launcher")
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
        raise StoppedByUser(f"stopped at step {result.steps}; go on with `dcoder grpo --out {out} --resume`")
    if json:
        console.emit_json({**vars(result), "checkpoint": str(result.checkpoint)})
        return
    if result.warning is not None and console.rank() == 0:
        console.warn(result.warning)
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
    from dcoder_cli.base.files import check_folder, write_json
    from dcoder_cli.training.grpo.variance import TRUTHS, measure

    check_folder(out)
    if out.exists() and any(out.iterdir()):
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

"""`dcoder quickstart`."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.locks import locked
from dcoder_cli.base.options import Needs

LITTLE = 0.05  # pass@1 below which stage 4 samples next to nothing that passes; ours

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


NEEDS = (
    Needs(
        ("minutes", "corpus", "resume", "device"), lambda call: call["model"] is not None,
        "the small quickstart has its own size and data; it goes with --model",
    ),
    Needs(
        ("step_scale",), lambda call: call["model"] is None,
        "with --model the steps follow from --minutes; leave it out",
    ),
    Needs(
        ("force",), lambda call: not call["resume"], "--resume goes on with what is there; leave one of them out",
    ),
)  # fmt: skip


@app.command()
def quickstart(
    context: typer.Context,
    out: options.Out = Path("quickstart"),
    model: Annotated[
        str | None, typer.Option("--model", help="An AR model to adapt instead: folder, hub id or GGUF file.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="With --model: about how long it may take.")] = 60.0,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus", help="With --model: code to learn from, repeatable [the Python sources installed here]."
        ),
    ] = None,
    device: options.Device = None,
    resume: options.Resume = False,
    seed: options.Seed = 0,
    step_scale: options.StepScale = None,
    force: options.Force = False,
    unsafe_exec: options.UnsafeExec = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """The whole method at CPU size, from source code to a report.

    Trains a tokenizer and a tiny AR model on Python's own library, converts it to a diffusion model, runs stages 1 to 4,
    and scores what it writes before and after stage 4. Offline; about eight minutes on 2 cores.

    With --model the same on a real AR model, in about --minutes: how fast this machine is decides how many steps.

    Examples:

      dcoder quickstart

      dcoder quickstart --model SmolLM2-135M-Instruct.Q4_1.gguf --minutes 60 --out smollm
    """
    options.refuse_unused(options.given(context), context.params, NEEDS)
    if model is not None:
        from dcoder_cli.experiments.given_settings import GivenSettings

        asked = GivenSettings(model, out, minutes, tuple(corpus or ()), seed, device, unsafe_exec)
        return _given(asked, force, resume, dry_run, json)
    scale = 1.0 if step_scale is None else step_scale
    if dry_run:
        from dcoder_cli.base import plan as plans
        from dcoder_cli.experiments.quickstart import plan

        return plans.show(plan(out, seed, scale, force, unsafe_exec), json)
    began = time.perf_counter()

    def announce(name: str) -> None:
        if not json:
            console.note(f"[{time.perf_counter() - began:5.0f} s] {name}")

    from dcoder_cli.experiments.quickstart import quickstart as run

    with locked(out):
        result = run(out, seed, scale, announce, force, unsafe_exec, quiet=json)
    if json:
        console.emit_json(result.to_json())
    else:
        _show(result, out)


def _given(asked: Any, force: bool, resume: bool, dry_run: bool, json: bool) -> None:
    """The method on a given model."""
    from dcoder_cli.experiments import given

    if dry_run:
        from dcoder_cli.base import plan as plans

        return plans.show(given.plan(asked, force, resume), json)
    began = time.perf_counter()

    def announce(name: str) -> None:
        if not json:
            console.note(f"[{time.perf_counter() - began:5.0f} s] {name}")

    with locked(asked.out):
        steps = given.run(asked, announce, force, resume, quiet=json)
    if json:
        return console.emit_json({"settings": asked.to_json(), "steps": steps})
    _table([(name, step.get("what", ""), step.get("result", ""), step["seconds"]) for name, step in steps.items()])
    model = steps["train stage 4"]["where"]
    screen = console.stdout()
    screen.print(f"\nThe report: {asked.out / 'report.html'}. Next:\n", markup=False)
    for command in (
        ["generate", "--model", model, "--watch", "Write a function add(a, b) that returns the sum of a and b."],
        ["eval", "humaneval-infilling", "--subset", "single", "--model", model, "--out", asked.out / "infilling"],
    ):
        screen.print(f"  dcoder {shlex.join(map(str, command))}", markup=False, soft_wrap=True)


def _table(rows: list[tuple[str, str, str, float]]) -> None:
    from rich.table import Table

    table = Table(title=None, box=None, pad_edge=False, show_edge=False)
    for name, look in (
        ("step", {"no_wrap": True}),
        ("what it did", {}),
        ("result", {}),
        ("s", {"justify": "right"}),
    ):
        table.add_column(name, header_style="bold", **look)
    for name, what, result, seconds in rows:
        table.add_row(name, what, result, f"{seconds:.0f}")
    console.stdout().print(table, markup=False)


def _show(result: Any, out: Path) -> None:
    screen = console.stdout()
    _table([(step.name, step.what, step.result, step.seconds) for step in result.steps])
    for sample in result.samples:
        screen.print(f"\n{sample.question}\n{sample.text}\n[{sample.status}]", markup=False)
    first = result.scores["stage 3 pass@1"]
    if first < LITTLE:
        screen.print(
            f"\nStage 3 had learned next to nothing (pass@1 {first:.0%}), so stage 4 had nothing to go on. Give a larger --step-scale, or another --seed.",
            markup=False,
        )
    screen.print(
        f"\n{result.seconds:.0f} s in all. The report: {out / 'report.html'}. Everything lies in {out}/ (quickstart.json lists it). Next:\n",
        markup=False,
    )
    for line in hints(result, out):
        screen.print(f"  {line}", markup=False, soft_wrap=True)  # a line broken by us could not be pasted


def hints(result: Any, out: Path) -> list[str]:
    """Commands to go on with, as a shell reads them; the question is one of those that the model answers."""
    answered = [one.question for one in result.samples if one.status == "passed" and "\n" not in one.question]
    question = min(answered, key=len, default="Write a function add(a, b) that returns the sum of a and b.")
    saved = out / "trajectories-stage-4.jsonl"
    commands = (
        ["generate", "--model", result.model, "--watch", "--delay", "0.1", question],
        ["chat", "--model", result.model],
        ["arness", "--trajectories", saved, "--out", out / "arness"],
        ["generate", "--replay", saved],
    )
    return [f"dcoder {shlex.join(map(str, command))}" for command in commands]

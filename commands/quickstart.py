"""`dcoder quickstart`."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.locks import locked

LITTLE = 0.05  # pass@1 below which stage 4 samples next to nothing that passes; ours

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def quickstart(
    out: options.Out = Path("quickstart"),
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
    """
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


def _show(result: Any, out: Path) -> None:
    from rich.table import Table

    screen = console.stdout()
    table = Table(title=None, box=None, pad_edge=False, show_edge=False)
    for name, look in (
        ("step", {"no_wrap": True}),
        ("what it did", {}),
        ("result", {}),
        ("s", {"justify": "right"}),
    ):
        table.add_column(name, header_style="bold", **look)
    for step in result.steps:
        table.add_row(step.name, step.what, step.result, f"{step.seconds:.0f}")
    screen.print(table, markup=False)
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

"""`dcoder reproduce`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.errors import StoppedByUser, UserError
from dcoder_cli.base.locks import locked
from dcoder_cli.base.options import Needs

if TYPE_CHECKING:
    from dcoder_cli.experiments.reproduce import Outcome

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


_ALL = ("tasks", "length", "top-p", "judge", "pretrain", "rl")
NEEDS = (
    Needs(
        ("pretrain", "rl"), lambda call: call["model"],
        "it is data for given checkpoints; name those with --model ROLE=PATH",
    ),
    Needs(
        ("seeds", "jobs", "step_scale"), lambda call: not call["model"],
        "the checkpoints of --model are trained already; leave it out",
    ),
    *(
        Needs(names, lambda call, use=use: use in call.get("uses", _ALL), "no claim of this call asks for it; leave it out")
        for names, use in (
            (("task", "data", "limit"), "tasks"),
            (("max_new_tokens",), "length"),
            (("top_p",), "top-p"),
            (("unsafe_exec",), "judge"),
            (("pretrain",), "pretrain"),
            (("rl",), "rl"),
        )
    ),
)  # fmt: skip


@app.command()
def reproduce(
    context: typer.Context,
    out: options.Out = Path("reproduce"),
    claim: Annotated[list[str] | None, typer.Option("--claim", help="Check only this one; repeatable.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="ROLE=PATH: check these checkpoints instead of training small ones; roles: adapted, scratch, scratch-long, sft, scratch-sft, grpo, grpo-full-mask, grpo-decoupled; repeatable.",
        ),
    ] = None,
    pretrain: Annotated[
        str | None, typer.Option("--pretrain", help="With --model: shards with held-out rows, for the losses.")
    ] = None,
    rl: Annotated[str | None, typer.Option("--rl", help="With --model: prompts with tests, for the variances.")] = None,
    task: Annotated[str, typer.Option("--task", help="With --model: benchmark to decode and judge.")] = "micro",
    data: options.Benchmark = None,
    limit: options.Limit = None,
    max_new_tokens: options.MaxNewTokens = None,
    top_p: options.TopP = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", help="Replicates trained, each from weights, order and draws of its own [3]."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Processes that train and measure at a time [one for each core].")
    ] = None,
    step_scale: options.StepScale = None,
    unsafe_exec: options.UnsafeExec = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Check the paper's claims, with effect sizes and intervals, on small models trained here or on given ones.

    A stopped call goes on in its --out. Answers have 40 new tokens, 256 with --model; the whole distribution is drawn
    from, without --top-p.

    Examples:

      dcoder reproduce

      dcoder reproduce --model sft=apple/DiffuCoder-7B-Instruct --model grpo=apple/DiffuCoder-7B-cpGRPO --task humaneval --out claims
    """
    from dcoder_cli.base import plan as plans
    from dcoder_cli.experiments.claims import choose
    from dcoder_cli.experiments.quantities import StudySettings, at_cpu_size
    from dcoder_cli.experiments.reproduce import ReproduceCall, plan
    from dcoder_cli.experiments.reproduce import reproduce as run
    from dcoder_cli.experiments.scores import uses

    chosen = choose(claim or [])
    written = options.given(context)
    options.refuse_unused(written, context.params, NEEDS)
    models = dict(_role(text) for text in model or [])
    settings = StudySettings(task=task, limit=limit, data=None if data is None else str(data), top_p=top_p)
    if not models:
        settings = at_cpu_size(settings)
    elif task == "micro":
        settings = replace(settings, hot=1.0)
    if max_new_tokens is not None:
        settings = replace(settings, max_new_tokens=max_new_tokens)
    options.refuse_unused(written, {**context.params, "uses": uses(chosen, settings)}, NEEDS)
    call = ReproduceCall(
        out, chosen, settings, 3 if seeds is None else seeds, 1.0 if step_scale is None else step_scale, models, pretrain, rl,
        unsafe_exec, jobs,
    )  # fmt: skip
    if dry_run:
        return plans.show(plan(call), json)
    try:
        with locked(out):
            result = run(call, (lambda _: None) if json else console.note)
    except KeyboardInterrupt:
        raise StoppedByUser("stopped; run the same command again to go on") from None
    if json:
        console.emit_json(result.to_json())
        return
    _show(result, out)


def _show(result: Outcome, out: Path) -> None:
    from dcoder_cli.experiments.quantities import HELD_OUT, KINDS
    from dcoder_cli.experiments.reproduce_report import (
        HOW_TO_READ,
        claim_table,
        groups,
        order_table,
        remarks,
        stage_4_table,
    )

    for heading, own in groups(result):
        _table(heading, *claim_table(own))
    for line in remarks(result.findings):
        console.stdout().print(line, markup=False)
    heading = "stage 4, percent, with the paired change from stage 3 (exploratory)"
    for scores in filter(None, (stage_4_table(result, tasks) for tasks in (HELD_OUT, KINDS))):
        _table(heading, *scores)
        heading = ""
    order = order_table(result)
    if order is not None:
        _table("decoding order, percent", *order)
    console.stdout().print(
        f"\n{HOW_TO_READ}\n{len(result.seeds)} seed(s), {result.seconds:.0f} s; {out / 'report.html'}, {out / 'reproduce.json'}",
        markup=False,
    )


def _table(heading: str, names: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    console.stdout().print(f"\n{heading}" if heading else "", style="bold", markup=False)
    table = Table(box=None, pad_edge=False, show_edge=False)
    for place, name in enumerate(names):
        words = place == 0 or name.startswith(("verdict", "T,"))
        whole = name.startswith(("effect", "T,")) or (place == 0 and name != "claim")
        table.add_column(name, header_style="bold", justify="left" if words else "right", no_wrap=whole)
    for row in rows:
        table.add_row(*row)
    console.stdout().print(table, markup=False)


def _role(text: str) -> tuple[str, str]:
    role, sign, path = text.partition("=")
    if not (role and sign and path):
        raise UserError(f"--model {text!r} must be ROLE=PATH, for example sft=runs/sft/checkpoints/last")
    return role, path

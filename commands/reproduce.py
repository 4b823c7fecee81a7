"""`dcoder reproduce`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcoder_cli.base import console
from dcoder_cli.base.errors import Stopped, UserError

if TYPE_CHECKING:
    from dcoder_cli.experiments.reproduce import Outcome

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def reproduce(
    out: Annotated[Path, typer.Option("--out", help="Folder; a stopped call goes on in it.")] = Path("reproduce"),
    claim: Annotated[list[str] | None, typer.Option("--claim", help="Check only this one; repeatable.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="ROLE=PATH: check these checkpoints instead of training at desk size; roles: adapted, scratch, scratch-long, sft, scratch-sft, grpo, grpo-full-mask, grpo-decoupled; repeatable.",
        ),
    ] = None,
    pretrain: Annotated[
        str | None, typer.Option("--pretrain", help="With --model: shards with held-out rows, for the losses.")
    ] = None,
    rl: Annotated[str | None, typer.Option("--rl", help="With --model: prompts with tests, for the variances.")] = None,
    task: Annotated[str, typer.Option("--task", help="With --model: benchmark to decode and judge.")] = "micro",
    data: Annotated[str | None, typer.Option("--data", help="The benchmark's file.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only its first so many tasks.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="Length of an answer [40 at desk size, 256 with --model].")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", help="Nucleus of all decodings, the same at every temperature [the whole distribution]."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Families trained at desk size [3].")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Processes that train and measure at a time [one for each core].")
    ] = None,
    effort: Annotated[float | None, typer.Option("--effort", help="Factor on their training steps [1].")] = None,
    unsafe_exec: Annotated[
        bool, typer.Option("--unsafe-exec", help="Run model-written code without a sandbox where none holds.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, no progress.")] = False,
) -> None:
    """Check the paper's claims, with effect sizes and intervals, on models trained at desk size or given.

    Examples:

      dcoder reproduce

      dcoder reproduce --model sft=apple/DiffuCoder-7B-Instruct --model grpo=apple/DiffuCoder-7B-cpGRPO --task humaneval --out claims
    """
    from dcoder_cli.experiments.claims import choose
    from dcoder_cli.experiments.quantities import Settings, at_desk_size
    from dcoder_cli.experiments.reproduce import reproduce as run

    models = dict(_role(text) for text in model or [])
    if not models and (pretrain or rl):
        raise UserError("--pretrain and --rl are data for given checkpoints; name those with --model ROLE=PATH")
    if models and (seeds is not None or effort is not None or jobs is not None):
        raise UserError(
            "--seeds, --jobs and --effort are of families trained at desk size; leave them out with --model"
        )
    settings = Settings(task=task, limit=limit, data=data, top_p=top_p)
    if not models:
        settings = at_desk_size(settings)
    elif task == "micro":
        settings = replace(settings, hot=1.0)
    if max_new_tokens is not None:
        settings = replace(settings, max_new_tokens=max_new_tokens)
    try:
        result = run(
            out, choose(claim or []), settings, 3 if seeds is None else seeds, 1.0 if effort is None else effort, models, pretrain, rl,
            (lambda _: None) if json else console.note, unsafe_exec, jobs,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped("stopped; run the same command again to go on") from None
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

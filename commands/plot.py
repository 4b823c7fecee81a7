"""`dcoder plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcoder_cli.base import console, options
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_file

if TYPE_CHECKING:
    from dcoder_cli.analysis.training_plot import Curves

_ENDINGS = (".png", ".svg")

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `dcoder train-stage` and `dcoder grpo`.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The picture, PNG or SVG by its ending [curves.png; none with --json].")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="A panel for this number of metrics.jsonl, such as grad_norm; repeatable."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Draw the curves of training runs beside each other.

    Losses and held-out losses, and of stage 4 rewards, shares and entropy: a panel each with all runs that have it.

    Examples:

      dcoder plot runs/adapt runs/adapt-seed1 --out adapt.svg

      dcoder plot runs/grpo --metric reward --metric grad_norm
    """
    if out is not None and out.suffix.lower() not in _ENDINGS:
        raise UserError(f"--out {str(out)!r} must end in {' or '.join(_ENDINGS)}")
    picture = out if out is not None or json else Path("curves.png")
    if picture is not None:
        check_file(picture, "--out")
    from dcoder_cli.analysis import training_plot
    from dcoder_cli.analysis.plots import save_as

    names = training_plot.labels(runs)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"run {twice!r} is named twice; leave one out")
    curves = {name: training_plot.read_curves(run) for name, run in zip(names, runs, strict=True)}
    panels = training_plot.chosen(curves, list(dict.fromkeys(metrics or [])))
    if picture is not None:
        save_as(training_plot.compare(curves, panels), picture)
    if json:
        series = {
            name: {
                metric: {"step": [s for s, _ in points], "value": [v for _, v in points]}
                for metric, points in own.items()
            }
            for name, own in curves.items()
        }
        listed = [
            {"run": str(run), "label": name, "series": series[name]} for name, run in zip(names, runs, strict=True)
        ]
        console.emit_json({"runs": listed, "panels": panels, "picture": None if picture is None else str(picture)})
        return
    _show(curves, panels)
    console.note(f"picture: {picture}")


def _show(curves: dict[str, Curves], panels: list[str]) -> None:
    """The last value of every panel's metric."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("run", header_style="bold", no_wrap=True)
    for name in ("step", *panels):
        table.add_column(name, header_style="bold", justify="right")
    for label, own in curves.items():
        last = max(points[-1][0] for points in own.values())
        values = (f"{own[name][-1][1]:.4g}" if name in own else "" for name in panels)
        table.add_row(console.visible(label), f"{last:,}", *values)
    console.stdout().print(table, markup=False)

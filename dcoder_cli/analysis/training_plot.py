"""Curves of training runs: losses of the denoising stages, what stage 4 logs, and several runs beside each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcoder_cli.analysis.colours import LINES, MARKERS, SERIES
from dcoder_cli.analysis.plots import legible, new_figure, printable, styled
from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.training.tracking import numbers

_SMOOTHED = 20  # a moving mean over a twentieth of the run
_MOST = 1e100  # matplotlib counts no ticks between numbers near the largest; what lies beyond is a gap, as inf is

# What `dcoder plot` draws of what the runs have, in this order, and how a panel is called.
PANELS = {
    "loss": "training loss (nats)",
    "heldout/loss": "held-out loss (nats)",
    "reward": "reward of a sample",
    "passed": "samples that pass (share)",
    "heldout/reward": "held-out reward",
    "heldout/pass@1": "held-out pass@1",
    "flat_groups": "groups without variance (share)",
    "kl": "KL to the reference (nats)",
    "entropy": "entropy at commit (nats)",
}
_SHARES = ("passed", "heldout/pass@1", "flat_groups")

Curves = dict[str, list[tuple[int, float]]]  # by the name of a metric: (step, value)


def read_curves(folder: str | Path) -> Curves:
    """Every number of a run's metrics.jsonl by step; those of an evaluation as `heldout/NAME`.

    Stage 4's loss is called `policy_loss`: it is no cross-entropy, and says little by itself.

    Raises:
        UserError: no such folder, or no metrics in it.
    """
    if not Path(folder).is_dir():
        raise UserError(f"run {str(folder)!r} is no folder here; give the --out of a training")
    curves: Curves = {}
    for row in RunFolder(Path(folder)).read("metrics"):
        for name, value in numbers(row).items():
            name = "policy_loss" if name == "loss" and "reward" in row else name
            if name != "step":
                curves.setdefault(name, []).append((int(row["step"]), value))
    if not curves:
        raise UserError(
            f"run {str(folder)!r} has no metrics yet: metrics.jsonl is missing or empty; give the --out of a training"
        )
    return curves


def labels(folders: Sequence[str | Path]) -> list[str]:
    """A name for each run: its folder's, with as many folders above it as tell equal ones apart."""
    parts = [Path(os.path.realpath(folder)).parts for folder in folders]
    result = []
    for own in parts:
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        result.append("/".join(part.strip("/") for part in own[-depth:]) if depth < len(own) else str(Path(*own)))
    return result


def chosen(runs: Mapping[str, Curves], asked: Sequence[str]) -> list[str]:
    """The metrics to draw: those asked for, or those of PANELS that a run has.

    Raises:
        UserError: no run has one that is asked for.
    """
    known = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    for name in asked:
        if name not in known:
            raise UserError(f"no run has the metric {name!r}{nearest(name, known)}")
    taught = any(value for curves in runs.values() for _, value in curves.get("kl", []))  # else it is 0 throughout
    told = [name for name in PANELS if name in known and (name != "kl" or taught)]
    return list(asked) or told or known[:1]


@styled
def compare(runs: Mapping[str, Curves], names: Sequence[str]) -> Any:
    """A panel a metric with all runs that have it: the values, faint, and their moving mean; evaluations as points.

    Args:
        runs: label -> the run's curves. Up to 49 differ in colour or line.
        names: the metrics, one panel each, three in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    legend_rows = -(-len(runs) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.2 * legend_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [axis for line in figure.subplots(rows, columns, squeeze=False) for axis in line]
    for axis, name in zip(axes, names, strict=False):
        for index, (label, curves) in enumerate(runs.items()):
            if name in curves:
                steps, values = zip(*curves[name], strict=True)
                _curve(axis, steps, values, index, label, points=name.startswith("heldout/"))
        axis.set_title(PANELS.get(name, printable(name)), loc="left")
        axis.set_xlabel("step")
        axis.set_xlim(0, 1.03 * max(curves[name][-1][0] for curves in runs.values() if name in curves) or 1)
        axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        if name in _SHARES:
            axis.set_ylim(-0.03, 1.03)
    for axis in axes[len(names) :]:
        axis.remove()
    drawn = [(index, label) for index, (label, own) in enumerate(runs.items()) if set(names) & set(own)]
    handles = [Line2D([], [], marker=MARKERS[index % len(MARKERS)], markersize=4, **_look(index)) for index, _ in drawn]
    figure.legend(
        handles, [legible(label) for _, label in drawn], loc="outside lower center", ncols=min(columns, len(drawn))
    )
    return figure


@styled
def losses(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """A panel a run: the logged loss, faint, and its moving mean.

    Args:
        curves: label -> (step, loss); runs without any are left out.
    """
    known = {label: points for label, points in curves.items() if points}
    figure, axes = new_figure(max(1, len(known)), width=2.6)
    for axis, (label, points) in zip(axes, known.items(), strict=False):
        steps, values = zip(*points, strict=True)
        _curve(axis, steps, values, 0, label)
        axis.set(title=label, xlabel="step", ylabel="loss")
        axis.set_ylim(bottom=0)
    return figure


@styled
def rewards(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Stage 4 by step: mean reward, shares (passed, groups without variance), entropy.

    Args:
        rows: of a run's metrics.jsonl.
    """
    figure, (first, second, third) = new_figure(3, width=3.4)
    steps = [row["step"] for row in rows]
    _curve(first, steps, [row["reward"] for row in rows], 0, "reward")
    first.set(xlabel="step", ylabel="reward of a sample")
    for index, (name, label) in enumerate(
        (("passed", "samples that pass"), ("flat_groups", "groups without variance"))
    ):
        if all(name in row for row in rows):  # nothing passes or fails where no reward says so
            _curve(second, steps, [row[name] for row in rows], index + 1, label)
    second.set(xlabel="step", ylabel="share", ylim=(-0.03, 1.03))
    second.legend()
    _curve(third, steps, [row["entropy"] for row in rows], 3, "entropy")
    third.set(xlabel="step", ylabel="entropy at commit (nats)")
    return figure


def _look(index: int) -> dict[str, Any]:
    """A run's colour and line: of 49 in a row, no two have both."""
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": LINES[(index + index // len(SERIES)) % len(LINES)],
    }


def _curve(
    axis: Any, steps: Sequence[int], values: Sequence[float], index: int, label: str, points: bool = False
) -> None:
    """The values, faint, and their centred moving mean, shorter at the ends; or each as a point."""
    look = {**_look(index), "label": label}
    array = np.array(values, dtype=np.float64)
    array[np.abs(array) > _MOST] = np.nan
    if points or len(values) == 1:
        axis.plot(steps, array, marker=MARKERS[index % len(MARKERS)], markersize=4, linewidth=1.2, **look)
        return
    half = max(1, len(values) // _SMOOTHED) // 2
    smooth = [float(array[max(0, place - half) : place + half + 1].mean()) for place in range(len(array))]
    axis.plot(steps, array, color=look["color"], alpha=0.3, linewidth=0.8)
    axis.plot(steps, smooth, **look)

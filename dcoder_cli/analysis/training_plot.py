"""Curves of training runs: losses of the denoising stages, and what stage 4 logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dcoder_cli.analysis.colours import LINES, SERIES
from dcoder_cli.analysis.plots import new_figure, styled

_SMOOTHED = 20  # a moving mean over a twentieth of the run


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


def _curve(axis: Any, steps: Sequence[int], values: Sequence[float], index: int, label: str) -> None:
    """The values, faint, and their centred moving mean, shorter at the ends."""
    colour, line = SERIES[index % len(SERIES)], LINES[index % len(LINES)]
    half = max(1, len(values) // _SMOOTHED) // 2
    array = np.asarray(values, dtype=np.float64)
    smooth = [float(array[max(0, place - half) : place + half + 1].mean()) for place in range(len(array))]
    axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    axis.plot(steps, smooth, color=colour, linestyle=line, label=label)

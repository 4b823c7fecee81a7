"""The variance lab's picture: the error of every estimator against each truth, by forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dcoder_cli.analysis.colours import LINES, MARKERS, SERIES
from dcoder_cli.analysis.plots import new_figure, styled

# What each truth of training/variance.py is, over its panel.
_TRUTHS = {
    "own": "its own expectation",
    "path": "the decoding path",
    "masks": "masks of all ratios",
}


@styled
def estimator_variance(rows: Sequence[Any]) -> Any:
    """A panel for each truth: mean squared error of one estimate of a token's log-probability by forward passes.

    Args:
        rows: `training.variance.Row`s; the full mask, which is no draw at all, is a line across the panels.
    """
    figure, axes = new_figure(len(_TRUTHS), width=3.4)
    names = list(dict.fromkeys(row.estimator for row in rows))
    for index, name in enumerate(names):
        own = [row for row in rows if row.estimator == name]
        look = {"color": SERIES[index % len(SERIES)], "linestyle": LINES[index % len(LINES)], "label": name}
        for axis, truth in zip(axes, _TRUTHS, strict=True):
            values = [row.error[truth] for row in own]
            if len(own) == 1:
                axis.axhline(values[0], **look)
            else:
                axis.plot([row.passes for row in own], values, marker=MARKERS[index % len(MARKERS)], **look)
    axes[0].set_ylabel("mean squared error (nats²)")
    for axis, (truth, meaning) in zip(axes, _TRUTHS.items(), strict=True):
        axis.set_title(f"{truth}: {meaning}", loc="left")
        axis.set_xlabel("forward passes a completion")
        axis.set_xticks(sorted({row.passes for row in rows if row.pairs}))
        axis.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    return figure

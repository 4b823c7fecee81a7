"""The variance lab's picture: variance and bias of every estimator by forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dcoder_cli.analysis.colours import LINES, MARKERS, SERIES
from dcoder_cli.analysis.plots import new_figure, styled


@styled
def estimator_variance(rows: Sequence[Any]) -> Any:
    """Two panels by forward passes a completion: variance and bias of a token's log-probability.

    Args:
        rows: `training.variance.Row`s; the full mask, which is no draw at all, is a line across both panels.
    """
    figure, (left, right) = new_figure(2)
    names = list(dict.fromkeys(row.estimator for row in rows))
    for index, name in enumerate(names):
        own = [row for row in rows if row.estimator == name]
        look = {"color": SERIES[index % len(SERIES)], "linestyle": LINES[index % len(LINES)], "label": name}
        for axis, key in ((left, "variance"), (right, "bias")):
            values = [getattr(row, key) for row in own]
            if len(own) == 1:
                axis.axhline(values[0], **look)
            else:
                axis.plot([row.passes for row in own], values, marker=MARKERS[index % len(MARKERS)], **look)
    left.set_ylabel("variance of one estimate (nats²)")
    right.set_ylabel("bias (nats)")
    for axis in (left, right):
        axis.set_xlabel("forward passes a completion")
        axis.set_xticks(sorted({row.passes for row in rows if row.pairs}))
        axis.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    return figure

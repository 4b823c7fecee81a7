"""The paper's figure kinds as matplotlib figures, readable in black and white, and saving them as PNG and SVG."""

from __future__ import annotations

import base64
import functools
import io
import math
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dcoder_cli.analysis.colours import LINES, MARKERS, SERIES, order_colour
from dcoder_cli.base.files import atomic_file

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.parse_math": False,  # names of runs, models and metrics are text
    "svg.hashsalt": "dcoder",  # the same figure gives the same bytes
}


NARROW = 3.6  # inches: a telephone's 390 px less the page's margins, at 96 dots an inch
Draw = TypeVar("Draw", bound=Callable[..., Any])


def styled(draw: Draw) -> Draw:
    """Run a drawing function with the house style; matplotlib is loaded only then."""

    @functools.wraps(draw)
    def inner(*arguments: Any, **options: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*arguments, **options)

    return inner  # type: ignore[return-value]


def new_figure(columns: int = 1, width: float = 4.2, height: float = 3.1, **options: Any) -> tuple[Any, list[Any]]:
    """A figure of `columns` panels and its axes, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False, **options)[0])


def save(figure: Any, folder: str | Path, name: str) -> list[Path]:
    """Write `name.png` (200 dpi) and `name.svg` into a folder; returns the two paths."""
    return [save_as(figure, Path(folder) / f"{name}.{kind}") for kind in ("png", "svg")]


def save_as(figure: Any, path: Path) -> Path:
    """Write one file, PNG (200 dpi) or SVG as its ending says; returns the path."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(_bytes(figure, path.suffix.removeprefix(".").lower()))
    return path


def data_uri(figure: Any, kind: str = "svg") -> str:
    """A figure, or the file of a saved one, as a `data:` address for a page that must load nothing."""
    if isinstance(figure, Path):
        kind, data = figure.suffix.removeprefix("."), figure.read_bytes()
    else:
        data = _bytes(figure, kind)
    media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


@styled
def narrowed(figure: Any) -> Any:
    """The figure for a narrow screen, itself changed: panels below each other, 3.6 inches wide, letters as large as before.

    At 96 dots an inch that is the width that a telephone's 390 px leave, so a tick label keeps its 9 points.
    """
    from matplotlib.gridspec import GridSpec

    panels = [axis for axis in figure.axes if axis.get_subplotspec() is not None and not hasattr(axis, "_colorbar")]
    rows = len(panels)
    grid = GridSpec(rows, 1, figure=figure)
    for row, axis in enumerate(panels):
        axis.set_subplotspec(grid[row, 0])
        axis.tick_params(labelleft=True)
        if not axis.get_ylabel():  # shared with the panel that stood left of it
            axis.set_ylabel(panels[0].get_ylabel())
    legends = 0
    for legend in [*figure.legends]:
        handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        legends += len(labels)
        legend.remove()
        columns = 2 if max(map(len, labels)) <= 12 else 1
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    figure.set_size_inches(NARROW, 2.5 * rows + 0.18 * legends)
    return figure


@styled
def _bytes(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # a name in letters that no font here has: boxes in the picture
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def _line(axis: Any, index: int, x: Any, y: Any, low: Any, high: Any, label: str, variant: int = 0) -> None:
    """One series: colour, marker and line style all differ (a variant keeps the colour); the interval is a band."""
    colour, form = SERIES[index % len(SERIES)], index + 3 * variant
    filled = (index + variant) % 2 == 0
    axis.plot(
        x, y, color=colour, marker=MARKERS[form % len(MARKERS)], linestyle=LINES[form % len(LINES)], label=label, markersize=5,
        markerfacecolor=colour if filled else "white", linewidth=1.4, zorder=3 + index / 100,
    )  # fmt: skip
    pairs = [(a, lo, hi) for a, lo, hi in zip(x, low, high, strict=True) if lo is not None and hi is not None]
    if pairs:
        axis.fill_between(*zip(*pairs, strict=True), color=colour, alpha=0.13, linewidth=0)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def printable(text: str) -> str:
    """Text on one line without characters that fonts cannot draw (control characters, lone surrogates)."""
    return " ".join("".join("·" if unicodedata.category(mark) in ("Cc", "Cs", "Cn") else mark for mark in text).split())


def legible(text: str) -> str:
    """A label of a legend: on one line, cut where it is long. matplotlib hides those with a leading `_`."""
    shown = printable(" ".join(text.split()))
    shown = shown if len(shown) <= 40 else shown[:18] + "…" + shown[-21:]
    return ("\N{NO-BREAK SPACE}" if shown.startswith("_") else "") + shown


def _legend(figure: Any, axis: Any) -> None:
    """One legend for all panels, above them."""
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > 1 or (labels and labels[0]):
        longest = max(len(label) for label in labels)
        figure.legend(handles, labels, loc="outside upper left", ncols=max(1, min(len(labels), 100 // (longest + 8))))


@styled
def arness_curves(series: Mapping[str, Mapping[str, Any]]) -> Any:
    """AR-ness@k, local left and global right (DiffuCoder fig. 3 to 5).

    Args:
        series: label -> what `arness` returned. Bands are the 95% intervals over samples.
    """
    figure, axes = new_figure(2)
    for axis, kind in zip(axes, ("local", "global"), strict=True):
        longest = 1
        for index, (label, result) in enumerate(series.items()):
            values = result[kind]
            longest = max(longest, len(values["k"]))
            _line(axis, index, values["k"], _numbers(values["mean"]), values["low"], values["high"], legible(label))
        axis.set(xlabel="k", ylabel=f"{kind} AR-ness@k", ylim=(-0.03, 1.03), xticks=range(1, longest + 1))
    _legend(figure, axes[0])
    return figure


@styled
def by_temperature(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """AR-ness, and pass@k where there are tests, against temperature (DiffuCoder fig. 5 and 6).

    Args:
        series: model -> points `{"temperature", "arness" (what `arness` returned)}`, with `"pass@1"`, `"pass@10"`
            .. (shares, or `(share, low, high)`) where known.
    """
    passes = sorted({key for points in series.values() for point in points for key in point if key.startswith("pass@")},
                    key=lambda key: int(key[5:]))  # fmt: skip
    figure, axes = new_figure(3 if passes else 2, width=3.6 if passes else 4.2)
    for index, (label, points) in enumerate(series.items()):
        ordered = sorted(points, key=lambda point: float(point["temperature"]))
        temperatures = [float(point["temperature"]) for point in ordered]
        for axis, kind in zip(axes[:2], ("local", "global"), strict=True):
            columns = [[point["arness"][kind][name][0] for point in ordered] for name in ("mean", "low", "high")]
            _line(axis, index, temperatures, _numbers(columns[0]), columns[1], columns[2], legible(label))
        for number, key in enumerate(passes):
            known = [(point["temperature"], _triple(point[key])) for point in ordered if key in point]
            if known:
                x, triples = zip(*known, strict=True)
                mean, low, high = zip(*triples, strict=True)
                _line(axes[2], index, x, _numbers(mean), low, high, legible(f"{label} {key}"), variant=number)
    for axis, name in zip(axes, ("local AR-ness@1", "global AR-ness@1", "share passed"), strict=False):
        axis.set(xlabel="temperature", ylabel=name, ylim=(-0.03, 1.03))
        axis.set_xticks(sorted({float(point["temperature"]) for points in series.values() for point in points}))
    _legend(figure, axes[0])
    if passes:
        axes[2].legend(fontsize=7.5, handlelength=4)
    return figure


def _triple(value: Any) -> tuple[float, float | None, float | None]:
    return (float(value), None, None) if isinstance(value, (int, float)) else (value[0], value[1], value[2])


@styled
def first_step(profiles: Mapping[str, Mapping[str, Any]]) -> Any:
    """First-step confidence by distance from the prompt, with the fitted decay (DiffuCoder fig. 3a).

    Args:
        profiles: label -> what `first_step_profile` returned.
    """
    figure, (axis,) = new_figure(1, width=6.4)
    for index, (label, profile) in enumerate(profiles.items()):
        x, y, fit = profile["distance"], _numbers(profile["confidence"]), profile["fit"]
        colour = SERIES[index % len(SERIES)]
        name = legible(label)
        if fit["decay_length"] is not None:
            name += f": decay length {fit['decay_length']:.2g} tokens, floor {fit['floor']:.2f}"
            distance = np.linspace(1, len(x), 600)
            curve = fit["floor"] + fit["rise"] * np.exp(-(distance - 1) / fit["decay_length"])
            axis.plot(distance, curve, color=colour, linestyle=LINES[index % len(LINES)], linewidth=1.2)
        every = max(1, len(x) // 64)
        axis.plot(
            x, y, linestyle="none", marker=MARKERS[index % len(MARKERS)], color=colour, markersize=4, markevery=every,
            markerfacecolor=colour if index % 2 == 0 else "white", label=name,
        )  # fmt: skip
        ends = (_numbers(profile[end]) for end in ("low", "high"))
        axis.fill_between(x, *ends, color=colour, alpha=0.13, linewidth=0)
    axis.set(xlabel="distance from the prompt (tokens)", ylabel="confidence at the first step", ylim=(-0.03, 1.03))
    _legend(figure, axis)
    return figure


@styled
def entropy_heatmaps(grids: Mapping[str, NDArray[np.float64]]) -> Any:
    """Entropy of the still masked positions, step (down) by position (right); white = committed (DiffuCoder fig. 9).

    Args:
        grids: label -> [steps, positions] in nats, NaN where not masked (`EntropyMap`); the first 4 are drawn, on one
            scale. Dark is uncertain.
    """
    import matplotlib

    shown = list(grids.items())[:4]
    figure, axes = new_figure(len(shown), width=3.0 if len(shown) > 1 else 6.0, height=3.2, sharey=True)
    colours = matplotlib.colormaps["cividis_r"].with_extremes(bad="white")
    top = max((float(np.nanmax(grid)) for _, grid in shown if not np.isnan(grid).all()), default=1.0)
    for axis, (label, grid) in zip(axes, shown, strict=True):
        steps, length = grid.shape
        image = axis.imshow(
            np.ma.masked_invalid(grid), aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=top,
            extent=(0, length, steps, 0),
        )  # fmt: skip
        axis.grid(False)
        axis.set(xlabel="position (tokens)")
        axis.set_title(legible(label), fontsize=9, loc="left")
    axes[0].set_ylabel("denoising step")
    figure.colorbar(image, ax=axes, label="entropy (nats); white: committed", pad=0.02)
    return figure


@styled
def decoding_order(series: Mapping[str, Sequence[Sequence[int]]]) -> Any:
    """Step against position for one sample of each series: left-to-right is the diagonal.

    Args:
        series: label -> `reveal_step` lists; each is drawn as one panel, its samples' points together.
    """
    shown = list(series.items())[:4]
    figure, axes = new_figure(len(shown), width=2.9 if len(shown) > 1 else 4.2, height=3.0)
    for axis, (label, samples) in zip(axes, shown, strict=True):
        for steps in samples:
            share = [step / max(max(steps), 1) for step in steps]
            axis.scatter(
                range(len(steps)), steps, s=min(max(4, 900 / len(steps)), 30), linewidths=0,
                c=[order_colour(value, "ordered") for value in share],
            )  # fmt: skip
        axis.set(xlabel="position (tokens)")
        axis.set_title(legible(label), fontsize=9, loc="left")
    axes[0].set_ylabel("denoising step")
    return figure

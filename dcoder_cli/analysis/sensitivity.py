"""`dcoder arness --sensitivity`: how much of a decoding order is the model's, and how much the tie break's.

The same model, prompts and seeds are decoded with ties broken to the left, at random, and by the model's own unfiltered
distribution, with top-p and without. What differs between tie breaks is not the model's. What pass@1 says beside it is
the price of each choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dcoder_cli.analysis.arness import random_order
from dcoder_cli.analysis.colours import SERIES
from dcoder_cli.analysis.plots import new_figure, styled
from dcoder_cli.analysis.series import Series

if TYPE_CHECKING:
    from dcoder_cli.decoding.requests import Settings

TIE_BREAKS: tuple[Literal["left", "random", "model"], ...] = ("left", "random", "model")
_MARKS = {"left": ("<", SERIES[2]), "random": ("o", SERIES[3]), "model": ("D", SERIES[1])}


def variants(temperatures: Sequence[float], settings: Settings) -> list[tuple[str, Settings]]:
    """What a label ends in and the sampler's settings, for every temperature, with and without top-p, and tie break."""
    return [
        (
            f" T={temperature:g} {_filter(top_p)} {tie_break}",
            replace(settings, temperature=temperature, top_p=top_p, tie_break=tie_break),
        )
        for temperature in temperatures
        for top_p in (settings.top_p, None)
        for tie_break in TIE_BREAKS
    ]


def _filter(top_p: float | None) -> str:
    return "no top-p" if top_p is None else f"top-p {top_p:g}"


def equal_run(found: Sequence[Series], settings: Settings) -> Series | None:
    """A run of the same settings but for the tie break in which nothing was tied: it is this run, too."""
    for one in found:
        used = one.trajectories[0].settings
        same = (one.temperature, used.get("top_p")) == (settings.temperature, settings.top_p)
        if same and one.numbers["tied_share"] == 0 and one.numbers["ties_known"] == len(one.trajectories):
            return one
    return None


def relabelled(run: Series, label: str, settings: Settings) -> Series:
    """A run's series under the name and the tie break of one that equals it."""
    tie_break = settings.tie_break
    moved = [replace(item, settings={**item.settings, "tie_break": tie_break}) for item in run.trajectories]
    return replace(run, label=label, trajectories=moved, numbers={**run.numbers, "tie_break": [tie_break]})


@dataclass(frozen=True)
class Combination:
    """One combination: its settings, its numbers as `arness` gave them, and pass@1 as (share, low, high) where known."""

    temperature: float
    top_p: float | None
    tie_break: str
    numbers: Mapping[str, Any]
    passed: tuple[float, float, float] | None

    def value(self, kind: str) -> tuple[float | None, float | None, float | None]:
        """Mean and the ends of the interval of local@1, global@1 or pass@1."""
        if kind == "pass":
            return self.passed or (None, None, None)
        values = self.numbers[kind]
        return values["mean"][0], values["low"][0], values["high"][0]


@dataclass(frozen=True)
class Sensitivity:
    """All combinations of one model on one kind of prompts, tie breaks of one temperature and filter together."""

    cells: tuple[Combination, ...]

    def groups(self) -> dict[tuple[float, float | None], dict[str, Combination]]:
        """(temperature, top_p) -> tie break -> cell."""
        found: dict[tuple[float, float | None], dict[str, Combination]] = {}
        for cell in self.cells:
            found.setdefault((cell.temperature, cell.top_p), {})[cell.tie_break] = cell
        return found

    def moved(self, group: Mapping[str, Combination], kind: str) -> float | None:
        """How far the tie break alone moves a number: largest minus smallest mean of the group."""
        means = [mean for cell in group.values() for mean in cell.value(kind)[:1] if mean is not None]
        return max(means) - min(means) if means else None

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows as shown: a row a cell, and one row where nothing is tied and all tie breaks are equal."""
        scored = any(cell.passed is not None for cell in self.cells)
        columns = ["T", "top-p", "ties", "tied", "local@1", "global@1", *(["pass@1"] if scored else [])]
        rows, cells = [], list[tuple[Combination, str]]()
        for group in self.groups().values():
            alike = all(cell.numbers["tied_share"] == 0 for cell in group.values())
            cells.extend(
                (cell, "any" if alike else cell.tie_break) for cell in list(group.values())[: 1 if alike else None]
            )
        for cell, tie_break in cells:
            kinds = ("local", "global", "pass") if scored else ("local", "global")
            values = [_with_interval(cell.value(kind), kind == "pass") for kind in kinds]
            top_p = "off" if cell.top_p is None else f"{cell.top_p:g}"
            rows.append([f"{cell.temperature:g}", top_p, tie_break, f"{cell.numbers['tied_share']:.0%}", *values])
        return columns, rows

    def sentences(self) -> list[str]:
        """What the table says, a sentence for each temperature and filter."""
        lines = []
        for (temperature, top_p), group in self.groups().items():
            own = group["model"]
            local, share = own.value("local")[0], max(cell.numbers["tied_share"] for cell in group.values())
            line = f"T={temperature:g}, {_filter(top_p)}: "
            if share == 0:
                line += "nothing is tied, so the order is the model's"
            else:
                line += f"up to {share:.0%} of steps are tied; the tie break alone moves "
                line += " and ".join(
                    f"{kind}@1 by {moved:.3f}"
                    for kind in ("local", "global")
                    if (moved := self.moved(group, kind)) is not None
                )
                if (passed := self.moved(group, "pass")) is not None:
                    line += f", pass@1 by {100 * passed:.1f} points"
            if local is not None:
                line += f" (by the model's order: local@1 {local:.3f}, global@1 {own.value('global')[0]:.3f})"
            lines.append(line + ".")
        return lines

    def to_json(self) -> list[dict[str, Any]]:
        """A record a cell: settings, `tied_share`, `local@1`, `global@1` and `pass@1` with the ends of their intervals."""
        return [
            {
                "temperature": cell.temperature, "top_p": cell.top_p, "tie_break": cell.tie_break,
                "tied_share": cell.numbers["tied_share"],
                **{
                    f"{kind}@1": dict(zip(("mean", "low", "high"), cell.value(kind), strict=True))
                    for kind in ("local", "global", "pass")
                    if kind != "pass" or cell.passed is not None
                },
            }
            for cell in self.cells
        ]  # fmt: skip


def compare(series: Sequence[Series]) -> Sensitivity:
    """The cells of runs made with the settings of `variants`."""
    return Sensitivity(
        tuple(
            Combination(
                float(one.temperature or 0.0),
                one.trajectories[0].settings.get("top_p"),
                one.trajectories[0].settings["tie_break"],
                one.numbers,
                one.passes.get("pass@1"),
            )
            for one in series
        )
    )


def _with_interval(value: tuple[float | None, float | None, float | None], percent: bool) -> str:
    mean, low, high = value
    if mean is None:
        return "–"
    scale, digits = (100, 1) if percent else (1, 3)
    reach = "" if low is None or high is None else f" ±{scale * max(high - mean, mean - low):.{digits}f}"
    return f"{scale * mean:.{digits}f}{reach}"


@styled
def sensitivity_figure(found: Sensitivity) -> Any:
    """Panels local@1, global@1 and pass@1; a row for each temperature and filter, a mark for each tie break.

    The grey bar of a row joins its marks: what the tie break alone moves. The dotted line is a random order's value.
    """
    from matplotlib.lines import Line2D

    groups = found.groups()
    kinds = ["local", "global", *(["pass"] if any(cell.passed is not None for cell in found.cells) else [])]
    figure, axes = new_figure(len(kinds), width=3.4, height=1.1 + 0.55 * len(groups), sharey=True)
    length = max(1, round(found.cells[0].numbers["tokens"]))
    chance = random_order(length, 1, 1)
    for axis, kind in zip(axes, kinds, strict=True):
        for row, group in enumerate(groups.values()):
            means = [mean for cell in group.values() for mean in cell.value(kind)[:1] if mean is not None]
            if means:
                axis.plot(
                    [min(means), max(means)], [row, row], color="#cccccc", linewidth=7, solid_capstyle="round", zorder=1
                )
            for place, (name, cell) in enumerate(group.items()):
                mean, low, high = cell.value(kind)
                if mean is None:
                    continue
                marker, colour = _MARKS[name]
                height = row + 0.17 * (place - 1)  # apart, so that equal ones are seen as three
                if low is not None and high is not None:
                    axis.plot([low, high], [height, height], color=colour, linewidth=1.1, zorder=2)
                axis.plot([mean], [height], marker=marker, color=colour, markersize=6, linestyle="none", zorder=3)
        if kind != "pass" and chance[kind][0] == chance[kind][0]:
            axis.axvline(chance[kind][0], color="#888888", linestyle=":", linewidth=1)
        axis.set(xlim=(-0.03, 1.03), xlabel="share passed (pass@1)" if kind == "pass" else f"{kind} AR-ness@1")
        axis.grid(axis="y", visible=False)
    shares = [max(cell.numbers["tied_share"] for cell in group.values()) for group in groups.values()]
    names = [
        f"T {temperature:g}, {_filter(top_p)}\n{share:.0%} of steps tied"
        for (temperature, top_p), share in zip(groups, shares, strict=True)
    ]
    axes[0].set_yticks(range(len(groups)), names)
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=f"ties: {name}")
        for name, (marker, colour) in _MARKS.items()
    ]
    handles.append(Line2D([], [], color="#888888", linestyle=":", label="a random order"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
    return figure

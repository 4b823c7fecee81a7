"""What a call of `dcoder arness` found, as numbers, pictures and a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcoder_cli.analysis import plots, sources
from dcoder_cli.analysis.arness import random_order
from dcoder_cli.analysis.report import Report
from dcoder_cli.analysis.sensitivity import Sensitivity, sensitivity_figure
from dcoder_cli.analysis.series import Series
from dcoder_cli.analysis.text_picture import ordered_text
from dcoder_cli.analysis.ties import MUCH
from dcoder_cli.base.files import check_folder, write_json
from dcoder_cli.decoding import trajectory

_REPLAYED = 20  # samples in the report's player: some MB of text at 512 tokens
_PICTURED = 6  # series with pictures of their own


@dataclass(frozen=True)
class Findings:
    """All series of a call, and by label the first-step profiles and what --sensitivity compared."""

    series: list[Series]
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    sensitivity: dict[str, Sensitivity] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What `dcoder arness --json` prints. `random_order` is what chance measures at the first series' length."""
        first = self.series[0].numbers
        length = max(1, round(first["tokens"]))
        chance = random_order(length, len(first["local"]["k"]), len(first["global"]["k"]))
        return {
            "series": [series.to_json() for series in self.series],
            "first_step": self.profiles,
            **(
                {"sensitivity": {label: one.to_json() for label, one in self.sensitivity.items()}}
                if self.sensitivity
                else {}
            ),
            "random_order": {"tokens": length, **chance},
        }


def write(
    findings: Findings, out: str | Path, settings: Mapping[str, Any], title: str = "Decoding order"
) -> list[Path]:
    """Numbers, pictures (PNG and SVG), trajectories and the report of a call, into a folder.

    Returns:
        the files: `report.html`, `arness.json`, the pictures, and `trajectories-LABEL.jsonl` for models run here.

    Raises:
        UserError: `out` is a file, or cannot be written.
    """
    check_folder(out)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(title, ", ".join(series.label for series in findings.series))
    files = [folder / "arness.json"]
    write_json(files[0], _plain({**findings.to_json(), "settings": dict(settings)}))
    names = _file_names([series.label for series in findings.series])

    def show(figure: Any, name: str, caption: str) -> None:
        paths = plots.save(figure, folder, name)
        files.extend(paths)
        report.add_figure(figure, caption)

    for (label, found), name in zip(findings.sensitivity.items(), _file_names(list(findings.sensitivity)), strict=True):
        report.add_heading(f"Sensitivity: {label}")
        for sentence in found.sentences():
            report.add_text(sentence)
        show(sensitivity_figure(found), f"sensitivity-{name}",
             "AR-ness@1 by how ties are broken, with 95% intervals; the grey bar is what the tie break alone moves.")  # fmt: skip
        report.add_table(*found.table(), "Means ± 95% intervals over prompts; tied: share of steps decided by a tie")
    add_numbers(report, findings)
    if not findings.sensitivity:
        shown = "AR-ness@k with 95% t intervals over samples; left-to-right decoding is 1 throughout."
        ties = ", ".join(f"{one.label}: {tied_text(one.numbers)}" for one in findings.series)
        show(plots.arness_curves({series.label: series.numbers for series in findings.series}), "arness",
             f"{shown} Steps decided by a tie: {ties}.")  # fmt: skip
    sweeps = {} if findings.sensitivity else _sweeps(findings.series)
    if sweeps:
        show(plots.by_temperature(sweeps), "temperature",
             "AR-ness@1, and pass@k where there are tests, against temperature, with 95% intervals.")  # fmt: skip
    if findings.profiles:
        add_profiles(report, findings)
        figure = plots.first_step(findings.profiles)
        show(figure, "first-step", "Confidence at the first denoising step, by distance from the prompt, with the fit.")
    report.add_heading("Decoding order")
    orders = {series.label: [series.trajectories[0].reveal_step] for series in findings.series}
    show(
        plots.decoding_order(orders), "order", "Step of each token of the first sample; left-to-right is the diagonal."
    )
    for series, name in list(zip(findings.series, names, strict=True))[:_PICTURED]:
        first = series.trajectories[0]
        texts = sources.pieces(first, series.tokenizer)
        for colours in ("rainbow", "ordered"):
            figure = ordered_text(texts, first.reveal_step, colours, title=f"{series.label}, sample {first.id}")
            files.extend(plots.save(figure, folder, f"text-{name}-{colours}"))
    maps = {
        f"{series.label}, sample {series.trajectories[0].id}": series.entropy.first_row()
        for series in findings.series
        if series.entropy is not None
    }
    if maps:
        show(
            plots.entropy_heatmaps(maps), "entropy", "Entropy of the positions still masked, at every step of a sample."
        )
    add_replay(report, findings.series)
    report.add_heading("Settings").add_settings(settings)
    for series, name in zip(findings.series, names, strict=True):
        report.add_settings(series.trajectories[0].settings, f"{series.label}: first sample")
        if series.entropy is not None or series.tokenizer is not None:
            path = folder / f"trajectories-{name}.jsonl"
            trajectory.write(path, series.trajectories)
            files.append(path)
    return [report.write(folder / "report.html"), *files]


def add_numbers(report: Report, findings: Findings) -> None:
    """The AR-ness tables of all series, with what they mean, as a section."""
    first = findings.series[0].numbers
    report.add_heading("AR-ness")
    report.add_text(
        "Local@k: share of steps that extend a left-to-right run of k tokens by one. Global@k: share of steps that "
        "commit one of the k leftmost masked tokens (DiffuCoder 4.1). "
        + (
            "Local@k is divided by the steps that have k predecessors. "
            if first["convention"] == "defined"
            else "Local@k is divided by all steps, as in the paper. "
        )
        + (
            "Tokens committed in one step count with the average over their orders. "
            if first["ties"] == "random"
            else "Tokens committed in one step are read left to right, an upper bound. "
        )
        + (
            "All new tokens count, pads included. "
            if first["until"] == "all"
            else "Tokens up to the end of turn count. "
        )
        + "Tied: share of steps at which the rule scored a rival exactly as high, so that the tie break chose."
    )
    for line in tie_warnings(findings.series):
        report.add_text(line)
    chance = findings.to_json()["random_order"]
    for kind in ("local", "global"):
        ks = first[kind]["k"]
        rows: list[list[Any]] = [
            [
                series.label,
                series.numbers["samples"],
                tied_text(series.numbers),
                *(interval(series.numbers[kind], k - 1) for k in ks),
            ]
            for series in findings.series
        ]
        rows.append([f"random order of {chance['tokens']} tokens", "", "", *(f"{value:.3f}" for value in chance[kind])])
        report.add_table(
            ["series", "samples", "tied", *(f"{kind}@{k}" for k in ks)], rows, f"{kind} AR-ness, mean ± 95% interval"
        )
    rows = [
        [s.label, s.numbers["tokens"], s.numbers["commits_per_step"], s.numbers["local"]["variance"][0],
         s.numbers["global"]["variance"][0]]
        for s in findings.series
    ]  # fmt: skip
    columns = ["series", "tokens", "commits per step", "variance of local@1", "variance of global@1"]
    report.add_table(columns, rows, "Per sample: means and variances")
    scored = [series for series in findings.series if series.passes]
    if scored:
        names = list(scored[0].passes)
        rows = [[one.label, *(share_text(one.passes.get(name)) for name in names)] for one in scored]
        report.add_table(["series", *names], rows, "Share of tasks solved, with 95% Wilson intervals over tasks")


def add_profiles(report: Report, findings: Findings) -> None:
    """The first-step profiles' fits, as a section."""
    report.add_heading("Entropy sink")
    report.add_text(
        "Fit of floor + rise · exp(-(distance - 1) / decay length) to the mean confidence at the first step."
    )
    rows = [
        [label, profile["prompts"], *(profile["fit"][name] for name in ("decay_length", "floor", "rise", "r2"))]
        for label, profile in findings.profiles.items()
    ]
    report.add_table(["model", "prompts", "decay length (tokens)", "floor", "rise", "R²"], rows)


def add_replay(report: Report, series: Sequence[Series]) -> None:
    """A player of the first samples of every series, as a section."""
    share = max(1, _REPLAYED // len(series))
    chosen = [(one, item) for one in series for item in one.trajectories[:share]][:_REPLAYED]
    report.add_heading("Replay")
    report.add_replay(
        [item for _, item in chosen],
        [sources.pieces(item, one.tokenizer) for one, item in chosen],
        [f"{one.label}, sample {item.id}" for one, item in chosen],
        "Masked tokens are hatched. Move the slider with the arrow keys, or press Play.",
    )


def tied_text(numbers: Mapping[str, Any]) -> str:
    """Share of tied steps as `96%`, or "unknown"."""
    share = numbers["tied_share"]
    return "unknown" if share is None else f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def tie_warnings(series: Sequence[Series]) -> list[str]:
    """A line for each series whose order ties decided to a large part, with the range that they left open."""
    lines = []
    for one in series:
        share, broken = one.numbers["tied_share"], " and ".join(one.numbers["tie_break"]) or "unknown"
        if share is None or share <= MUCH:
            continue
        ranges = [
            f"{kind}@1 {values['mean'][0]:.3f} (these tokens in other orders that the ties allow: "
            f"{values['tie_low'][0]:.3f} to {values['tie_high'][0]:.3f})"
            for kind in ("local", "global")
            for values in [one.numbers[kind]]
            if values["mean"][0] is not None and values["tie_low"][0] is not None
        ]
        told = ": " + ", ".join(ranges) if ranges else ""
        lines.append(
            f"{one.label}: {share:.0%} of steps were decided by a tie (tie break: {broken}){told}; "
            "see --sensitivity for what is the model's"
        )
    return lines


def interval(values: Mapping[str, Any], index: int) -> str:
    """`0.531 ±0.042`, or a dash where the value is not defined."""
    mean, low, high = (values[name][index] for name in ("mean", "low", "high"))
    if mean is None:
        return "–"
    return f"{mean:.3f}" if low is None else f"{mean:.3f} ±{max(high - mean, mean - low):.3f}"


def share_text(share: tuple[float, float, float] | None) -> str:
    """`43.8% (37.1-50.5)`, or a dash."""
    return "–" if share is None else f"{share[0]:.1%} ({100 * share[1]:.1f}-{100 * share[2]:.1f})"


def _sweeps(series: Sequence[Series]) -> dict[str, list[dict[str, Any]]]:
    """Points by model for the temperature figure: models with at least two temperatures."""
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for one in series:
        if one.temperature is not None:
            name = re.sub(r",? T=[\d.]+$", "", one.label)
            point = {"temperature": one.temperature, "arness": one.numbers, **one.ends()}
            sweeps.setdefault(name, []).append(point)
    return {name: points for name, points in sweeps.items() if len({point["temperature"] for point in points}) > 1}


def _file_names(labels: Sequence[str]) -> list[str]:
    """Labels as distinct file names."""
    names: list[str] = []
    for label in labels:
        base = re.sub(r"[^A-Za-z0-9.=-]+", "-", label).strip("-.")[:60] or "series"
        name, count = base, 2
        while name in names:
            name, count = f"{base}-{count}", count + 1
        names.append(name)
    return names


def _plain(value: Any) -> Any:
    """NaN as None, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value

"""The one page of `quickstart --model`: what was done, what each stage changed, the order of decoding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcoder_cli.analysis import measure
from dcoder_cli.analysis.colours import LINES, MARKERS, SERIES
from dcoder_cli.analysis.measure import share_text
from dcoder_cli.analysis.plots import new_figure, styled
from dcoder_cli.analysis.report import Report
from dcoder_cli.analysis.series import Measure, of_file
from dcoder_cli.analysis.training_plot import losses, rewards
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.experiments.budget import ANSWER, AR_ANSWER
from dcoder_cli.experiments.given_settings import LABELS
from dcoder_cli.experiments.journal import Journal
from dcoder_cli.model.tokenizer import load_tokenizer

_SHOWN = 6


def write_report(out: Path, model: str, journal: Journal) -> Path:
    """Write `report.html` from a journal whose steps are all done, and the files that they wrote."""
    steps, name = journal.steps, Path(model).name
    scores = {key: steps[f"score {label}"] for key, label in LABELS.items() if f"score {label}" in steps}
    report = Report(
        f"{name} as a diffusion model",
        f"dcoder quickstart --model, {journal.settings['minutes']:g} minutes asked, {journal.seconds / 60:.0f} taken, one seed",
    )
    report.add_heading("What was done")
    report.add_table(
        ["step", "what it did", "result", "s"],
        [[step, found.get("what", ""), found.get("result", ""), found["seconds"]] for step, found in steps.items()],
    )
    report.add_heading("What each stage changed")
    report.add_table(
        ["", "micro, pass@1", "lines filled exactly", "their tokens", "held-out loss, nats a token"],
        [
            [
                LABELS[key],
                _share(one["micro"]),
                _share(one.get("infill")),
                _share((one.get("infill") or {}).get("tokens")),
                (one.get("heldout") or {}).get("loss"),
            ]
            for key, one in scores.items()
        ],
        "Shares with 95% intervals (Wilson) over the tasks, of one training: what another seed would give is not in them. "
        "micro: functions that no training holds, asked by chat, greedy; "
        f"{ANSWER} new tokens, the AR model {AR_ANSWER}, as it may explain first. Lines: of held-out documents, their number of "
        "tokens given, and how many of these are right; the AR model sees what stands before them alone, and has no denoising loss.",
    )
    report.add_figure(
        by_ratio({LABELS[key]: one["heldout"]["by_t"] for key, one in scores.items() if one.get("heldout")}),
        "Held-out cross-entropy of a masked token by the share of tokens that are masked, in nats.",
    )
    _training(report, out)
    converted, last = scores.get("converted", {}), scores.get("grpo", {})
    examples = zip(
        (converted.get("infill") or {}).get("examples", []),
        (last.get("infill") or {}).get("examples", []),
        strict=False,
    )
    report.add_table(
        ["the line", "converted", LABELS["grpo"]],
        [[one["line"], one["written"], other["written"]] for one, other in list(examples)[:_SHOWN]],
        "Lines of held-out code, as the converted model and the last one fill them.",
    )
    words = load_tokenizer(steps["convert"]["where"])
    series = [
        of_file(file, Measure(), file.stem.removeprefix("orders-"), words)
        for file in sorted(out.glob("orders-*.jsonl"), key=lambda file: float(file.stem.partition("=")[2]))
    ]
    if series:
        measure.add_numbers(report, measure.Findings(series))
        measure.add_replay(report, series)
    return report.write(out / "report.html")


def _training(report: Report, out: Path) -> None:
    report.add_heading("Training")
    names = {"adapt": "stage 1", "mid": "stage 2", "sft": "stage 3"}
    curves = {label: RunFolder(out / "runs" / name).read("metrics") for name, label in names.items()}
    points = {label: [(row["step"], row["loss"]) for row in rows if "loss" in row] for label, rows in curves.items()}
    report.add_figure(losses(points), "Training loss of stages 1 to 3, with its moving mean.")
    rows = [row for row in RunFolder(out / "runs" / "grpo").read("metrics") if "reward" in row]
    if rows:
        report.add_figure(rewards(rows), "Stage 4: reward and share passed of the samples.")


def _share(found: Mapping[str, Any] | None) -> str | None:
    return (
        None if found is None or found["share"] is None else share_text((found["share"], found["low"], found["high"]))
    )


@styled
def by_ratio(curves: Mapping[str, list[float | None]]) -> Any:
    """Loss by tenth of t, a line a model."""
    figure, (axis,) = new_figure(width=5.6)
    for index, (label, values) in enumerate(curves.items()):
        points = [((place + 0.5) / len(values), value) for place, value in enumerate(values) if value is not None]
        axis.plot(
            *zip(*points, strict=True), color=SERIES[index % len(SERIES)], linestyle=LINES[index % len(LINES)],
            marker=MARKERS[index % len(MARKERS)], markersize=4, label=label,
        )  # fmt: skip
    axis.set_xlabel("share of tokens masked, t")
    axis.set_ylabel("nats a masked token")
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure

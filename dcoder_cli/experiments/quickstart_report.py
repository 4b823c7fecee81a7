"""The quickstart's one page: what each step did, the curves of all stages, scores and decoding order before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcoder_cli.analysis import measure, plots
from dcoder_cli.analysis.report import Report
from dcoder_cli.analysis.series import Series
from dcoder_cli.analysis.sources import pieces
from dcoder_cli.analysis.training_plot import losses, rewards
from dcoder_cli.base.runs import RunFolder

_STAGES = {"ar": "stage 0", "adapt": "stage 1", "mid": "stage 2", "sft": "stage 3"}


def write_report(out: Path, steps: Sequence[Any], scores: Mapping[str, float], series: list[Series]) -> Path:
    """Write `report.html` into the quickstart's folder, from its run folders and what it measured.

    Args:
        out: the folder, with `runs/`.
        steps: `quickstart.Step`s.
        scores: name -> share.
        series: the decodings of stages 3 and 4, measured.
    """
    report = Report("dcoder quickstart", "The whole method at small scale: one seed, a million parameters")
    report.add_heading("What was done")
    report.add_table(
        ["step", "what it did", "result", "s"], [[step.name, step.what, step.result, step.seconds] for step in steps]
    )
    report.add_heading("Training")
    runs = out / "runs"
    curves = {label: RunFolder(runs / name).read("metrics") for name, label in _STAGES.items()}
    report.add_figure(
        losses(
            {label: [(row["step"], row["loss"]) for row in rows if "loss" in row] for label, rows in curves.items()}
        ),
        "Training loss of each stage, with its moving mean. Stages 1 to 3 weigh masked tokens, so scales differ.",
    )
    rows = [row for row in RunFolder(runs / "grpo").read("metrics") if "reward" in row]
    report.add_figure(
        rewards(rows), "Stage 4: reward and share passed of the samples, their entropy, and groups without a signal."
    )
    report.add_heading("Scores")
    names = list(
        dict.fromkeys(name.removeprefix(f"{one.label} ") for one in series for name in _own(scores, one.label))
    )
    report.add_table(
        ["", *(one.label for one in series)],
        [[name, *(scores.get(f"{one.label} {name}") for one in series)] for name in names],
        "Shares. pass@1 is on micro, whose functions training has not seen, at temperature 0.2; its interval stands below. "
        "micro-kinds: neither these combinations of operations nor their wordings are in training. At temperature 1 in "
        "fast mode",
    )
    findings = measure.Findings(series)
    measure.add_numbers(report, findings)
    report.add_figure(
        plots.arness_curves({one.label: one.numbers for one in series}),
        "AR-ness@k before and after stage 4, with 95% t intervals over samples; left-to-right decoding is 1 throughout.",
    )
    for one in series:
        first = one.trajectories[0]
        caption = f"{one.label}, {first.id}: tokens coloured by the step that committed them."
        report.add_ordered_text(pieces(first, one.tokenizer), first.reveal_step, caption)
    measure.add_replay(report, series)
    return report.write(out / "report.html")


def _own(scores: Mapping[str, float], label: str) -> list[str]:
    return [name for name in scores if name.startswith(f"{label} ")]

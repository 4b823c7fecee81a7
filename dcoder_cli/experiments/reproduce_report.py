"""The tables of `dcoder reproduce`, for the terminal and the report: claims, stage 4, decoding orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcoder_cli.analysis.report import Report
from dcoder_cli.experiments.effects import Effect
from dcoder_cli.experiments.findings import ClaimFinding
from dcoder_cli.experiments.outcome import HOW_TO_READ, Outcome
from dcoder_cli.experiments.quantities import HELD_OUT, KINDS, StudySettings, View, views
from dcoder_cli.experiments.scores import BASE, COLUMNS, STAGE_4
from dcoder_cli.experiments.seeds import ROLES

if TYPE_CHECKING:
    from dcoder_cli.experiments.seeds import Replicate

Table = tuple[list[str], list[list[str]]]


def claim_table(findings: Sequence[ClaimFinding]) -> Table:
    """Columns and rows of a group of claims, for a terminal; without p where none is primary."""
    rows = [
        [f"{one.claim.statement} ({one.claim.unit})", _interval(one.effect), _d_z(one.effect), _p(one), one.verdict]
        for one in findings
    ]
    names = ["claim", "effect, 95% interval", "d_z", "p (Holm)", "verdict"]
    if not any(one.claim.primary for one in findings):
        return [*names[:3], *names[4:]], [[*row[:3], *row[4:]] for row in rows]
    return names, rows


def groups(outcome: Outcome) -> list[tuple[str, list[ClaimFinding]]]:
    """The primary claims, then the exploratory ones, each with its heading; without empty ones."""
    primary = [one for one in outcome.findings if one.claim.primary]
    others = [one for one in outcome.findings if not one.claim.primary]
    count = f"{len(outcome.seeds)} seed" + ("s" if len(outcome.seeds) > 1 else "")
    named = [(f"primary claims, named in advance ({count})", primary), (f"exploratory ({count})", others)]
    return [(name, own) for name, own in named if own]


def remarks(findings: Sequence[ClaimFinding]) -> list[str]:
    """Why claims are not measured, not comparable, or without an interval: a line a reason."""
    reasons: dict[str, list[str]] = {}
    for one in findings:
        if one.why:
            reasons.setdefault(f"{one.verdict}: {one.why}", []).append(one.claim.name)
    return [f"{', '.join(names)} {reason}" for reason, names in reasons.items()]


def stage_4_table(outcome: Outcome, tasks: str) -> Table | None:
    """pass@1 and pass@k of stage 3 and each estimator on a set of tasks; None where they were not measured.

    A row a checkpoint with means in percent, and one with the change from stage 3.
    """
    known = {
        (s.quantity.role, s.quantity.what, s.quantity.view): s for s in outcome.scores if s.quantity.tasks == tasks
    }
    rows = []
    for role in (BASE, *STAGE_4):
        own = [known.get((role, *column)) for column in COLUMNS]
        if all(own) and any(other in {key[0] for key in known} for other in STAGE_4):
            rows.append([role, *(_plus_minus(one.effect) for one in own if one)])
            if role != BASE and all(one and one.change for one in own):
                rows.append(["  change", *(_plus_minus(one.change, "+") for one in own if one and one.change)])
    settings = outcome.settings
    return ([tasks, *(_column(settings, *column) for column in COLUMNS)], rows) if rows else None


def order_table(outcome: Outcome) -> Table | None:
    """Global and local AR-ness@1, tied steps and pass@1 of what was decoded one token a step, in percent."""
    known = {
        (s.quantity.role, s.quantity.view, s.quantity.what): s.effect
        for s in outcome.scores
        if s.quantity.tasks == HELD_OUT
    }
    named = views(outcome.settings)
    whats = ("global@1", "local@1", "tied", "pass@1")
    rows: dict[tuple[str, str], list[str]] = {}
    measured = [(role, view) for role, view, what in known if what == "global@1"]
    for role, name in sorted(measured, key=lambda key: ([*ROLES].index(key[0]), [*named].index(key[1]))):
        view = named[name]
        fewer = "" if view.steps == named["cold"].steps else f", {view.steps} steps"
        found = [known.get((role, name, what)) for what in whats]
        cells = ["unknown" if one is None else _plus_minus(one) for one in found]
        rows.setdefault((role + fewer, _decoding(view)), cells)  # two names may be one decoding
    head = ["checkpoint", "T, top-p, ties", "global@1", "local@1", "tied", "pass@1"]
    return (head, [[*key, *cells] for key, cells in rows.items()]) if rows else None


def write_report(out: Path, outcome: Outcome, made: Sequence[Replicate]) -> None:
    """`report.html`."""
    report = Report("dcoder reproduce", f"DiffuCoder's claims as checks over {len(outcome.seeds)} seed(s)")
    report.add_text(HOW_TO_READ)
    for heading, own in groups(outcome):
        report.add_heading(heading.capitalize())
        names, rows = claim_table(own)
        rows = [
            [one.claim.name, *row, " ".join(f"{value:+.2f}" for value in one.effect.by_seed) if one.effect else "", _sides(one), one.claim.source]
            for one, row in zip(own, rows, strict=True)
        ]  # fmt: skip
        report.add_table(["name", *names, "by seed", "sides, and steps that a tie decided", "paper"], rows)
        for line in remarks(own):
            report.add_text(line)
    tables = [stage_4_table(outcome, tasks) for tasks in (HELD_OUT, KINDS)]
    if any(tables):
        report.add_heading("Stage 4 at small scale" if len(outcome.seeds) > 1 else "Stage 4")
    for table in filter(None, tables):
        report.add_table(
            *table, "Percent, means over seeds ± half the 95% interval; changes from stage 3, paired (exploratory)"
        )
    order = order_table(outcome)
    if order is not None:
        report.add_heading("Decoding order")
        report.add_table(
            *order,
            "Percent; tied: steps that a tie decided. Where they are many, the order is the tie-break's and not the model's",
        )
    report.add_heading("Settings").add_settings(vars(outcome.settings))
    for one in made:
        report.add_settings(dict(one.models), f"Checkpoints of seed {one.seed}")
    report.write(out / "report.html")


def _column(settings: StudySettings, what: str, view: str) -> str:
    one = views(settings)[view]
    name = what.replace("many", str(settings.many))
    return f"{name}, T {one.temperature:g}" + ("" if one.top_p is None else f", top-p {one.top_p:g}")


def _decoding(view: View) -> str:
    top_p = "none" if view.top_p is None else f"{view.top_p:g}"
    return f"{view.temperature:g}, {top_p}, {view.tie_break}"


def _sides(one: ClaimFinding) -> str:
    """`role view 43.2 (ties 1%) ...` of each side."""
    words = []
    for side in one.sides:
        factor = one.claim.scale
        ties = "" if side.tied is None else f" (ties {side.tied:.0%})"
        name = " ".join(filter(None, (side.quantity.role, side.quantity.view or side.quantity.what)))
        words.append(f"{'+' if side.sign > 0 else '-'} {name} {factor * side.effect.mean:.2f}{ties}")
    return " ".join(words)


def _interval(effect: Effect | None) -> str:
    if effect is None:
        return "–"
    if effect.low is None or effect.high is None:
        return f"{effect.mean:+.2f}"
    return f"{effect.mean:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]{'*' if effect.over == 'tasks' else ''}"


def _d_z(effect: Effect | None) -> str:
    return "" if effect is None or effect.d_z is None else f"{effect.d_z:+.1f}"


def _p(one: ClaimFinding) -> str:
    if one.adjusted is None:
        return ""
    return "<0.001" if one.adjusted < 0.001 else f"{one.adjusted:.3f}"


def _plus_minus(effect: Effect, sign: str = "") -> str:
    mean = f"{100 * effect.mean:{sign}.1f}"
    if effect.low is None or effect.high is None:
        return mean
    return f"{mean} ± {50 * (effect.high - effect.low):.1f}{'*' if effect.over == 'tasks' else ''}"

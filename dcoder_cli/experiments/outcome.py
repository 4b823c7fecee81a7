"""What a call of `dcoder reproduce` found, whole, and as reproduce.json has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dcoder_cli.experiments.claims import PRIMARY
from dcoder_cli.experiments.effects import FEW, Effect
from dcoder_cli.experiments.findings import ClaimFinding
from dcoder_cli.experiments.quantities import StudySettings, views
from dcoder_cli.experiments.scores import Score

HOW_TO_READ = (
    f"A positive effect speaks for the claim. Primary claims are named in advance, whatever comes out; p is corrected by Holm "
    f"for all {len(PRIMARY)} of them. Shown (contrary): p < 0.05 over at least {FEW} seeds and the effect positive "
    "(negative). Exploratory claims, and fewer seeds, are at best suggestive; not shown is no proof of the opposite. Intervals are 95%: "
    "Student's over the seeds' means, or, with *, over tasks, which holds for these models only. d_z: effect over its "
    "standard deviation between seeds. A doubling: twice the mean squared error."
)


@dataclass(frozen=True)
class Outcome:
    """All findings, the scores behind them, the settings, and the wall time of this call.

    Attributes:
        ran_with: what rounding depends on: jobs, threads a process, versions.
    """

    findings: list[ClaimFinding]
    scores: list[Score]
    seeds: tuple[int, ...]
    settings: StudySettings
    ran_with: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For --json and reproduce.json."""
        return {
            "claims": [_finding(one) for one in self.findings],
            "primary": list(PRIMARY),
            "how_to_read": HOW_TO_READ,
            "scores": [one.to_json() for one in self.scores],
            "views": {name: str(view) for name, view in views(self.settings).items()},
            "seeds": list(self.seeds),
            "settings": vars(self.settings),
            "ran_with": self.ran_with,
            "seconds": round(self.seconds, 1),
        }


def _finding(one: ClaimFinding) -> dict[str, Any]:
    claim, effect = one.claim, one.effect or Effect(float("nan"), ())
    return {
        "name": claim.name, "statement": claim.statement, "source": claim.source, "primary": claim.primary,
        "unit": claim.unit, **effect.to_json(), "mean": None if one.effect is None else effect.mean,
        "p_holm": one.adjusted, "verdict": one.verdict, "why": one.why,
        "sides": [
            {"sign": side.sign, **vars(side.quantity), **side.effect.to_json(), "tied_share": side.tied}
            for side in one.sides
        ],
    }  # fmt: skip

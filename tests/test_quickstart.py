"""The quickstart, whole and small: every stage, scores before and after stage 4, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import desk, quickstart


def test_the_whole_method_from_source_code_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCORED_TASKS": 7, "MANY": 2}.items():
        monkeypatch.setattr(quickstart, name, value)
    for name, value in {"TRAIN_TASKS": 300, "RL_TASKS": 40, "STDLIB_SHARE": 0.01}.items():
        monkeypatch.setattr(desk, name, value)
    heard: list[str] = []
    out = tmp_path / "q"
    outcome = quickstart.quickstart(out, seed=0, effort=0.003, announce=heard.append)
    assert heard == [step.name for step in outcome.steps]
    assert [name for name in heard if name.startswith("stage")] == [
        "stage 0 (ar)", "stage 1 (adapt)", "stage 2 (mid)", "stage 3 (sft)", "stage 4 (grpo)",
    ]  # fmt: skip
    assert outcome.model.is_dir() and outcome.model.is_relative_to(out / "runs" / "grpo")
    for label in ("stage 3", "stage 4"):
        assert {f"{label} pass@1", f"{label} pass@2 at temperature 1", f"{label} global@1"} <= set(outcome.scores)
    assert json.loads((out / "quickstart.json").read_text())["scores"] == outcome.scores
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f"<h2>{name}</h2>" in page for name in ("What was done", "Training", "Scores", "AR-ness", "Replay"))
    assert page.count("<img") == 5 and "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    with pytest.raises(UserError, match="exists already"):
        quickstart.quickstart(out, seed=0, effort=0.003, announce=heard.append)

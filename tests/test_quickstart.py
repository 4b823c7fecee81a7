"""The quickstart, whole and small: every stage, scores before and after stage 4, and the report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import documented
import pytest
from dcoder_cli.commands.quickstart import _show, hints
from helpers import refused

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError
from dcoder_cli.execution import judge
from dcoder_cli.experiments import quickstart, stages


def test_the_whole_method_from_source_code_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SCORED_TASKS": {"micro": 7, "micro-kinds": 5}, "MANY": 2}.items():
        monkeypatch.setattr(quickstart, name, value)
    for name, value in {"TRAIN_TASKS": 300, "RL_TASKS": 40, "STDLIB_SHARE": 0.01}.items():
        monkeypatch.setattr(stages, name, value)
    heard: list[str] = []
    out = tmp_path / "q"
    outcome = quickstart.quickstart(out, seed=0, step_scale=0.003, announce=heard.append, quiet=True)
    assert capsys.readouterr().err == "", "as with --json"
    assert heard == [step.name for step in outcome.steps]
    assert [name for name in heard if name.startswith("stage")] == [
        "stage 0 (ar)", "stage 1 (adapt)", "stage 2 (mid)", "stage 3 (sft)", "stage 4 (grpo)",
    ]  # fmt: skip
    assert outcome.model.is_dir() and outcome.model.is_relative_to(out / "runs" / "grpo")
    scored = [step for step in outcome.steps if step.name.startswith("score")]
    assert [(step.name, step.what.split(", judged")[0]) for step in scored] == [
        (f"score, {label}, {name}", f"{count} tasks, {held_out} held out")
        for label in ("stage 3", "stage 4")
        for name, count, held_out in (("micro", 7, "functions"), ("micro-kinds", 5, "kinds"))
    ]
    for label in ("stage 3", "stage 4"):
        assert {f"{label} micro-kinds pass@1", f"{label} micro-kinds pass@2 at temperature 1"} <= set(outcome.scores)
        assert {f"{label} pass@1", f"{label} pass@2 at temperature 1", f"{label} global@1"} <= set(outcome.scores)
    assert json.loads((out / "quickstart.json").read_text())["scores"] == outcome.scores
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f"<h2>{name}</h2>" in page for name in ("What was done", "Training", "Scores", "AR-ness", "Replay"))
    assert (
        page.count("<img") == 3
        and page.count('<figure class="ordered">') == 2
        and "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    )
    with pytest.raises(UserError, match="already holds a quickstart"):
        quickstart.quickstart(out, seed=0, step_scale=0.003, announce=heard.append)
    with pytest.raises(UserError, match="--step-scale nan must be above 0"):
        quickstart.quickstart(out, seed=0, step_scale=float("nan"), announce=heard.append, force=True)
    monkeypatch.setattr(judge.sandbox, "best_tier", lambda: "C")
    with pytest.raises(UserError, match="give --unsafe-exec"):
        quickstart.quickstart(out, seed=0, step_scale=0.003, announce=heard.append, force=True)
    assert (out / "report.html").is_file(), "what is refused removes nothing"


@pytest.mark.parametrize(("score", "told"), [(0.0, True), (0.44, False)])
def test_a_seed_that_learned_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], score: float, told: bool
) -> None:
    outcome = quickstart.QuickstartOutcome([], [], {"stage 3 pass@1": score}, 1.0, tmp_path / "model")
    _show(outcome, tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    assert ("Give a larger --step-scale, or another --seed." in shown) == told and "dcoder generate" in shown


def test_force_replaces_nothing_but_a_quickstart(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    told = refused("quickstart", "--out", tmp_path / "precious", "--force", "--step-scale", "0.003")
    assert "is not empty and does not hold a quickstart" in told and (tmp_path / "precious" / "thesis.tex").is_file()
    assert "is a file" in refused("quickstart", "--out", tmp_path / "precious" / "thesis.tex", "--force")


def test_the_hints_can_be_pasted_and_ask_what_the_model_can_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        quickstart.Sample("Define f(x).\nassert f(1) == 2", "", "passed"),
        quickstart.Sample("Define it's(x).", "", "passed"),
        quickstart.Sample("x", "", "failed"),
    ]
    out = tmp_path / ("a folder " * 12)
    outcome = quickstart.QuickstartOutcome([], samples, {"stage 3 pass@1": 1.0}, 1.0, out / "model")
    _show(outcome, out)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  dcoder")]
    asked = [shlex.split(line) for line in lines]
    assert asked == [shlex.split(line) for line in hints(outcome, out)] and len(asked) == 4
    assert asked[0][-1] == "Define it's(x)." and asked[0][3] == str(out / "model")
    assert hints(quickstart.QuickstartOutcome([], samples[2:], {}, 1.0, out), out)[0].count("add(a, b)") == 1


def test_what_it_prints_for_programs_is_what_the_documents_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, samples = (
        [stages.Step("tokenizer", "of code", "300 entries", 1.5, "")],
        [quickstart.Sample("x", "y", "passed")],
    )
    console.emit_json(quickstart.QuickstartOutcome(steps, samples, {"stage 3 pass@1": 1.0}, 1.0, tmp_path).to_json())
    printed = capsys.readouterr().out
    documented.check_output(["quickstart"], printed)
    keys = documented.commands()["quickstart"]
    assert set(documented.keys_of(keys, json.loads(printed))) >= {one for one in keys if one[-1] != "*"}

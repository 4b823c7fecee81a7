"""--track: what a tracker is told of a run, under which name, and that it goes on after --resume."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpo_runs import common, make_place
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused

from dcoder_cli.training.tracking import flat, numbers

# In place of wandb: it writes down what it is told.
WANDB = """
import json, os
__version__ = "0.30.0"

def _tell(*what):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class _Config:
    def update(self, values, allow_val_change):
        _tell("config", values)

class _Run:
    def log(self, values, step=None):
        _tell("log", step, values)
    def finish(self):
        _tell("finish")

config = _Config()

def init(**options):
    _tell("init", options)
    return _Run()
"""
METADATA = "Metadata-Version: 2.1\nName: wandb\nVersion: 0.30.0\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer)
    make_shards(folder / "data", tokenizer)
    install_wandb(folder)
    return folder


def install_wandb(folder: Path) -> None:
    """Where PYTHONPATH finds it, with what Accelerate looks for."""
    for name, file, text in (("wandb", "__init__.py", WANDB), ("wandb-0.30.0.dist-info", "METADATA", METADATA)):
        (folder / name).mkdir()
        (folder / name / file).write_text(text)


def stage2(place: Path, out: Path, *more: str) -> list[Any]:
    sets = ["--set=global_batch=4", "--set=steps=4", "--set=evaluate_every=2", "--set=checkpoint_every=2"]
    return [
        "train-stage", "2", "--model", place / "model", "--data", place / "data", "--device", "cpu", "--out", out,
        *sets, *more,
    ]  # fmt: skip


def heard(place: Path, tmp_path: Path, arguments: list[Any]) -> list[list[Any]]:
    """What a run told the tracker."""
    told = tmp_path / "told"
    told.unlink(missing_ok=True)
    dcoder(*arguments, env={**os.environ, "TOLD": str(told), "PYTHONPATH": str(place)}, cwd=place)
    return [json.loads(line) for line in told.read_text().splitlines()] if told.is_file() else []


def test_a_tracker_hears_settings_losses_and_heldout_and_again_after_resume(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    told = heard(place, tmp_path, stage2(place, run, "--track", "wandb"))
    assert [line[0] for line in told] == ["init", "config", "log", "log", "log", "log", "log", "log", "finish"]
    options, settings = told[0][1], told[1][1]
    assert (options["project"], options["name"], options["resume"]) == ("dcoder", "my-run", "allow")
    assert settings["optimizer.learning_rate"] == 3e-3 and settings["global_batch"] == 4 and settings["stage"] == 2
    assert settings["model"] == str(place / "model") and settings["lora"] == "null"
    assert "loss" in told[2][2] and told[2][2]["tokens_per_second"] > 0
    evaluations = [line for line in told if line[0] == "log" and "heldout/loss" in line[2]]
    assert [line[1] for line in evaluations] == [2, 4] and "heldout/by_t/3" in evaluations[0][2]
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert evaluations[1][2]["heldout/loss"] == written[-1]["heldout"]["loss"]
    # Going on needs no --track, and is the same curve.
    again = heard(place, tmp_path, ["train-stage", "2", "--out", run, "--resume", "--device", "cpu", "--set=steps=6"])
    assert again[0][1] == options and [line[1] for line in again[2:-1]] == [5, 6, 6]


@pytest.mark.slow  # five trainings of a stand-in for one option
def test_the_run_name(place: Path, tmp_path: Path) -> None:
    told = heard(place, tmp_path, stage2(place, tmp_path / "run", "--track", "wandb", "--run-name", "mine"))
    assert told[0][1]["name"] == "mine"
    resume = ["train-stage", "2", "--out", tmp_path / "run", "--resume", "--device", "cpu"]
    assert "the run began as 'mine'; leave it out" in refused(*resume, "--run-name", "other")
    assert "--run-name 'x' names the run in a tracker; give --track too" in refused(
        *stage2(place, tmp_path / "x", "--run-name", "x")
    )
    assert "--track none ends the tracking" in refused(*stage2(place, tmp_path / "x", "--track", "none"))
    assert heard(place, tmp_path, [*resume, "--set=steps=5", "--track", "none"]) == []
    assert heard(place, tmp_path, [*resume, "--set=steps=6"]) == [], "and stays ended"
    assert "is unknown" in refused(*stage2(place, tmp_path / "x", "--track", "tensorbord"))
    assert heard(place, tmp_path, stage2(place, tmp_path / "plain")) == []
    assert "tracking" not in yaml.safe_load((tmp_path / "plain" / "config.yaml").read_text())


def test_stage_4_is_tracked_from_before_its_first_step(tmp_path: Path, place: Path) -> None:
    make_place(tmp_path)
    install_wandb(tmp_path)
    told = heard(tmp_path, tmp_path, [*common(tmp_path, tmp_path / "run"), "--set=steps=1", "--track", "wandb"])
    logs = [(line[1], sorted(line[2])) for line in told if line[0] == "log"]
    assert [step for step, _ in logs] == [0, 1, 1]
    assert "heldout/reward" in logs[0][1] and "reward" in logs[1][1] and "heldout/reward" in logs[2][1]
    assert told[1][1]["rewards.reward:vowels"] == 1.0 and told[1][1]["rollout.mode"] == "exact"


@pytest.mark.slow
def test_tensorboard_goes_on_in_the_same_curve(place: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    dcoder(*stage2(place, run, "--track", "tensorboard", "--run-name", "curve"))
    shutil.rmtree(run / "checkpoints" / "step-4")  # as if it was killed at step 4: steps 3 and 4 are told again
    dcoder("train-stage", "2", "--out", run, "--resume", "--device", "cpu", "--set=steps=6")
    seen = events.EventAccumulator(str(run / "curve"))
    seen.Reload()
    assert [event.step for event in seen.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in seen.Scalars("heldout/loss")] == [2, 4, 6]
    settings = [yaml.safe_load(file.read_text()) for file in (run / "curve").rglob("hparams.yml")]
    assert len(settings) == 2 and all(one["optimizer.learning_rate"] == 3e-3 for one in settings)


def test_settings_and_numbers_become_flat() -> None:
    assert flat({"a": {"b": 1, "c": None}, "d": [1, 2], "e": True}) == {
        "a.b": 1,
        "a.c": "null",
        "d": "[1, 2]",
        "e": True,
    }
    heldout = {
        "loss": 2.0,
        "mixture": "as trained",
        "sources": [{"name": "code", "loss": 1.0, "rows": 3}],
        "by_t": [0.5, None],
    }
    assert numbers({"heldout": heldout}) == {
        "heldout/loss": 2.0, "heldout/sources/code/loss": 1.0, "heldout/sources/code/rows": 3, "heldout/by_t/0": 0.5,
    }  # fmt: skip

"""One name for a model in tables, and run folders as models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import dcoder, make_model, refused

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.runs import checkpoint_of, distinct, model_labels


@pytest.mark.parametrize(
    ("models", "labels"),
    [
        (["runs/sft/checkpoints/last", "runs/grpo/checkpoints/last"], ["sft", "grpo"]),
        (["runs/sft", "runs/sft/checkpoints/best", "/a/sft/"], ["sft-1", "sft-2", "sft-3"]),
        (["runs/sft/checkpoints/step-100", "runs/sft/checkpoints/step-200"], ["sft-step-100", "sft-step-200"]),
        (["apple/DiffuCoder-7B-Instruct"], ["DiffuCoder-7B-Instruct"]),
        (["a/x", "b/x", "x-1"], ["x-2", "x-3", "x-1"]),
        (["."], ["model"]),
    ],
)
def test_labels_are_the_runs_and_differ(models: list[str], labels: list[str]) -> None:
    assert model_labels(models) == labels


def test_no_number_makes_a_name_twice() -> None:
    for names in (["a", "a", "a-1", "a-2"], ["a-2", "a", "a"], ["a", "a", "a-2", "a-2"]):
        assert len(set(distinct(names))) == len(names), names


def test_a_run_folder_is_its_last_checkpoint(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("sft", 0), ("grpo", 1)):
        run = tmp_path / "runs" / name
        made = make_model(run / "checkpoints" / "step-1", seed=seed)
        (run / "checkpoints" / "last").symlink_to(made.name)
        (run / "config.yaml").write_text("{}")
        runs.append(run)
    assert checkpoint_of(runs[0]) == runs[0] / "checkpoints" / "last" and checkpoint_of(made) == made
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "def f"}\n')
    arguments = ["--prompts", prompts, "--max-new-tokens", "4", "--device", "cpu", "--json"]
    found = dcoder("arness", *[part for run in runs for part in ("--model", run / "checkpoints" / "last")], *arguments)
    assert [series["label"] for series in json.loads(found.stdout)["series"]] == ["sft", "grpo"]
    one = json.loads(dcoder("generate", "--model", runs[0], "--max-new-tokens", "4", "--json", "x").stdout)
    last = json.loads(
        dcoder("generate", "--model", runs[0] / "checkpoints" / "last", "--max-new-tokens", "4", "--json", "x").stdout
    )
    assert one["tokens"] == last["tokens"]
    assert "llada" not in dcoder("inspect", runs[1]).stderr.lower()


def test_a_run_without_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        checkpoint_of(run)
    for command in (["generate", "--model", run, "x"], ["inspect", run]):
        assert "has no checkpoint yet" in refused(*command)

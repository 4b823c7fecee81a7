"""One name for a model in tables, and run folders as models."""

from __future__ import annotations

import contextlib
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


def test_equal_labels_and_files_of_one_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture or a record knows a series by its label: of two equal ones it would show the last alone."""
    from dcoder_cli.main import main

    model = make_model(tmp_path / "m")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.jsonl").write_text('{"prompt": "def f"}\n')
    (tmp_path / "m T=0.5.jsonl").write_text('{"reveal_step": [1, 0]}\n')

    def told(*arguments: object) -> tuple[list[str], list[str]]:
        monkeypatch.setattr("sys.argv", ["dcoder", "arness", *map(str, arguments), "--json"])
        with contextlib.suppress(SystemExit):
            main()
        printed = capsys.readouterr()
        assert not printed.err, "no progress beside --json"
        found = json.loads(printed.out)
        return [one["label"] for one in found["series"]], list(found["first_step"])

    decoding = ("--model", model, "--prompts", tmp_path / "one" / "p.jsonl", "--max-new-tokens", 4, "--device", "cpu")
    assert told(*decoding, "--prompts", tmp_path / "two" / "p.jsonl") == (["m, p-1", "m, p-2"], ["m, p-1", "m, p-2"])
    assert told(*decoding, "--model", model, "--label", "x", "--label", "x") == (["x-1", "x-2"], ["x-1", "x-2"])
    files = ("--trajectories", tmp_path / "m T=0.5.jsonl")
    labels, _ = told(*files, *decoding, "--temperatures", "0.5,1")
    assert labels == ["m T=0.5-1", "m T=0.5-2", "m T=1"]

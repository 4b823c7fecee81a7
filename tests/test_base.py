"""Configuration layers, atomic files and the exits of the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import dcoder, refused

from dcoder_cli.base.config import build, merge, parse_assignments, to_dict
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_file, atomic_folder, human_bytes, require_space
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.training.config import StageConfig


def test_later_layers_win_and_sections_merge() -> None:
    preset = {"steps": 10, "optimizer": {"learning_rate": "1e-3", "warmup_steps": 5}}
    file = {"steps": 20}
    assigned = parse_assignments(["optimizer.learning_rate=3e-4", "seed=7", "optimizer.warmup_ratio=null"])
    config = build(StageConfig, preset, file, assigned)
    assert (config.steps, config.seed) == (20, 7)
    assert (config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.warmup_ratio) == (
        3e-4,
        5,
        None,
    )
    assert build(StageConfig, to_dict(config)) == config
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_assignments_that_make_no_sense() -> None:
    for text in ("steps", "=3"):
        with pytest.raises(UserError, match="key=value"):
            parse_assignments([text])
    with pytest.raises(UserError, match="conflicts"):
        parse_assignments(["a=1", "a.b=2"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    folder = tmp_path / "folder"
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and sorted(path.name for path in tmp_path.iterdir()) == ["file.txt"]
    with atomic_folder(folder) as temporary:
        (temporary / "whole").write_text("whole")
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_space_is_asked_for_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no space left for the model: .* needs 888\.\d TiB"):
        require_space(tmp_path / "not" / "yet", int(888.5 * 1024**4), "the model")
    assert human_bytes(1536) == "1.5 KiB" and human_bytes(3) == "3 B"


def test_run_folders_keep_the_last_and_the_best(tmp_path: Path) -> None:
    run = RunFolder.check(tmp_path / "run", resume=False)
    run.make()
    for step in (10, 20, 30, 40):
        run.checkpoint(step).mkdir()
        run.append("metrics", {"step": step})
    run.link("best", 10)
    (run.path / "checkpoints" / ".step-50.1.tmp").mkdir()
    run.prune(2)
    assert run.steps() == [10, 30, 40] and not (run.path / "checkpoints" / ".step-50.1.tmp").exists()
    with open(run.path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 5')  # cut off by a kill
    run.cut_after(30)
    assert [record["step"] for record in run.read("metrics")] == [10, 20, 30]


def test_exits_and_messages_of_the_command_line() -> None:
    assert dcoder("--version").stdout.startswith("dcoder ")
    unknown = dcoder("trian-stage", check=False)
    assert unknown.returncode == 2 and "trian-stage" in unknown.stderr
    assert "unknown" in refused("train-stage", "7", "--model", "x", "--data", "y")
    missing = dcoder("train-stage", check=False)
    assert missing.returncode == 2 and "stage" in missing.stderr.lower()


def test_output_cut_off_by_head_is_no_traceback() -> None:
    command = f"{sys.executable} -m dcoder_cli presets show paper | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("# paper") and "Traceback" not in done.stderr

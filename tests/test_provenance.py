"""What a run folder tells of how it came about: every start, what decides it, and how to have it again."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from grpo_runs import common, make_place
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused

from dcoder_cli.base import presets, provenance
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_folder
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.model.sizes import SIZES
from dcoder_cli.training import launch
from dcoder_cli.training import record as records
from dcoder_cli.training.config import StageConfig

SETS = [
    "--set=precision=fp32",
    "--set=global_batch=4",
    "--set=micro_batch=4",
    "--set=steps=4",
    "--set=evaluate_every=0",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two sets of rows, and a finished run of stage 2."""
    folder = tmp_path_factory.mktemp("provenance")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer)
    make_model(folder / "twin", tokenizer=tokenizer, seed=1)
    make_shards(folder / "data", tokenizer)
    make_shards(folder / "more", tokenizer, seed=1)
    dcoder(*stage2(folder, folder / "run"))
    return folder


def stage2(place: Path, out: Path, *more: Any) -> list[Any]:
    return [
        "train-stage", "2", "--model", place / "model", "--data", place / "data", "--device", "cpu", "--out", out,
        *SETS, *more,
    ]  # fmt: skip


def copied(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def starts(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "environment.json").read_text())["starts"]
    return found


def test_every_start_is_kept(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path)
    dcoder("train-stage", "2", "--out", run, "--resume", "--device", "cpu", "--set=steps=6")
    first, second = starts(run)
    assert first["command"].startswith("dcoder train-stage 2 --model") and "--set=steps=4" in first["command"]
    assert second["command"].endswith("--resume --device cpu --set=steps=6")
    assert (first["preset"], second["preset"]) == ("cpu-tiny", None)
    assert first["time"] <= second["time"] and first["host"] and first["device"] == "cpu" and first["processes"] == 1
    assert first["packages"]["dcoder"] and first["folder"] == os.getcwd()
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 4, 5, 6, 6]


def test_the_start_of_an_earlier_release_stays(tmp_path: Path) -> None:
    run = RunFolder.check(tmp_path / "run", resume=False)
    run.make()
    (run.path / "environment.json").write_text('{"python": "3.9.1"}')
    run.write_config({"stage": 1, "model": "m", "data": "d", "config": {}})
    assert starts(run.path)[0] == {"python": "3.9.1"} and len(starts(run.path)) == 2
    (run.path / "environment.json").write_text('{"starts"')
    with pytest.raises(UserError, match=r"environment\.json"):
        RunFolder.check(run.path, resume=True)


def test_the_commit_is_that_of_dcoders_own_checkout(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    if not head.returncode and (root / ".git").exists():
        assert (provenance.commit() or "").removesuffix("-dirty") == head.stdout.strip()
    # Installed in an environment that lies in somebody else's repository: not that one's commit.
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    package = tmp_path / "venv" / "site-packages" / "dcoder_cli" / "base" / "provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(package))
    package.parent.mkdir(parents=True)
    assert provenance.commit() is None


def test_files_have_the_permissions_of_new_files(place: Path, tmp_path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    modes = {
        str(file.relative_to(place)): stat.S_IMODE(file.stat().st_mode)
        for folder in (place / "run", place / "model")
        for file in folder.rglob("*")
        if file.is_file()
    }
    assert any(name.endswith("model.safetensors") for name in modes)
    assert set(modes.values()) == {0o666 & ~umask}, {name: oct(mode) for name, mode in modes.items()}


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_the_umask_decides(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "private").touch(0o600)
            (temporary / "tool").touch()
            (temporary / "tool").chmod(0o700)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "folder").iterdir()}
    assert modes == {"private": 0o666 & ~umask, "tool": 0o700 | (0o666 & ~umask)}


def test_a_runs_config_repeats_it(place: Path, tmp_path: Path) -> None:
    dcoder(
        "train-stage", "2", "--config", place / "run" / "config.yaml", "--device", "cpu", "--out", tmp_path / "again"
    )
    assert metrics(tmp_path / "again") == metrics(place / "run")
    assert starts(tmp_path / "again")[0]["preset"] is None
    other = ["--config", place / "run" / "config.yaml", "--device", "cpu", "--set=seed=1", "--out", tmp_path / "other"]
    dcoder("train-stage", "2", *other, "--data", place / "more")
    record = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    assert record["config"]["seed"] == 1 and record["data"] == str(place / "more"), "--set and --data win"
    assert record["config"]["global_batch"] == 4


def test_what_cannot_be_repeated_is_said(place: Path, tmp_path: Path) -> None:
    config = place / "run" / "config.yaml"
    base = ["--config", config, "--out", tmp_path / "x"]
    assert "is of a run of stage 2, not 3" in refused("train-stage", "3", *base)
    assert "is of a run of stage 2, not 4" in refused("grpo", *base)
    assert "--preset cpu-tiny has no effect beside the --config of a run" in refused(
        "train-stage", "2", *base, "--preset", "cpu-tiny"
    )
    record = yaml.safe_load(config.read_text())
    for key, flag in (("data", "--data"), ("model", "--model")):
        gone = tmp_path / f"{key}.yaml"
        gone.write_text(yaml.safe_dump({**record, key: str(tmp_path / "gone")}))
        line = refused("train-stage", "2", "--config", gone, "--out", tmp_path / "x")
        assert "which is not here" in line and line.endswith(f"give {flag}")
    assert not (tmp_path / "x").exists()


def test_a_file_of_settings_still_goes_on_top_of_the_preset(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("steps: 3\nseed: 5\n")
    dcoder(*stage2(place, tmp_path / "run", "--config", tmp_path / "mine.yaml"))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["config"]
    assert (config["steps"], config["seed"]) == (4, 5), "preset < file < --set"
    assert config["optimizer"]["learning_rate"] == 3e-3, "of cpu-tiny"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--set=global_batch=8"], "global_batch = 8 cannot change on resuming: the run began with 4; leave it out"),
        (["--set=seed=1"], "seed = 1 cannot change on resuming: the run began with 0"),
        (["--set=lora={rank: 2}"], "lora = {'rank': 2"),
        (["--data", "more"], "more' cannot change on resuming: the run began with"),
        (["--model", "twin"], "twin' cannot change on resuming: the run began with"),
        (["--preset", "cpu-tiny"], "--preset cpu-tiny has no effect beside --resume"),
    ],
)
def test_what_decides_a_run_cannot_change(place: Path, tmp_path: Path, more: list[str], told: str) -> None:
    run = copied(place, tmp_path)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    more = [str(place / text) if text in ("more", "twin") else text for text in more]
    assert told in refused("train-stage", "2", "--out", run, "--resume", "--device", "cpu", "--set=steps=8", *more)
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_stage_4_asks_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_place(tmp_path)
    monkeypatch.chdir(tmp_path)
    dcoder(*common(tmp_path, tmp_path / "run"), "--set=steps=1", cwd=tmp_path)
    resume = ["grpo", "--out", tmp_path / "run", "--resume", "--device=cpu"]
    assert "prompts_per_step = 3 cannot change on resuming: the run began with 2" in refused(
        *resume, "--set=prompts_per_step=3"
    )
    make_model(tmp_path / "twin", tokenizer=make_tokenizer(), context=256, seed=1)
    assert "twin' cannot change on resuming" in refused(*resume, "--model", tmp_path / "twin")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    line = refused(*resume)
    assert "holds other rows than when the run began" in line or "prompts.jsonl" in line
    config = ["grpo", "--config", tmp_path / "run" / "config.yaml", "--device=cpu", "--out", tmp_path / "again"]
    shutil.rmtree(tmp_path / "data")
    assert "which is not here; give --data" in refused(*config)


def test_data_that_moved_is_known_by_its_content(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path)
    shutil.copytree(place / "data", tmp_path / "moved")
    dcoder(
        "train-stage", "2", "--out", run, "--resume", "--device", "cpu", "--set=steps=6", "--data", tmp_path / "moved"
    )
    assert metrics(run)[-1]["step"] == 6
    now = yaml.safe_load((run / "config.yaml").read_text())
    assert now["data"] == str(tmp_path / "moved")
    with pytest.raises(UserError, match="holds other rows than when the run began; start another run"):
        records.check_resumed(now, {**now, "data_sha256": "other"})
    without = {key: value for key, value in now.items() if key != "data_sha256"}  # an earlier release's record
    records.check_resumed(without, now)
    with pytest.raises(UserError, match="--data 'x' cannot change on resuming"):
        records.check_resumed(without, {**now, "data": "x"})


@pytest.mark.slow
def test_processes_and_accumulation_may_change(place: Path, tmp_path: Path) -> None:
    """A step is the same rows on two processes and in other micro-batches: tokens and losses go on as in one run."""
    constant = ["--set=optimizer={schedule: constant, warmup_ratio: 0}"]  # else the rate depends on the steps to come
    run = tmp_path / "run"
    dcoder(*stage2(place, run, *constant))
    dcoder(*stage2(place, tmp_path / "whole", "--set=steps=8", *constant))
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "dcoder_cli",
            "train-stage", "2", "--out", str(run), "--resume", "--device", "cpu", "--set=steps=8", "--set=micro_batch=1",
        ],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = ([line for line in metrics(folder) if "loss" in line] for folder in (run, tmp_path / "whole"))
    assert [line["tokens"] for line in ours] == [line["tokens"] for line in theirs] == [128 * n for n in range(1, 9)]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)
    assert [start["processes"] for start in starts(run)] == [1, 2]


@pytest.mark.parametrize(
    ("parameters", "preset"),
    [(1, "cpu-tiny"), (1_300_000, "cpu-tiny"), (494e6, "gpu-24gb"), (1.54e9, "gpu-80gb"), (3.09e9, "gpu-80gb"), (7.6e9, "8x80gb"), (32e9, "8x80gb")],
)  # fmt: skip
def test_the_preset_without_a_name_is_that_of_the_nearest_model(parameters: float, preset: str) -> None:
    assert launch.nearest_preset(int(parameters)) == preset


def test_the_models_of_the_presets_have_the_sizes_that_are_compared() -> None:
    """Embedding, attention with its biases, MLP and norms of every layer, counted from the shapes."""
    for preset, (name, parameters) in launch.MODELS.items():
        size = SIZES[name.lower()]
        key_values = size.hidden // size.heads * size.kv_heads
        attention = 2 * size.hidden * (size.hidden + key_values) + size.hidden + 2 * key_values
        layer = attention + 3 * size.hidden * size.intermediate + 2 * size.hidden
        rows = (size.vocab_size or 1536) * (1 if size.tied else 2)
        assert rows * size.hidden + size.layers * layer + size.hidden == pytest.approx(parameters, rel=0.01)
        assert preset == "cpu-tiny" or name in presets.text(preset).splitlines()[0]


def test_a_model_trains_at_the_learning_rate_of_its_size(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcoder_cli.model import inspection

    asked = {
        "model": str(place / "model"),
        "data": str(place / "data"),
        "config": None,
        "settings": [],
        "resume": False,
    }
    options = launch.LaunchOptions(tmp_path / "x", preset=None, track=None, run_name=None, **asked)  # type: ignore[arg-type]
    small = launch.resolve(1, "train-stage 1", options)
    assert small.settings["optimizer"]["learning_rate"] == 3e-3
    monkeypatch.setattr(inspection, "count_parameters", lambda folder: (494_000_000, ["F32"]))
    found = launch.resolve(1, "train-stage 1", options)
    assert (found.settings["optimizer"]["learning_rate"], found.settings["precision"]) == (2e-5, "bf16")
    assert launch.resolve(4, "grpo", options).settings["optimizer"]["learning_rate"] == 1e-6
    assert found.preset is not None and found.preset.name == "gpu-24gb" and found.preset.note is not None
    assert "gpu-24gb, whose model (Qwen2.5-Coder-0.5B) is nearest in size" in found.preset.note
    assert "(494M parameters)" in found.preset.note


@pytest.mark.slow
def test_the_choice_is_told_once_the_run_begins(place: Path, tmp_path: Path) -> None:
    """And not before an input is refused, whose line would not be the only one."""
    told = dcoder(*stage2(place, tmp_path / "run")).stderr.splitlines()
    assert told[0].startswith("no --preset: the settings of cpu-tiny, whose model (tiny) is nearest in size to ")
    named = dcoder(*stage2(place, tmp_path / "named", "--preset", "cpu-tiny")).stderr
    assert "no --preset" not in named
    resumed = dcoder(
        "train-stage", "2", "--out", tmp_path / "run", "--resume", "--device", "cpu", "--set=steps=5"
    ).stderr
    assert "no --preset" not in resumed
    base = ["train-stage", "3", "--model", place / "model", "--data", place / "data"]
    assert "kind 'pretrain'" in refused(*base, "--out", tmp_path / "x")


def test_settings_are_checked_before_the_model_is_looked_for(tmp_path: Path) -> None:
    """It may be a download. `lora` alone is wrong on all presets but cpu-tiny, so it waits for the model's size."""
    base = ["--model", tmp_path / "gone", "--data", tmp_path, "--out", tmp_path / "x"]
    assert "did you mean 'optimizer.learning_rate'" in refused("train-stage", "2", *base, "--set=learning_rat=1")
    assert "estimator 'couple' is unknown" in refused("grpo", *base, "--estimator", "couple")
    assert "NAME=WEIGHT" in refused("grpo", *base, "--reward", "code=much")
    assert "no folder here" in refused("grpo", *base, "--set=lora={rank: 2}")


def test_stage_1_does_not_end_half_causal(place: Path, tmp_path: Path) -> None:
    base = ["train-stage", "1", "--model", place / "model", "--data", place / "data", "--device", "cpu"]
    line = refused(*base, "--preset", "gpu-24gb", "--set=steps=30", "--out", tmp_path / "x")
    assert "anneal_steps = 10000 is more than this run's 30 steps" in line and "--set anneal_steps=3 " in line
    assert not (tmp_path / "x").exists()
    StageConfig(anneal_steps=30).check_annealing(30)  # its last step attends in full
    dcoder(*base, *SETS, "--set=anneal_steps=4", "--out", tmp_path / "run")
    line = refused(*stage2(place, tmp_path / "two", "--set=anneal_steps=9"))
    assert "--set anneal_steps=9 has no effect: attention opens in stage 1 alone" in line


@pytest.mark.parametrize("device", ["cuda:97", "nosuch", "cuda:x", "mps:9"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, device: str
) -> None:
    """It had been ignored: the run went to whatever Accelerate chose."""
    out = tmp_path / "run"
    line = refused(
        "train-stage", "2", "--model", place / "model", "--data", place / "data", "--out", out, "--device", device
    )
    assert f"device '{device}' is not available here" in line and not out.exists()


def test_a_device_that_the_launcher_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dcoder_cli.training import setup

    monkeypatch.setattr(setup, "choose_device", torch.device)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(UserError, match=r"--device mps, but Accelerate's configuration gives cpu"):
        setup.make_accelerator("fp32", "mps", None, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"--device cuda:1 is one device, and each process has its own; give cuda"):
        setup.make_accelerator("fp32", "cuda:1", None, tmp_path)

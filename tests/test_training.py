"""Training as its user meets it: real runs of a tiny model, killed, resumed, spread over processes, refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.training.config import OptimizerConfig, StageConfig
from dcoder_cli.training.denoise import train
from dcoder_cli.training.optimizers import learning_rate

SMALL = {
    "precision": "fp32",
    "global_batch": 8,
    "micro_batch": 4,
    "steps": 24,
    "evaluate_every": 8,
    "checkpoint_every": 5,
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 3},
}
SETS = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    tokenizer = make_tokenizer()
    make_model(folder / "ar", ar=True, tokenizer=tokenizer)
    make_model(folder / "diffusion", tokenizer=tokenizer)
    make_shards(folder / "pretrain", tokenizer)
    make_shards(folder / "sft", load(folder / "diffusion").tokenizer, "sft")
    return folder


def run(place: Path, stage: int, out: str | Path, resume: bool = False, **changes: object):
    config = build(StageConfig, SMALL, changes)
    model = place / ("ar" if stage == 0 else "diffusion")
    return train(stage, str(model), str(place / ("sft" if stage == 3 else "pretrain")), str(out), config, resume)


def metrics(folder: Path) -> str:
    return (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_learns_and_its_checkpoint_loads(place: Path, tmp_path: Path, stage: int) -> None:
    result = run(
        place,
        stage,
        tmp_path / "run",
        steps=60,
        anneal_steps=20,
        truncate_share=0.1,
        clean_prefix_share=0.1,
        conditional_phase_in=1.0,
    )
    lines = [json.loads(line) for line in metrics(tmp_path / "run").splitlines()]
    evaluations = [line["heldout"]["loss"] for line in lines if "heldout" in line]
    assert evaluations[-1] < 0.8 * evaluations[0]
    model = load(result.checkpoint)
    assert model.is_diffusion == (stage > 0)
    assert model.config["dcoder"]["stage"] == ("ar", "adapt", "mid", "sft")[stage]
    assert (tmp_path / "run" / "checkpoints" / "last").resolve() == result.checkpoint.resolve()


def test_the_same_run_twice_is_the_same_to_the_bit(place: Path, tmp_path: Path) -> None:
    run(place, 2, tmp_path / "one")
    run(place, 2, tmp_path / "two")
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    run(place, 2, tmp_path / "other", seed=1)
    assert metrics(tmp_path / "one") != metrics(tmp_path / "other")


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_kill_9_and_resume_gives_the_undisturbed_metrics(place: Path, tmp_path: Path, stage: int) -> None:
    model, data = place / "diffusion", place / ("sft" if stage == 3 else "pretrain")
    own = "--set=anneal_steps=12" if stage == 1 else "--set=conditional_phase_in=2"
    extra = [own, "--set=steps=60", "--set=truncate_share=0.3"]
    common = ["train-stage", str(stage), "--model", model, "--data", data, "--device", "cpu", *SETS, *extra]
    dcoder(*common, "--out", tmp_path / "whole")
    killed = subprocess.Popen(
        [sys.executable, "-m", "dcoder_cli", *map(str, common), "--out", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.time() + 120
    while not (file.is_file() and '"step": 12,' in file.read_text()):
        assert killed.poll() is None and time.time() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert metrics(tmp_path / "killed") != metrics(tmp_path / "whole"), "the kill came too late to prove anything"
    dcoder("train-stage", str(stage), "--out", tmp_path / "killed", "--resume", "--device", "cpu")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    ours, theirs = (load(tmp_path / name / "checkpoints" / "last").network.state_dict() for name in ("killed", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_ctrl_c_leaves_a_resumable_run(place: Path, tmp_path: Path) -> None:
    common = [
        "train-stage",
        "2",
        "--model",
        place / "diffusion",
        "--data",
        place / "pretrain",
        "--device",
        "cpu",
        *SETS,
    ]
    long = [sys.executable, "-m", "dcoder_cli", *map(str, common), "--set=steps=5000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    file = tmp_path / "run" / "metrics.jsonl"
    while not (file.is_file() and '"step": 7,' in file.read_text()):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in stderr.strip().splitlines()[-1] and "Traceback" not in stderr
    stopped = json.loads(metrics(tmp_path / "run").splitlines()[-1])["step"]
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == f"step-{stopped}", (
        "the step it stopped at is kept"
    )
    end = stopped + 3
    dcoder("train-stage", "2", "--out", tmp_path / "run", "--resume", "--device", "cpu", f"--set=steps={end}")
    steps = [line["step"] for line in map(json.loads, metrics(tmp_path / "run").splitlines()) if "loss" in line]
    assert steps == list(range(1, end + 1))


@pytest.mark.slow  # test_nproc.py and test_sharded.py stand for it in the default suite
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_give_the_losses_of_one(place: Path, tmp_path: Path, launcher: str) -> None:
    common = [
        "train-stage",
        "1",
        "--model",
        place / "diffusion",
        "--data",
        place / "pretrain",
        *SETS,
        "--set=anneal_steps=10",
    ]
    dcoder(*common, "--device", "cpu", "--out", tmp_path / "one")
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if launcher == "accelerate":  # without --multi_gpu it starts CPU processes through MPI only
        launch = [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
        ]
        launch += ["--num_processes", "2", "--main_process_port", "29534"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *launch,
            "-m",
            "dcoder_cli",
            *map(str, common),
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = ([json.loads(line) for line in metrics(tmp_path / name).splitlines()] for name in ("one", "two"))
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["starts"][0]["processes"] == 2
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        if "loss" in ours:
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4), ours["step"]
        else:
            assert theirs["heldout"]["loss"] == pytest.approx(ours["heldout"]["loss"], rel=1e-4)


def assert_same_losses(one: Path, two: Path, rel: float) -> None:
    """The training losses of two run folders, line by line."""
    for ours, theirs in zip(metrics(one).splitlines(), metrics(two).splitlines(), strict=True):
        first, second = json.loads(ours), json.loads(theirs)
        if "loss" in first:
            assert second["loss"] == pytest.approx(first["loss"], rel=rel)


def test_accumulation_does_not_change_the_losses(place: Path, tmp_path: Path) -> None:
    run(place, 3, tmp_path / "whole", micro_batch=8, normalizer="answer")
    run(place, 3, tmp_path / "parts", micro_batch=3, normalizer="answer")
    assert_same_losses(tmp_path / "whole", tmp_path / "parts", rel=1e-4)


def test_activation_checkpointing_changes_nothing(place: Path, tmp_path: Path) -> None:
    run(place, 2, tmp_path / "plain", steps=6)
    run(place, 2, tmp_path / "checkpointed", steps=6, activation_checkpointing=True)
    assert_same_losses(tmp_path / "plain", tmp_path / "checkpointed", rel=1e-6)


def test_training_stops_at_an_equal_loss(place: Path, tmp_path: Path) -> None:
    """At the first look at or below it: the second of three. Stopped and resumed, the same."""
    free = run(place, 1, tmp_path / "free")
    looks = [
        row["heldout"]["loss"] for row in map(json.loads, metrics(tmp_path / "free").splitlines()) if "heldout" in row
    ]
    assert looks[0] > looks[1] > looks[2] == free.heldout["loss"]
    stopped = run(place, 1, tmp_path / "stopped", stop_at_loss=looks[1])
    assert (stopped.steps, stopped.stopped, stopped.heldout["loss"]) == (16, "reached", looks[1])
    assert stopped.checkpoint.name == "step-16" and load(stopped.checkpoint).is_diffusion
    never = run(place, 1, tmp_path / "never", stop_at_loss=looks[2] / 2)
    assert (never.steps, never.stopped) == (24, None), "no more than the steps"
    with pytest.raises(UserError, match="stop_at_loss = -1 must be above 0"):
        StageConfig(stop_at_loss=-1)
    bare = tmp_path / "bare"
    shutil.copytree(place / "pretrain", bare)
    manifest = json.loads((bare / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["split"] == "train"]
    (bare / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"stop_at_loss = 1\.0 needs held-out rows"):
        train(
            1,
            str(place / "diffusion"),
            str(bare),
            str(tmp_path / "x"),
            build(StageConfig, SMALL, {"stop_at_loss": 1.0}),
        )
    assert not (tmp_path / "x").exists()


def test_early_stopping_and_pruning(place: Path, tmp_path: Path) -> None:
    result = run(
        place,
        2,
        tmp_path / "run",
        steps=200,
        evaluate_every=2,
        early_stopping=2,
        checkpoint_every=2,
        optimizer={"learning_rate": 0.5, "warmup_steps": 0},
    )
    assert result.stopped == "early" and result.steps < 200
    folders = [path for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert len(folders) <= 3
    assert (tmp_path / "run" / "checkpoints" / "best").resolve() in [folder.resolve() for folder in folders]


def test_learning_rate_warms_up_and_ends_at_the_floor() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, floor=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0) and all(a >= b for a, b in itertools.pairwise(rates[10:]))
    middle = 10 + (99 - 10) // 2
    assert rates[middle] == pytest.approx(0.55, abs=0.01)  # half way down the cosine: floor + (1 - floor) / 2
    constant = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1, schedule="constant")
    assert learning_rate(constant, 99, 100) == 1.0 and learning_rate(constant, 0, 100) == pytest.approx(0.1)


def test_the_pad_row_of_the_embedding_trains(place: Path, tmp_path: Path) -> None:
    before = load(place / "diffusion")
    pad = before.ids.pad
    assert pad is not None
    shards = make_shards(tmp_path / "sft", before.tokenizer, "sft")
    from safetensors.numpy import load_file

    file = shards / "train-00000.safetensors"
    arrays = {key: value.copy() for key, value in load_file(file).items()}
    arrays["tokens"][:, -8:] = pad
    from dcoder_cli.data.arrays import write_arrays

    write_arrays(file, arrays, {})
    config = build(StageConfig, SMALL, {"steps": 3, "optimizer": {"weight_decay": 0.0}, "check_data": False})
    result = train(3, str(place / "diffusion"), str(shards), str(tmp_path / "run"), config)
    after = load(result.checkpoint)
    row = "model.embed_tokens.weight"
    assert not torch.equal(before.network.state_dict()[row][pad], after.network.state_dict()[row][pad])


def test_bad_input_is_one_line_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    base = ["train-stage", "1", "--device", "cpu", "--out", tmp_path / "run"]
    model, data = ["--model", place / "diffusion"], ["--data", place / "pretrain"]
    assert "no folder here" in refused(*base, "--model", tmp_path / "nothing", *data)
    assert "needs --data" in refused(*base, *model)
    assert "kind 'sft'" in refused(*base, *model, "--data", place / "sft")
    assert "kind 'pretrain'" in refused("train-stage", "3", "--out", tmp_path / "run", *model, *data)
    assert "convert it first" in refused(*base, "--model", place / "ar", *data)
    assert "'optimizer.learning_rate'" in refused(*base, *model, *data, "--set", "optimiser.learning_rate=1")
    assert "learning_rate" in refused(*base, *model, *data, "--set", "learning_rat=1")
    assert "unknown preset" in refused(*base, *model, *data, "--preset", "gpu-25gb")
    assert "nothing to resume" in refused(*base, "--resume")
    assert "global_batch" in refused(*base, *model, *data, "--set", "global_batch=0")
    assert not (tmp_path / "run").exists()


def test_a_shard_from_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    other = make_shards(tmp_path / "other", make_tokenizer(280))
    line = refused("train-stage", "1", "--model", place / "diffusion", "--data", other, "--out", tmp_path / "run")
    assert "another tokenizer" in line and not (tmp_path / "run").exists()


def test_rows_longer_than_the_context_are_refused(place: Path, tmp_path: Path) -> None:
    long = make_shards(tmp_path / "long", make_tokenizer(), length=256)
    line = refused("train-stage", "1", "--model", place / "diffusion", "--data", long, "--out", tmp_path / "run")
    assert "256" in line and "128" in line


def test_truncated_files_are_refused(place: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    with open(model / "model.safetensors", "r+b") as handle:
        handle.truncate(1000)
    line = refused("train-stage", "1", "--model", model, "--data", place / "pretrain", "--out", tmp_path / "run")
    assert "model.safetensors" in line and "truncated" in line
    shards = make_shards(tmp_path / "shards", make_tokenizer())
    with open(shards / "train-00000.safetensors", "r+b") as handle:
        handle.truncate(500)
    line = refused("train-stage", "1", "--model", place / "diffusion", "--data", shards, "--out", tmp_path / "run")
    assert "train-00000.safetensors" in line and "truncated" in line


def test_a_full_disk_is_found_before_the_first_step(place: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a tmpfs needs root")
    try:
        line = refused(
            "train-stage",
            "2",
            "--model",
            place / "diffusion",
            "--data",
            place / "pretrain",
            "--device",
            "cpu",
            *SETS,
            "--out",
            small / "run",
        )
        assert "no space left" in line
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_unknown_values_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"weighting.*elbo"):
        build(StageConfig, {"weighting": "elb"})
    with pytest.raises(UserError, match="whole number"):
        build(StageConfig, {"steps": "many"})

"""FSDP2 in all stages, on gloo processes: the numbers of one process, checkpoints that any number of processes goes on from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_runs import make_place
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused
from safetensors.torch import load_file
from sharded_runs import FSDP, command, env, launched

from dcoder_cli import load
from dcoder_cli.model import storing

SETS = [
    "--set=precision=fp32", "--set=global_batch=12", "--set=micro_batch=2", "--set=steps=8", "--set=evaluate_every=4",
    "--set=checkpoint_every=4", "--set=optimizer.learning_rate=0.01", "--set=optimizer.warmup_steps=3", "--device=cpu",
    "--set=optimizer.warmup_ratio=null",
]  # fmt: skip
# The order is left to right: that of a random model's near equal entropies would move with the last bits of a gradient.
GRPO = [
    "--set=steps=4", "--set=group_size=4", "--set=micro_batch=3", "--set=rollout.max_new_tokens=8",
    "--set=checkpoint_every=2", "--set=optimizer.learning_rate=3e-4", "--set=optimizer.warmup_steps=0",
    "--set=reference_sync=3", "--set=inner_iterations=2", "--set=rollout.mode=exact", "--set=rollout.rule=left-to-right",
    "--set=train_embeddings=true", "--device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    tokenizer = make_tokenizer()
    make_model(folder / "ar", ar=True, tokenizer=tokenizer)
    make_model(folder / "diffusion", tokenizer=tokenizer)
    make_model(folder / "untied", tokenizer=tokenizer, tie_word_embeddings=False)
    make_shards(folder / "pretrain", tokenizer)
    make_shards(folder / "sft", load(folder / "diffusion").tokenizer, "sft")
    make_place(folder)
    (folder / "reward.py").write_text(
        "def vowels(prompt, text):\n    return sum(c in 'aeiou' for c in text) / 8\n"
        "def of_one(prompt, text):\n    return vowels(prompt, text) if prompt['task_id'] == 't3' else 0.5\n"
        "def dies(prompt, text):\n"
        "    import os, pathlib, time\n"
        "    run = pathlib.Path(os.environ.get('DIES_IN', '/nowhere'))\n"
        "    if os.environ.get('RANK') == '1' and (run / 'checkpoints' / 'step-2').exists():\n"
        "        while not (run / 'rollouts' / 'step-2-1-of-2.jsonl').exists():\n"
        "            time.sleep(0.01)\n"
        "        os._exit(1)\n"
        "    return vowels(prompt, text)\n"
    )
    return folder


def stage(place: Path, number: int, out: Path, model: str = "", *more: str) -> list[str | Path]:
    data = place / ("sft" if number == 3 else "pretrain")
    name = model or ("ar" if number == 0 else "diffusion")
    extra = ["--set=anneal_steps=4"] if number == 1 else []
    return ["train-stage", str(number), "--model", place / name, "--data", data, "--out", out, *SETS, *extra, *more]


def grpo(place: Path, out: Path, *more: str) -> list[str | Path]:
    return ["grpo", "--model", place / "model", "--data", place / "data", "--out", out, *GRPO, *more]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path, rel: float = 1e-4) -> None:
    ours, theirs = lines(one), lines(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, again in zip(ours, theirs, strict=True):
        for name, value in line.items():
            if name == "heldout":
                for key, number in value.items():
                    if isinstance(number, float):
                        assert again["heldout"][key] == pytest.approx(number, rel=rel), (line["step"], key)
            else:
                # Over the steps a loss of GRPO is near 0, and its parts are not.
                assert again[name] == pytest.approx(value, rel=rel, abs=1e-6), (line["step"], name)


def back(run: Path, to: Path, step: int) -> Path:
    """A copy of a run as it was when the checkpoint of `step` was its last."""
    shutil.copytree(run, to, symlinks=True)
    for folder in (to / "checkpoints").iterdir():
        if folder.is_symlink() or int(folder.name.split("-")[1]) > step:
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    os.symlink(f"step-{step}", to / "checkpoints" / "last")
    return to


def resumed(command: Sequence[str | Path], out: Path) -> list[str | Path]:
    return [*command[: 2 if command[0] == "train-stage" else 1], "--out", out, "--resume", "--device=cpu"]


def test_two_processes_train_as_one_and_one_goes_on_where_they_stopped(place: Path, tmp_path: Path) -> None:
    """Stage 1, a tied head: losses and norms to 1e-4, the checkpoint's files, and on from its middle on one process."""
    dcoder(*stage(place, 1, tmp_path / "one"))
    asked = stage(place, 1, tmp_path / "two")
    launched(2, asked)
    assert_same(tmp_path / "one", tmp_path / "two")
    ours, theirs = (tmp_path / name / "checkpoints" / "step-4" for name in ("one", "two"))
    assert {file.name for file in theirs.iterdir()} == {file.name for file in ours.iterdir()}
    one, two = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert one.keys() == two.keys() and "lm_head.weight" not in two  # tied, stored once
    assert all(torch.allclose(one[key], two[key], rtol=1e-4, atol=1e-5) for key in one)
    assert not any(torch.equal(load_file(place / "diffusion" / "model.safetensors")[key], two[key]) for key in two)
    assert (theirs / "config.json").read_bytes() == (ours / "config.json").read_bytes()
    dcoder(*resumed(asked, back(tmp_path / "two", tmp_path / "on", 4)))
    assert_same(tmp_path / "one", tmp_path / "on")
    parts = back(tmp_path / "two", tmp_path / "cut", 4) / "checkpoints" / "step-4" / "training" / "optimizer"
    os.truncate(parts / "__1_0.distcp", 100)
    assert "__1_0.distcp' is truncated or was changed" in refused(*resumed(asked, tmp_path / "cut"))
    (parts / ".metadata").unlink()
    assert ".metadata' cannot be read: No such file" in refused(*resumed(asked, tmp_path / "cut"))


def test_stage_4_on_two_processes_is_that_on_one(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a KL term, a reference that moves, two updates a rollout: the same rollouts, metrics to 1e-4, on from the middle.

    Also from where the second process died while it scored: it decodes again, and the first has kept what it sampled.
    """
    monkeypatch.setenv("PYTHONPATH", str(place))
    more = ["--set=prompts_per_step=6", "--set=kl_coef=0.01", "--reward=reward:dies=1", "--set=samples_every=1"]
    dcoder(*grpo(place, tmp_path / "one", *more))
    asked = grpo(place, tmp_path / "two", *more)
    launched(2, asked)
    assert_same(tmp_path / "one", tmp_path / "two")
    for number in range(1, 5):  # the first process keeps its own half
        ours, theirs = ((tmp_path / name / "samples" / f"step-{number}.jsonl").read_text() for name in ("one", "two"))
        assert theirs and ours.startswith(theirs)
    dcoder(*resumed(asked, back(tmp_path / "two", tmp_path / "on", 2)))
    assert_same(tmp_path / "one", tmp_path / "on")
    cut = tmp_path / "cut"
    assert launched(2, grpo(place, cut, *more), check=False, DIES_IN=str(cut)).returncode
    assert [file.name for file in (cut / "rollouts").iterdir()] == ["step-2-1-of-2.jsonl"]
    launched(2, resumed(asked, cut))
    assert_same(tmp_path / "one", cut)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "model"), [(0, "ar"), (2, "untied"), (3, "diffusion"), (1, "untied")])
def test_every_stage_and_every_number_of_processes(place: Path, tmp_path: Path, number: int, model: str) -> None:
    dcoder(*stage(place, number, tmp_path / "one", model))
    asked = stage(place, number, tmp_path / "two", model)
    launched(2, asked)
    assert_same(tmp_path / "one", tmp_path / "two")
    launched(3, resumed(asked, back(tmp_path / "two", tmp_path / "three", 4)))
    assert_same(tmp_path / "one", tmp_path / "three")
    launched(2, resumed(asked, back(tmp_path / "one", tmp_path / "from-one", 4)))
    assert_same(tmp_path / "one", tmp_path / "from-one")
    if number == 2:
        launched(4, stage(place, number, tmp_path / "four", model))
        assert_same(tmp_path / "one", tmp_path / "four")
        launched(2, resumed(asked, back(tmp_path / "two", tmp_path / "ddp", 4)), fsdp=False)
        assert_same(tmp_path / "one", tmp_path / "ddp")
        launched(2, stage(place, number, tmp_path / "saving", model, "--set=activation_checkpointing=true"))
        assert_same(tmp_path / "one", tmp_path / "saving")


@pytest.mark.slow
@pytest.mark.parametrize("kl", [0.0, 0.01])
def test_a_process_with_nothing_to_teach_keeps_step(
    place: Path, tmp_path: Path, kl: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one prompt's group differs in reward: without a KL term the other processes have nothing to learn from."""
    monkeypatch.setenv("PYTHONPATH", str(place))
    more = ["--set=prompts_per_step=6", f"--set=kl_coef={kl}", "--reward=reward:of_one=1", "--set=rollout.mode=fast"]

    def command(out: Path) -> list[str | Path]:
        return [part for part in grpo(place, out, *more) if kl or part != "--set=reference_sync=3"]

    dcoder(*command(tmp_path / "one"))
    asked = command(tmp_path / "two")
    launched(2, asked)
    assert_same(tmp_path / "one", tmp_path / "two")
    launched(3, resumed(asked, back(tmp_path / "two", tmp_path / "three", 2)))
    assert_same(tmp_path / "one", tmp_path / "three")
    launched(2, resumed(asked, back(tmp_path / "one", tmp_path / "from-one", 2)))
    assert_same(tmp_path / "one", tmp_path / "from-one")
    launched(2, command(tmp_path / "ddp"), fsdp=False)
    assert_same(tmp_path / "one", tmp_path / "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_lora_on_two_processes_is_that_on_one(
    place: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters on sharded frozen weights; in stage 4 the reference is the policy with its adapter off."""
    monkeypatch.setenv("PYTHONPATH", str(place))
    dcoder(*stage(place, 3, tmp_path / "tuned"))

    def asked(out: Path) -> list[str | Path]:
        if number == 2:
            return stage(place, 2, out, str(tmp_path / "tuned" / "checkpoints" / "last"), "--set=lora.rank=4")
        command = grpo(place, out, "--set=prompts_per_step=6", "--set=kl_coef=0.01", "--reward=reward:vowels=1")
        command[2] = tmp_path / "tuned" / "checkpoints" / "last"
        return [*command, "--set=lora.rank=4", "--set=reference_sync=0"]

    dcoder(*asked(tmp_path / "one"))
    launched(2, asked(tmp_path / "two"))
    assert_same(tmp_path / "one", tmp_path / "two")
    launched(3, resumed(asked(tmp_path / "two"), back(tmp_path / "two", tmp_path / "three", 4 if number == 2 else 2)))
    assert_same(tmp_path / "one", tmp_path / "three")
    last = [tmp_path / name / "checkpoints" / "last" for name in ("one", "two", "three")]
    one, *others = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in last)
    for other in others:
        assert all(torch.allclose(one[key], other[key], rtol=1e-3, atol=1e-5) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_ends_all_and_the_run_goes_on_exactly(
    place: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """kill -9 of one of two: the other ends within seconds, and resuming gives the numbers of a run that was not hit."""
    launched(2, stage(place, 2, tmp_path / "one", "", "--set=steps=60", "--set=checkpoint_every=5"))
    asked = stage(place, 2, tmp_path / "two", "", "--set=steps=60", "--set=checkpoint_every=5")
    process = subprocess.Popen(command(2, asked), env=env(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "two" / "checkpoints" / "step-10").is_dir():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        workers = [pid for pid in _descendants(process.pid) if "dcoder_cli" in _command_of(pid)]
        os.kill(sorted(workers)[-1], how)
        began = time.monotonic()
        process.communicate(timeout=90)
        assert process.returncode != 0 and time.monotonic() - began < 45
    finally:
        process.kill()
    launched(2, resumed(asked, tmp_path / "two"))
    assert (tmp_path / "two" / "metrics.jsonl").read_bytes() == (tmp_path / "one" / "metrics.jsonl").read_bytes()
    assert not list((tmp_path / "two" / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_disk_that_fills_is_one_line_and_the_run_goes_on(place: Path, tmp_path: Path) -> None:
    """Full from the start, and filled while two processes train: exit 2, no traceback, nothing half-written left to trip on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=True)
    try:
        asked = ["--set=keep_checkpoints=1", "--set=checkpoint_every=2", "--set=evaluate_every=0"]
        small = dcoder(*stage(place, 2, disk / "run", "", *asked), "--nproc=2", check=False, env=env())
        assert small.returncode == 2 and " free and needs " in small.stderr, small.stderr
        assert small.stderr.count("error: ") == 1 and "Traceback" not in small.stderr, small.stderr
        subprocess.run(["mount", "-o", "remount,size=6m", str(disk)], check=True)
        shutil.rmtree(disk / "run", ignore_errors=True)
        more = stage(place, 2, disk / "run", "", *asked, "--set=steps=2000", "--nproc=2")
        again = [sys.executable, "-m", "dcoder_cli", *map(str, more)]
        process = subprocess.Popen(again, env=env(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while not (disk / "run" / "checkpoints" / "step-4").is_dir():
            assert process.poll() is None
            time.sleep(0.01)
        with open(disk / "fill", "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
        _, told = process.communicate(timeout=90)
        assert process.returncode and "no space left" in told, told[-3000:]
        assert "Traceback" not in told and told.count("error: ") == 1, told[-3000:]
        (disk / "fill").unlink()
        launched(2, [*resumed(stage(place, 2, disk / "run"), disk / "run"), "--set=steps=400"])
    finally:
        subprocess.run(["umount", "-l", str(disk)])


def _descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry.name), *_descendants(int(entry.name))]
    return found


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.mark.slow
def test_bfloat16_computes_low_and_keeps_high(place: Path, tmp_path: Path) -> None:
    """Weights are float32 between steps, and a checkpoint's; losses are those of autocast on one process to 2%."""
    dcoder(*stage(place, 2, tmp_path / "one", "", "--set=precision=bf16"))
    launched(2, stage(place, 2, tmp_path / "two", "", "--set=precision=bf16"))
    losses = [[line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[1][0] == pytest.approx(losses[0][0], rel=2e-3)
    saved = load_file(tmp_path / "two" / "checkpoints" / "step-8" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in saved.values())


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version 1 is not supported"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    ],
)
def test_another_way_of_sharding_is_refused_at_once(
    place: Path, tmp_path: Path, environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert told in refused(*stage(place, 2, tmp_path / "out"))
    assert told in refused(
        *grpo(place, tmp_path / "out", "--set=prompts_per_step=2", "--set=kl_coef=0.1", "--reward=format=1")
    )
    assert not (tmp_path / "out").exists()


def test_weights_are_written_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five weights of 4 KB, with files of at most 9 KB: three files, and never more than two weights at hand."""
    monkeypatch.setattr(storing, "_SHARD_SIZE", 9000)
    weights = {f"w{number}": torch.full((1000,), float(number)) for number in range(5)}
    shapes = {name: torch.empty(1000, device="meta") for name in weights}
    asked: list[str] = []
    storing.write_weights(tmp_path, shapes, lambda name: asked.append(name) or weights[name], writes=False)
    assert asked == list(weights) and not list(tmp_path.iterdir())
    storing.write_weights(tmp_path, shapes, weights.__getitem__, writes=True)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 3 and all(file.stat().st_size < 9500 for file in files)
    assert index["metadata"]["total_size"] == 20_000 and set(index["weight_map"]) == set(weights)
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert all(torch.equal(found[name], weights[name]) for name in weights)

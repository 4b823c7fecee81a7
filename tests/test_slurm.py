"""The Slurm script of a preset's command: a shell reads it, it asks for the preset's nodes, and it goes on when run again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_model, make_shards, make_tokenizer, refused

from dcoder_cli.base import presets
from dcoder_cli.training.slurm import SlurmJob, script

GPU_PRESETS = [name for name in presets.names() if presets.load(name)["hardware"]["gpus"]]


def asked(text: str, key: str) -> str | None:
    found = re.search(rf"^#SBATCH --{key}=(.*)$", text, re.MULTILINE)
    return found.group(1) if found else None


@pytest.mark.parametrize("name", GPU_PRESETS)
def test_it_asks_for_what_the_preset_is_made_for(name: str) -> None:
    hardware, seen = presets.hardware(name), 0
    for stage, section in (("adapt", "stage1"), ("2", "stage2"), ("sft", "stage3"), ("grpo", "grpo"), ("eval", "eval")):
        if section not in presets.load(name) and section != "eval":
            continue
        text = script(SlurmJob(name, stage, {}, time="01:00:00", account="mine"))
        assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
        assert asked(text, "nodes") == str(hardware.machines_for(section))
        gpus = int(asked(text, "gpus-per-node") or 0) * int(asked(text, "nodes") or 0)
        assert gpus == hardware.gpus_for(section)
        assert (asked(text, "time"), asked(text, "account"), asked(text, "partition")) == ("01:00:00", "mine", None)
        if gpus > 1 and section != "eval":
            assert f"--num_processes {gpus} " in text
        seen += 1
    assert seen >= 2


def test_what_cannot_be_is_one_line() -> None:
    assert "is for a CPU" in refused("presets", "slurm", "cpu-tiny", "--stage", "sft")
    assert "it has adapt, mid, sft, grpo, eval" in refused("presets", "slurm", "8x80gb", "--stage", "ar")
    assert "unknown preset" in refused("presets", "slurm", "9x80gb", "--stage", "ar")
    assert "--data 'x' is no option" in refused("presets", "slurm", "8x80gb", "--stage", "eval", "--data", "x")


def _stand_ins(folder: Path) -> dict[str, str]:
    """srun and scontrol of one node, as executables; dcoder and accelerate of this environment."""
    folder.mkdir()
    for name, text in {
        "srun": 'SLURM_NODEID=0 exec "$@"', "scontrol": "echo 127.0.0.1",
        "dcoder": f'exec {sys.executable} -m dcoder_cli "$@"',
        "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
    }.items():  # fmt: skip
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "1",
            "SLURM_JOB_NODELIST": "n1", "OMP_NUM_THREADS": "1"}  # fmt: skip


def _ready(place: Path) -> None:
    tokenizer = make_tokenizer()
    make_model(place / "start", tokenizer=tokenizer)
    make_shards(place / "data" / "code", tokenizer)


TOY = (
    " --set steps=2 --set anneal_steps=1 --set global_batch=8 --set micro_batch=2 --set optimizer.warmup_steps=1"
    " --set checkpoint_every=1 --device cpu"
)


def _run(place: Path, text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (place / "job.sh").write_text(text)
    return subprocess.run(
        ["bash", "job.sh"], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip


def _steps(place: Path) -> list[int]:
    rows = map(json.loads, (place / "runs/adapt/metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "loss" in row]


def test_submitted_again_it_goes_on(tmp_path: Path) -> None:
    """On one GPU's script, run by a shell at toy size."""
    _ready(tmp_path)
    text = script(SlurmJob("gpu-24gb", "adapt", {})).replace("--out runs/adapt)", f"--out runs/adapt{TOY})")
    environment = _stand_ins(tmp_path / "bin")
    done = _run(tmp_path, text, environment)
    assert done.returncode == 0, done.stderr
    again = text.replace("--resume)", "--resume --set steps=4 --device cpu)")
    done = _run(tmp_path, again, environment)
    assert done.returncode == 0, done.stderr
    assert _steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_sharded_job_runs_as_it_is_printed(tmp_path: Path) -> None:
    """8x80gb's, with two processes in place of eight and a toy model; again it goes on."""
    _ready(tmp_path)
    text = script(SlurmJob("8x80gb", "adapt", {}))
    text = text.replace("--out runs/adapt)", f"--out runs/adapt{TOY})").replace(
        "--num_processes 8", "--num_processes 2"
    )
    environment = _stand_ins(tmp_path / "bin")
    for steps in (2, 4):
        done = _run(tmp_path, text.replace("--resume)", f"--resume --set steps={steps} --device cpu)"), environment)
        assert done.returncode == 0, done.stderr
    assert _steps(tmp_path) == [1, 2, 3, 4]
    starts = json.loads((tmp_path / "runs/adapt/environment.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2, 2]
    assert (tmp_path / "runs/adapt/checkpoints/last/training/optimizer").is_dir()  # in parts: it was sharded

"""LoRA on a model that FSDP2 shards over 2 and 3 processes (gloo) beside one process: losses, reference, checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lora_sharded
import pytest
import torch
from helpers import make_model

from dcoder_cli import load
from dcoder_cli.model import adapters
from dcoder_cli.model.layouts import LAYOUTS

STEPS = 6


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-4), ("bfloat16", 5e-3)])
def test_begun_on_2_processes_and_ended_on_3_or_1_it_is_the_run_of_one(tmp_path: Path, dtype: str, near: float) -> None:
    """The frozen weights and the adapters lie in one FSDP group in two formats: only those that train need to be alike."""
    make_model(tmp_path / "float32", initializer_range=0.2)
    load(tmp_path / "float32").to(torch.bfloat16).save(tmp_path / "model", stage="mid")

    def sharded(processes: int, out: Path, first: int, last: int) -> list[tuple[float, ...]]:
        arguments = [tmp_path / "model", out, dtype, first, last]
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", processes, lora_sharded.__file__]
        command = [sys.executable, "-m", *map(str, [*launch, *arguments])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr[:4000]
        return [tuple(map(float, line.split())) for line in (out / f"losses-{last}.txt").read_text().splitlines()]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        (out / "checkpoints").mkdir(parents=True)
    expected = lora_sharded.run(tmp_path / "model", whole, dtype, 0, STEPS)
    assert expected[0][0] == expected[0][1] and expected[-1][0] < 0.95 * expected[0][0] == 0.95 * expected[-1][1]
    begun = sharded(2, parts, 0, 3)
    ended = sharded(3, parts, 3, STEPS)
    for found, wanted in zip([*begun, *ended], expected, strict=True):
        assert found == pytest.approx(wanted, rel=near)
    one = lora_sharded.run(tmp_path / "model", parts, dtype, 3, STEPS + 1)[:3]
    for found, wanted in zip(one, expected[3:], strict=True):
        assert found == pytest.approx(wanted, rel=near)
    states = [adapters.read(out / "checkpoints" / "step-6" / "adapter", LAYOUTS["Dream"])[0] for out in (parts, whole)]
    for key, value in states[1].items():
        assert value.shape == states[0][key].shape and value.abs().max() > 0
        if dtype == "float32":
            torch.testing.assert_close(states[0][key], value, rtol=1e-3, atol=1e-5)
    merged, base = load(parts / "checkpoints" / "step-6"), load(tmp_path / "model")
    for key, value in base.network.state_dict().items():
        assert torch.equal(merged.network.state_dict()[key], value) == ("_proj.weight" not in key), key

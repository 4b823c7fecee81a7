"""The memory formula against what real runs take, and against the simulated step of 7B on 8 and 80 GPUs.

`python tests/test_memory_measured.py` prints the tables of docs/sizes.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcoder_cli.base.config import build
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.memory.case import ROWS, Case, Decoding
from dcoder_cli.training.memory.parts import MemoryEstimate
from dcoder_cli.training.memory.shape import Shape, read_config, shape_of

HERE = Path(__file__).parent
MIB = 2**20
_BF16 = {"precision": "bf16", "global_batch": 8, "micro_batch": 4}
_FP32 = {**_BF16, "precision": "fp32"}
_GRPO = {
    "precision": "fp32", "prompts_per_step": 2, "group_size": 4, "micro_batch": 4, "kl_coef": 0.01, "reference_sync": 0,
    "rollout": {"max_new_tokens": 64, "steps": 4, "batch_size": 8},
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "8M, stage 1": {"kind": "train", "stage": 1, "shape": "8M", "length": 512, "config": _FP32},
    "8M, stage 1, checkpointing": {
        "kind": "train", "stage": 1, "shape": "8M", "length": 512, "config": {**_FP32, "activation_checkpointing": True},
    },
    "8M, stage 0 (causal)": {"kind": "train", "stage": 0, "shape": "8M", "length": 512, "config": _BF16},
    "8M, stage 3, LoRA": {
        "kind": "train", "stage": 3, "shape": "8M", "length": 512, "config": {**_BF16, "lora": {"rank": 8}, "conditional_phase_in": 1000},
    },
    "30M, stage 2, bf16": {"kind": "train", "stage": 2, "shape": "30M", "length": 256, "config": _BF16},
    "135M, stage 1, bf16, checkpointing": {
        "kind": "train", "stage": 1, "shape": "135M", "length": 512,
        "config": {**_BF16, "global_batch": 4, "activation_checkpointing": True},
    },
    "8M, grpo": {"kind": "grpo", "shape": "8M", "prompt": 60, "config": _GRPO},
    "30M, grpo, bf16, LoRA": {
        "kind": "grpo", "shape": "30M", "prompt": 60, "config": {**_GRPO, "precision": "bf16", "lora": {"rank": 8}},
    },
    "135M, generate": {
        "kind": "generate", "shape": "135M", "prompt": 32, "rows": 8,
        "config": {"max_new_tokens": 64, "steps": 2, "temperature": 0.2, "top_p": 0.95},
    },
    "30M, generate, fast": {
        "kind": "generate", "shape": "30M", "prompt": 64, "rows": 16, "config": {"max_new_tokens": 64, "mode": "fast", "threshold": 0.0},
    },
}  # fmt: skip


def measured(asked: dict[str, Any]) -> int:
    """Peak bytes of a run in a process of its own."""
    done = subprocess.run(
        [sys.executable, HERE / "memory_runs.py", json.dumps(asked)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(json.loads(done.stdout[done.stdout.index('{"peak"') :].split("}")[0] + "}")["peak"])


def estimated(asked: dict[str, Any]) -> MemoryEstimate:
    """The formula's answer for the same run."""
    from memory_runs import SHAPES

    config = {**read_config("tiny"), **SHAPES[asked["shape"]], "model_type": "Dream", "mask_token_id": 3}
    shape = shape_of(config, asked["shape"])
    prompt = asked.get("prompt", 0)
    rows = {"pretrain": asked.get("length", 0), "sft": asked.get("length", 0), "prompt": prompt, "question": prompt}
    if asked["kind"] == "train":
        stage = build(StageConfig, asked["config"])
        return Case(f"stage{asked['stage']}", shape, stage, rows=rows, cpu=True).estimate()
    if asked["kind"] == "grpo":
        return Case("grpo", shape, build(GrpoConfig, asked["config"]), rows=rows, cpu=True).estimate()
    known = {key: value for key, value in asked["config"].items() if key in ("max_new_tokens", "mode")}
    return Case("generate", shape, Decoding(batch_size=asked["rows"], **known), rows=rows, cpu=True).estimate()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNS))
def test_the_formula_against_a_real_run(name: str) -> None:
    """Within 15% of the allocator's peak."""
    found, said = measured(RUNS[name]), estimated(RUNS[name]).total
    assert said == pytest.approx(found, rel=0.15), (name, found / MIB, said / MIB)


# model, GPUs, rows of a micro-batch, their length, checkpointing
SIMULATED = [
    ("qwen2.5-coder-7b", 8, 4, 4096, True), ("qwen2.5-coder-7b", 8, 1, 4096, False),
    ("qwen2.5-coder-7b", 80, 2, 4096, True), ("qwen2.5-coder-0.5b", 8, 2, 1024, True),
]  # fmt: skip


def sharded(model: str, gpus: int, rows: int, length: int, checkpointing: bool) -> MemoryEstimate:
    """The formula's answer for what memory_simulation.py simulates: stage 2, two micro-batches, chunks of logits as on a CPU."""
    shape: Shape = shape_of(read_config(model), model)
    config = build(
        StageConfig, {"global_batch": 2 * rows * gpus, "micro_batch": rows, "activation_checkpointing": checkpointing}
    )
    return Case("stage2", shape, config, "fsdp", gpus, {**ROWS, "pretrain": length}, cpu=True).estimate()


def simulated(model: str, gpus: int, rows: int, length: int, checkpointing: bool) -> dict[str, Any]:
    """The simulation, in a process of its own: it makes a process group."""
    asked = {"model": model, "gpus": gpus, "rows": rows, "length": length, "checkpointing": checkpointing}
    done = subprocess.run(
        [sys.executable, HERE / "memory_simulation.py", json.dumps(asked)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("asked", SIMULATED, ids=str)
def test_the_formula_against_the_simulated_step(asked: tuple[str, int, int, int, bool]) -> None:
    """Within 10% of one FSDP2 step of the product's code on so many processes."""
    found, said = simulated(*asked), sharded(*asked)
    assert said.total == pytest.approx(found["total"], rel=0.10), (asked, found, said.phases)


if __name__ == "__main__":
    import time

    for name, asked in RUNS.items():
        if len(sys.argv) > 1 and sys.argv[1] not in name:
            continue
        began = time.perf_counter()
        found, estimate = measured(asked), estimated(asked)
        error = estimate.total / found - 1
        print(
            f"| {name} | {found / MIB:,.0f} | {estimate.total / MIB:,.0f} | {error:+.1%} | {estimate.peak_phase} |"
            + f" {time.perf_counter() - began:.0f} s", flush=True
        )  # fmt: skip
    for one in SIMULATED:
        if len(sys.argv) > 1 and sys.argv[1] not in one[0]:
            continue
        began = time.perf_counter()
        result, estimate = simulated(*one), sharded(*one)
        error = estimate.total / result["total"] - 1
        model, gpus, rows, length, checkpointing = one
        print(
            f"| {model}, {gpus} GPUs, {rows} x {length}{', checkpointing' if checkpointing else ''} | {result['total'] / 1e9:.2f}"
            + f" | {estimate.total / 1e9:.2f} | {error:+.1%} | {estimate.peak_phase} | {time.perf_counter() - began:.0f} s |",
            flush=True,
        )

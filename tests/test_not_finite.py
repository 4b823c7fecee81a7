"""NaN and inf in training: judged over all processes before the weights move, in both loops. One process gets it, both leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpo_runs import SETS, make_place
from helpers import make_shards, make_tokenizer

POISONED = Path(__file__).with_name("poisoned.py")
STAGE = [
    "--set=steps=6", "--set=precision=fp32", "--set=global_batch=8", "--set=micro_batch=2", "--set=evaluate_every=0",
    "--set=checkpoint_every=2", "--set=optimizer.learning_rate=1e-2", "--set=optimizer.warmup_ratio=0", "--device=cpu",
]  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """A command, the function whose result is poisoned, its calls in a step of one of two processes, and its updates."""

    arguments: list[str]
    function: str
    calls: int
    updates: int


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("finite"))
    make_shards(folder / "pretrain", make_tokenizer())
    return folder


@pytest.fixture
def loops(place: Path) -> dict[str, Loop]:
    model = f"--model={place / 'model'}"
    return {
        # 8 rows: 4 a process, two micro-batches.
        "stages": Loop(
            ["train-stage", "2", model, f"--data={place / 'pretrain'}", *STAGE],
            "dcoder_cli.training.denoise token_losses", 2, 1,
        ),
        # 2 prompts: 4 completions a process, two micro-batches, two inner iterations.
        "grpo": Loop(
            ["grpo", model, f"--data={place / 'data'}", *SETS], "dcoder_cli.training.grpo.step grpo_loss", 4, 2
        ),
    }  # fmt: skip


def launch(
    place: Path, out: Path, arguments: list[str], poison: str = "", processes: int = 2
) -> tuple[int, str, set[str]]:
    """Exit code, stderr, and the numbers of updates that the processes made. A hang fails the test."""
    command = [sys.executable, str(POISONED), *arguments, f"--out={out}"]
    if processes > 1:
        spread = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *spread, *command[1:]]
    tally = out.with_name(f"{out.name}-tally")
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=place, timeout=240,
        env={**os.environ, "POISON": poison, "TALLY": str(tally), "PYTHONPATH": str(place)},
    )  # fmt: skip
    counted = {file.read_text() for file in tally.parent.glob(f"{tally.name}-*")}
    return done.returncode, done.stderr, counted


def steps(run: Path) -> list[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss" in line]


def check(told: str, run: Path, what: str, value: str) -> None:
    """The one line, and a run folder in which nothing of the broken step stands."""
    expected = (
        f"the {what} became {value} at step 3; the weights were not updated with it and checkpoint step-2 is good; "
        "lower optimizer.learning_rate ("
    )
    lines = [line for line in told.splitlines() if "became" in line]
    assert len(lines) == 1 and expected in lines[0] and "go on with --resume" in lines[0], told
    assert steps(run) == [1, 2]
    assert [folder.name for folder in (run / "checkpoints").glob("step-*")] == ["step-2"]


@pytest.mark.parametrize(("name", "rank"), [pytest.param("stages", 1, marks=pytest.mark.slow), ("grpo", 0)])
def test_a_nan_of_one_process_ends_both_before_the_update_and_resuming_goes_on(
    place: Path, tmp_path: Path, loops: dict[str, Loop], name: str, rank: int
) -> None:
    """In the last update of step 3, in the first of its micro-batches: those after it, and the sum over both, hide nothing."""
    loop = loops[name]
    call = 3 * loop.calls - 1
    code, told, updates = launch(place, tmp_path / "run", loop.arguments, f"{loop.function} {call} {rank} loss nan")
    assert code == 1, told
    check(told, tmp_path / "run", "loss", "nan")
    assert updates == {str(3 * loop.updates - 1)}, "both made the updates before it, and neither made it"
    if name == "grpo":  # what its resuming goes on with is tested by kill -9 (test_grpo_resume)
        return
    resume = ["train-stage", "2", "--resume", "--device=cpu"]
    assert launch(place, tmp_path / "run", resume)[0] == 0
    assert steps(tmp_path / "run")[-1] == 6  # that it is the run without a fault is tested by kill -9 (test_training)


@pytest.mark.parametrize(("name", "processes", "value"), [("stages", 2, "nan"), ("grpo", 1, "inf")])
def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is(
    place: Path, tmp_path: Path, loops: dict[str, Loop], name: str, processes: int, value: str
) -> None:
    loop = loops[name]
    # The last update of step 3; one process has the rows of both: 8 completions in micro-batches of 3, twice.
    call = 3 * loop.calls - 1 if processes == 2 else 3 * 6 - 1
    poison = f"{loop.function} {call} {processes - 1} gradient {value}"
    code, told, updates = launch(place, tmp_path / "run", loop.arguments, poison, processes)
    assert code == 1, told
    check(told, tmp_path / "run", "gradient norm", "inf" if "became inf" in told else "nan")  # inf - inf is nan
    assert updates == {str(3 * loop.updates - 1)}


@pytest.mark.slow
def test_before_the_first_checkpoint_the_line_says_that_the_run_starts_over(
    place: Path, tmp_path: Path, loops: dict[str, Loop]
) -> None:
    loop = loops["stages"]
    code, told, updates = launch(place, tmp_path / "run", loop.arguments, f"{loop.function} 1 0 loss inf", processes=1)
    assert code == 1 and "the loss became inf at step 1;" in told and updates == {"0"}
    assert "there is no checkpoint yet, so it starts over; lower optimizer.learning_rate (0.01)" in told
    resume = ["train-stage", "2", "--resume", "--device=cpu"]
    assert launch(place, tmp_path / "run", resume, processes=1)[0] == 0 and steps(tmp_path / "run")[-1] == 6

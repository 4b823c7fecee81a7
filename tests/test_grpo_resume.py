"""Stage 4 killed with kill -9 at exact places, resumed, and spread over processes: always the same run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_runs import common, make_place
from helpers import dcoder, refused

from dcoder_cli import load

# A reward module is the user's own code inside the training process: this one kills it at the N-th call of a function.
DEADLY = """
import importlib, os, signal

def vowels(prompt, text):
    return sum(c in "aeiou" for c in text) / 8

def _die_at(module, owner, name, call):
    home = importlib.import_module(module)
    home = getattr(home, owner) if owner else home
    real, calls = getattr(home, name), [0]
    def deadly(*arguments, **options):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(home, name, deadly)

if os.environ.get("DIE_AT"):
    module, owner, name, call = os.environ["DIE_AT"].split(" ")
    _die_at(module, owner.replace("-", ""), name, int(call))
"""
# Where to die: module, class or "-", function, which call. A step has 8 completions in 3 micro-batches, 2 inner iterations.
# A process starts with an evaluation of 2 prompts if none was kept.
PLACES = {
    "inside the first rollout": "dcoder_cli.training.grpo.rewards Rewarder submit 5",
    "inside the judging": "dcoder_cli.training.grpo.rewards Rewarder result 6",
    "between judging and update": "dcoder_cli.training.grpo.step - advantages 3",
    "inside the update": "dcoder_cli.training.grpo.step - grpo_loss 2",
    "between inner iterations": "torch.optim AdamW step 2",
    "inside the metrics": "dcoder_cli.training.grpo.train - sample_record 3",
    "inside a checkpoint": "dcoder_cli.training.saving - _write_state 1",
    "between checkpoint and its link": "dcoder_cli.base.runs RunFolder link 1",
    "after a checkpoint": "dcoder_cli.base.runs RunFolder prune 1",
    "inside a later rollout": "dcoder_cli.training.grpo.rewards Rewarder submit 12",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("grpo"))
    (folder / "reward.py").write_text(DEADLY)
    # As it comes, its distributions are so flat that rounding decides which position is surest.
    model = load(folder / "model", device="cpu")
    with torch.no_grad():
        model.network.lm_head.weight.mul_(8.0)
    shutil.rmtree(folder / "model")
    model.save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> str:
    """The metrics of a run that nothing disturbs."""
    dcoder(*common(place, place / "whole"), "--set=samples_every=1", cwd=place)
    return (place / "whole" / "metrics.jsonl").read_text()


def killed(arguments: list[Any], place: Path, where: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "dcoder_cli", *map(str, arguments)],
        capture_output=True, cwd=place, env={**os.environ, "DIE_AT": where}, timeout=120,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()


SOME = ("inside the first rollout", "inside the update", "inside a checkpoint")


@pytest.mark.parametrize("places", [SOME, pytest.param(tuple(PLACES), marks=pytest.mark.slow)], ids=["some", "every"])
def test_kill_9_at_a_place_and_resume_gives_the_same_run(
    place: Path, whole: str, tmp_path: Path, places: tuple[str, ...]
) -> None:
    """One run, killed at one place after another; the first kills come before there is any checkpoint."""
    run = tmp_path / "run"
    for attempt, where in enumerate(PLACES[name] for name in places):
        arguments = (
            [*common(place, run), "--set=samples_every=1"]
            if attempt == 0
            else ["grpo", "--out", run, "--resume", "--device=cpu"]
        )
        killed(arguments, place, where)
        assert (run / "metrics.jsonl").read_text() != whole
    dcoder("grpo", "--out", run, "--resume", "--device=cpu", cwd=place)
    assert (run / "metrics.jsonl").read_text() == whole
    assert not list((run / "checkpoints").glob(".*.tmp")), "what the kills left half-written is gone"
    last = json.loads(whole.splitlines()[-1])
    assert last["step"] == 6 and "heldout" in last


@pytest.mark.slow
def test_a_kept_rollout_is_used_again_only_by_the_policy_that_made_it(place: Path, whole: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*common(place, run), "--set=samples_every=1"]
    killed(arguments, place, "torch.optim AdamW step 3")  # in the update of the second step, before any checkpoint
    kept = run / "rollouts" / "step-1-1-of-1.jsonl"
    assert kept.is_file()
    # Step 0's weights did not make step 1's rollout, so resuming at step 0 forgets it, however it looks.
    kept.write_text(kept.read_text().replace('"total": ', '"total": 9'))
    dcoder("grpo", "--out", run, "--resume", "--device=cpu", cwd=place)
    assert (run / "metrics.jsonl").read_text() == whole
    # A damaged one that would be used is named, with the remedy.
    cut = tmp_path / "cut"
    killed([*common(place, cut), "--set=samples_every=1"], place, "torch.optim AdamW step 1")
    kept = cut / "rollouts" / "step-0-1-of-1.jsonl"
    kept.write_text(kept.read_text()[:-40])
    done = dcoder("grpo", "--out", cut, "--resume", "--device=cpu", check=False, cwd=place)
    assert done.returncode == 2 and "kept rollout" in done.stderr and "remove it" in done.stderr, done.stderr
    # Other rewards at resume: what was kept is scored by the old ones, and forgotten too.
    other = tmp_path / "other"
    killed([*common(place, other), "--set=samples_every=1"], place, "torch.optim AdamW step 1")
    dcoder("grpo", "--out", other, "--resume", "--device=cpu", "--reward=reward:vowels=3", "--set=steps=1", cwd=place)
    first = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()][1]
    assert first["reward"] == pytest.approx(3 * json.loads(whole.splitlines()[1])["reward"])


def test_a_reward_that_was_mended_scores_anew(place: Path, tmp_path: Path) -> None:
    here, run = tmp_path / "here", tmp_path / "run"
    here.mkdir()
    (here / "reward.py").write_text(DEADLY)
    killed([*common(place, run), "--set=samples_every=1"], here, "torch.optim AdamW step 1")
    assert (run / "rollouts" / "step-0-1-of-1.jsonl").is_file()
    (here / "reward.py").write_text(DEADLY.replace("/ 8", "/ 4"))
    dcoder("grpo", "--out", run, "--resume", "--device=cpu", "--set=steps=1", cwd=here)
    samples = [json.loads(line) for line in (run / "samples" / "step-1.jsonl").read_text().splitlines()]
    assert all(one["rewards"]["reward:vowels"] == sum(c in "aeiou" for c in one["text"]) / 4 for one in samples)


def test_what_a_resumed_run_cannot_change_is_refused(
    place: Path, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    resume = ["grpo", "--out", place / "whole", "--resume", "--device=cpu", "--set=steps=8"]
    told = refused(*resume, "--set=train_embeddings=false")
    assert "train_embeddings = False cannot change on resuming: the run began with True" in told
    for given in (
        "--estimator=full-mask",
        "--reward=format=1",
        "--set=advantage=leave-one-out",
        "--set=t_range=[0.3,0.7]",
    ):
        told = refused(*resume, given)
        assert "cannot change on resuming: it decides what is learned, and the run began with" in told, told
    reference = place / "whole" / "checkpoints" / "last" / "training" / "reference.pt"
    data = reference.read_bytes()
    try:
        reference.write_bytes(data[:100])
        assert "reference.pt' is truncated or was changed" in refused(*resume)
    finally:
        reference.write_bytes(data)
    without = tmp_path / "without"
    dcoder(*common(place, without, without="reference_sync"), "--set=kl_coef=0", "--set=steps=2", cwd=place)
    told = refused("grpo", "--out", without, "--resume", "--device=cpu", "--set=steps=3", "--set=kl_coef=0.1")
    assert "kl_coef = 0.1 cannot be switched on when resuming" in told
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("steps: 3\n")
    assert "has no stage" in refused("grpo", "--out", tmp_path / "other", "--resume")
    assert (place / "whole" / "metrics.jsonl").read_text() == whole


@pytest.mark.slow  # test_sharded.py has stage 4 on two processes
def test_two_processes_take_the_step_of_one(place: Path, tmp_path: Path) -> None:
    """Two updates on one rollout: metrics and every weight, the loss over the tokens of both processes. Later rollouts may part where rounding decides a draw."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    for name, before in (("one", [sys.executable, "-m"]), ("two", launch)):
        command = [
            *before,
            "dcoder_cli",
            *map(str, common(place, tmp_path / name)),
            "--set=steps=1",
            "--set=loss_normaliser=token",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=300)
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for left, right in zip(map(json.loads, one[:2]), map(json.loads, two[:2]), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert right[name] == pytest.approx(value, rel=1e-3, abs=1e-5), (left["step"], name)
    models = [load(tmp_path / name / "checkpoints" / "step-1", device="cpu") for name in ("one", "two")]
    start = dict(load(place / "model", device="cpu").named_parameters())
    moved = 0.0
    for (name, weight), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=2e-4, msg=name)
        moved = max(moved, float((weight - start[name]).detach().abs().max()))
    assert moved > 3e-3, "two steps of Adam at 3e-3"

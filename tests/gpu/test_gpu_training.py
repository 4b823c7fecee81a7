"""Every stage and stage 4 at the shape of Qwen2.5-Coder-0.5B: losses, memory beside the formula, exact resuming."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ground import Ground, compare, speed
from places import BOTH_SLOW, Place, note

STEPS = 8


def ground(place: Place, folder: Path, size: str = "half") -> Ground:
    return Ground(place, folder, size, rows=4, length=place.pick(1024, 32))


@pytest.mark.parametrize("place", BOTH_SLOW)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_learns_one_batch_within_the_memory_it_is_said_to_take(
    place: Place, stage: int, checkpointing: bool, tmp_path: Path
) -> None:
    """Stage 1 with its annealed mask, stage 2 with documents kept apart: what sdpa takes a mask for."""
    place.needs(16)
    here = ground(place, tmp_path)
    changes = {
        "micro_batch": 2, "activation_checkpointing": checkpointing, "anneal_steps": 6 if stage == 1 else 0,
        "isolate_documents": stage == 2,
    }  # fmt: skip
    ran = here.stage(stage, tmp_path / "run", STEPS, measure=True, **changes)
    losses = [line["loss"] for line in ran.steps]
    name = f"stage {stage}, {place.size('half')['hidden_size']} wide, checkpointing {'on' if checkpointing else 'off'}"
    note(name, losses=losses, **speed(here, ran.median("seconds", 3)))
    assert len(losses) == STEPS and all(math.isfinite(line["loss"] + line["grad_norm"]) for line in ran.steps)
    assert losses[-1] < 0.95 * losses[0], losses
    compare(place, name, ran.peak, here.fitted(f"stage{stage}", here.stage_config(**changes)))


@contextmanager
def deterministic() -> Iterator[None]:
    """Without it the backward pass of attention adds up in the order in which it happens to finish."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("place", BOTH_SLOW)
def test_a_killed_run_goes_on_to_the_bit(place: Place, tmp_path: Path) -> None:
    """Killed after step 5, it goes on from its checkpoint of step 3: steps 4 and 5 are as they were."""
    place.needs(16)
    here = ground(place, tmp_path)
    with deterministic():
        before = here.stage(2, tmp_path / "run", 5, checkpoint_every=3)
        assert [line["step"] for line in before.steps] == [1, 2, 3, 4, 5]
        after = here.stage(2, tmp_path / "run", 5, resume=True, checkpoint_every=3)
    assert before.steps == after.steps


@pytest.mark.parametrize("place", BOTH_SLOW)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_stage_4_takes_two_steps_within_the_memory_it_is_said_to_take(place: Place, mode: str, tmp_path: Path) -> None:
    """bf16, with a reference that moves at the third update. The first update of a rollout has no ratio but 1 and no KL."""
    place.needs(16)
    here = ground(place, tmp_path)
    new = place.pick(64, 8)
    rollout = {"max_new_tokens": new, "mode": mode, **({"threshold": 0.5} if mode == "fast" else {})}
    ran = here.grpo(tmp_path / "run", 2, measure=True, rollout=rollout)
    assert [line["step"] for line in ran.steps] == [1, 2]
    for line in ran.steps:
        assert all(math.isfinite(line[key]) for key in ("loss", "kl", "grad_norm", "reward", "entropy", "ratio"))
        assert 0 < line["length"] <= new and line["reward_std"] > 0, line
        assert line["grad_norm"] > 0 and line["kl"] >= 0 and line["ratio"] == pytest.approx(1, abs=0.1)
    phases = ("rollout", "judge", "old", "reference", "update")
    note(f"stage 4, {mode} rollouts", steps=ran.steps, seconds={key: ran.laps[1][key] for key in phases})
    compare(place, f"stage 4, {mode} rollouts", ran.peak, here.fitted("grpo", here.grpo_config(rollout=rollout)))

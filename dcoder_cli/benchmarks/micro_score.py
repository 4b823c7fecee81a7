"""Scoring a model on micro tasks: decode, extract, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcoder_cli.data.micro import MicroTask
from dcoder_cli.diffusion.sampler import generate
from dcoder_cli.diffusion.trajectory import Trajectory
from dcoder_cli.execution.extract import extract_solution
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import Problem
from dcoder_cli.model.backbone import Model


@dataclass(frozen=True)
class MicroScore:
    """The share of tasks solved at the first try, a row a sample, and the decodings."""

    pass_at_1: float
    rows: list[dict[str, Any]]
    trajectories: list[Trajectory]
    tier: str


def score(
    model: Model, tasks: Sequence[MicroTask], settings: Mapping[str, Any], seed: int, batch_size: int = 64
) -> MicroScore:
    """One sample a task; judging runs while the next batch is decoded. `settings` are the sampler's."""
    by_id = {task.task_id: task for task in tasks}
    with Judge() as judge:
        pending: dict[str, Any] = {}

        def submit(trajectory: Trajectory) -> None:
            task = by_id[trajectory.id]
            problem = Problem(task.task_id, task.entry_point, tests=task.tests_hidden)
            pending[trajectory.id] = judge.submit(problem, extract_solution(trajectory.text, task.entry_point))

        prompts = [task.messages()[:1] for task in tasks]
        trajectories = generate(
            model, prompts, **settings, seed=seed, ids=list(by_id), batch_size=batch_size, on_done=submit
        )
        verdicts = {name: future.result() for name, future in pending.items()}
        tier = judge.tier
    rows = [
        {
            "task_id": trajectory.id,
            "family": by_id[trajectory.id].family,
            "level": by_id[trajectory.id].level,
            "question": by_id[trajectory.id].question,
            "text": trajectory.text,
            "status": verdicts[trajectory.id].status,
        }
        for trajectory in trajectories
    ]
    return MicroScore(sum(verdict.passed for verdict in verdicts.values()) / len(tasks), rows, trajectories, str(tier))

"""Scoring a model on micro tasks: decode, extract, judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcoder_cli.benchmarks.passk import Estimate, pass_at_k_mean
from dcoder_cli.data.micro import MicroTask
from dcoder_cli.decoding.sampler import generate
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.execution.extract import extract_solution
from dcoder_cli.execution.judge import Judge
from dcoder_cli.execution.problem import Problem
from dcoder_cli.model.backbone import Model


@dataclass(frozen=True)
class MicroScore:
    """A row a sample, the decodings (a task's after another's), and how many of its n samples each task got right."""

    rights: list[int]
    n: int
    rows: list[dict[str, Any]]
    trajectories: list[Trajectory]
    tier: str

    def pass_at(self, k: int) -> Estimate:
        """pass@k as a share of the tasks, with its 95% interval over tasks (passk.share)."""
        return pass_at_k_mean([self.n] * len(self.rights), self.rights, k)


def score(
    model: Model,
    tasks: Sequence[MicroTask],
    settings: Mapping[str, Any],
    seed: int,
    n: int = 1,
    batch_size: int = 64,
    unsafe: bool = False,
) -> MicroScore:
    """`n` samples a task; judging runs while the next batch is decoded. `settings` are the sampler's."""
    by_id = {f"{task.task_id} {sample}": task for task in tasks for sample in range(n)}
    with Judge(unsafe=unsafe) as judge:
        pending: dict[str, Any] = {}

        def submit(trajectory: Trajectory) -> None:
            task = by_id[trajectory.id]
            problem = Problem(task.task_id, task.entry_point, tests=task.tests_hidden)
            pending[trajectory.id] = judge.submit(problem, extract_solution(trajectory.text, task.entry_point))

        prompts = [task.messages()[:1] for task in by_id.values()]
        trajectories = generate(
            model, prompts, **settings, seed=seed, ids=list(by_id), batch_size=batch_size, on_done=submit
        )
        verdicts = {name: future.result() for name, future in pending.items()}
        tier = judge.tier
    rows = [
        {
            "task_id": by_id[trajectory.id].task_id,
            "family": by_id[trajectory.id].family,
            "level": by_id[trajectory.id].level,
            "question": by_id[trajectory.id].question,
            "text": trajectory.text,
            "status": verdicts[trajectory.id].status,
        }
        for trajectory in trajectories
    ]
    right = Counter(by_id[name].task_id for name, verdict in verdicts.items() if verdict.passed)
    return MicroScore([right[task.task_id] for task in tasks], n, rows, trajectories, str(tier))

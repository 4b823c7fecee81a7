"""A benchmark's tasks for `dcoder arness`: a checkpoint's prompts, and pass@k of what was decoded from them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import scoring
from dcoder_cli.benchmarks.evaluation import encode
from dcoder_cli.benchmarks.judging import Judging, Row
from dcoder_cli.benchmarks.protocols import Ask, Protocol, choose
from dcoder_cli.benchmarks.suites import Suite
from dcoder_cli.decoding.requests import Prompt
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model.backbone import Model

Share = tuple[float, float, float]


@dataclass(frozen=True)
class Asked:
    """A suite as it is put to one model: `prompts` in the order of the suite's items, by the checkpoint's protocol."""

    suite: Suite
    protocol: Protocol
    asks: tuple[Ask, ...]
    prompts: tuple[Prompt, ...]

    def passes(self, trajectories: Sequence[Trajectory], samples: int, judging: Judging) -> dict[str, Share]:
        """pass@1 .. pass@samples by the suite's main score, as shares with the ends of their 95% intervals.

        Args:
            trajectories: `samples` of each prompt, one prompt's after another's.
            judging: of this suite.

        Raises:
            WorkFailed: nothing could be judged.
        """
        judged = [future.result() for future in self.submit(trajectories, samples, judging)]
        found = scoring.scores(self.suite, judged)[self.suite.metrics[-1]]
        return {name: (value["score"] / 100, value["low"] / 100, value["high"] / 100) for name, value in found.items()}

    def submit(self, trajectories: Sequence[Trajectory], samples: int, judging: Judging) -> list[Future[Row]]:
        """Futures of the trajectories' rows of judged.jsonl; arguments as of `passes`."""
        futures = []
        for index, trajectory in enumerate(trajectories):
            item, ask = self.suite.items[index // samples], self.asks[index // samples]
            solution = self.protocol.solution(item, trajectory.text, ask.prefill)
            futures.append(judging.submit(item, index % samples, solution))
        return futures


def ask(model: Model, suite: Suite) -> Asked:
    """The suite's prompts for a model.

    Raises:
        UserError: infilling tasks (a gap has no tokens to the left-to-right order of a whole answer), no tokenizer.
    """
    if suite.items[0].kind == "infill":
        raise UserError(f"--task {suite.task} fills gaps, whose length is searched; measure tasks that write answers")
    protocol = choose(model)
    asks = tuple(protocol.ask(item, suite) for item in suite.items)
    return Asked(suite, protocol, asks, tuple(encode(model, one)[0] for one in asks))

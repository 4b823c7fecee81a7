"""What each step reads: this process's rows, cut, noised and ready to be sent, made ahead of the step by one thread.

Everything about a step's rows depends on (seed, step, row) alone, so a run resumes by its step number, and gives the same
numbers however far ahead rows are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.data.batches import RowOrder, RowRules, read_batch
from dcoder_cli.data.prefetch import ahead
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.objective import Example, attention_pattern, make_example, pinned


@dataclass(frozen=True)
class StepRows:
    """This process's part of a step.

    Attributes:
        examples: its micro-batches.
        denominator: its share of the loss's denominator.
        pattern_LL: the annealed mask of stage 1, or None.
    """

    examples: list[Example]
    denominator: float
    pattern_LL: Tensor | None


@dataclass(frozen=True)
class Feed:
    """Makes the rows of any step.

    Attributes:
        shards, rules, config: the rows, how the stage treats them, and the stage's settings.
        stage: 0-3.
        mask_id: None for the AR objective.
        order: which row comes at which place.
        mine: this process's places within the global batch.
        device: where the rows will be sent.
    """

    shards: ShardSet
    rules: RowRules
    config: StageConfig
    stage: int
    mask_id: int | None
    order: RowOrder
    mine: range
    device: torch.device

    def step(self, step: int) -> StepRows:
        """The rows of a step (from 0), in page-locked memory where they go to a CUDA device, so that sending them waits for nothing."""
        config, examples = self.config, []
        epoch = step * config.global_batch / len(self.shards)
        for start in range(self.mine.start, self.mine.stop, config.micro_batch):
            rows = range(start, min(start + config.micro_batch, self.mine.stop))
            indices = [self.order.at(step * config.global_batch + row) for row in rows]
            batch = read_batch(self.shards, indices, rows, step, epoch, self.rules)
            examples.append(make_example(batch, config, step, self.mask_id))
        pattern_LL = attention_pattern(config, step, self.shards.sequence_length) if self.stage == 1 else None
        denominator = sum(float(example.denominator) for example in examples)
        if self.device.type == "cuda":
            if self.device.index is not None:  # page-locked memory is of a device's context, and threads have their own
                torch.cuda.set_device(self.device)
            examples = [pinned(example) for example in examples]
            pattern_LL = None if pattern_LL is None else pattern_LL.pin_memory()
        return StepRows(examples, denominator, pattern_LL)

    def steps(self, start: int, stop: int) -> AbstractContextManager[Iterator[StepRows]]:
        """The rows of the steps from `start` to before `stop`, each once, some steps ahead: see `ahead`."""
        depth = self.config.prefetch
        return ahead(self.step, range(start, stop), default_prefetch(self.device.type) if depth is None else depth)


def default_prefetch(device_type: str) -> int:
    """Steps ahead on a kind of device. 2 on a GPU (PyTorch's DataLoader); on a CPU 0: both work on the same cores."""
    return 0 if device_type == "cpu" else 2

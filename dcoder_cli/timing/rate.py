"""The device's matrix rate, measured, and the matrix operations of a network's forward passes, counted.

B rows, W columns evaluated, L columns attended to, N places with logits, D hidden size, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dcoder_cli.model.backbone import Model
from dcoder_cli.timing.race import wait
from dcoder_cli.training.memory.shape import Shape

_SIDES = {"cuda": 8192}  # of the square product (ours): large enough that the device is busy
_SIDE, _TIMES = 1024, 7


@dataclass(frozen=True)
class MatrixRate:
    """What a square product reaches here.

    Attributes:
        side: rows and columns. dtype: of its numbers. threads: of a CPU.
        least, median, most: operations a second over the products that were timed; a multiplication and an addition are two.
    """

    side: int
    dtype: str
    threads: int
    least: float
    median: float
    most: float


def measure(device: torch.device, dtype: torch.dtype) -> MatrixRate:
    """The rate of a device in a number format, with the threads that the work has."""
    side = _SIDES.get(device.type, _SIDE)
    one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(_TIMES + 1):
        wait(device)
        began = time.perf_counter()
        one @ two
        wait(device)
        rates.append(2 * side**3 / (time.perf_counter() - began))
    timed = rates[1:]
    name = str(dtype).removeprefix("torch.")
    return MatrixRate(side, name, torch.get_num_threads(), min(timed), statistics.median(timed), max(timed))


@dataclass
class ForwardCounts:
    """What went through a network.

    Attributes:
        forwards: evaluations of its blocks.
        columns: B x W, over all of them. pairs: B x W x L, which attention takes.
        logits: places whose logits were made.
    """

    forwards: int = 0
    columns: int = 0
    pairs: int = 0
    logits: int = 0

    def operations(self, shape: Shape) -> float:
        """Matrix operations: 2 a weight and column, 4 a head's width and pair of columns, 2 x D x V a place with logits."""
        blocks = 2.0 * shape.layers * shape.matrices * self.columns
        return blocks + 4.0 * shape.layers * shape.queries * self.pairs + 2.0 * shape.table * self.logits


@contextmanager
def counting(model: Model) -> Iterator[ForwardCounts]:
    """Count a model's passes while this is open. They are evaluated as written: what is played back calls no hook."""
    seen = ForwardCounts()
    played, model.cuda_graphs = model.cuda_graphs, False

    def blocks(module: Any, arguments: Any, named: dict[str, Any], result: Any) -> None:
        rows, width = named["input_ids"].shape
        cache = named.get("cache", named.get("past_key_values"))
        attended = width if cache is None else cache.columns
        seen.forwards += 1
        seen.columns += rows * width
        seen.pairs += rows * width * attended

    def head(module: Any, arguments: Any, result: Any) -> None:
        seen.logits += result.numel() // result.shape[-1]

    hooks = [
        model.network.model.register_forward_hook(blocks, with_kwargs=True),
        model.network.lm_head.register_forward_hook(head),
    ]
    try:
        yield seen
    finally:
        model.cuda_graphs = played
        for hook in hooks:
            hook.remove()

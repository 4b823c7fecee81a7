"""Numbers summed over processes, known by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def totals(accelerator: Any, values: Mapping[str, float]) -> dict[str, float]:
    """Each number summed over all processes, in float64: counts are exact up to 2^53. One collective for all of them.

    Every process must give the same names in the same order. NaN and infinity of one process reach all.
    """
    if accelerator.num_processes == 1:
        return dict(values)
    packed = torch.tensor(list(values.values()), dtype=torch.float64)
    return dict(zip(values, total(accelerator, packed).tolist(), strict=True))


def seen(
    accelerator: Any, own: Mapping[str, Tensor], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers that lie on a device, as this process has them and summed over all processes.

    One collective, and one transfer: what reads these is the only place of a step where the host waits for the device. NaN
    and infinity of one process reach all.
    """
    kind = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    packed = torch.stack([value.to(device, kind) for value in own.values()])
    everyone = accelerator.reduce(packed.clone(), reduction="sum") if accelerator.num_processes > 1 else packed
    numbers = torch.cat([packed, everyone]).tolist()
    mine, of_all = numbers[: len(own)], numbers[len(own) :]
    return dict(zip(own, mine, strict=True)), dict(zip(own, of_all, strict=True))


def total(accelerator: Any, values: Tensor) -> Tensor:
    """A tensor summed over all processes elementwise, float64 on the CPU."""
    values = values.double()
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return values.cpu()

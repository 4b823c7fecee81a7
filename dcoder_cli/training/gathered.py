"""What FSDP2 has sharded as whole tensors, and back: weights one at a time, and an optimiser's state where it is small (LoRA).

Tensors that are not sharded pass through, so one process and DDP take the same way. All processes call these together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Tensor) -> Tensor:
    """A tensor, gathered from all processes where it is sharded."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    # Rows that do not divide evenly are gathered with padding, of which this is a view; safetensors writes no views.
    return full if full.untyped_storage().nbytes() == full.nbytes else full.clone()


def whole_state(optimizer: Any) -> dict[str, Any]:
    """An optimiser's state_dict with whole tensors."""
    stored: dict[str, Any] = optimizer.state_dict()
    state = {
        number: {name: whole(value) if isinstance(value, Tensor) else value for name, value in entries.items()}
        for number, entries in stored["state"].items()
    }
    return {**stored, "state": state}


def load_whole_state(optimizer: Any, stored: Mapping[str, Any]) -> None:
    """Load what `whole_state` gave; each process keeps its part of what belongs to a sharded weight."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        number: {name: _part(value, weights[number]) for name, value in entries.items()}
        for number, entries in stored["state"].items()
    }
    optimizer.load_state_dict({**stored, "state": state})


def _part(value: Any, weight: Tensor) -> Any:
    """A moment has its weight's shape; a count of steps belongs to all processes."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return part_of(value.to(weight.device), weight)


def part_of(value: Tensor, like: Tensor) -> DTensor:
    """This process's part of a tensor that all processes have, spread as `like` is; nothing is sent."""
    assert isinstance(like, DTensor)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)

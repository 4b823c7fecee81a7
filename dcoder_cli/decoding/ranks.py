"""Several processes on one command, as started by accelerate, torchrun or --nproc: who one is, waiting for the others."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

from dcoder_cli.base.console import rank, world_size

Value = TypeVar("Value")

_PATIENCE = timedelta(days=7)  # ours: one process may be done with its share days before another


def join() -> None:
    """Meet the other processes, if there are any."""
    if world_size() > 1:
        import torch.distributed

        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=_PATIENCE)


def wait() -> None:
    """Go on when all processes are here. `join` comes first."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.barrier()


def gathered(value: Value) -> list[Value]:
    """A value of every process, in their order, on every process. `join` comes first."""
    if world_size() == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def leave() -> None:
    """Part from the others at the end."""
    if world_size() > 1:
        import torch.distributed

        torch.distributed.destroy_process_group()


def device(asked: str | None) -> str | None:
    """The device of this process: its own GPU where there are several processes and nothing else was asked for."""
    if asked is None and world_size() > 1:
        import torch

        if torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return asked


def workers(asked: int | None) -> int | None:
    """Judge workers of this process: an equal share of the machine's processors."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if asked is not None or local == 1:
        return asked
    return max(1, (os.cpu_count() or 1) // local)


__all__ = ["device", "gathered", "join", "leave", "rank", "wait", "workers", "world_size"]

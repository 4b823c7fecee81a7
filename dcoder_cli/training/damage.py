"""Damage in what a run reads, data and checkpoints: found by one process, told by all, with the way to go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from dcoder_cli.base import checksums
from dcoder_cli.base.checksums import Damaged
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.data import shards
from dcoder_cli.model import checkpoint


def check_data(sets: Sequence[shards.ShardSet], quiet: bool) -> None:
    """Whether the bytes of all rows are those that were written; the processes of a launch share the files.

    Raises:
        Damaged: on all processes, where any has found a file that is not.
    """
    rank, world = _place()
    _agree(shards.damage(sets, slice(rank, None, world), quiet))


def check_state(folder: Path, names: Sequence[str]) -> None:
    """Whether what lies under these names in a checkpoint's `training/` is as it was written; files, or folders of parts.

    The processes of a launch share the files, and each is read by one of them.

    Raises:
        Damaged: on all processes, where any has found a file that is not.
    """
    record = checksums.read_record(folder)
    if record is None:
        return
    wanted = [f"training/{name}" for name in names]
    files = [folder / file for file in record.files if any(file == one or file.startswith(one + "/") for one in wanted)]
    rank, world = _place()
    try:
        checkpoint.check_files(folder, files[rank::world], "training state")
    except Damaged as error:
        _agree(error)
    else:
        _agree(None)


def _place() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _agree(found: Damaged | None) -> None:
    """Raises on all processes what any of them has found, the first one's first."""
    told: list[tuple[str, Path] | None] = [None if found is None else (str(found), found.file)]
    if dist.is_initialized():
        own, told = told[0], [None] * dist.get_world_size()
        dist.all_gather_object(told, own)
    for one in told:
        if one is not None:
            raise Damaged(*one)


@contextmanager
def resuming(run: RunFolder, step: int) -> Iterator[None]:
    """Around what reads the checkpoint of a step: where that is damaged, the message names the one to go on from instead.

    Raises:
        UserError: in place of Damaged.
    """
    try:
        yield
    except Damaged as error:
        if not step or run.checkpoint(step) not in error.file.parents:
            raise
        raise UserError(f"{error}; {_way_back(run, step)}") from None


def _way_back(run: RunFolder, damaged: int) -> str:
    before = [step for step in run.steps() if step < damaged]
    for step in reversed(before):
        folder = run.checkpoint(step)
        try:
            record = checksums.read_record(folder)
            checksums.check(folder, [folder / name for name in (record.files if record else ())], "file", "")
        except UserError:
            continue
        known = "which is whole" if record else "of which no checksums are known"
        return f"or remove {str(run.checkpoint(damaged))!r} to resume from step-{step}, {known}"
    what = "no earlier checkpoint is whole" if before else "there is no earlier checkpoint"
    return f"{what}, so without it the run starts over: give another --out"

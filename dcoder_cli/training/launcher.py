"""`--nproc N`: the same command on N processes of this machine, by torch's elastic launcher, the one under Accelerate's.

What a preset's launch section says of sharding is handed on as Accelerate's launcher hands it on, in the environment. The
processes share terminal and output; the first one speaks. Exit codes are theirs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcoder_cli.base.console import world_size
from dcoder_cli.base.errors import STOPPED, UserError, WorkFailed
from dcoder_cli.base.machine import cores
from dcoder_cli.base.ranges import Range

if TYPE_CHECKING:
    from dcoder_cli.training.context import DryRun

MOST = 1024  # processes on one machine; ours
# On a CPU, where there are fewer cores: each process is a copy of everything, and a slip of the keyboard must not start
# thousands. As many as a node has GPUs, so that its run can be tried anywhere; ours.
_MOST_ON_CPU = 8


def spread(processes: int | None, device: str | None = None, launch: Mapping[str, Any] | None = None) -> None:
    """Run this command on several processes and leave with their exit code. Returns where one process is asked for.

    Args:
        processes: of --nproc.
        device: of --device; on GPUs every process has one of its own.
        launch: a preset's launch section.

    Raises:
        UserError: more processes than GPUs (without one: than cores, and than `_MOST_ON_CPU`), or a launcher has started this process already.
        WorkFailed: a process was killed.
    """
    if processes is None:
        return
    _check(processes)
    if processes == 1:
        return
    import torch

    on_gpus = torch.cuda.is_available() and not str(device or "cuda").startswith("cpu")
    if on_gpus and processes > torch.cuda.device_count():
        raise UserError(f"--nproc {processes} is more than the {torch.cuda.device_count()} GPUs here; lower it")
    if not on_gpus and processes > (most := max(_MOST_ON_CPU, cores())):
        raise UserError(f"--nproc {processes} is more than the {most} processes that this machine may run; lower it")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    os.environ.update(environment(launch or {}))
    _run(processes, without_nproc(sys.argv[1:]))


def planned(processes: int | None, launch: Mapping[str, Any]) -> DryRun:
    """What a dry run is of: as many processes as --nproc says, else as the launcher of this one has started.

    Raises:
        UserError: as `spread`, or a launcher that shards in a way that is not ours.
    """
    from dcoder_cli.training import sharded
    from dcoder_cli.training.context import DryRun

    if processes is None:
        return DryRun(world_size(), sharded.asked())
    _check(processes)
    return DryRun(processes, bool(environment(launch)))


def _check(processes: int) -> None:
    Range(1, also="; it is a number of processes").check("--nproc", processes)
    if processes > MOST:
        raise UserError(f"--nproc {processes} is more than one machine runs; give {MOST} or fewer")
    if "RANK" in os.environ:
        raise UserError(f"--nproc {processes} has no effect under a launcher, which started this process; leave it out")


def environment(launch: Mapping[str, Any]) -> dict[str, str]:
    """What Accelerate's launcher makes of a configuration that shards; nothing of any other.

    https://huggingface.co/docs/accelerate/usage_guides/fsdp: `fsdp_config` keys in capitals.
    """
    if str(launch.get("distributed_type", "")).upper() != "FSDP":
        return {}
    config = launch.get("fsdp_config") or {}
    told = {str(key).upper(): _text(value) for key, value in config.items() if value is not None}
    return {"ACCELERATE_USE_FSDP": "true", **told}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """A command's arguments without --nproc, which is done with."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*kept, argument, *rest]
        if argument == "--nproc":
            next(rest, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


def _run(processes: int, arguments: Sequence[str]) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # of the launcher, in this process: those that it starts say what there is to say
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "dcoder_cli", *arguments)
    except SignalException:  # Ctrl-C or a polite kill, passed on to the processes: they have said how to go on
        sys.exit(STOPPED)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise WorkFailed(f"process {rank} of {processes} was ended by {name}, and the others with it") from None
        sys.exit(failure.exitcode)
    sys.exit(0)

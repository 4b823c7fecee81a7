"""Parts of replicates trained, and replicates measured, at the same time: a process each, the cores divided among them.

A model of a million parameters hardly gains from a second core, so two parts at a time take little longer than one.
Each process leaves its checkpoints and measurements in its replicate's folder, where the caller then finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dcoder_cli.base.machine import cores
from dcoder_cli.base.workers import CONTEXT, a_kill_is, workers
from dcoder_cli.experiments.measures import Measures
from dcoder_cli.experiments.quantities import Quantity, StudySettings
from dcoder_cli.experiments.seeds import before, parts, train_part, trained

MOST = 3  # parts of a replicate that can run at a time: stage 4 with three estimators
_MEASURE = "measure "  # and a role
_Unit = TypeVar("_Unit", bound=Hashable)


def train_and_measure(
    out: Path,
    seeds: int,
    step_scale: float,
    quantities: Sequence[Quantity],
    settings: StudySettings,
    unsafe: bool,
    jobs: int,
    announce: Callable[[str], None],
) -> None:
    """Fill the folders of replicates 0 .. seeds - 1: checkpoints, and the quantities measured on them.

    A checkpoint is measured once it is trained, while others are: its measurements are a file of their own.

    Raises:
        UserError, WorkFailed: what a replicate raised.
        WorkFailed: a process was killed.
    """
    roles = list(dict.fromkeys(quantity.role for quantity in quantities))
    needs = {part: before(part) for part in parts(roles)}
    needs |= {_MEASURE + role: {role} for role in roles}
    units = {(seed, unit): {(seed, other) for other in needs[unit]} for seed in range(seeds) for unit in needs}
    work = partial(_replicate_unit, out, step_scale, tuple(quantities), settings, unsafe)
    run_units(units, work, jobs, announce)


def run_units(
    units: Mapping[_Unit, Set[_Unit]],
    work: Callable[[_Unit, Callable[[str], None]], None],
    jobs: int,
    announce: Callable[[str], None],
) -> None:
    """Call `work(unit, tell)` for every unit, each after those it needs, in up to `jobs` processes.

    Spawns processes, so a program that calls this needs the usual `if __name__ == "__main__"` guard. The first failure
    ends all of them at once.

    Args:
        units: unit -> the units it needs; the first that can run is run first.
        work: a function that can be pickled; what it tells is announced here.

    Raises:
        WorkFailed: a process was killed. Else what a unit raised.
    """
    lines = CONTEXT.SimpleQueue()
    executor = workers(jobs, _begin, max(1, cores() // jobs), lines)
    processes = executor._processes
    waiting, finished = list(units), set[_Unit]()
    running: dict[Future[None], _Unit] = {}
    told = "a seed's process was killed, most likely for memory; run the same command again to go on, with fewer --jobs"
    try:
        with a_kill_is(told):
            while waiting or running:
                ready = [unit for unit in waiting if units[unit] <= finished]
                for unit in ready[: jobs - len(running)]:
                    waiting.remove(unit)
                    running[executor.submit(_call, work, unit)] = unit
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                while not lines.empty():
                    announce(lines.get())
                for future in done:
                    future.result()
                    finished.add(running.pop(future))
    except BaseException:
        # What they have finished is written down. Not SIGTERM: training only takes note of it, and a process that it
        # ends while it waits for work leaves the queue locked for the others.
        for process in list(processes.values()):
            process.kill()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_lines: Any = None


def _begin(threads: int, lines: Any) -> None:
    """In each process, once: its share of the cores, and where its lines go."""
    import torch

    global _lines
    _lines = lines
    torch.set_num_threads(threads)


def _call(work: Callable[[_Unit, Callable[[str], None]], None], unit: _Unit) -> None:
    work(unit, _lines.put)


def _replicate_unit(
    out: Path,
    step_scale: float,
    quantities: Sequence[Quantity],
    settings: StudySettings,
    unsafe: bool,
    unit: tuple[int, str],
    tell: Callable[[str], None],
) -> None:
    seed, part = unit
    if not part.startswith(_MEASURE):
        train_part(out, seed, part, step_scale, tell, quiet=True, unsafe=unsafe)
        return
    role = part.removeprefix(_MEASURE)
    replicate = trained(out, seed, step_scale, tell, quiet=True, roles=[role], unsafe=unsafe)
    Measures(replicate, settings, tell, unsafe).measure(one for one in quantities if one.role == role)

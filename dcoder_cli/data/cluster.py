"""Units as tasks of a Ray cluster, over a folder that its machines share: `dcoder tokenize --ray`.

Ray's own: where a task runs, machines that join, and tasks of machines that are lost, which others do again. A unit's file
appears in one rename and depends on the unit alone, so it does not matter who made it, or how often.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli import __version__
from dcoder_cli.base.errors import UserError, WorkFailed, one_line
from dcoder_cli.base.machine import cores
from dcoder_cli.data.sources import Unit

if TYPE_CHECKING:
    from dcoder_cli.data.units import TokenizeJob, UnitWorker

RUNNING, LOCAL = "auto", "local"  # the running cluster, or else one of this machine; one of this machine
RETRIES = 3  # of a task whose worker or machine is lost: Ray's default
_AHEAD = 2  # tasks for each core that are handed over, so that none waits for this process (ours)
_ANSWER = 60.0  # seconds in which each machine tells what it sees (ours)
_CONNECTED = 10.0  # seconds in which an address answers (ours)
_MARKER = ".seen-by-all"


def check_installed(address: str | None) -> None:
    """Raises UserError where Ray is asked for and not installed."""
    if address is not None and importlib.util.find_spec("ray") is None:
        raise UserError("--ray needs the package ray; install it with `pip install 'dcoder[ray]'`")


def run_in_cluster(
    job: TokenizeJob, units: Sequence[Unit], waiting: Sequence[int], address: str, report: Callable[[int, Unit], None]
) -> None:
    """Process the units in `waiting`, each as a task of the cluster at `address`; `report` is told the bytes that each read.

    The job, with its tokenizer and what it must not contain, goes to each machine once.

    Raises:
        UserError: Ray is not installed, there is no cluster, a machine that cannot work, or what a unit raised.
        WorkFailed: a task was lost more than RETRIES times.
    """
    with _connected(address) as ray:
        _check_machines(ray, Path(job.folder))
        shared, name = ray.put(job), uuid.uuid4().hex
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_process)
        running: dict[Any, int] = {}
        left = iter(waiting)
        try:
            while True:
                room = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(running)
                for index in islice(left, max(0, room)):
                    running[task.remote(name, [shared], index, units[index])] = index
                if not running:
                    return
                finished, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for one in finished:
                    index = running.pop(one)
                    found = _result(ray, one)
                    if isinstance(found, BaseException):
                        raise found
                    report(found, units[index])
        finally:
            for one in running:
                ray.cancel(one, force=True)


def _result(ray: Any, task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        raise WorkFailed(
            f"a tokenizing task was lost {RETRIES + 1} times, most likely for memory ({one_line(error)[:120]}); "
            "run the same command again to go on"
        ) from None


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected. A cluster that was there stays, one that was made for this ends."""
    check_installed(address)
    import ray

    if ray.is_initialized():  # the caller's own
        yield ray
        return
    _check_address(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; else it warns
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    own: dict[str, Any] = {"address": LOCAL, "num_cpus": cores(), "include_dashboard": False}
    try:
        if address == LOCAL:
            ray.init(**own, **quiet)
        else:
            try:
                ray.init(address=address, **quiet)
            except ConnectionError:
                if address != RUNNING:
                    raise
                ray.init(**own, **quiet)  # none is running
    except Exception as error:  # whatever Ray raises, from ConnectionError to RuntimeError
        raise UserError(
            f"--ray {address}: no cluster there ({one_line(error)[:160]}); start one with `ray start --head`, or use --ray local"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raises UserError where nobody listens: Ray would try for minutes."""
    if address in (RUNNING, LOCAL):
        return
    host, _, port = address.rpartition(":")
    told = f"--ray {address}: no cluster there"
    if not host or not port.isdigit() or "/" in host:
        raise UserError(
            f"{told} (HOST:PORT, such as 10.0.0.1:6379, auto or local are known); start one with `ray start --head`"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECTED).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{told} ({one_line(error)}); start one with `ray start --head`, or use --ray local") from None


def _check_machines(ray: Any, folder: Path) -> None:
    """Raises UserError where a machine has another dcoder, or does not see the folder that units are written to."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = folder / _MARKER
    marker.write_text(uuid.uuid4().hex)
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_seen)
        asked = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(marker)
            ): node["NodeManagerHostname"]
            for node in ray.nodes()
            if node["Alive"]
        }
        for task, host in asked.items():
            try:
                version, seen = ray.get(task, timeout=_ANSWER)
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"machine {host!r} of the cluster cannot work ({one_line(error)[:160]}); install dcoder there, or take it out"
                ) from None
            if version != __version__:
                raise UserError(
                    f"machine {host!r} of the cluster has dcoder {version}, and here is {__version__}; install the same"
                )
            if seen != marker.read_text():
                raise UserError(
                    f"machine {host!r} of the cluster does not see {str(folder)!r}; give an --out in a folder that all share"
                )
    finally:
        marker.unlink(missing_ok=True)


def _seen(path: str) -> tuple[str, str | None]:
    """This machine's version, and what a file holds here."""
    try:
        return __version__, Path(path).read_text()
    except OSError:
        return __version__, None


_kept: tuple[str, UnitWorker] | None = None


def _process(name: str, shared: Sequence[Any], index: int, unit: Unit) -> int | BaseException:
    """`UnitWorker.process` in a task; what it raises is returned, since Ray would wrap it. The job is fetched once a process."""
    global _kept
    import ray

    from dcoder_cli.data.units import UnitWorker, unit_path

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        if _kept is None or _kept[0] != name:
            _kept = name, UnitWorker(ray.get(shared[0]))
        worker = _kept[1]
        folder = unit_path(worker.job.folder, index).parent
        if not folder.is_dir():
            raise UserError(
                f"machine {socket.gethostname()!r} of the cluster does not see {str(folder)!r}; give an --out in a folder that all share"
            )
        return worker.process(index, unit)
    except Exception as error:
        return error

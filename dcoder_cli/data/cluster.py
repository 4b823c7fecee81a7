"""Work as tasks of a Ray cluster, over a folder that its machines share: `dcoder tokenize --ray`.

Ray's own: where a task runs, machines that join, and tasks of machines that are lost, which others do again. What a task
writes appears in one rename and depends on its call alone, so it does not matter who made it, or how often.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from dcoder_cli import __version__
from dcoder_cli.base.console import note
from dcoder_cli.base.errors import UserError, WorkFailed, one_line
from dcoder_cli.base.machine import cores
from dcoder_cli.data.sources import Unit
from dcoder_cli.data.tasks import AHEAD, Call, Done, Here, Place, Processes, Task, worker_count

RUNNING, LOCAL = "auto", "local"  # the running cluster, or else one of this machine; one of this machine
RETRIES = 3  # of a task whose worker or machine is lost: Ray's default
_ANSWER = 60.0  # seconds in which each machine tells what it sees (ours)
_CONNECTED = 10.0  # seconds in which an address answers (ours)
_MARKER = ".seen-by-all"


def check(address: str | None) -> None:
    """Raises UserError where Ray is asked for and not installed, or nobody listens at its address."""
    if address is None:
        return
    if importlib.util.find_spec("ray") is None:
        raise UserError("--ray needs the package ray; install it with `pip install 'dcoder[ray]'`")
    _check_address(address)


@contextmanager
def open_place(workers: int, units: Sequence[Unit], ray: str | None, folder: Path) -> Iterator[Place]:
    """Where units are worked on: here, or in the cluster at the address `ray`, whose machines see `folder`.

    Ctrl-C ends after the calls in hand, and tells that the work goes on.

    Raises:
        UserError: `workers` below 0, or a cluster that cannot work.
    """
    try:
        if ray is not None:
            with connected(ray, folder) as cluster:
                yield cluster
        else:
            count = worker_count(workers, sum(unit.bytes for unit in units))
            yield Processes(count) if count > 1 else Here()
    except KeyboardInterrupt:
        note("stopped; run the same command again to go on")
        raise


@contextmanager
def connected(address: str, folder: Path) -> Iterator[Cluster]:
    """The cluster at `address`, all of whose machines see `folder`. One that was there stays, one that was made for this ends.

    Raises:
        UserError: Ray is not installed, there is no cluster, or a machine that cannot work.
    """
    with _connected(address) as ray:
        _check_machines(ray, folder)
        yield Cluster(ray, folder)


class Cluster:
    """A `tasks.Place`: each call a task of a core, `shared` fetched once by each process."""

    def __init__(self, ray: Any, folder: Path) -> None:
        self._ray, self._folder = ray, folder

    def run(self, function: Task, shared: Any, calls: Iterable[Call], done: Done) -> None:
        """As `Place.run`. A task whose worker or machine is lost is done again, RETRIES times.

        Raises:
            WorkFailed: a task was lost more often.
        """
        ray = self._ray
        kept, name = ray.put(shared), uuid.uuid4().hex
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_process)
        running: dict[Any, int] = {}
        left = enumerate(calls)
        try:
            while True:
                room = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(running)
                for number, call in islice(left, max(0, room)):
                    running[task.remote(str(self._folder), name, [kept], function, *call)] = number
                if not running:
                    return
                finished, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                for one in finished:
                    number = running.pop(one)
                    found = self._result(one)
                    if isinstance(found, BaseException):
                        raise found
                    done(number, found)
        finally:
            for one in running:
                with suppress(Exception):  # of a cluster that is going: what ended this is told, not this
                    ray.cancel(one, force=True)

    def _result(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            raise WorkFailed(
                f"a tokenizing task was lost {RETRIES + 1} times, most likely for memory ({one_line(error)[:120]}); "
                "run the same command again to go on"
            ) from None


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    check(address)
    import ray

    if ray.is_initialized():  # the caller's own
        yield ray
        return
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


_kept: tuple[str, Any] = ("", None)


def _process(folder: str, name: str, shared: Sequence[Any], function: Callable[..., Any], *call: Any) -> Any:
    """A call in a task. What it raises is returned, since Ray would wrap it."""
    global _kept
    import ray

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        if _kept[0] != name:
            _kept = name, ray.get(shared[0])
        if not Path(folder).is_dir():
            raise UserError(
                f"machine {socket.gethostname()!r} of the cluster does not see {folder!r}; give an --out in a folder that all share"
            )
        return function(_kept[1], *call)
    except Exception as error:
        return error

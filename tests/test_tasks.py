"""Where the work of `dcoder tokenize` runs: each call once, results by number, and what is raised or killed is told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.data.cluster import open_place
from dcoder_cli.data.sources import Unit
from dcoder_cli.data.tasks import Here, Place, Processes, worker_count

PLACES = {"here": Here(), "processes": Processes(2)}


def _add(shared: int, number: int) -> tuple[int, int]:
    return shared + number, os.getpid()


def _fail(shared: int, number: int) -> int:
    if number == 3:
        raise UserError("row 3 is damaged")
    return number


def _die(shared: int, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _sleep(shared: float, number: int) -> None:
    time.sleep(shared)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_call_is_done_once(place: Place) -> None:
    got: dict[int, tuple[int, int]] = {}
    drawn = 0

    def calls() -> Iterator[tuple[int]]:
        nonlocal drawn
        for number in range(20):
            drawn += 1
            yield (number,)

    def done(number: int, result: tuple[int, int]) -> None:
        assert number not in got and drawn - len(got) <= 5, "no more are drawn than there is room for"
        got[number] = result

    place.run(_add, 100, calls(), done)
    assert {number: value for number, (value, _) in got.items()} == {number: 100 + number for number in range(20)}
    assert (os.getpid() in {pid for _, pid in got.values()}) == isinstance(place, Here)
    place.run(_add, 1, [], done)  # nothing to do
    got.clear()
    drawn = 1
    place.run(_add, 1, [(5,)], done)
    assert got == {0: (6, os.getpid())}, "one call alone needs no other process"


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_what_a_call_raises_is_raised(place: Place) -> None:
    with pytest.raises(UserError, match="row 3 is damaged"):
        place.run(_fail, 0, [(number,) for number in range(8)], lambda number, result: None)


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(WorkFailed, match=r"worker was killed, most likely for memory; run the same command again"):
        Processes(2).run(_die, 0, [(1,), (2,), (3,)], lambda number, result: None)


def test_ctrl_c_ends_after_the_calls_in_hand(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []

    def stop(number: int, result: None) -> None:
        done.append(number)
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), open_place(2, [], None, tmp_path) as place:
        place.run(_sleep, 0.1, ((number,) for number in range(1000)), stop)
    assert len(done) == 1 and time.monotonic() - began < 20
    assert capfd.readouterr().err == "stopped; run the same command again to go on\n"


def test_how_many_workers() -> None:
    assert worker_count(3, 0) == 3 and worker_count(0, 1000) == 1 and worker_count(0, 10**9) >= 1
    with pytest.raises(UserError, match="--workers -1 must be 0"), open_place(-1, [Unit(0, (), 5)], None, Path()):
        pass

"""No attack gains a pass, a file, a byte over the network or a process that lives on, and none disturbs the next job."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import attacks
import pytest

from dcoder_cli.execution import codec, sandbox
from dcoder_cli.execution.judge import Judge, Problem

WANTED = Problem("attack", "f", tests=("assert f(3) == 4", "assert f(10) == 11"), seconds=1.0)
# An honest job that also looks whether the one before left anything, and leaves something itself.
GOOD = """
import os
assert os.listdir(".") == [] and os.path.basename(os.getcwd()).startswith("job")
open("mine", "w").write("x")
def f(x):
    return x + 1
"""


class World:
    """A judge with one worker, and everything outside that an attack could touch."""

    def __init__(self, tier: str, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        self.secret.write_text("secret")
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = self.listener.getsockname()[1]
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", port))
        self.abstract = socket.socket(socket.AF_UNIX)
        name = f"dcoder-{os.getpid()}-{tier}"
        self.abstract.bind("\0" + name)
        self.abstract.listen()
        for item in (self.listener, self.datagrams, self.abstract):
            item.setblocking(False)
        self.outside = {"secret": str(self.secret), "folder": str(folder), "port": port, "name": name}
        self.judge = Judge(workers=1, tier=tier)
        self.check_next()
        self.most = self.processes()

    def processes(self) -> int:
        """How many processes there are below the sandboxes."""
        parents = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
        family = set(self.judge.pids)
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return len(family)

    def check_next(self) -> None:
        verdict = self.judge.submit(Problem("next", "f", tests=WANTED.tests, seconds=20), GOOD).result()
        assert verdict.passed, verdict.why

    def check_unharmed(self) -> None:
        self.check_next()
        assert self.processes() <= self.most
        assert sorted(os.listdir(self.folder)) == ["secret"]
        assert self.secret.read_text() == "secret"
        assert self.secret.stat().st_mode & 0o777 != 0o777
        for item in (self.listener, self.abstract):
            with pytest.raises(BlockingIOError):
                item.accept()
        with pytest.raises(BlockingIOError):
            self.datagrams.recv(10)


@pytest.fixture(scope="module", params=["A", "B"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if sandbox.tier_trouble(request.param):
        pytest.skip(f"tier {request.param} does not hold here: {sandbox.tier_trouble(request.param)}")
    os.environ["DCODER_TEST_SECRET"] = "secret"
    made = World(request.param, tmp_path_factory.mktemp("outside"))
    yield made
    made.judge.close()
    del os.environ["DCODER_TEST_SECRET"]


def test_there_are_enough_attacks() -> None:
    assert len(attacks.CHEATS) + len(attacks.ESCAPES) + len(attacks.BOMBS) >= 45


@pytest.mark.parametrize("name", attacks.CHEATS)
def test_a_cheat_gains_no_pass(world: World, name: str) -> None:
    verdict = world.judge.submit(WANTED, attacks.source(attacks.CHEATS[name], **world.outside)).result()
    assert not verdict.passed and not verdict.base
    assert verdict.status in ("failed", "timeout", "memory", "syntax"), verdict
    if name != "answer twice":  # its first answer is right, and the second one condemns it
        assert verdict.tests_passed == 0
    world.check_unharmed()


@pytest.mark.parametrize("name", attacks.ESCAPES)
def test_an_escape_gains_nothing(world: World, name: str) -> None:
    source = attacks.source(attacks.ESCAPES[name], **world.outside)
    [(answer, _)] = world.judge.outputs(source, "f", [codec.dumps([3])], seconds=2.0).result()
    assert answer in (None, b'"refused"')
    verdict = world.judge.submit(WANTED, source).result()
    assert not verdict.passed and verdict.status != "infrastructure", verdict
    world.check_unharmed()


@pytest.mark.parametrize("name", attacks.BOMBS)
def test_a_bomb_harms_nobody(world: World, name: str) -> None:
    verdict = world.judge.submit(WANTED, attacks.source(attacks.BOMBS[name], **world.outside)).result()
    assert verdict.status in ("failed", "timeout", "memory", "syntax"), verdict
    assert verdict.seconds < 30
    world.check_unharmed()

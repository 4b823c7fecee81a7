"""What this process may use of the machine, as its control groups say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcoder_cli.base import machine


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight cores, and folders in place of /sys/fs/cgroup and /proc/self/cgroup."""
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


def write(place: Path, own: str, files: dict[str, str]) -> None:
    (place / "own").write_text(own)
    for name, text in files.items():
        (place / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "groups" / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),  # a share is rounded up
        ("0::/\n", {"cpu.max": "1000 100000"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "400000 100000"}, 3),
        ("0::/docker/77\n", {"cpu.max": "300000 100000"}, 3),  # a container's own group is the root
        ("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "250000", "cpu/x/cpu.cfs_period_us": "100000"}, 3),
        ("3:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/\n", {"cpu.max": "many"}, 8),
        ("no group\n", {}, 8),
    ],
)
def test_cores_within_a_share_of_time(groups: Path, own: str, files: dict[str, str], expected: int) -> None:
    write(groups, own, files)
    assert machine.cores() == expected


def test_memory_within_the_least_of_its_groups(groups: Path) -> None:
    write(groups, "0::/a\n4:memory:/b\n", {"a/memory.max": "max", "memory.max": str(3 << 20)})
    assert machine.memory_bytes() == 3 << 20
    write(groups, "0::/a\n4:memory:/b\n", {"memory/b/memory.limit_in_bytes": str(2 << 20)})
    assert machine.memory_bytes() == 2 << 20


def test_openmp_begins_no_more_threads_than_the_share_is_worth(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write(groups, "0::/\n", {"cpu.max": "max 100000"})
    machine.bound_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    write(groups, "0::/\n", {"cpu.max": "300000 100000"})
    machine.bound_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user's own
    machine.bound_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_a_group_that_there_really_is() -> None:
    """A process in a control group with the time of one core, where one can be made."""
    root = Path("/sys/fs/cgroup")
    second = (root / "cgroup.controllers").is_file()
    group = (root if second else root / "cpu") / f"dcoder-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as problem:
        pytest.skip(f"no control group can be made here: {problem}")
    code = "import sys; open(sys.argv[1], 'w').write('0'); from dcoder_cli.base.machine import cores; print(cores())"
    try:
        if second:
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("100000")
        done = subprocess.run([sys.executable, "-c", code, group / "cgroup.procs"], capture_output=True, text=True)
    except OSError as problem:
        pytest.skip(f"this control group takes no share of time: {problem}")
    finally:
        group.rmdir()
    assert done.stdout.split() == ["1"], done.stderr

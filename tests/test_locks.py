"""A folder has one writer: real processes, real kills."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import make_model, refused, said

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.locks import lock, locked, release_all
from dcoder_cli.base.runs import RunFolder

OWNER = (
    "import sys\nfrom dcoder_cli.base.locks import lock\nheld = lock(sys.argv[1])\nprint('locked', flush=True)\n"
    "sys.stdin.read()"
)


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder until it is killed."""
    command = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "locked\n"
        try:
            yield owner
        finally:
            owner.send_signal(signal.SIGKILL)


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with another(out) as owner:
        says = (
            f"run folder {str(out)!r} is being written by another dcoder \\(process {owner.pid} on .*\\); wait for it"
        )
        for _ in range(2):
            with pytest.raises(UserError, match=says):
                RunFolder.check(out, resume=False, hold=True)
        (tmp_path / "link").symlink_to("deep")
        with pytest.raises(UserError, match="is being written"):
            lock(tmp_path / "link" / "run")
        RunFolder.check(out, resume=False)  # who only looks need not wait
    assert (tmp_path / "deep" / ".run.lock").exists(), "killed: its file is there, and means nothing"
    run = RunFolder.check(out, resume=False, hold=True)
    run.make()
    run.release()
    assert [one.name for one in (tmp_path / "deep").iterdir()] == ["run"]


def test_commands_that_write_a_folder_are_refused_before_they_work(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", ar=True)
    out = tmp_path / "out"
    with another(out):
        for call in (["convert", model], ["export", model], ["quickstart"], ["reproduce"]):
            assert "is being written by another dcoder" in refused(*call, "--out", out), call
        assert not out.exists()
    said("convert", model, "--out", out)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model", "out"]


def test_a_process_meets_its_own_lock_and_gives_it_back(tmp_path: Path) -> None:
    with locked(tmp_path / "x"), locked(tmp_path / "x"):
        pass
    held = lock(tmp_path / "a" / "b")
    assert held is not None and held.file.exists()
    release_all()
    assert not (tmp_path / "a").exists(), "what was made for the lock alone is gone"
    lock(tmp_path / "y")  # dropped at once
    with another(tmp_path / "y"):
        pass


def test_only_the_first_process_of_a_launch_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        RunFolder.check(tmp_path / "run", resume=False, hold=True)


def test_a_parent_that_cannot_be_written_and_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / ".out.lock").mkdir()  # stands for a read-only parent: no such file can be opened there
    held = lock(out)
    assert held is not None and held.file == out / ".lock"
    held.release()
    assert not os.listdir(out)

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with locked(out), locked(tmp_path / "other"):
        pass

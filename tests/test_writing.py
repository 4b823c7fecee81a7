"""Where a command is to write: what cannot be written is told at the start, in a dry run too, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused, said

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_file, atomic_folder, check_file, check_folder, write_json, write_jsonl
from dcoder_cli.base.runs import RunFolder

CALLS = {
    "arness": "arness --trajectories {place}/t.jsonl",
    "arness --model": "arness --model {place}/model --prompts {place}/p.txt",
    "eval": "eval micro --model {place}/model --limit 2",
    "eval, dry": "eval micro --model {place}/model --limit 2 --dry-run",
    "eval judge": "eval judge {place}/t.jsonl --task micro",
    "train-stage": "train-stage 1 --model {place}/model --data {place}/shards",
    "train-stage, dry": "train-stage 1 --model {place}/model --data {place}/shards --dry-run",
    "convert": "convert --init tiny --mask-id 5",
    "convert, forced": "convert --init tiny --mask-id 5 --force",
    "convert, dry": "convert --init tiny --mask-id 5 --dry-run",
    "export": "export {place}/model",
    "quickstart": "quickstart --dry-run",
    "reproduce": "reproduce --dry-run",
    "tokenize": "tokenize pretrain {place}/p.txt --tokenizer {place}/model",
    "tokenize, dry": "tokenize pretrain {place}/p.txt --tokenizer {place}/model --dry-run",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writing")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer)
    make_shards(folder / "shards", tokenizer)
    (folder / "p.txt").write_text("def f(a):\n    return a\n" * 20)
    (folder / "t.jsonl").write_text('{"reveal_step": [0, 1]}\n')
    (folder / "afile").write_text("mine")
    (folder / "dangling").symlink_to(folder / "nowhere")
    return folder


@pytest.mark.parametrize("name", CALLS)
def test_a_folder_that_cannot_be_written_is_refused(name: str, place: Path) -> None:
    call = CALLS[name].format(place=place).split()
    below = place / "afile" / "x"
    assert f"--out {str(below)!r} cannot be written: Not a directory" in refused(*call, "--out", below)
    assert f"--out '{place / 'afile'}' is a file; name a folder" in refused(*call, "--out", place / "afile")
    assert (place / "afile").read_text() == "mine"


def test_what_a_file_system_refuses_is_told(place: Path) -> None:
    for out, why in (
        ("/proc/x", "No such file or directory"),
        (place / "dangling", "No such file or directory"),
        (place / "dangling" / "x", "No such file or directory"),
        (place / ("n" * 300), "File name too long"),
    ):
        with pytest.raises(UserError, match=f"--out .* cannot be written: {why}; choose another folder"):
            check_folder(out)
        with pytest.raises(UserError, match=f"--out .* cannot be written: {why}"):
            RunFolder.check(out, resume=False)


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    check_folder(tmp_path)
    check_file(tmp_path / "c.jsonl", "--trajectories")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_another_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    check_folder(tmp_path)  # who needs the space tells how much


WRONG_FILES = [
    ("nodir/x.png", "lies in a folder that does not exist; make it first"),
    ("nodir/deeper/x.png", "lies in a folder that does not exist; make it first"),
    ("afile/x.png", "cannot be written: Not a directory; choose another file"),
    ("folder.png", "is a folder; name a file"),
    ("socket.png", "is a socket, which no file is written to; choose another file"),
    ("circle.png", "is a link that leads to itself; choose another file"),
]


@pytest.fixture
def wrong(place: Path) -> Path:
    (place / "folder.png").mkdir(exist_ok=True)
    if not (place / "socket.png").exists():
        with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(place):  # its name must be short
            one.bind("socket.png")
        (place / "circle.png").symlink_to("circle.png")
    run = RunFolder(place / "run")
    run.make()
    (run.path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    return place


@pytest.mark.parametrize(("name", "says"), WRONG_FILES)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    name: str, says: str, wrong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcoder_cli.model import loading

    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    file = wrong / name
    call = ("generate", "--model", wrong / "model", "--trajectories", file, "hi")
    assert refused(*call) == refused(*call, "--dry-run") == f"error: --trajectories {str(file)!r} {says}"
    assert refused("plot", wrong / "run", "--out", file) == f"error: --out {str(file)!r} {says}"


def test_a_full_disk_takes_no_answers(place: Path, tmp_path: Path) -> None:
    """They are printed before the trajectories are written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (disk / "fill").write_bytes(bytes(39_000))
        call = ["generate", "--model", place / "model", "--device", "cpu", "--max-new-tokens", "16", "--json", "a", "b"]
        done = dcoder(*call, "--trajectories", disk / "t.jsonl", check=False)
        assert done.returncode == 2 and "no space left" in done.stderr and "Traceback" not in done.stderr
        assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["0", "1"]
        assert [one.name for one in disk.iterdir()] == ["fill"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_is_no_file_is_written_into(tmp_path: Path) -> None:
    """A FIFO, a device and what a process has open stay what they are; a rename would put a file in their place."""
    pipe, heard = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    listener = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    listener.start()
    check_file(pipe, "--out")
    write_json(pipe, {"a": 1})
    listener.join(10)
    assert json.loads(heard[0]) == {"a": 1} and stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "link").symlink_to("/dev/null")
    for name in (Path("/dev/null"), tmp_path / "link"):
        check_file(name, "--out")
        write_jsonl(name, [1, 2])
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and (tmp_path / "link").is_symlink()
    with pytest.raises(OSError, match="No space left"):
        write_json("/dev/full", {})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_device_is_written_into_by_root_too(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"x")
    except OSError:
        pytest.skip("making a device needs root")
    (run := RunFolder(tmp_path / "run")).make()
    (run.path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    (tmp_path / "x.svg").symlink_to(device)
    dcoder_plot = ("plot", run.path, "--out", tmp_path / "x.svg")
    said(*dcoder_plot)
    assert stat.S_ISCHR(device.stat().st_mode) and (tmp_path / "x.svg").is_symlink()


def test_standard_output_goes_on_where_it_stands(tmp_path: Path) -> None:
    """Redirected to a file, it is one behind /dev/stdout: neither replaced nor begun anew."""
    code = (
        "from dcoder_cli.base.files import check_file, write_jsonl\nprint('first')\n"
        "check_file('/dev/stdout', '--out')\nwrite_jsonl('/dev/stdout', [1])\nprint('last')"
    )
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "first\n1\nlast\n"
    with open(tmp_path / "out") as reads, pytest.raises(UserError, match="not open for writing"):
        check_file(f"/dev/fd/{reads.fileno()}", "--out")


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "old.json").write_text("old")
    for name, target in (("there.json", "far/old.json"), ("missing.json", "far/new.json")):
        (tmp_path / name).symlink_to(target)
        check_file(tmp_path / name, "--out")
        write_json(tmp_path / name, [name])
        assert (tmp_path / name).is_symlink() and json.loads((tmp_path / target).read_text()) == [name]
    (tmp_path / "folder").symlink_to("far")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "x").write_text("1")
    assert (tmp_path / "folder").is_symlink() and [one.name for one in (tmp_path / "far").iterdir()] == ["x"]
    with pytest.raises(KeyError), atomic_file(tmp_path / "there.json"):
        raise KeyError
    assert sorted(one.name for one in tmp_path.iterdir()) == ["far", "folder", "missing.json", "there.json"]


def test_a_folder_that_cannot_be_renamed_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount: what lies beside it is on another disk."""
    target = tmp_path / "mount"
    (target / "sub").mkdir(parents=True)
    (target / "sub" / "old").write_text("old")
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == target)
    node = target.stat().st_ino
    with atomic_folder(target) as temporary:
        assert temporary.parent == target
        (temporary / "new").mkdir()
        (temporary / "new" / "x").write_text("1")
    assert target.stat().st_ino == node and [one.name for one in target.iterdir()] == ["new"]

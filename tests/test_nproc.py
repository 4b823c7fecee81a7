"""--nproc: the same command on several processes, its output, its exit codes, and who may ask for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused

from dcoder_cli.base import presets
from dcoder_cli.training.launcher import environment, without_nproc


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nproc")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer, initializer_range=0.4)  # sure of itself: no rounding decides
    make_shards(folder / "data", tokenizer)
    return folder


def asked(place: Path, out: Path, *more: str) -> list[str | Path]:
    sets = ["--set=steps=4", "--set=global_batch=8", "--set=precision=fp32", "--device=cpu", "--json"]
    return ["train-stage", "2", "--model", place / "model", "--data", place / "data", "--out", out, *sets, *more]


def test_two_processes_by_one_option(place: Path, tmp_path: Path) -> None:
    """One JSON document, the losses of one process, and its environment says two; a wrong input is one line and exit 2."""
    alone = json.loads(dcoder(*asked(place, tmp_path / "one")).stdout)
    done = dcoder(*asked(place, tmp_path / "two", "--nproc", "2"))
    assert json.loads(done.stdout)["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["starts"][0]["processes"] == 2
    wrong = dcoder(*asked(place, tmp_path / "three", "--nproc=2", "--set=global_batch=9"), check=False)
    assert wrong.returncode == 2 and wrong.stderr.count("error: ") == 1 and "global_batch = 9" in wrong.stderr
    assert (
        "Traceback" not in wrong.stderr
        and "torch.distributed" not in wrong.stderr
        and not (tmp_path / "three").exists()
    )


def test_only_one_process_fails_and_says_so(tmp_path: Path) -> None:
    """An error that the first process does not have is told by the one that has it."""
    code = (
        "import os, time\nfrom dcoder_cli import main\nfrom dcoder_cli.base.errors import UserError\n"
        "main._GRACE = 0.1\nmain.app = lambda **_: (_ for _ in ()).throw(UserError('mine alone'))\nmain.main()\n"
    )
    for rank, told in (("0", "error: mine alone"), ("1", "error: process 1: mine alone")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={"RANK": rank, "PATH": ""}, timeout=60
        )
        assert done.returncode == 2 and done.stderr.strip() == told


@pytest.mark.parametrize("words", ["[pair.cc:553] Connection closed by peer [127.0.0.1]:1", "remote process exited"])
def test_a_process_whose_peer_is_gone_says_that_and_no_traceback(words: str) -> None:
    """What a collective raises there is no fault of this process; alone, the same words are."""
    code = (
        "from dcoder_cli import main\nmain._GRACE = 0.0\n"
        f"main.app = lambda **_: (_ for _ in ()).throw(RuntimeError({words!r}))\nmain.main()\n"
    )
    for variables, told in (
        ({"RANK": "0"}, "error: another process of this run ended, and this one with it"),
        ({}, None),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "", **variables}, timeout=60
        )
        assert done.returncode == 1 and (done.stderr.strip() == told if told else words in done.stderr)


@pytest.mark.parametrize("ends, code", [("sys.exit(3)", 3), ("None", 0), ("1 / 0", 1)])
def test_one_of_several_processes_ends_before_python_takes_things_down(ends: str, code: int) -> None:
    """What a group's threads use is there to the end; what is to be done at the exit is done, and the exit code is its own."""
    text = (
        "import atexit, os, sys\nfrom dcoder_cli import main\n"
        "class Held:\n    def __del__(self, abort=os.abort): abort()\n"
        "sys.modules['dcoder_cli'].held = Held()\natexit.register(print, 'at the exit')\n"
        f"main.app = lambda **_: {ends}\nmain.process()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env={"RANK": "1", "PATH": ""}, timeout=60
    )
    assert done.returncode == code and done.stdout == "at the exit\n"
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)


def test_what_cannot_be_is_one_line(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--nproc 0 must lie between 1 and 1024" in refused(*asked(place, tmp_path / "out", "--nproc", "0"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    told = refused(*[one for one in asked(place, tmp_path / "out", "--nproc", "4") if one != "--device=cpu"])
    assert "--nproc 4 is more than the 3 GPUs here" in told
    monkeypatch.setenv("RANK", "0")
    assert "under a launcher" in refused(*asked(place, tmp_path / "out", "--nproc", "2"))
    assert not (tmp_path / "out").exists()


def test_what_the_processes_are_told() -> None:
    """The environment of Accelerate's launcher for the preset that shards; nothing for one that does not."""
    told = environment(presets.load("8x80gb")["launch"])
    assert told["ACCELERATE_USE_FSDP"] == "true" and told["FSDP_VERSION"] == "2"
    assert told["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert environment(presets.load("gpu-24gb")["launch"]) == {} == environment({})
    assert without_nproc(["a", "--nproc", "2", "-x", "--nproc=3", "--", "--nproc", "4"]) == [
        "a",
        "-x",
        "--",
        "--nproc",
        "4",
    ]


@pytest.fixture(scope="module")
def questions(place: Path) -> Path:
    file = place / "prompts.txt"
    file.write_text("def f(a):\ndef g(b, c):\n    return b\nx = 1\nprint(x)\n")
    return file


def _tokens(printed: str) -> list[tuple[str, list[int], list[int]]]:
    rows = [json.loads(line) for line in printed.splitlines()]
    return [(row["id"], row["tokens"], row["reveal_step"]) for row in rows]


def test_generate_on_two_processes_gives_what_one_gives(place: Path, questions: Path) -> None:
    """Token for token and in order, each row with the random numbers of its place; and what stands on stdin."""
    call = ["generate", "--model", place / "model", "--max-new-tokens", "12", "--temperature", "1", "--json"]
    several = [*call, "--prompts", questions, "--n", "3", "--batch-size", "2"]
    assert _tokens(dcoder(*several, "--nproc", "2").stdout) == _tokens(dcoder(*several).stdout)
    told = dcoder(*call, "--nproc", "2", input="def f(a):").stdout
    assert _tokens(told) == _tokens(dcoder(*call, "def f(a):").stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [("--prompts", "{questions}", "--temperatures", "0.2,1"), ("--task", "micro", "--limit", "9", "--n", "2"),
             ("--prompts", "{questions}", "--sensitivity")],
)  # fmt: skip
def test_arness_on_two_processes_gives_what_one_gives(
    more: tuple[str, ...], place: Path, questions: Path, tmp_path: Path
) -> None:
    wide = make_model(tmp_path / "model", tokenizer=make_tokenizer(), context=512)
    call = ["arness", "--model", wide, "--max-new-tokens", "12", "--batch-size", "2", "--json"]
    call += [part.format(questions=questions) for part in more]
    alone = json.loads(dcoder(*call, "--out", tmp_path / "one").stdout)
    both = json.loads(dcoder(*call, "--out", tmp_path / "two", "--nproc", "2").stdout)
    for name in ("series", "first_step", "random_order"):
        assert both[name] == alone[name]
    assert [Path(one).name for one in both["files"]] == [Path(one).name for one in alone["files"]]
    for file in (tmp_path / "one").glob("trajectories-*.jsonl"):
        assert _tokens(file.read_text()) == _tokens((tmp_path / "two" / file.name).read_text())


def test_what_processes_observe_adds_up() -> None:
    """The entropies of two shares of rows are those of all rows."""
    from dcoder_cli.analysis.entropy_sink import EntropyMap

    rows = {0: ([0, 2], [0.5, 1.0]), 1: ([1], [0.25]), 2: ([0, 1, 3], [1.0, 2.0, 4.0])}
    whole, shares, merged = EntropyMap(), (EntropyMap(), EntropyMap()), EntropyMap()
    for row, (where, values) in rows.items():
        for one in (whole, shares[row % 2]):
            one.observe(3, row, where, values, values)
    for share in shares[::-1]:
        merged.add(share)
    for found, wanted in ((merged.mean(), whole.mean()), (merged.first_row(), whole.first_row())):
        assert found.shape == wanted.shape and str(found.tolist()) == str(wanted.tolist())

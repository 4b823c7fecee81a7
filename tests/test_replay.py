"""A saved trajectory in a terminal, the tokenizer of its model, and an infill's parts."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from helpers import dcoder, refused
from parrot import LENGTH, NICE, parrot
from terminal import Program, terminal_file

from dcoder_cli import generate, load
from dcoder_cli.analysis.pieces import tokenizer_of
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding import trajectory
from dcoder_cli.decoding.requests import Infill
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.terminal.replay import replay
from dcoder_cli.terminal.screen import Screen


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in `runs/m` and its trajectories, which name the model as of another place."""
    folder = tmp_path_factory.mktemp("saved")
    shutil.copytree(parrot(), folder / "runs" / "m")
    model = load(parrot(), device="cpu")
    model.name = "elsewhere/runs/m"
    chats = [[{"role": "user", "content": text}] for text in ("sort", "hack")]
    trajectory.write(folder / "t.jsonl", generate(model, chats, LENGTH, ids=["nice", "hostile"]))
    return folder


def test_it_is_drawn_step_by_step_and_the_text_remains(saved: Path) -> None:
    program = Program(["generate", "--replay", saved / "t.jsonl", "--delay", "0.01"])
    assert program.end() == 0 and program.display.sane()
    masks = [frame.count("░") for frame in program.display.frames if "tokens/forward" in frame]
    assert masks[0] >= LENGTH - 2 and masks == sorted(masks, reverse=True) and len(set(masks)) > LENGTH // 2
    assert not any("tok/s" in frame for frame in program.display.frames), "a replay has no speed"
    assert NICE.rstrip() in program.display.text() and "sample 'nice' of 2" in program.raw


def test_piped_it_is_the_text_of_the_samples_named(saved: Path) -> None:
    done = dcoder("generate", "--replay", saved / "t.jsonl", "nice")
    assert done.stdout == NICE + "\n" and not done.stderr
    told = refused("generate", "--replay", saved / "t.jsonl", "nobody")
    assert "has no sample 'nobody'; it has 2: 'nice', 'hostile'" in told


def test_what_a_replay_cannot_heed_is_refused(saved: Path) -> None:
    assert "--steps is of decoding" in refused("generate", "--replay", saved / "t.jsonl", "--steps", "4")
    assert "--watch is of decoding" in refused("generate", "--replay", saved / "t.jsonl", "--watch")
    assert "it slows --watch and --replay" in refused("generate", "--model", parrot(), "--delay", "0.5", "x")
    assert "must lie between 0 and 3600 seconds" in refused("generate", "--replay", saved / "t.jsonl", "--delay", "-1")


def test_the_delay_is_waited_at_every_step(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with terminal_file() as (file, _):
        replay(saved / "t.jsonl", ["nice"], delay=0.25, screen=Screen(file))
    assert slept.count(0.25) == LENGTH


def test_other_systems_orders_are_shown_as_positions(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text('{"order": [2, 0, 1]}\n')
    assert dcoder("generate", "--replay", tmp_path / "o.jsonl").stdout == "0 1 2 \n"


def test_the_tokenizer_is_found_from_the_trajectories_model(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(model: str, token: int = 5) -> Trajectory:
        return Trajectory("0", "", [token], "", [0], [1.0], [1.0], 0, model=model)

    assert tokenizer_of(trajectory.read(saved / "t.jsonl"), saved / "t.jsonl") is not None, "moved with its model"
    assert tokenizer_of([one(str(saved / "runs" / "m"))], tmp_path / "t.jsonl") is not None
    assert tokenizer_of([one("owner/name")], tmp_path / "t.jsonl") is None
    assert tokenizer_of([one(""), one("")], tmp_path / "t.jsonl") is None
    assert tokenizer_of([one("runs/m"), one("runs/n")], saved / "t.jsonl") is None
    assert not capsys.readouterr().err
    assert tokenizer_of([one("runs/m", 9999)], saved / "t.jsonl") is None
    assert "no id 9999" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    assert tokenizer_of([one(str(tmp_path / "bad"))], tmp_path / "t.jsonl") is None
    assert "note: showing ids: tokenizer" in capsys.readouterr().err


def test_arness_shows_text_where_the_model_lies_beside(saved: Path, tmp_path: Path) -> None:
    dcoder("arness", "--trajectories", saved / "t.jsonl", "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    pieces = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])[0]["pieces"]
    assert "".join(pieces).startswith(NICE)


def test_an_infill_tells_its_parts_and_prints_the_whole(tmp_path: Path) -> None:
    command = ["generate", "--model", parrot(), "--device", "cpu", "--infill", "--max-new-tokens", "4"]
    text = "def f(a):\n    <FILL>\n    return a\n"
    before, _, after = text.partition("<FILL>")
    record = json.loads(dcoder(*command, "--json", "--trajectories", tmp_path / "t.jsonl", text).stdout)
    assert (record["prefix"], record["suffix"], record["hole"]) == (before, after, record["text"])
    assert record["prompt"] == before + after
    (again,) = trajectory.read(tmp_path / "t.jsonl")
    assert (again.prefix, again.suffix) == (before, after)
    assert dcoder(*command, "--whole", text).stdout == before + record["text"] + after + "\n"
    plain = dcoder("generate", "--model", parrot(), "--device", "cpu", "--max-new-tokens", "4", "--json", "x")
    assert "suffix" not in json.loads(plain.stdout)


def test_whole_without_a_hole_is_refused() -> None:
    command = ["generate", "--model", parrot(), "--device", "cpu", "--whole"]
    assert "a prompt has none" in refused(*command, "x")
    assert "--json has its parts" in refused(*command, "--infill", "--json", "a<FILL>b")


def test_an_infill_of_ids_has_parts_too() -> None:
    model = load(parrot(), device="cpu")
    prefix, suffix = ([*model.tokenizer(text)["input_ids"]] for text in ("ab", "cd"))
    (found,) = generate(model, [Infill(prefix, suffix)], 4)
    assert (found.prefix, found.suffix) == ("ab", "cd")
    with pytest.raises(UserError):
        generate(model, [Infill([1], [10**6])], 4)

"""`dcoder chat`: sessions, scripts through pipes, and a talk on a real pseudo-terminal."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import dcoder, make_model, make_tokenizer, refused
from parrot import LENGTH, NICE, parrot
from terminal import Display, Program, terminal_file

from dcoder_cli import load
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding import trajectory
from dcoder_cli.model.backbone import Model
from dcoder_cli.terminal.chat import Quit, Session, command
from dcoder_cli.terminal.conversation import Stream, Turn, converse, history_file, read_turn

SETTINGS = {"max_new_tokens": LENGTH}


@pytest.fixture(scope="module")
def folder() -> Path:
    return parrot()


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def ar(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_model(tmp_path_factory.mktemp("chat") / "ar", ar=True), device="cpu")


@pytest.fixture
def session(model: Model) -> Session:
    return Session(model, SETTINGS)


def test_the_model_sees_system_message_and_earlier_turns(session: Session) -> None:
    command(session, "/system Be short.")
    session.set(["max_new_tokens=8", "min_new_tokens=8"])
    first = session.ask("sort").trajectory
    assert "Be short." in first.prompt and first.prompt.rstrip().endswith("assistant")
    second = session.ask("more").trajectory
    assert second.prompt.index("sort") < second.prompt.index(first.text) < second.prompt.index("more")
    assert command(session, "/undo") == "undone; 1 turns left"
    assert session.turns == [("sort", first.text)] and len(session.trajectories) == 1
    command(session, "/reset")
    assert session.turns == [] and session.system == "Be short."
    assert session.ask("sort").trajectory.tokens == first.tokens


def test_set_changes_what_is_given_and_refuses_the_rest(session: Session) -> None:
    assert command(session, "/set temperature=0.5 block_length=8") == "temperature = 0.5\nblock_length = 8"
    result = session.ask("sort").trajectory
    assert result.settings["temperature"] == 0.5 and result.settings["block_length"] == 8
    before = session.settings
    for wrong in ("/set steps=7", "/set temperatur=1", "/set top_p=2", "/set rule=best", "/set steps"):
        with pytest.raises(UserError):
            command(session, wrong)
        assert session.settings == before
    assert session.given["temperature"] == 0.5
    assert command(session, "/set block_length=null") == "block_length = null"
    assert "temperature = 0.5" in command(session, "/set")


def test_each_question_has_its_own_random_numbers(model: Model) -> None:
    def talk() -> list[str]:
        session = Session(model, {**SETTINGS, "temperature": 3.0})
        answers = []
        for _ in range(2):
            answers.append(session.ask("sort").trajectory.text)
            session.undo()
        return answers

    first, again = talk()
    assert first != again and talk() == [first, again]


def test_a_saved_conversation_goes_on(model: Model, tmp_path: Path) -> None:
    session = Session(model, {**SETTINGS, "temperature": 0.3}, "Hi.")
    session.ask("sort")
    command(session, f"/save {tmp_path / 'talk.json'}")
    other = Session(model, {})
    command(other, f"/load {tmp_path / 'talk.json'}")
    assert (other.system, other.turns, other.settings) == (session.system, session.turns, session.settings)
    for broken in ("", "[]", '{"messages": [{"role": "user"}]}', '{"messages": [{"role": "user", "content": "a"}]}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(UserError, match=r"broken\.json"):
            other.load(tmp_path / "broken.json")
    assert other.turns == session.turns
    with pytest.raises(UserError, match="cannot be written"):
        other.save(tmp_path / "none" / "talk.json")


def test_trajectories_are_written(session: Session, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        command(session, f"/trajectory {tmp_path / 't.jsonl'}")
    session.ask("sort")
    command(session, f"/trajectory {tmp_path / 't.jsonl'}")
    (line,) = trajectory.read(tmp_path / "t.jsonl")
    assert line.text == NICE


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(model: Model) -> None:
    session = Session(model, {"max_new_tokens": 16, "min_new_tokens": 16})
    forgotten = [session.ask(f"question {number}").forgotten for number in range(5)]
    assert forgotten[0] == 0 and forgotten[-1] > 0
    assert len(session.turns) == 5
    latest = session.trajectories[-1]
    assert "question 0" not in latest.prompt and "question 4" in latest.prompt
    assert latest.prompt_length + 16 <= model.max_length
    with pytest.raises(UserError, match="the context of 128"):
        session.ask("long " * 200)
    assert len(session.turns) == 5


def test_what_stops_an_answer_leaves_the_conversation_as_it_was(session: Session) -> None:
    def stop(step: int, row: int, positions: list[int], tokens: list[int]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    session.ask("sort")
    with pytest.raises(KeyboardInterrupt):
        session.ask("hack", stop)
    assert [question for question, _ in session.turns] == ["sort"]


def test_unknown_commands_and_quit(session: Session) -> None:
    with pytest.raises(UserError, match="/save"):
        command(session, "/sav x")
    with pytest.raises(UserError, match="FILE"):
        command(session, "/save")
    with pytest.raises(UserError, match="no argument"):
        command(session, "/reset all")
    with pytest.raises(UserError, match="no turn"):
        command(session, "/undo")
    with pytest.raises(Quit):
        command(session, "/quit")
    assert all(len(line) <= 80 for line in command(session, "/help").splitlines())


@pytest.mark.parametrize(
    ("lines", "turns"),
    [
        (["a", "b"], [Turn("a", False), Turn("b", False)]),
        (["a\\", "b", "c"], [Turn("a\nb", False), Turn("c", False)]),
        (['"""a', "", '/b"""', "c"], [Turn("a\n\n/b", True), Turn("c", False)]),
        (['"""', "a", '"""'], [Turn("\na", True)]),
        (['"""/a"""'], [Turn("/a", True)]),
        (["a\\"], [Turn("a", False)]),
        (['"""a'], [Turn("a", True)]),
    ],
)
def test_lines_make_turns(lines: list[str], turns: list[Turn]) -> None:
    waiting = list(lines)

    def read_line(goes_on: bool) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    found = []
    while True:
        try:
            found.append(read_turn(read_line))
        except EOFError:
            break
    assert [Turn(turn.text.strip("\n"), turn.quoted) for turn in found] == [
        Turn(turn.text.strip("\n"), turn.quoted) for turn in turns
    ]


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("kind", ["model", "ar"])
def test_a_stream_writes_the_answer_once(
    kind: str, block: int | None, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(request.getfixturevalue(kind), {**SETTINGS, "block_length": block})
    parts: list[str] = []
    stream = Stream(session, parts.append)
    text = session.ask("sort", stream.on_commit).trajectory.text
    before = len(parts)
    stream.finish(text)
    from dcoder_cli.base.console import visible

    assert "".join(parts) == visible(text) + "\n"
    if kind == "model" and block:
        assert text == NICE and before > 1, "it came in pieces"


def test_a_script_gives_clean_text(folder: Path, tmp_path: Path) -> None:
    script = f'sort\n/set seed=3\n/trajectory {tmp_path / "t.jsonl"}\n\n/reset\n"""sort"""\n/quit\nhack\n'
    done = dcoder(
        "chat", "--model", folder, "--device", "cpu", "--set", f"max_new_tokens={LENGTH}", input=script,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "FORCE_COLOR": ""},
    )  # fmt: skip
    assert done.stdout == f"{NICE}\n" * 2
    assert "\x1b" not in done.stderr and ">>>" not in done.stderr
    assert not (tmp_path / "dcoder").exists(), "a script leaves no input history"
    assert len(trajectory.read(tmp_path / "t.jsonl")) == 1


def converse_with(session: Session, script: str, monkeypatch: pytest.MonkeyPatch, **options: bool) -> str:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(script))
    monkeypatch.setattr(sys, "stdout", out)
    converse(session, **options)
    return out.getvalue()


def test_json_prints_a_record_an_answer(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = converse_with(session, "sort\nhack\n", monkeypatch, json=True).splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["text"] == NICE


def test_a_script_ends_at_its_first_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="temp"):
        converse_with(session, "/set temp=1\nsort\n", monkeypatch)
    assert session.turns == []


def test_an_ar_model_talks(ar: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(ar, {"max_new_tokens": 8})
    converse_with(session, "a\nb\n", monkeypatch)
    assert len(session.turns) == 2


@pytest.mark.parametrize("watch", [True, False])
def test_an_answer_cannot_command_the_terminal(model: Model, watch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with terminal_file() as (file, written):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hack\n"))
        monkeypatch.setattr(sys, "stdout", file)
        session = Session(model, {**SETTINGS, "block_length": 8})
        converse(session, watch)
        display = Display()
        display.feed(written())
    assert "\x1b]0;x\x07" in session.turns[0][1], "the model wrote it"
    assert "␛]0;x␇␛[2J<9b>31m" in display.text() and display.sane()


def _stop_an_answer(program: Program) -> None:
    """Ask in two lines and press Ctrl-C while the answer is denoised; an answer that was done sooner is undone first."""
    for _ in range(10):
        program.send("on\\\r")
        program.wait_for(r"\.\.\. ")
        program.send("on\r")
        if ">>> " not in program.wait_for(r"step [1-9]"):
            program.send("\x03")
            with suppress(AssertionError):
                program.wait_for(r"stopped(.|\n)*>>> ", seconds=15)
                return
        program.send("/undo\r")
        program.wait_for(r"(?s)left.*>>> ")
    raise AssertionError("no answer could be stopped")


def test_a_talk_at_a_terminal(folder: Path, tmp_path: Path) -> None:
    arguments = ["chat", "--model", folder, "--device", "cpu", "--set", f"max_new_tokens={LENGTH}"]
    program = Program(arguments, XDG_STATE_HOME=str(tmp_path))
    program.wait_for(">>> ")
    program.send("sort\r")
    program.wait_for(r"forwards, [\d,]+ tok/s(.|\n)*>>> ")
    assert any("░" in frame for frame in program.display.frames)
    assert NICE.rstrip() in program.display.text()
    program.send("/set nothing=1\r")
    assert "error: unknown key" in program.wait_for(">>> ")
    program.send("/set max_new_tokens=96 min_new_tokens=96\r")
    program.wait_for(">>> ")
    _stop_an_answer(program)
    program.send("/undo\r")
    assert "undone; 0 turns left" in program.wait_for(r"(?s)left.*>>> "), "the stopped answer is no turn"
    program.send("\x1b[A\x1b[A\x1b[A")  # up: /undo, on, on\
    program.wait_for(r"on\\")
    program.interrupt(">>> ")
    program.send("\x04")
    assert program.end() == 0
    assert program.display.sane()
    history = tmp_path / "dcoder" / "history"
    assert "sort" in history.read_text() and stat.S_IMODE(history.stat().st_mode) == 0o600


def test_the_history_lies_in_the_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert history_file() == Path("/home/someone/.local/state/dcoder/history")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_file() == Path("/state/dcoder/history")


def test_what_cannot_chat_is_refused(tmp_path: Path, folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    bare = make_model(tmp_path / "bare", tokenizer=tokenizer)
    assert "no chat template" in refused("chat", "--model", bare)
    assert "--model is missing" in refused("chat")
    assert "unknown key" in refused("chat", "--model", folder, "--set", "temp=1")
    assert "cannot be read" in refused("chat", "--model", folder, "--load", tmp_path / "none.json")


def test_a_setting_without_an_effect_is_told_as_chat_takes_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    told = refused("chat", "--model", folder, "--set", "seed=3")
    assert told.endswith("nothing is drawn at temperature 0; give --set temperature=, or leave it out")
    assert "--temperature" not in refused("chat", "--model", folder, "--set", "compat=llada", "--set", "top_k=3")
    assert "give --temperature, or" in refused("generate", "--model", folder, "--seed", "3", "a")

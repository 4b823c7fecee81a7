"""What reaches a screen: no commands from data, whatever the streams, the encoding, the ranks and the arguments are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_tokenizer, refused, said
from rich.table import Table

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.startup import check_ranks

HOSTILE = "\x1b]8;;http://x\x07\x9b2J\x7f\u202e[red]:smile:[/red]"
COMMANDS = (
    "\x1b]",
    "\x07",
    "\x9b",
    "\x7f",
    "\u202e",
)  # rich's own codes, for colours and for the cursor, begin with \x1b[


def shown(monkeypatch: pytest.MonkeyPatch, stream: str, call: str) -> str:
    """What a call of the console writes on a terminal."""
    out = io.StringIO()
    monkeypatch.setattr(sys, stream, out)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out.isatty = lambda: True  # type: ignore[method-assign]
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    if call == "bar":
        with console.bar(HOSTILE, 2) as bar:
            bar.advance(1, HOSTILE)
    elif call == "table":
        console.stdout().print(table)
    elif call == "line":
        console.stdout().print(HOSTILE)
    else:
        getattr(console, call)(HOSTILE)
    return out.getvalue()


@pytest.mark.parametrize(
    ("stream", "call"),
    [("stdout", "table"), ("stdout", "line"), ("stderr", "note"), ("stderr", "warn"), ("stderr", "bar")],
)
def test_text_of_data_commands_no_terminal(monkeypatch: pytest.MonkeyPatch, stream: str, call: str) -> None:
    told = shown(monkeypatch, stream, call)
    assert not [one for one in COMMANDS if one in told], told
    plain = told.replace("\u2407", "")  # the bell, which rich leaves out of lines and tables
    assert "\u241b]8;;http://x<9b>2J\u2421<202e>[red]:smile:[/red]" in plain


def test_tokenize_shows_names_as_they_are(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "t")
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "a.py").write_text("def add(a, b):\n    return a + b\n" * 9)
    (folder / "[bold]\x1b[31mx.py").write_text("")
    (folder / os.fsdecode(b"\xff\xfe.py")).write_text("")
    told = said(
        "tokenize", "pretrain", folder, "--tokenizer", tmp_path / "t", "--out", tmp_path / "o", "--seq-len", "16"
    )
    assert "[bold]\\x1b[31mx.py" in told and "\x1b" not in told
    examples = json.loads((tmp_path / "o" / "manifest.json").read_text())["dropped"]["empty"]["examples"]
    assert examples == ["[bold]\\x1b[31mx.py", "\\udcff\\udcfe.py"]


def test_errors_command_no_terminal() -> None:
    for call in (("generate", "--model", "x", "--\x1b[31mq"), ("train-stage", "\x1b[2J"), ("\x9b31m",)):
        told = refused(*call)
        assert told.startswith("error: ") and told.isprintable(), told


def test_an_encoding_that_lacks_characters_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    from dcoder_cli.base.startup import open_streams

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    open_streams()
    console.emit_text("h\u00e9\u2192\udcff")
    console.emit_json({"a": "h\u00e9\U0001f600"})
    console.stdout().print("\u251c\u2500")
    sys.stdout.flush()
    text, line, last = raw.getvalue().decode("ascii").splitlines()
    assert (
        text == r"h\xe9\u2192\udcff"
        and json.loads(line) == {"schema_version": 1, "a": "h\u00e9\U0001f600"}
        and last == r"\u251c\u2500"
    )


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        (">&-", 2, "error: stdout is closed, and results go there; send it to a file, or to /dev/null\n"),
        ("1</dev/null", 2, "error: stdout is open for reading alone, and results go there; send it to a file, or to /dev/null\n"),
        (">/dev/full", 2, "error: no space left on the disk; free some space or choose another --out, or another place for stdout\n"),
        ("2>&- <&-", 0, ""),
        ("| true; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)  # fmt: skip
def test_streams_that_are_closed_or_full(redirection: str, code: int, told: str) -> None:
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    command = f"{sys.executable} -m dcoder_cli presets list {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and done.stderr == told


def test_a_terminal_of_no_width_is_told_as_much(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """COLUMNS=0, as some editors and build machines have it: notes and warnings were not printed at all."""
    monkeypatch.setenv("COLUMNS", "0")
    console.warn("a model")
    assert capsys.readouterr().err == "warning: a model\n"


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "abc"}, {"RANK": ""}, {"LOCAL_RANK": "-1"}, {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "0"}, {"RANK": "2", "WORLD_SIZE": "2"},
     {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "x"}, {"RANK": "1"}, {"LOCAL_RANK": "3"}, {"RANK": "\u0663"}, {"WORLD_SIZE": "9" * 5000}],
)  # fmt: skip
def test_ranks_that_no_launcher_sets(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """RANK=3 alone had a command print nothing, and succeed."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    check_ranks()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="in the environment"):
        check_ranks()
    monkeypatch.setenv("RANK", "abc")
    assert refused("presets", "list").startswith("error: RANK='abc' in the environment must be a whole number")


@pytest.mark.parametrize(
    "call",
    [
        ("generate", "--model", "m", "h\udce9"), ("tokenize", "pretrain", "x", "--out", "\udcff", "--tokenizer", "t"),
        ("tokenize", "pretrain", "x", "--out", "o", "--tokenizer", "t", "--eos-token", "\ud800"),
        ("presets", "show", "\udcff" * 999),
    ],
)  # fmt: skip
def test_arguments_that_are_not_utf8(call: tuple[str, ...]) -> None:
    told = refused(*call)
    assert "is not UTF-8; write it in UTF-8" in told and len(told) < 300


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("convrt",), "did you mean 'convert'?"),
        (("tokenise",), "did you mean 'tokenize'?"),
        (("qqq",), "known: quickstart, tokenize,"),
        (("generate", "-5"), "if it is no option, write -- before it: `dcoder generate ... -- '-5'`"),
        (("generate", "--help me"), "write -- before it: `dcoder generate ... -- '--help me'`"),
        (("generate", "---"), "write -- before it"),
        (("generate", "--modle", "m"), "No such option: --modle (Possible options: --mode, --model"),
        (("generate", "--mode", "fats", "x"), "'fats' is not one of 'exact', 'fast'; did you mean 'fast'?"),
        (("generate", "--temperature", "cold", "x"), "Invalid value for '--temperature': 'cold' is not a number"),
        (("generate", "--steps", "1.5", "x"), "'1.5' is not a whole number"),
    ],
)
def test_a_wrong_call_says_what_may_be_meant(call: tuple[str, ...], told: str) -> None:
    assert told in refused(*call)


def test_what_the_system_refuses_of_a_file_is_one_line(tmp_path: Path) -> None:
    told = refused("tokenize", "pretrain", "/" + "a" * 5000, "--tokenizer", "t", "--out", tmp_path / "o")
    assert told.endswith("cannot be used: File name too long; name another, or mend it")

"""The one reader of prompt files: what `generate --prompts` and `arness --prompts` take, and what they refuse."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from helpers import dcoder, make_model, refused, said

from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding.prompts import collect, prepare, read
from dcoder_cli.decoding.requests import Infill

CHAT = [{"role": "user", "content": "hi"}]
FORMS: list[tuple[Any, Any]] = [
    ("text", "text"),
    ({"prompt": "one\u2028\u0085two"}, "one\u2028\u0085two"),
    ({"prompt": [5, 6, 7]}, [5, 6, 7]),
    ({"ids": [5, 6, 7]}, [5, 6, 7]),
    ({"prompt": CHAT}, CHAT),
    ({"messages": CHAT}, CHAT),
    ({"prefix": "a", "suffix": "b"}, Infill("a", "b")),
    ({"prefix": "a"}, Infill("a", "")),
    ({"prefix": [5], "suffix": [6, 7]}, Infill([5], [6, 7])),
    ({"prompt": "text", "messages": None, "other": 1}, "text"),
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row, _ in FORMS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "A.JSONL", "a.jsonl.gz", "a.jsonl.zst"])
def test_every_form_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    data = b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\n", 2).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(data))
    assert read(tmp_path / name) == [(str(place), prompt) for place, (_, prompt) in enumerate(FORMS)]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.txt.gz", "a.txt.zst"])
def test_a_text_file_holds_a_prompt_a_line(tmp_path: Path, name: str) -> None:
    data = b"\xef\xbb\xbfone\r\n\n  two\xe2\x80\xa8and three \n\t\n4"
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(data))
    assert read(tmp_path / name) == [("0", "one"), ("1", "  two\u2028and three "), ("2", "4")]


def test_names(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "id": "x", "task_id": "y"}, {"prompt": "b", "task_id": 7}, {"prompt": "c", "id": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read(tmp_path / "a.jsonl") == [("x", "a"), ("7", "b"), ("2", "c")]


def test_no_two_prompts_have_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n\n{"id": "0", "prompt": "y"}\n"z"\n{"id": "#0", "prompt": "u"}\n')
    assert read(path) == [("##0", "x"), ("0", "y"), ("2", "z"), ("#0", "u")]
    path.write_text('{"prompt": "x"}\n\n{"id": "0", "prompt": "y"}\n{"task_id": 0, "prompt": "z"}\n')
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value) == f"prompt file {str(path)!r}: lines 3 and 4 have the same name '0'; rename one of them"


def test_a_byte_order_mark_on_stdin_is_none_of_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, prompt in (("\ufeffdef f", "def f"), ("a\ufeff", "a\ufeff")):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert collect(["-"], None) == [("0", prompt)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff\n"))
    with pytest.raises(UserError, match="on stdin is empty"):
        collect(["-"], None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"}', "has none of prompt, messages, ids, prefix"),
        ('{"suffix": "a"}', "has none of prompt"),
        (
            '{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}',
            "has prompt and messages; a prompt needs one",
        ),
        ("[5, 6]", r"holds \[5, 6\]"),
        ("5", "holds 5"),
        ('{"prompt": 5}', "'prompt' is 5; it must be text, token ids or messages"),
        ('{"prompt": ""}', "'prompt' is empty"),
        ('""', "the text is empty"),
        ('{"prompt": []}', "one or more"),
        ('{"prompt": [5, "6"]}', r"prompt\[1\] is '6'; a token id"),
        ('{"ids": [5, true]}', r"ids\[1\] is True; a token id"),
        ('{"ids": [5, 6.0]}', r"ids\[1\] is 6.0; a token id"),
        ('{"ids": [-1]}', r"ids\[0\] is -1; a token id"),
        ('{"ids": "5, 6"}', "'ids' is '5, 6'; it must be a list"),
        ('{"messages": []}', "'messages' is no list of messages"),
        ('{"messages": "hi"}', "'messages' is no list of messages"),
        ('{"messages": {"role": "user", "content": "b"}}', "'messages' is no list of messages"),
        ('{"messages": [{"role": "user"}]}', "'messages': message 0 has no text 'content'"),
        ('{"prompt": [{"role": "user", "content": "a"}, {"role": 1, "content": "b"}]}', "message 1 has no text 'role'"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "message 0 has no text 'content'"),
        ('{"prefix": 5, "suffix": "a"}', "'prefix' is 5; it must be text or token ids"),
        ('{"prefix": "a", "suffix": {}}', "'suffix' is {}; it must be text or token ids"),
        ('{"prefix": "a", "suffix": ["b"]}', r"suffix\[0\] is 'b'; a token id"),
        ('{"prefix": "", "suffix": ""}', "both empty"),
        ('{"prompt": "a", "id": [1]}', r"'id' is \[1\]; a name is text or a number"),
        ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_line_is_one_line_that_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "good"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    told = str(caught.value)
    assert (
        told.startswith(f"prompt file {str(path)!r} line 3") and "\n" not in told and len(told) < len(str(path)) + 200
    )


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.jsonl")
    for name in ("empty.jsonl", "empty.txt"):
        (tmp_path / name).write_text(" \n\n")
        with pytest.raises(UserError, match="holds no prompt"):
            read(tmp_path / name)
    (tmp_path / "a.txt").write_bytes(b"ok\n\xff\n")
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        read(tmp_path / "a.txt")
    for name in ("cut.jsonl.gz", "cut.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(LINES.encode() * 50)[:-20])
        with pytest.raises(UserError, match=rf"{name}' is damaged after line \d+"):
            read(tmp_path / name)
    with pytest.raises(UserError, match="not both"):
        collect(["a"], tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["p.csv", "p.tsv.gz", "p.parquet"])
def test_a_table_is_no_file_of_prompts(tmp_path: Path, name: str) -> None:
    """The header and the commas of a .csv were prompts."""
    (tmp_path / name).write_text("prompt,id\na,1\n")
    with pytest.raises(UserError, match=f"{name}' is a table; write its rows as JSON lines"):
        read(tmp_path / name)


def test_prompts_as_the_options_want_them() -> None:
    found = [("a", "one"), ("b", [5, 6]), ("c", CHAT), ("d", [{"role": "system", "content": "own"}, *CHAT])]
    system = {"role": "system", "content": "Be brief."}
    assert prepare(found) == [prompt for _, prompt in found]
    assert prepare(found, chat=True, system="Be brief.") == [
        [system, {"role": "user", "content": "one"}], [5, 6], [system, *CHAT], found[3][1],
    ]  # fmt: skip
    assert prepare([("a", "x<FILL>y")], infill=True) == [Infill("x", "y")]
    for text in ("x", "<FILL>a<FILL>"):
        with pytest.raises(UserError, match="prompt 'a' must have exactly one <FILL>"):
            prepare([("a", text)], infill=True)
    for wrong, options in ((found[:2], {}), ([("a", "<FILL>")], {"infill": True})):
        with pytest.raises(UserError, match=r"--system 'Be brief.' has no effect"):
            prepare(wrong, system="Be brief.", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="system message ' ' is empty"):
        prepare(found, chat=True, system=" ")


def test_generate_and_arness_read_the_same_file(tmp_path: Path) -> None:
    """A file with every form: each is decoded, with the same prompts, by both commands."""
    model = make_model(tmp_path / "model", context=128)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    common = ["--model", model, "--prompts", tmp_path / "a.jsonl.gz", "--device", "cpu", "--max-new-tokens", "8"]
    told = [json.loads(line) for line in dcoder("generate", *common, "--raw", "--json").stdout.strip().split("\n")]
    out = tmp_path / "order"
    dcoder("arness", *common, "--temperatures", "0", "--out", out)
    (file,) = out.glob("trajectories-*.jsonl")
    measured = [json.loads(line) for line in file.read_text().strip().split("\n")]
    assert len(told) == len(measured) == len(FORMS)
    for one, other in zip(told, measured, strict=True):
        assert (one["prompt"], one["prompt_length"]) == (other["prompt"], other["prompt_length"])
    assert [one["prompt_length"] for one in told[2:4]] == [3, 3], "ids, not the text of a list"
    (tmp_path / "bad.jsonl").write_text('{"ids": ["5"]}\n')
    for command in ("generate", "arness"):
        line = refused(command, "--model", model, "--prompts", tmp_path / "bad.jsonl")
        assert "bad.jsonl' line 1: ids[0] is '5'; a token id is a whole number from 0" in line


@pytest.mark.parametrize("samples", [1, 2])
def test_generate_and_arness_call_samples_the_same(tmp_path: Path, samples: int) -> None:
    model = make_model(tmp_path / "model")
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "x", "prompt": "a"}\n"b"\n{"task_id": 8, "prompt": "c"}\n')
    common = ["--model", model, "--prompts", file, "--device", "cpu", "--max-new-tokens", "4", "--n", str(samples)]
    common += ["--temperature", "1"]
    told = [json.loads(line)["id"] for line in said("generate", *common, "--json").splitlines()]
    said("arness", *common, "--out", tmp_path / "order")
    (written,) = (tmp_path / "order").glob("trajectories-*.jsonl")
    assert [json.loads(line)["id"] for line in written.read_text().splitlines()] == told
    assert told == (["x", "1", "8"] if samples == 1 else ["x/0", "x/1", "1/0", "1/1", "8/0", "8/1"])


def test_samples_that_would_all_be_the_same_are_refused(tmp_path: Path) -> None:
    """At temperature 0 nothing is drawn but by the rule, the tie break or the heat of the order."""
    model, ar = make_model(tmp_path / "model"), make_model(tmp_path / "ar", ar=True)
    (tmp_path / "p.txt").write_text("a\n")
    says = "error: --n 2 at temperature 0 would make each sample 2 times; give a temperature above 0, such as 0.2"
    given = ["--n", "2", "--max-new-tokens", "8"]
    drawn = (["--temperature", "0.5"], ["--rule", "random"], ["--alg-temperature", "1"], ["--tie-break", "random"])
    for call in (
        ["generate", "a", "--model", model], ["generate", "a", "--model", ar, "--temperature", "0"],
        ["arness", "--prompts", tmp_path / "p.txt", "--model", model, "--temperatures", "0.2,0"],
        ["arness", "--prompts", tmp_path / "p.txt", "--model", model, "--model", ar, "--temperature", "0"],
        ["eval", "micro", "--limit", "1", "--model", model, "--temperatures", "0.2,0", "--out", tmp_path / "e"],
    ):  # fmt: skip
        assert refused(*call, *given).startswith(says)
        assert refused(*call, *given, "--dry-run").startswith(says)
        if ar not in call:
            for more in drawn[1:]:
                said(*call, *given, *more, "--dry-run")
    first, second = (
        [
            json.loads(line)["reveal_step"]
            for line in said("generate", "a", "--model", model, *given, *more, "--json").splitlines()
        ]
        for more in drawn[1:3]
    )
    assert first[0] != first[1] and second[0] != second[1]


def test_samples_of_one_prompt_make_its_ids_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcoder_cli.commands.generate import app
    from typer.testing import CliRunner

    from dcoder_cli.decoding import requests

    asked: list[Any] = []
    plain = requests._tokens
    monkeypatch.setattr(requests, "_tokens", lambda *given, **more: asked.append(given[1]) or plain(*given, **more))
    make_model(tmp_path / "model")
    (tmp_path / "p.jsonl").write_text('{"ids": [5, 6]}\n{"ids": [7]}\n')
    options = [
        "--model",
        str(tmp_path / "model"),
        "--prompts",
        str(tmp_path / "p.jsonl"),
        "--n",
        "3",
        "--temperature",
        "1",
        "--json",
    ]
    done = CliRunner().invoke(app, [*options, "--max-new-tokens", "3"])
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 6, done.output
    assert asked == [[5, 6], [7]]


def test_prompts_that_are_not_utf8_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes the bytes of a command line and of stdin as halves of surrogate pairs, or refuses them."""
    import sys

    from dcoder_cli.decoding.requests import encode_prompt
    from dcoder_cli.model.loading import load
    from dcoder_cli.terminal.chat import Session
    from dcoder_cli.terminal.conversation import converse

    folder = make_model(tmp_path / "model", context=128)
    model = load(folder)
    for prompt in ("\udcff", Infill("a", "\udcff"), Infill("\udcff", [5])):
        with pytest.raises(UserError, match=r"prompt '0' is not UTF-8"):
            encode_prompt(model, prompt)
    assert "argument 6 '\\udcff' is not UTF-8" in refused(
        "generate", "--model", folder, "--max-new-tokens", "4", "\udcff"
    )
    for errors, says in (("strict", "on stdin is not UTF-8"), ("surrogateescape", "prompt '0' is not UTF-8")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xffb\n"), "utf-8", errors))
        assert says in refused("generate", "--model", folder, "--max-new-tokens", "4", "-")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xffb\n"), "utf-8", errors))
        with pytest.raises(UserError, match="not UTF-8"):
            converse(Session(model, {"max_new_tokens": 4}))

"""`dcoder tokenize` as a user runs it: output, exit codes, one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dcoder_cli.commands.tokenize import app
from helpers import make_tokenizer, refused
from typer.testing import CliRunner

from dcoder_cli.base import source_options
from dcoder_cli.base.errors import UserError
from dcoder_cli.data.rl import load_prompts
from dcoder_cli.data.shards import ShardSet

CODE = "def add_{n}(a, b):\n    return a + b + {n}\n"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("src")
    for index in range(8):
        (folder / f"m{index}.py").write_text(CODE.format(n=index) * 9)
    return folder


@pytest.fixture(scope="module")
def prepared(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dcoder tokenize pretrain --train-tokenizer` makes."""
    out = tmp_path_factory.mktemp("made") / "data"
    options = ["--train-tokenizer", "300", "--seq-len", "32", "--near-duplicates", "0", "--heldout", "0.5"]
    result = CliRunner().invoke(app, ["pretrain", str(sources), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    assert "train" in result.output and "heldout" in result.output and "tokenizer" in result.output
    return out


def test_pretrain_as_json(sources: Path, prepared: Path, tmp_path: Path) -> None:
    arguments = ["pretrain", f"{sources}@2", "--out", str(tmp_path / "d"), "--tokenizer", str(prepared / "tokenizer")]
    arguments += ["--seq-len", "32", "--exclude", "m[4-7]*", "--near-duplicates", "0.5", "--heldout", "0", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["kind"] == "pretrain" and told["sources"][0]["weight"] == 2
    assert told["sources"][0]["documents_kept"] == 4 and told["splits"]["train"]["documents"] == 8
    assert told["filters"]["near_duplicates"] == 0.5 and told["dropped"] == {}
    assert len(ShardSet.open(tmp_path / "d")) == told["splits"]["train"]["rows"]


def test_sft_and_rl(prepared: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Add {n}.", "output": f"x + {n}", "test_cases": [f"assert f(1) == {n}"]} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = [str(tmp_path / "rows.jsonl"), "--tokenizer", str(prepared / "tokenizer"), "--heldout", "0"]
    result = CliRunner().invoke(app, ["sft", *common, "--out", str(tmp_path / "sft"), "--seq-len", "64", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["splits"]["train"]["rows"] == 9 == len(ShardSet.open(tmp_path / "sft"))
    result = CliRunner().invoke(app, ["rl", *common, "--out", str(tmp_path / "rl")])
    assert result.exit_code == 0, result.output
    assert len(load_prompts(tmp_path / "rl")) == 9 and "9" in result.output


def test_rl_tells_what_it_left_out_and_renamed(prepared: Path, tmp_path: Path) -> None:
    rows = [{"id": 0, "question": f"Add {n}.", "test_cases": [f"assert f(1) == {n}", "f(1) == 1"]} for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["rl", str(tmp_path / "rows.jsonl"), "--tokenizer", str(prepared / "tokenizer")]
    result = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "rl")])
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "left out since they check nothing: 2, such as rows.jsonl:1 ('f(1) == 1')" in told
    assert "renamed, as an id was taken: 1, such as 0#2" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "{tmp}/nothing", "--tokenizer", "{tok}"], "nothing' does not exist"),
        (["pretrain", "{tmp}/empty", "--tokenizer", "{tok}"], "no usable file"),
        (["pretrain", "{tmp}/broken.jsonl", "--tokenizer", "{tok}"], r"broken\.jsonl' line 2 is not JSON"),
        (["pretrain", "{tmp}/rows.jsonl", "--tokenizer", "{tok}", "--column", "txet"], "did you mean 'text'"),
        (["pretrain", "{tmp}/rows.jsonl", "--tokenizer", "{tok}", "--seq-len", "100000"], "--seq-len 100000"),
        (["pretrain", "{tmp}/rows.jsonl", "--tokenizer", "{tmp}/nothing"], "tokenizer folder"),
        (["pretrain", "{tmp}/rows.jsonl"], "--tokenizer"),
        (["pretrain", "{tmp}/rows.jsonl", "--tokenizer", "{tok}", "--decontaminate", "humaneval"], "--benchmarks"),
        (["pretrain", "{tmp}/rows.jsonl", "--tokenizer", "{tok}", "--code-filters", "some"], "auto, all or none"),
        (["pretrain", "hub:no-such/data", "--tokenizer", "{tok}"], "hub:no-such/data"),
        (["sft", "{tmp}/rows.jsonl", "--tokenizer", "{tok}"], "known: text"),
        (["sft", "{tmp}/plain.py", "--tokenizer", "{tok}"], "text files"),
        (["rl", "{tmp}/rows.jsonl", "--tokenizer", "{tok}"], "has no tests"),
        (
            ["pretrain", "{tmp}/utf16.txt", "--tokenizer", "{tok}"],
            "1 not UTF-8.; mend the files: text that is not empty, in UTF-8",
        ),
        (
            ["pretrain", "{tmp}/texts.json", "--tokenizer", "{tok}"],
            "2 not an object of columns.; mend the files: .* rows as",
        ),
        (
            ["pretrain", "{tmp}/plain.py", "--tokenizer", "{tok}", "--licence", "drop:gpl"],
            "'gpl' is no licence known here; known: AGPL",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.delenv("DCODER_BENCHMARKS", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jsonl").write_text('{"text": "x"}\n{"text\n')
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "plain.py").write_text("x = 1\n")
    (tmp_path / "utf16.txt").write_text("x = 1\n", encoding="utf-16")
    (tmp_path / "texts.json").write_text('["x", "y"]')
    before = sorted(tmp_path.iterdir())
    filled = [part.format(tmp=tmp_path, tok=prepared / "tokenizer") for part in arguments]
    result = CliRunner().invoke(app, [*filled, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert sorted(tmp_path.iterdir()) == before


def test_exit_code_two_and_no_traceback(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dcoder_cli",
        "tokenize",
        "pretrain",
        str(tmp_path / "no"),
        "--out",
        str(tmp_path / "o"),
    ]
    result = subprocess.run([*command, "--train-tokenizer", "300"], capture_output=True, text=True)
    assert result.returncode == 2
    assert (
        result.stderr.strip() == f"error: source '{tmp_path / 'no'}' does not exist; name a folder, a file or hub:NAME"
    )


def test_importing_the_pipeline_needs_neither_torch_nor_transformers() -> None:
    code = "import dcoder_cli.data.pipeline, dcoder_cli.data.rl, sys; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "line",
    [
        "--max-line-length -1", "--max-line-length 0", "--mean-line-length -inf", "--mean-line-length nan", "--min-alphanumeric 2",
        "--min-alphanumeric nan", "--heldout inf", "--workers 100000", "--seed -1", f"--seed {'9' * 400}",
        "--train-tokenizer 99999999999999", "--near-duplicates nan", "--decontaminate-ngram 1",
    ],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused_before_anything(tmp_path: Path, line: str) -> None:
    """Some had left a folder of unfinished work behind, or ended the process in a panic."""
    option, value = line.split()
    told = refused("tokenize", "pretrain", tmp_path / "no", "--out", tmp_path / "o", "--tokenizer", "t", option, value)
    assert told.startswith(f"error: {option} {value[:9]}"[: len(option) + 9]) and " must " in told
    assert not list(tmp_path.iterdir())


def test_weights_have_a_range(tmp_path: Path) -> None:
    for weight in ("1e300", "1e-300", "nan", "inf", "0"):
        told = refused("tokenize", "pretrain", f"{tmp_path}@{weight}", "--out", tmp_path / "o", "--tokenizer", "t")
        assert "the weight must be above 0" in told


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("{src} --ray", "{src} --ray auto"),
        ("--ray {src}", "--ray auto {src}"),
        ("--ray hub:a/b --out x", "--ray auto hub:a/b --out x"),
        ("{src} --ray --out x", "{src} --ray auto --out x"),
        ("{src} --ray 10.0.0.1:6379 --out x", "{src} --ray 10.0.0.1:6379 --out x"),
        ("--ray local {src}", "--ray local {src}"),
        ("--ray nosuch {src}", "--ray nosuch {src}"),
        ("{src} -- --ray", "{src} -- --ray"),
    ],
)
def test_ray_may_stand_without_an_address(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "local").mkdir()  # a folder of that name is no source here
    monkeypatch.chdir(tmp_path)
    lines = [line.format(src=tmp_path / "src").split() for line in (given, meant)]
    assert source_options._with_address(lines[0]) == lines[1]


def test_a_wrong_address_is_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "a.txt").write_text("words of a text")
    make_tokenizer().save_pretrained(tmp_path / "words")
    for address, told in (("nosuch", "HOST:PORT, such as"), ("127.0.0.1:1", "no cluster there"), ("h:x", "are known")):
        for more in ([], ["--dry-run"]):
            line = refused("tokenize", "pretrain", tmp_path / "a.txt", "--tokenizer", tmp_path / "words", "--out", tmp_path / "o",
                           "--ray", address, *more)  # fmt: skip
            assert f"--ray {address}: no cluster there" in line and told in line
    assert not list(tmp_path.glob("*o"))

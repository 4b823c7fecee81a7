"""Instruction data from code: which functions become requests, how they are worded, and gaps as rows of stage 3."""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import code_samples as samples
import numpy as np
import pytest
from helpers import make_tokenizer, refused, said

from dcoder_cli.base import jsonl
from dcoder_cli.benchmarks.protocols import Protocol
from dcoder_cli.data import code_pairs, sources
from dcoder_cli.data.batches import RowRules, answer_length, read_batch
from dcoder_cli.data.holes import INFILL_LENGTHS, room
from dcoder_cli.data.records import Record
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.data.sources import parse_sources, plan_units
from dcoder_cli.data.unit_files import unit_path
from dcoder_cli.decoding.requests import Infill, encode_prompt
from dcoder_cli.execution.extract import extract_solution, fence_format


def rows(path: Path, gaps: float = 0.0) -> list[Record]:
    units, _ = plan_units(parse_sources([str(path)]))
    return [record for unit in units for piece in unit.pieces for record in code_pairs.rows(piece, gaps)]


def kept(records: list[Record]) -> dict[str, dict[str, Any]]:
    assert all(isinstance(record.value, dict) for record in records if record.problem is None)
    return {record.name.split()[1]: record.value for record in records if record.problem is None}  # type: ignore[misc]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(400).save_pretrained(folder)
    return str(folder)


def test_functions_and_methods_become_requests_and_answers(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(samples.KEPT)
    found = kept(rows(tmp_path))
    assert tuple(found) == samples.NAMES
    program = ast.parse(samples.KEPT)
    for name, row in found.items():
        ask, reply = (message["content"] for message in row["messages"])
        assert fence_format(reply, strict=True) == "parses"
        solution = extract_solution(reply, name)
        written = ast.parse(solution).body[-1]
        original = next(node for node in ast.walk(program) if getattr(node, "name", None) == name)
        assert ast.dump(written).replace(" ", "") != "" and ast.get_docstring(written) == ast.get_docstring(original)
        assert [ast.dump(one) for one in written.body[1:]] == [ast.dump(one) for one in original.body[1:]]
        assert ast.unparse(written.args) == ast.unparse(original.args) and name in ask
    told = {name: row["messages"][0]["content"] for name, row in found.items()}
    answers = {name: row["messages"][1]["content"] for name, row in found.items()}
    assert answers["tally"].startswith(
        '```python\nimport re\nfrom collections import Counter\n\nWORD = re.compile(r"[a-z]+")\n\n\ndef tally('
    )
    assert "WORD = " in told["tally"], "a constant of the answer is told"
    assert "import" not in answers["widest"]
    assert "class Shelf:" in told["titles"] and "LIMIT = 3" in told["titles"] and "self.books = dict" in told["titles"]
    assert "def _clean(self, title):\n        ..." in told["titles"] and "Books by their titles." in told["titles"]
    assert answers["titles"].startswith("```python\n@property\ndef titles(self):\n    "), "at the left margin"
    assert answers["lend"].startswith("```python\nasync def lend(")
    assert "import functools" in told["weight"] and answers["weight"].startswith("```python\n@staticmethod\n@functools")
    assert "        A line that stands further in." in answers["weight"]


def test_the_request_is_worded_by_the_function_alone_and_in_the_way_of_eval(tmp_path: Path) -> None:
    ways = set()
    texts = {}
    for number in range(60):
        head = f"def more_{number}(numbers, limit=3):"
        (tmp_path / "one.py").write_text("x = 1\n" * number + samples.function(head))
        (found,) = kept(rows(tmp_path / "one.py")).values()
        texts[head] = found["messages"][0]["content"]
        (tmp_path / "two.py").write_text("import os\n\n\n" + samples.function(head))
        assert kept(rows(tmp_path / "two.py"))[f"more_{number}"] == found, "wherever it stands"
        ways.add(texts[head].replace(f"more_{number}", "more"))
    code = samples.function("def more(numbers, limit=3):").split("    total")[0].rstrip()
    item: Any = SimpleNamespace(kind="complete", prompt=code, own=None)
    asked: Any = Protocol("diffucoder", True).ask(item, None)  # type: ignore[arg-type]
    assert asked.prompt[1]["content"] in ways, "as eval asks"
    assert len(ways) == 9
    words = [way for way in ways if "def more" not in way]
    assert len(words) == 4 and all("`limit` (by default 3)" in way and "larger than the limit" in way for way in words)
    assert (
        "Write a python function to return the sum of all numbers in the list that are larger than the limit. "
        "Call it `more`; it takes `numbers` and `limit` (by default 3)."
    ) in words


@pytest.mark.parametrize("reason", samples.DROPPED)
def test_what_is_no_good_request_is_dropped_by_its_reason(reason: str, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(samples.function())
    assert [record.problem for record in rows(tmp_path / "one.py")] == [None], "the good one stays"
    (tmp_path / "one.py").write_text(samples.DROPPED[reason])
    assert [record.problem for record in rows(tmp_path / "one.py")][-1] == reason


def test_hostile_files_are_dropped_by_their_reasons(tmp_path: Path) -> None:
    for name, (data, _) in samples.FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "helper.py").write_text(samples.function())
    (tmp_path / "latin.py").write_bytes(
        b"# -*- coding: latin-1 -*-\n" + samples.function(body="    name = '\xe9'\n" + samples._BODY).encode("latin-1")
    )
    (tmp_path / "mark.py").write_bytes(b"\xef\xbb\xbf" + samples.function().replace("\n", "\r\n").encode())
    unary = "- " * 600 + "1"  # parses, and is too deep for what walks it by recursion
    (tmp_path / "unary.py").write_text(samples.function(f"def more(numbers, limit={unary}):"))
    found = {record.name.partition(":")[0]: record for record in rows(tmp_path)}
    told = {name: found[name].problem for name in samples.FILES}
    assert told == {name: reason for name, (_, reason) in samples.FILES.items()}
    assert found["tests/helper.py"].problem == "test file"
    assert found["latin.py"].problem is None and "é" in str(found["latin.py"].value)
    assert found["mark.py"].problem is None and "\\r" not in str(found["mark.py"].value)
    assert found["unary.py"].problem in (None, "nested too deeply", "unparsable Python")


def test_tables_with_code_are_sources_too(tmp_path: Path, tokenizer: str) -> None:
    lines = [
        {"content": samples.KEPT},
        {"content": samples.KEPT, "path": "x/tests/y.py"},
        {"content": None},
        {"other": 1},
    ]
    (tmp_path / "code.jsonl").write_text("\n".join(map(json.dumps, lines)))
    records = rows(tmp_path / "code.jsonl")
    assert tuple(kept(records)) == samples.NAMES
    assert [one.problem for one in records][-3:] == ["test file", "empty", "no column of text"]
    (tmp_path / "bad.jsonl").write_text('{"other": 1}')
    told = refused(
        "tokenize", "sft", "--from-code", tmp_path / "bad.jsonl", "--tokenizer", tokenizer, "--out", tmp_path / "o"
    )
    assert "none of the columns text, content, code" in told


def test_gaps_are_the_benchmarks_kinds_and_make_the_function_again(tmp_path: Path) -> None:
    code = "".join(samples.function(f"def more_{n}(numbers, limit):") + "\n\n" for n in range(60)) + samples.KEPT
    (tmp_path / "many.py").write_text(code)
    found = [
        record.value for record in rows(tmp_path, gaps=1.0) if isinstance(record.value, dict) and "hole" in record.value
    ]
    assert len(found) == 60 + 2, "three of the methods have but two lines"
    kinds = {"line": 0, "lines": 0, "span": 0}
    for row in found:
        whole = row["prefix"] + row["hole"] + row["suffix"]
        assert row["code"] in whole or all(line.strip() in whole for line in row["code"].splitlines())
        body = whole.partition('"""')[2].partition('"""')[2]
        assert row["hole"] in body and row["hole"].strip(), "the docstring stays"
        ends = row["prefix"].endswith("\n") and row["hole"].endswith("\n")
        kinds["span" if not ends else "line" if row["hole"].count("\n") == 1 else "lines"] += 1
    assert min(kinds.values()) >= 10, kinds
    method = next(row for row in found if "async def lend" in row["prefix"])
    assert method["prefix"].startswith("class Shelf:\n    async def lend(self")
    assert not [record for record in rows(tmp_path) if "(gap)" in record.name]


def test_a_gap_is_a_row_of_prefix_hole_and_suffix_of_which_the_hole_alone_is_noised(
    tmp_path: Path, tokenizer: str
) -> None:
    from dcoder_cli.model.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    holes = ["x", "    total = 0\n", "    total = numbers[0] + limit\n" * 3]
    gaps = [{"prefix": f"def f{n}(a):\n", "hole": hole, "suffix": "    return a\n"} for n, hole in enumerate(holes)]
    gaps.append({"prefix": "def g():\n", "hole": "    return 1\n", "suffix": ""})
    bad = [{"prefix": "a", "hole": "b"}, {"prefix": "a<|im_end|>", "hole": "b", "suffix": ""}, {**gaps[0], "hole": ""}]
    chat = {"instruction": "Add one.", "output": "x + 1"}
    long = {**gaps[0], "hole": "total\n" * 300}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [chat, *gaps, gaps[0], *bad, long])))
    arguments = ["tokenize", "sft", tmp_path / "rows.jsonl", "--tokenizer", tokenizer, "--out", tmp_path / "out"]
    manifest = json.loads(said(*arguments, "--seq-len", "256", "--heldout", "0", "--json"))
    assert {reason: entry["documents"] for reason, entry in manifest["dropped"].items()} == {
        "exact duplicate": 1, "gap of another form": 1, "special token in the text": 1, "no answer": 1, "longer than the row": 1,
    }  # fmt: skip
    shards = ShardSet.open(tmp_path / "out")
    columns = shards.rows(range(len(shards)))
    model: Any = SimpleNamespace(tokenizer=loaded, name="m", vocab_size=len(loaded))
    expected = {}
    for gap in gaps:
        asked = encode_prompt(model, Infill(gap["prefix"], gap["suffix"]))
        hole = loaded(gap["hole"], add_special_tokens=False)["input_ids"]
        places = next((length for length in INFILL_LENGTHS if length >= len(hole)), -(-len(hole) // 64) * 64)
        end, pad = (manifest["special_tokens"][name]["id"] for name in ("end_of_turn", "pad"))
        filled = (hole + [end] + [pad] * places)[:places]
        row = [*asked.prefix, *filled, *asked.suffix]
        flags = [0] * len(asked.prefix) + [1] * places + [0] * len(asked.suffix)
        rest = 256 - len(row)
        expected[tuple(row + [pad] * rest)] = flags + [2] * rest
    found = {
        tuple(map(int, ids)): list(map(int, flags))
        for ids, flags in zip(columns["tokens"], columns["eligible"], strict=True)
    }
    chats = [ids for ids, flags in found.items() if flags[-1] == 1]
    assert {ids: flags for ids, flags in found.items() if ids not in chats} == expected and len(chats) == 1
    assert manifest["sources"][0]["taught_tokens"] == sum(flags.count(1) for flags in found.values())
    batch = read_batch(shards, range(5), range(5), 0, 1.0, RowRules(0, 0, keep_first=False))
    flags_BL = np.array([found[tuple(ids.tolist())] for ids in batch.ids_BL])
    assert batch.attention_mask_BL is not None
    assert (batch.eligible_BL.numpy() == (flags_BL == 1)).all() and (
        batch.attention_mask_BL.numpy() == (flags_BL != 2)
    ).all()
    early = read_batch(shards, range(5), range(5), 0, 0.0, RowRules(0, 0, False, conditional_phase_in=1.0))
    assert (early.eligible_BL.numpy() == (flags_BL != 2)).all(), "what is not there is never noised"
    assert answer_length(shards) == found[chats[0]].count(1), "gaps do not say how long answers are"


def test_room_of_a_hole() -> None:
    lengths = [1, 8, 9, 32, 33, 64, 65, 128, 129]
    assert room(np.array(lengths)).tolist() == [8, 8, 16, 32, 64, 64, 128, 128, 192]


UNIT_BYTES = 6000
RUN = f"""
from dcoder_cli.data import sources
from dcoder_cli.main import main
sources._FILES_UNIT_BYTES = {UNIT_BYTES}
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for number in range(60):
        words = " ".join(rng.choices(["alpha", "beta", "gamma", "delta", "eta", "theta"], k=20))
        body = "".join(f"    total += {rng.randrange(10**9)} * limit ** {rng.randrange(9)}\n" for _ in range(12))
        code = samples.function(
            f"def more_{number}(numbers, limit):", f'"""Return numbers {words}."""', samples._BODY[:14] + body
        )
        (folder / f"m{number:02}.py").write_text(code + "    return total\n")
    (folder / "copy.py").write_text((folder / "m07.py").read_text())
    (folder / "near.py").write_text((folder / "m09.py").read_text().replace("return total", "return total  # all"))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_any_workers_and_a_kill_leave_the_same_bytes(
    corpus: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--tokenizer", tokenizer, "--seq-len", "1024", "--heldout", "0.2"]
    monkeypatch.setattr(sources, "_FILES_UNIT_BYTES", UNIT_BYTES)
    arguments = ["tokenize", "sft", "--from-code", str(corpus), *options]
    manifest = json.loads(said(*arguments, "--out", tmp_path / "one", "--workers", "1", "--json"))
    assert manifest["settings"]["from_code"] and manifest["filters"]["near_duplicates"] == 0.7
    assert (
        manifest["dropped"]["exact duplicate"]["documents"] == manifest["dropped"]["near duplicate"]["documents"] >= 1
    )
    pairs = manifest["splits"]["train"]["documents"] + manifest["splits"]["heldout"]["documents"]
    assert 60 + 15 < pairs < 60 + 45, "a gap for half of them"
    script = tmp_path / "run.py"
    script.write_text(RUN)
    out, units = tmp_path / "two", tmp_path / ".two.partial" / "units"
    command = [sys.executable, str(script), *arguments, "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONHASHSEED": "7"})
    deadline = time.monotonic() + 120
    while not unit_path(units, 0).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and 1 <= len(list(units.glob("unit-*"))) < 12, "it was stopped midway"
    said(*arguments, "--out", out, "--workers", "1", "--json")
    assert tree(out) == tree(tmp_path / "one")


def test_a_benchmarks_problem_is_found_and_dropped(benchmark_files: Path, tmp_path: Path, tokenizer: str) -> None:
    file = next((benchmark_files / "humaneval").glob("*.jsonl*"))
    row = next(line.value for line in jsonl.lines(file))
    planted = row["prompt"].rstrip() + "\n" + row["canonical_solution"]
    (tmp_path / "ours.py").write_text(samples.KEPT)
    (tmp_path / "theirs.py").write_text(planted)
    common = [
        str(tmp_path),
        "--from-code",
        "--tokenizer",
        tokenizer,
        "--seq-len",
        "2048",
        "--gaps",
        "1",
        "--heldout",
        "0",
    ]
    told = {}
    for name, more in (
        ("with", ["--decontaminate", "humaneval", "--benchmarks", str(benchmark_files)]),
        ("without", []),
    ):
        manifest = json.loads(said("tokenize", "sft", *common, *more, "--out", tmp_path / "out" / name, "--json"))
        told[name] = manifest["splits"]["train"]["documents"], manifest["dropped"].get("contaminated by humaneval")
    assert told["without"] == (told["with"][0] + 2, None), "the request and the gap"
    assert told["with"][1]["documents"] == 2 and "theirs.py" in told["with"][1]["examples"][0]


def test_what_has_no_effect_is_refused(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "one.py").write_text(samples.function())
    common = ["tokenize", "sft", tmp_path / "one.py", "--tokenizer", tokenizer, "--out", tmp_path / "out"]
    assert "--from-code" in refused(*common)
    assert "has no effect" in refused(*common, "--gaps", "0.2")
    assert "--gaps 2.0 must lie between 0 and 1" in refused(*common, "--from-code", "--gaps", "2")
    assert not (tmp_path / "out").exists()

"""CRUXEval: prompts and what is cut out of an answer as published, and what counts as a right input or output.

All 800 references pass and the 16,000 verdicts that are published for Code Llama 7B are the same; here are our own tasks.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_benchmarks
import pytest
from helpers import make_model, refused, said

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import suites
from dcoder_cli.benchmarks.benchmark import Item, Row, Suite
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.benchmarks.protocols import Protocol
from dcoder_cli.execution import sandbox

needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.best_tier() == "C", reason="no sandbox holds here"
)
OWN = len(own_benchmarks.rows("cruxeval"))


@pytest.fixture(autouse=True)
def files(own_benchmark_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCODER_BENCHMARKS", str(own_benchmark_files))


def suite(name: str, subset: str | None = None) -> Suite:
    return suites.load(name, subset, limit=OWN)


@pytest.fixture(scope="module")
def judges(own_benchmark_files: Path) -> Iterator[dict[str, Judging]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCODER_BENCHMARKS", str(own_benchmark_files))
        found = {name: Judging(suites.load(name, limit=OWN), 1) for name in ("cruxeval-i", "cruxeval-o")}
    yield found
    for one in found.values():
        one.close()


def verdict(judges: dict[str, Judging], item: Item, name: str, solution: str) -> Row:
    return judges[name].submit(item, 0, solution).result()


@needs_sandbox
def test_references_pass_and_others_do_not(judges: dict[str, Judging]) -> None:
    for name in ("cruxeval-i", "cruxeval-o"):
        items = suite(name).items
        for item, other in zip(items, items[1:] + items[:1], strict=True):
            assert verdict(judges, item, name, item.reference)["passed"], item.task_id
            assert verdict(judges, item, name, other.reference)["status"] == "failed", item.task_id
    words, turned, scaled, last = suite("cruxeval-o").items
    for item, wrong in ((words, "{4: 2, 3: 2}"), (turned, "'dabC'"), (scaled, "(2, 2, False)"), (last, "[True]")):
        assert verdict(judges, item, "cruxeval-o", wrong)["status"] == "failed", wrong
    # what equals it is right, as `assert OUTPUT == ANSWER` has it
    for item, right in ((words, "dict([(3, 1), (4, 2)])"), (scaled, "(2, 2.0, 1)"), (turned, "'da' 'bc', 'why'")):
        assert verdict(judges, item, "cruxeval-o", right)["passed"], right


# What is no answer, with the beginning of what is said. In their evaluator those marked pass.
INPUTS = [
    ("", "SyntaxError"), ("f(", "SyntaxError"), ("'dabc'", "ValueError: the answer is no call of f"),
    ("f('x', 0) or 'dabc'", "ValueError: the answer is no single value"),  # marked
    ("f('abcd', 3)\nf = 1", "ValueError: the answer is no single value"),  # marked
    ("f('abcd', 3) == 'dabc' == 'dabc'", "ValueError: the answer is no single value"),  # marked
    ("[f('abcd', 3)][0]", "ValueError: the answer is no call of f"),  # marked
    ("f(setattr(f, '__code__', (lambda a, b: 'dabc').__code__), 0)", "ValueError: the input uses setattr"),  # marked
    ("f((lambda: 0).__globals__, 0)", "ValueError: the input uses __globals__"),
    ("f('dabc', exec('raise SystemExit'))", "ValueError: the input uses exec"),
    ("f(" + "(" * 300 + ")" * 300 + ")", "SyntaxError"), ("f(" * 3000, ""), ("f('ab\0')", ""),
]  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize(("text", "why"), INPUTS, ids=[text[:30] for text, _ in INPUTS])
def test_what_is_no_input(judges: dict[str, Judging], text: str, why: str) -> None:
    item = suite("cruxeval-i").items[1]
    found = verdict(judges, item, "cruxeval-i", text)
    assert not found["passed"] and found["why"].removeprefix("test 1: ").startswith(why), found
    assert found["status"] in ("failed", "syntax", "timeout", "memory"), found


@needs_sandbox
@pytest.mark.parametrize(
    "text", ["f('abcd', 3)", "f( 'abcd',3 )", "f(*['abcd', 3])", "dabc", "_", "'dabc' if 0 else 1"]
)
def test_what_is_no_output(judges: dict[str, Judging], text: str) -> None:
    """However the call is written that was asked about, it predicts nothing: the function is not there."""
    assert verdict(judges, suite("cruxeval-o").items[1], "cruxeval-o", text)["status"] == "failed"


@needs_sandbox
@pytest.mark.parametrize(
    "text", ["f('bcda', 2)", "f(('a' + 'bcd'), len('abc'))", "f(times=3, text='abcd')", "f('dabc', -1) # x"]
)
def test_any_input_will_do(judges: dict[str, Judging], text: str) -> None:
    assert verdict(judges, suite("cruxeval-i").items[1], "cruxeval-i", text)["passed"]


@pytest.mark.parametrize(
    ("text", "chat", "inputs", "cot", "solution"),
    [
        ("assert f('a') == 'b'\n", False, False, False, "'b'"), ("'b'", False, False, False, "'b'"),
        ("[ANSWER]\nassert f('a') == [1]\n", True, False, False, "[1]"),
        ("assert f('a', 2) == 'b'\n", False, True, False, "f('a', 2)"), ("f(3)", False, True, False, "f(3)"),
        ("[ANSWER]\nassert f(1) == 2\n", True, True, False, "f(1)"),
        ("so 1 == 1.\n[/THOUGHT]\n[ANSWER]\nassert f(1) == 2\n", False, False, True, "2"),
        ("so 1.\n[/THOUGHT]\n[ANSWER]\nassert f(1) == 2\n", True, True, True, "f(1)"),
        ("It adds one.\nassert f(1) == 2", False, False, True, "2"),
        ("It adds one.\nassert f(1) == 2", True, False, True, "assert f(1) == 2"),
        ("assert f('a==b') == 'c'", False, False, False, "b')"),  # as published
    ],
)  # fmt: skip
def test_what_is_cut_out_of_an_answer(text: str, chat: bool, inputs: bool, cot: bool, solution: str) -> None:
    name, subset = f"cruxeval-{'i' if inputs else 'o'}", "cot" if cot else "direct"
    item = suite(name, subset).items[0]
    assert Protocol("diffucoder", chat).solution(item, text + "[/ANSWER]\nand more") == solution


def test_prompts_are_those_published() -> None:
    """Their code's prompts of our first task, by their hashes; and who is asked how."""
    hashes = {
        "i direct": "6db066a6aede70e1",
        "i cot": "e5e3b5055ad5d6d6",
        "o direct": "840891d3d33e47ac",
        "o cot": "e0c798e2928e2a39",
    }
    for name, wanted in hashes.items():
        letter, subset = name.split()
        item = suite(f"cruxeval-{letter}", subset).items[0]
        assert item.own is not None and item.prompt == item.own.plain
        assert hashlib.sha256(item.prompt.encode()).hexdigest()[:16] == wanted, name
        assert [one["role"] for one in item.own.chat] == ["system", "user"] and item.own.chat[1][
            "content"
        ] == item.prompt


def test_a_chain_of_thought_has_more_tokens() -> None:
    found = {subset: suite("cruxeval-o", subset).settings for subset in ("direct", "cot")}
    assert found["direct"] == {"temperature": 0.2, "top_p": 0.95, "max_new_tokens": 100}
    assert found["cot"]["max_new_tokens"] == 1000


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**row, "id": f"sample_{n}"} for n, row in enumerate(own_benchmarks.rows("cruxeval") * 200)
    ]
    for change, says in (
        ({"output": "1 +"}, "'sample_5' has no output that is a value"), ({"output": 3}, "has no output that is a value"),
        ({"id": "sample_6"}, "has ids twice"), ({"code": None}, "has no output that is a value"),
    ):  # fmt: skip
        file = tmp_path / "cruxeval.jsonl"
        file.write_text("".join(json.dumps({**row, **change} if n == 5 else row) + "\n" for n, row in enumerate(rows)))
        with pytest.raises(UserError, match=says):
            suites.load("cruxeval-i", None, file)


@needs_sandbox
def test_a_model_and_answers_made_elsewhere_are_scored(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny", context=1024)
    found = json.loads(said("eval", "cruxeval-o", "--model", model, "--limit", "2", "--max-new-tokens", "6", "--device", "cpu",
                            "--out", tmp_path / "out", "--json"))  # fmt: skip
    assert found["scores"]["cruxeval-o"]["pass@1"]["score"] == 0.0 and found["subset"] == "direct"
    assert found["settings"]["temperature"] == 0.2 and found["data"]["version"] == "CRUXEval"
    file = tmp_path / "answers.jsonl"
    own = own_benchmarks.rows("cruxeval")
    whole = [f"[ANSWER]\nassert f({row['input']}) == {row['output']}\n[/ANSWER]" for row in own]
    for letter, texts, extract in (("i", whole, ["--extract"]), ("o", [row["output"] for row in own], [])):
        rows = [{"task_id": f"sample_{n}", "solution": text} for n, text in enumerate([*texts[:-1], "no"])]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        told = json.loads(said("eval", "judge", file, "--task", f"cruxeval-{letter}", "--out", tmp_path / letter, "--json", *extract))  # fmt: skip
        assert told["scores"][f"cruxeval-{letter}"]["pass@1"]["score"] == 75.0
    assert "no subset 'chat'; choose direct, cot" in refused("eval", "cruxeval-i", "--model", model, "--subset", "chat")

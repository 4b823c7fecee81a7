"""One policy for rows that cannot be used: dropped, counted with an example; refused where the first fails, or all do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import make_model, make_prompts, make_tokenizer, refused

from dcoder_cli import load
from dcoder_cli.base.errors import UserError
from dcoder_cli.data.dropped import BadRow
from dcoder_cli.data.pipeline import PretrainSettings, SftSettings, tokenize_pretrain, tokenize_sft
from dcoder_cli.data.problems import entry_point_of, read_problem, why_unusable
from dcoder_cli.data.records import TextMapping, read_records
from dcoder_cli.data.rl import RlSettings, load_prompts, tokenize_rl
from dcoder_cli.data.sources import Piece
from dcoder_cli.execution.judge import Judge
from dcoder_cli.model.tokenizer import train_tokenizer
from dcoder_cli.training.grpo.rewards import Rewarder, check_prompts, problem_of
from dcoder_cli.training.grpo.rollouts import encode_prompts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["Write a function that adds numbers.\n"] * 3, 300).save_pretrained(folder)
    return str(folder)


def pretrain(source: Path, tokenizer: str) -> dict[str, Any]:
    return tokenize_pretrain(
        PretrainSettings((str(source),), str(source.parent / "out"), tokenizer, seq_len=32, heldout=0, workers=1, quiet=True)
    )  # fmt: skip


def sft(source: Path, tokenizer: str) -> dict[str, Any]:
    return tokenize_sft(
        SftSettings((str(source),), str(source.parent / "out"), tokenizer, seq_len=200, heldout=0, workers=1, quiet=True)
    )  # fmt: skip


def rl(source: Path, tokenizer: str, **changes: Any) -> dict[str, Any]:
    return tokenize_rl(
        RlSettings((str(source),), str(source.parent / "out"), tokenizer, max_prompt_tokens=500, quiet=True, **changes)
    )


def asked(test: str, *more: str, **others: Any) -> dict[str, Any]:
    return {"question": f"Write a function. {len(test)} {test[:9]}", "test_cases": [test, *more], **others}


KINDS: dict[str, tuple[Callable[[Path, str], dict[str, Any]], Any, dict[str, Any]]] = {
    "pretrain": (
        pretrain,
        {"text": "adds numbers a function"},
        {"no column of text": {"other": "x"}, "no text in 'text'": {"text": 5}, "not an object of columns": [1]},
    ),
    "sft": (
        sft,
        {"instruction": "adds", "output": "numbers"},
        {
            "no question and answer": {"text": "x"},
            "turns of another form": {"messages": [{"role": "user", "content": ["parts"]}]},
            "not an object of columns": "x",
            "no answer": {"messages": [{"role": "user", "content": "x"}]},
            "a question without text": {
                "conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "x"}]
            },
        },
    ),
    "rl": (
        rl,
        asked("assert f(1) == 1"),
        {
            "no tests and no answer": {"question": "x"},
            "no question": {"test_cases": ["assert f(1) == 1"]},
            "tests of another form": {"question": "y", "test_cases": "assert f(1) == 1"},
            "inferences of another form": asked("assert f(2) == 1", inferences=[3]),
            "not an object of columns": None,
            "empty": {"question": " ", "test_cases": ["assert f(1) == 1"]},
            "tests that do not parse": asked("assert f(1) = 1"),
            "tests that do not compile": asked("return f(1) == 1"),
            "tests that check nothing": asked("f(1) == 1", "", "# later"),
            "tests that call no function": asked("assert 1 + 1 == 2"),
            "tests that do not call the function": asked("def check(c):\n    assert c(1) == 1", entry_point="f"),
            "no tests, and no answer that is a number": {"question": "z", "answer": "many"},
        },
    ),
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_are_dropped_counted_and_shown(tmp_path: Path, tokenizer: str, kind: str) -> None:
    run, good, bad = KINDS[kind]
    manifest = run(write(tmp_path / "rows.jsonl", [good, *bad.values()]), tokenizer)
    dropped = {reason: entry["documents"] for reason, entry in manifest["dropped"].items()}
    assert dropped == dict.fromkeys(bad, 1)
    shown = {reason: entry["examples"] for reason, entry in manifest["dropped"].items()}
    assert all(names == [f"rows.jsonl:{place}"] for place, names in enumerate(map(shown.get, bad), start=2)), shown
    assert manifest["splits"]["train"]["documents"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_row_with_wrong_columns_is_refused(tmp_path: Path, tokenizer: str, kind: str) -> None:
    run, good, bad = KINDS[kind]
    for number, row in enumerate(list(bad.values())[:2]):
        with pytest.raises(UserError) as caught:
            run(write(tmp_path / f"rows{number}.jsonl", [row, good]), tokenizer)
        assert f"rows{number}.jsonl:1" in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_value_that_is_no_text_is_no_document(tmp_path: Path, tokenizer: str) -> None:
    """Numbers had become documents; the first row decides for them as for lists."""
    others = [5, 0, 2.5, float("nan"), True, ["x"], {"a": "x"}]
    rows = [{"text": "adds numbers a function"}, *({"text": one} for one in others)]
    dropped = pretrain(write(tmp_path / "rows.jsonl", rows), tokenizer)["dropped"]
    assert {reason: entry["documents"] for reason, entry in dropped.items()} == {"no text in 'text'": len(others)}
    for number, value in enumerate(others):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(UserError, match=r"rows\.jsonl:1: column 'text' holds \w+, not text; known: text$"):
            pretrain(write(tmp_path / str(number) / "rows.jsonl", [{"text": value}, rows[0]]), tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_no_rows_do_not_make_the_columns_wrong(tmp_path: Path, tokenizer: str, kind: str) -> None:
    """The first usable row decides; where none is left, every reason is counted in the message."""
    run, good, _ = KINDS[kind]
    assert run(write(tmp_path / "rows.jsonl", [7, good]), tokenizer)["splits"]["train"]["documents"] == 1
    with pytest.raises(UserError, match=r"dropped: 2 not an object of columns"):
        (tmp_path / "other").mkdir()
        run(write(tmp_path / "other" / "rows.jsonl", [7, 8]), tokenizer)


EMPTY = {"rows.jsonl": b"", "blank.jsonl": b"\n\n", "rows.jsonl.gz": gzip.compress(b""), "rows.json": b"[]"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EMPTY)
def test_a_source_without_a_row_is_said_to_be_empty(tmp_path: Path, tokenizer: str, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(EMPTY[name])
    with pytest.raises(UserError) as caught:
        KINDS[kind][0](tmp_path / name, tokenizer)
    assert str(caught.value) == f"no row to read: {str(tmp_path / name)!r} is empty; copy or make it again"
    assert not (tmp_path / "out").exists()


RIGHT = "import math\nclass Node:\n    def __init__(self, v): self.v = v\ndef area(node): return math.pi * node.v"
WRONG = RIGHT.replace("math.pi * node.v", "7")


def test_setup_and_imports_go_with_the_tests(tmp_path: Path, tokenizer: str) -> None:
    """Rows as MBPP's two files have them; without the code beside them no solution could pass."""
    rows = [
        {"task_id": 1, "text": "Area of a node.", "test_setup_code": "node = Node(2)\r\nother = Node(0)",
         "test_list": ["assert area(node) > 6", "assert area(other) == 0"], "test_imports": []},
        {"task_id": 2, "prompt": "Area again.", "test_imports": ["import math", "from math import isclose"],
         "test_list": ["assert isclose(area(Node(1)), math.pi)"]},
    ]  # fmt: skip
    rl(write(tmp_path / "rows.jsonl", rows), tokenizer)
    first, second = load_prompts(tmp_path / "out")
    assert first["tests"]["setup"] == "node = Node(2)\nother = Node(0)" and "prelude" not in first["tests"]
    assert second["tests"]["prelude"] == "import math\nfrom math import isclose" and second["entry_point"] == "area"
    check_prompts([first, second], {"code": 1.0})
    with Judge(workers=1) as judge:
        rewarder = Rewarder({"code": 1.0}, judge)
        for prompt in (first, second):
            pending = [rewarder.submit(prompt, f"```python\n{code}\n```") for code in (RIGHT, WRONG)]
            assert [rewarder.result(one).total for one in pending] == [1.0, 0.5 if prompt is first else 0.0]
    again = write(tmp_path / "again.jsonl", [first, second])  # our own file is a source, too
    rl(again, tokenizer, overwrite=True)
    assert [row["tests"] for row in load_prompts(tmp_path / "out")] == [first["tests"], second["tests"]]


@pytest.mark.parametrize("column", ["prelude", "setup"])
@pytest.mark.parametrize("form", ["lines", "text", "in tests, as lines", "in tests, as text"])
def test_code_beside_the_tests_is_a_text_or_its_lines(tmp_path: Path, tokenizer: str, column: str, form: str) -> None:
    """A list of lines had become its own name in brackets, an expression that does nothing."""
    lines = ["import math", "two = math.tau / math.pi"]
    code = lines if "lines" in form else "\n".join(lines)
    row: dict[str, Any] = {"question": "Double it.", "test_list": ["assert f(1) == two"]}
    if form.startswith("in tests"):
        row["tests"] = {"hidden": row.pop("test_list"), column: code}
    else:
        row[{"prelude": "test_imports", "setup": "test_setup_code"}[column]] = code
    rl(write(tmp_path / "rows.jsonl", [row]), tokenizer)
    (prompt,) = load_prompts(tmp_path / "out")
    assert prompt["tests"][column] == "\n".join(lines)
    with Judge(workers=1) as judge:
        assert judge.submit(problem_of(prompt), "def f(x):\n    return 2 * x").result().passed


@pytest.mark.parametrize("value", [5, True, ["import math", 5], {"a": "b"}])
@pytest.mark.parametrize("column", ["test_imports", "test_setup_code", "prelude", "setup"])
def test_code_of_another_form_is_a_bad_row(column: str, value: Any) -> None:
    row: dict[str, Any] = {"question": "q", "test_list": ["assert f(1)"], column: value}
    if column in ("prelude", "setup"):
        row = {"question": "q", "tests": {"hidden": ["assert f(1)"], column: value}}
    with pytest.raises(BadRow, match=column) as caught:
        read_problem(row, "r:1", "s")
    assert caught.value.reason == "tests of another form"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"task_id": 0}, "0"),
        ({"id": 0}, "0"),
        ({"task_id": 0, "id": 7}, "0"),
        ({"task_id": None, "id": 0}, "0"),
        ({"task_id": "", "id": "a"}, "a"),
        ({"task_id": None, "id": ""}, "r:1"),
        ({}, "r:1"),
    ],
)
def test_only_null_and_the_empty_text_are_no_name(names: dict[str, Any], expected: str) -> None:
    assert read_problem(asked("assert f(1)", **names), "r:1", "s").task_id == expected
    assert read_problem(asked("assert f(1)", source=0), "r:1", "s").source == "0"


def test_the_entry_point_is_no_imported_name() -> None:
    tests = ["assert isclose(area(1), 3)"]
    assert entry_point_of(tests) == "isclose"
    assert entry_point_of(tests, "from math import isclose") == "area"
    assert entry_point_of(["assert np.allclose(f(1), near(2))"], "import numpy as np\nfrom x import y as near") == "f"


def test_every_row_of_mbpp_can_be_solved(tmp_path: Path, tokenizer: str, benchmarks: Path) -> None:
    """The published rows that have code beside their tests, and 40 others, with their references."""
    with gzip.open(benchmarks / "mbpp" / "mbpp.jsonl.gz", "rt", encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    with gzip.open(benchmarks / "mbpp" / "sanitized-mbpp.json.gz", "rt", encoding="utf-8") as handle:
        sanitized = [{**row, "task_id": f"s{row['task_id']}"} for row in json.load(handle)]
    chosen = [row for row in rows if row["test_setup_code"]] + rows[:20]
    chosen += [row for row in sanitized if row["test_imports"]] + sanitized[:20]
    manifest = rl(write(tmp_path / "rows.jsonl", chosen), tokenizer, hard="all", complete=False)
    references = {str(row["task_id"]): row["code"] for row in chosen}
    prompts = load_prompts(tmp_path / "out")
    assert len(prompts) >= 40 and manifest["dropped"].keys() <= {"exact duplicate", "prompt too long"}
    assert any("setup" in prompt["tests"] for prompt in prompts)
    assert any("prelude" in prompt["tests"] for prompt in prompts)
    with Judge() as judge:
        found = {
            prompt["task_id"]: judge.submit(problem_of(prompt), references[prompt["task_id"]]) for prompt in prompts
        }
        assert {name: verdict.result().status for name, verdict in found.items()} == dict.fromkeys(found, "passed")


CHECK = "def check(c):\n    assert c(1) == 1"
UNITTEST = "import unittest\nclass T(unittest.TestCase):\n    def test_one(self):\n        self.assertEqual(f(1), 1)"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (asked(CHECK), "tests that call no function"),
        (asked(CHECK, "check(f)"), "tests that call no function"),  # f, or something else
        (asked(CHECK, entry_point="f"), "tests that do not call the function"),
        (asked(UNITTEST, entry_point="f"), "tests that do not call the function"),
        (asked("def t():\n    assert f(1)", entry_point="f"), "tests that do not call the function"),
        (asked(CHECK, "check(f)", entry_point="f"), None),
        (asked("def t():\n    assert f(1)", "t()"), None),
        (asked("for i in range(3):\n    assert f(i) == i"), None),
        (asked("assert all(map(f, [1]))", entry_point="f"), None),
        (asked("assert f(1) == 1", inferences=[{"pass_rate": 0.5}]), None),
    ],
)
def test_tests_that_only_stand_there_judge_nothing(row: dict[str, Any], reason: str | None) -> None:
    problem = read_problem(row, "r:1", "s")
    assert why_unusable(problem) == reason
    assert reason is not None or problem.entry_point == "f"


NOT_COMPILED = [
    "return f(1) == 1",
    "assert await f(1) == 1",
    "assert (yield f(1)) == 1",
    "nonlocal x\nassert f(1)",
    "assert f(1)\nbreak",
    "assert f(1)\nfrom __future__ import annotations",
]


@pytest.mark.parametrize("code", NOT_COMPILED)
def test_code_that_parses_and_does_not_compile_judges_nothing(code: str) -> None:
    reason = "tests that do not compile"
    assert why_unusable(read_problem(asked(code), "r:1", "s")) == reason
    for column in ("test_imports", "test_setup_code"):
        assert why_unusable(read_problem(asked("assert f(1)", **{column: code}), "r:1", "s")) == reason


def test_a_test_that_python_warns_of_is_no_news(recwarn: pytest.WarningsRecorder) -> None:
    assert why_unusable(read_problem(asked("assert f('\\d') is 'x'"), "r:1", "s")) is None
    assert not recwarn.list


@pytest.mark.parametrize(
    "test",
    ["", " \n", "# f(1)", "f(1) == 1", "f(1) == 1\n2 == f(2)", "f", "'assert f(1)'", "pass", "assert (f(1) == 1, 'no')",
     "assert True", "assert 'f(1) == 1'"],
)  # fmt: skip
def test_a_test_that_checks_nothing_is_left_out(test: str) -> None:
    """Any answer passes it, so that its row paid for everything."""
    problem = read_problem(asked(test, "assert f(2) == 2"), "r:1", "s")
    assert problem.hidden == ["assert f(2) == 2"] and problem.idle == [test] and why_unusable(problem) is None
    alone = read_problem(asked(test, entry_point="f"), "r:1", "s")
    assert why_unusable(alone) == "tests that check nothing"


@pytest.mark.parametrize(
    "test",
    ["assert f(1)", "check(f)", "x = f(1)", "import math", "def check(c):\n    assert c(1)", "f(1) == 1 or fail(f)",
     "(x := f(1)) == 1", "f(1)", "if f(1) != 1: raise ValueError", "f(1) == 1\nassert f(2)", "assert (*f(1),)",
     "assert ()", "assert 0", "await f(1) == 1", "f(1) ="],
)  # fmt: skip
def test_what_may_check_something_is_a_test(test: str) -> None:
    assert read_problem(asked(test), "r:1", "s").hidden == [test]


def test_tests_left_out_are_counted_and_shown(tmp_path: Path, tokenizer: str) -> None:
    rows = [asked("assert f(1) == 1", "f(2) == 2", ""), asked("g(1) == 1"), asked("assert h(1)", answer="5")]
    manifest = rl(write(tmp_path / "rows.jsonl", rows), tokenizer)
    assert manifest["idle_tests"] == {"count": 2, "examples": ["rows.jsonl:1 ('f(2) == 2')", "rows.jsonl:1 ('')"]}
    assert manifest["dropped"] == {"tests that check nothing": {"documents": 1, "examples": ["rows.jsonl:2"]}}
    assert [row["tests"]["hidden"] for row in load_prompts(tmp_path / "out")] == [["assert f(1) == 1"], ["assert h(1)"]]


@pytest.mark.parametrize("role", [["user"], None, {}, 1])
def test_a_role_that_is_no_text_is_a_bad_row(role: Any) -> None:
    from dcoder_cli.data.formats import messages_of

    with pytest.raises(BadRow, match="'role' in 'messages' must be text"):
        messages_of({"messages": [{"role": role, "content": "a"}]}, "r:1")


def test_a_function_under_a_builtins_name_is_found_by_the_reference() -> None:
    code = "def sum(a, b):\n    return a - b"
    assert entry_point_of(["assert sum(2, 1) == 1"]) is None
    assert entry_point_of(["assert len([sum(2, 1)]) == 1"], reference=code) == "sum"
    assert entry_point_of(["assert sum(f(2)) == 1"], reference=code) == "f"


def rated(name: str, *rates: Any) -> dict[str, Any]:
    """A question with the pass rates of the two models that hardness is judged by."""
    models = ("qwen_coder_2.5", "llama3_instruct")
    inferences = [{"model_name": model, "pass_rate": rate} for model, rate in zip(models, rates, strict=True)]
    return {"question": f"Write {name}.", "test_cases": [f"assert {name}(1) == 1"], "inferences": inferences}


def test_one_row_without_a_pass_rate_does_not_make_all_others_easy(tmp_path: Path, tokenizer: str) -> None:
    """Quantiles over a NaN are NaN, and nothing lies below them."""
    plain = [rated("f", 0.0, 0.6), rated("g", 1.0, 1.0), rated("h", 1.0, 0.9), rated("i", 1.0, 0.9)]
    kept = rl(write(tmp_path / "a.jsonl", plain), tokenizer)["splits"]["train"]["rows"]
    odd = [rated("j", float("nan"), None), rated("k", float("inf"), 0.5), rated("l", True, 0.5), rated("m", -1, 0.5)]
    manifest = rl(write(tmp_path / "b.jsonl", [*plain, *odd]), tokenizer, overwrite=True)
    assert manifest["dropped"]["inferences of another form"]["documents"] == 3
    names = {row["entry_point"] for row in load_prompts(tmp_path / "out")}
    assert kept == 1 and names == {"f", "j"}, "the hard one, and the one of which nothing is known"


def test_questions_under_one_id_are_told_apart(tmp_path: Path, tokenizer: str) -> None:
    """A name that is given out is not given again, whether a row has it or was told apart by it."""
    code = "def {0}(x):\n    return x"
    rows = [asked(f"assert {name}(1) == 1", id=task, solution=code.format(name))
            for name, task in [("a", "dup"), ("b", "dup#2"), ("c", "dup"), ("d", "other"), ("e", "dup"), ("g", "dup#2")]]  # fmt: skip
    rows += [{"question": "How many?", "answer": "3", "id": "dup/complete"}, {"question": "And?", "answer": "3"}]
    manifest = rl(write(tmp_path / "rows.jsonl", rows), tokenizer)
    prompts = load_prompts(tmp_path / "out")
    pairs = ["dup", "dup#2", "dup#3", "other", "dup#4", "dup#2#2"]
    expected = [f"{name}{ending}" for name in pairs for ending in ("", "/complete")]
    assert [prompt["task_id"] for prompt in prompts] == [*expected, "dup/complete#2", "rows.jsonl:8"]
    assert [prompt["entry_point"] for prompt in prompts[:12:2]] == ["a", "b", "c", "d", "e", "g"]
    assert manifest["renamed"] == {"count": 4, "examples": ["dup#3", "dup#4", "dup#2#2", "dup/complete#2"]}
    assert manifest["splits"]["train"] == {"rows": 14, "documents": 8}
    again = write(tmp_path / "again.jsonl", prompts)  # our own file is a source, too, and keeps its ids
    assert rl(again, tokenizer, overwrite=True)["renamed"] == {"count": 0, "examples": []}
    assert [prompt["task_id"] for prompt in load_prompts(tmp_path / "out")] == [one["task_id"] for one in prompts]


def test_a_value_that_python_cannot_hold_is_bad_only_where_it_is_asked_for(tmp_path: Path, tokenizer: str) -> None:
    """A date after the year 9999 in a column that nobody reads had ended the command in a traceback."""
    late = pa.array([2**62]).cast(pa.timestamp("us"))
    rows = {
        "pretrain": {"text": ["adds numbers a function"]},
        "sft": {"instruction": ["adds"], "output": ["numbers"]},
        "rl": {"question": ["Write a function."], "test_list": [["assert f(1) == 1"]]},
    }
    for kind, columns in rows.items():
        (tmp_path / kind).mkdir()
        path = tmp_path / kind / "rows.parquet"
        pq.write_table(pa.table({**columns, "when": late, "long": pa.array([2**62], pa.duration("us"))}), path)
        assert KINDS[kind][0](path, tokenizer)["splits"]["train"]["documents"] == 1
    half = pa.Array.from_buffers(pa.string(), 2, pa.array([b"adds numbers a function", b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"text": half}), tmp_path / "half.parquet")
    assert pretrain(tmp_path / "half.parquet", tokenizer)["dropped"]["no text in 'text'"]["documents"] == 1
    with pytest.raises(UserError, match=r"rows\.parquet:1: column 'when' holds a value out of range"):
        TextMapping("when").text(
            next(read_records(Piece(str(path), "rows.parquet", "parquet", 0, 1))).value, "rows.parquet:1"
        )


def test_the_text_parts_of_a_content_are_its_text(tmp_path: Path, tokenizer: str) -> None:
    def row(*asked: Any) -> dict[str, Any]:
        turns = [
            {"role": "user", "content": list(asked)},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ]
        return {"messages": turns, "tests": ["assert f(1) == 1"]}

    text, image = {"type": "text", "text": "adds "}, {"type": "image_url", "image_url": {"url": "x"}}
    for kind, run in (("sft", sft), ("rl", rl)):
        (tmp_path / kind).mkdir()
        manifest = run(
            write(tmp_path / kind / "rows.jsonl", [row(text, {**text, "text": "one"}), row(image, text)]), tokenizer
        )
        assert {reason: one["documents"] for reason, one in manifest["dropped"].items()} == {
            "a part that is no text": 1
        }
        with pytest.raises(UserError, match="has a part of type 'image_url', and a model here reads text alone"):
            (tmp_path / f"{kind}2").mkdir()
            run(write(tmp_path / f"{kind}2" / "rows.jsonl", [row(image)]), tokenizer)
    assert load_prompts(tmp_path / "rl" / "out")[0]["messages"] == [{"role": "user", "content": "adds one"}]


def test_a_source_that_is_a_link_to_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    line = refused("tokenize", "pretrain", tmp_path / "a.jsonl", "--train-tokenizer", "300", "--out", tmp_path / "out")
    assert (
        "a.jsonl' cannot be read: Too many levels of symbolic links; name" in line and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_rows_under_the_name_of_lines_names_the_remedy(
    tmp_path: Path, tokenizer: str, indent: int | None
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps([{"text": "a b"}, {"text": "c d"}], indent=indent))
    with pytest.raises(UserError, match=r"line 1 .*is read of a \.json: rename the file$"):
        pretrain(path, tokenizer)
    assert pretrain(path.rename(tmp_path / "rows.json"), tokenizer)["splits"]["train"]["documents"] == 2


PROMPT: dict[str, Any] = {
    "task_id": "a", "messages": [{"role": "user", "content": "Write f."}], "entry_point": "f", "tests": {"hidden": ["assert f(1) == 1"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tests": 5}, "line 1 has tests = 5, which must be an object"),
        ({"tests": {"hidden": [5]}}, r"line 1 has tests.hidden\[0\] = 5, which must be text"),
        (
            {"tests": {"hidden": ["assert f(1) == 1"], "setup": []}},
            r"line 1 has tests.setup = \[\], which must be text",
        ),
        ({"entry_point": 5}, "line 1 has entry_point = 5, which must be text"),
        ({"task_id": None}, "line 1 has task_id = null, which must be text"),
        ({"baseline": "0.5"}, 'line 1 has baseline = "0.5", which must be a number'),
        ({"messages": ..., "prompt": 5}, "line 1 has prompt = 5, which must be text"),
        ({"task_id": ...}, "line 1 has no task_id; make them again"),
    ],
)
def test_prompts_of_another_form_are_named_before_the_first_step(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    """Each was a traceback of `dcoder grpo`."""
    row = {key: value for key, value in {**PROMPT, **changed}.items() if value is not ...}
    folder = make_prompts(tmp_path / "rl", [row])
    with pytest.raises(UserError, match=says):
        check_prompts(load_prompts(folder), {"code": 1.0})


def test_a_prompt_without_a_question_is_named(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = load(make_model(tmp_path / "model", tokenizer=tokenizer), device="cpu")
    assert encode_prompts(model, [{"task_id": "a", "prompt": "x"}], 4)
    with pytest.raises(UserError, match="prompt 'a' has neither messages nor a prompt; give one of them"):
        encode_prompts(model, [{"task_id": "a"}], 4)

"""LiveCodeBench: prompts and what is cut out of an answer as published, tests of both kinds, packed tests, windows of dates."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_benchmarks
import pytest
from helpers import make_model, refused, said

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import data, judging, livecodebench, suites
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.benchmarks.protocols import Protocol
from dcoder_cli.execution import sandbox
from dcoder_cli.execution.compare import same_numbers

needs_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or sandbox.best_tier() == "C", reason="no sandbox holds here"
)
FILE = own_benchmarks.OWN / "livecodebench.jsonl"
OWN = {row["question_id"]: row for row in own_benchmarks.rows("livecodebench")}
EXAMPLE = {"question": "Add.", "sample_code": "class Solution:\n    def add(self): ", "answer": "pass"}


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCODER_BENCHMARKS", raising=False)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judging]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(livecodebench, "SECONDS", 0.5)
        patch.setattr(judging, "_WAITING", 2)  # more are judged than may wait
        with Judging(suites.load("livecodebench", None, FILE), 1) as found:
            yield found


# Programs for the tasks of the file, by their ids; and how they end. Their runner's verdicts are the same.
_SUM = "n = int(input())\nrow = list(map(int, input().split()))\n"
_PAIR = "class Solution:\n    def pairUp(self, numbers, target):\n"
_ALL = (
    "        for a in range(len(numbers)):\n            for b in range(a):\n                if numbers[a] + numbers[b] == target:\n"
    "                    return {}\n        return []\n"
)
PROGRAMS = [
    *((name, row["solution"], "passed") for name, row in OWN.items()),
    ("own101_a", _SUM + "print(f' {sum(row)}.00\\t{sum(row) / n:.3f} ')\nprint()", "passed"),
    ("own101_a", "import sys\nn, *row = map(int, sys.stdin.buffer.read().split())\nprint(sum(row), mean(row))", "passed"),
    ("own101_a", _SUM + "print(sum(row))\nprint(sum(row) / n)", "failed"),
    ("own101_a", _SUM + "print(sum(row), sum(row) / n + 1e-9)", "failed"),
    ("own101_a", "print('9 3.0')", "failed"), ("own101_a", "", "failed"), ("own101_a", "print(", "syntax"),
    ("own101_a", "while True: pass", "timeout"), ("own101_a", _SUM + "raise MemoryError", "memory"),
    ("own101_a", _SUM + "print(sum(row), sum(row) / n)\nimport os\nos._exit(0)", "failed"),
    ("own101_a", "import builtins\nclass Same(str):\n    def __eq__(self, other): return True\nprint(Same())", "failed"),
    ("9001", _PAIR + _ALL.format("(b, a)"), "passed"), ("9001", _PAIR + _ALL.format("[float(b), a]"), "passed"),
    ("9001", "def pairUp(numbers, target):\n    if 1:\n" + _ALL.format("[b, a]"), "passed"),
    ("9001", _PAIR + _ALL.format("[a, b]"), "failed"), ("9001", _PAIR + _ALL.format("deque([b, a])"), "failed"),
    ("9001", _PAIR + "        while 1: pass", "timeout"), ("9001", _PAIR + "        exit()", "failed"),
    ("9001", "class Other: pass", "failed"), ("9001", _PAIR, "syntax"),
    ("9001", _PAIR + "        class Same:\n            __eq__ = lambda self, other: True\n        return Same()", "failed"),
    ("9002", "class Solution:\n    def halves(self, numbers): return [n / 2 + 1e-12 for n in numbers]", "failed"),
]  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize(("task_id", "program", "status"), PROGRAMS)
def test_programs_of_both_kinds(judge: Judging, task_id: str, program: str, status: str) -> None:
    (item,) = [one for one in suites.load("livecodebench", None, FILE).items if one.task_id == task_id]
    found = judge.submit(item, 0, program).result()
    assert found["status"] == status, found
    assert found["tests_total"] == 3 and found["passed"] == (status == "passed")


@needs_sandbox
def test_numbers_may_be_longer_than_python_reads_unasked(tmp_path: Path) -> None:
    """4,300 digits; their runner, and so programs here, have 50,000."""
    large, row = "7" * 4999, OWN["9001"]
    tests = json.dumps([{"input": f"[{large}, 1]\n{large[:-1]}8", "output": "[0, 1]", "testtype": "functional"}])
    rows = [{**row, "public_test_cases": tests}, {**OWN["2001_B"], "metadata": "{}"}]
    rows[1] |= {"public_test_cases": json.dumps([{"input": large, "output": large}]), "private_test_cases": "[]"}
    file = tmp_path / "large.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    suite = suites.load("livecodebench", None, file)
    with Judging(suite, 1) as judge:
        for item, program in zip(suite.items, (row["solution"], "print(int(input()))"), strict=True):
            assert judge.submit(item, 0, program).result()["passed"], item.task_id


@needs_sandbox
def test_no_more_samples_wait_than_may(judge: Judging) -> None:
    items = suites.load("livecodebench", None, FILE).items
    futures = [judge.submit(item, n, OWN[item.task_id]["solution"]) for n in range(2) for item in items]
    assert all(future.result()["passed"] for future in futures)


@pytest.mark.parametrize(
    ("written", "expected", "same"),
    [
        ("1 2\n", "1 2", True), ("\n  1.50   2\t\n\n", "1.5 2.0", True), ("1e2", "100", True), ("a b", "a  b", False),
        ("YES", "yes", False), ("1\n2", "1 2", False), ("1\n\n2", "1\n2", False), ("0.1", "0.10000000001", False),
        ("50000000000000001", "50000000000000000", False), ("nan", "nan", True), ("nan 1", "nan 1.0", False),
        ("sNaN 1", "sNaN 1.0", False), ("1e999999999999999999", "1", False), ("1e99999999999999999999", "1", False),
        ("", "\n", True), ("1,2", "1,2.0", False), ("\u0661", "1", True), ("1\r\n2", "1\n2", True),
    ],
)  # fmt: skip
def test_equal_outputs(written: str, expected: str, same: bool) -> None:
    """Text, or else exact numbers, line by line: what their checker says of each of these."""
    assert same_numbers(written, expected) is same


# --- packed tests ----------------------------------------------------------------------------------------------------


def packed(value: Any, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


class _Runs:
    def __reduce__(self) -> Any:
        return exec, ("import sys\nsys.unpickled = True",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text", ["[]", "é\n\u2028" * 200, "x" * 70_000], ids=["short", "unicode", "long"])
def test_a_packed_text_is_read(protocol: int, text: str) -> None:
    assert livecodebench._packed(packed(text, protocol), "x") == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (packed(_Runs()), "with STACK_GLOBAL, and must be one of a text"), (packed(_Runs(), 0), "with GLOBAL, and must"),
        (packed(["[]"]), "with EMPTY_LIST"), (packed(b"[]"), "with SHORT_BINBYTES"), (packed(7), "with BININT1"),
        (packed("[]")[:-8], "or are cut off"), ("[{", "neither JSON nor"), ("", "or are cut off"), ("é", "neither JSON nor"),
        (base64.b64encode(zlib.compress(b"\x80\x04N.")).decode(), "with NONE"),
        (base64.b64encode(zlib.compress(pickle.dumps("[]")[:-3])).decode(), "are no whole pickle"),
        (base64.b64encode(zlib.compress(pickle.dumps("[]"))[:-6]).decode(), "or are cut off"),
    ],
)  # fmt: skip
def test_no_other_pickle_is_read_and_none_is_run(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        livecodebench._packed(text, "the tests")
    assert not hasattr(sys, "unpickled")


def test_what_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livecodebench, "_MOST_BYTES", 1 << 20)
    with pytest.raises(UserError, match="unpack to over 1 MiB"):
        livecodebench._packed(packed("x" * (4 << 20)), "the tests")


# --- data, windows, prompts ------------------------------------------------------------------------------------------


def changed(folder: Path, **change: Any) -> Path:
    """The file with its second problem changed."""
    rows = [{**row, **change} if number == 1 else row for number, row in enumerate(OWN.values())]
    file = folder / "changed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question_id": "9002"}, "has '9002' twice"), ({"contest_date": "soon"}, "'2001_B' has no date: 'soon'"),
        ({"difficulty": "mild"}, "is 'mild'; known: easy, medium, hard"), ({"starter_code": None}, "'starter_code' that is no text"),
        ({"metadata": "{"}, "its metadata is not JSON"), ({"metadata": "[]"}, "its metadata holds a list, not an object"),
        ({"metadata": json.dumps({"func_name": "a b"})}, "calls 'a b', which is no Python name"),
        ({"public_test_cases": [1]}, "'public_test_cases' that is no text"),
    ],
)  # fmt: skip
def test_a_broken_row_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        suites.load("livecodebench", None, changed(tmp_path, **change))


@needs_sandbox
@pytest.mark.parametrize(
    ("tests", "says"),
    [("[]", ""), ('[{"input": 3, "output": ""}]', "no pairs of input and output"), ("{}", "are no list"), ("7", "are no list"),
     (packed(_Runs()), "must be one of a text")],
)  # fmt: skip
def test_broken_tests_are_refused_before_anything_is_judged(tmp_path: Path, tests: str, says: str) -> None:
    suite = suites.load("livecodebench", None, changed(tmp_path, private_test_cases=tests))
    if not says:  # the public ones are left
        return Judging(suite, 1).close()
    with pytest.raises(UserError, match=f"the tests of '2001_B'.* {says}"):
        Judging(suite, 1)


@pytest.mark.parametrize(
    ("since", "until", "left"),
    [
        (None, None, 4), ("2024-09-14", None, 3), ("2024-09-15", None, 2), (None, "2024-09-14", 2), ("2024-09-14", "2024-09-15", 2),
        ("2024-02-03", "2024-02-03", 1),
    ],
)  # fmt: skip
def test_a_window_of_dates(since: str | None, until: str | None, left: int) -> None:
    found = suites.load("livecodebench", None, FILE, None, since, until)
    assert len(found.items) == left and found.total == 4
    assert len(suites.load("livecodebench", None, FILE, 1, since, until).items) == 1


def test_wrong_windows_are_refused_in_one_line(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny", context=4096)
    call = ("eval", "livecodebench", "--model", model, "--data", FILE)
    for options, says in (
        (("--since", "2024-13-01"), "--since '2024-13-01' is no date; write it as 2025-01-31"),
        (("--until", "yesterday"), "--until 'yesterday' is no date"),
        (("--since", "2025-01-02", "--until", "2025-01-01"), "--since 2025-01-02 is after --until 2025-01-01; swap them"),
        (("--since", "2025-02-01"), "has no task since 2025-02-01; its dates are 2024-02-03 to 2025-01-05"),
        (("--subset", "hard", "--until", "2024-12-31"), "(hard) from"),
        (("--subset", "old",), "no subset 'old'; choose all, easy, medium, hard"),
        (("--base",), "cannot ask base models here: they are shown a worked example of LiveCodeBench's; put stdin.json"),
    ):  # fmt: skip
        assert says in refused(*call, *options), options
    with pytest.raises(UserError, match="micro has no dates to choose by; leave --until out"):
        suites.load("micro", until="2024-01-01")


def test_all_releases_are_one_benchmark(own_benchmark_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCODER_BENCHMARKS", str(own_benchmark_files))
    suite = suites.load("livecodebench")
    assert suite.total == 1055 and "1055 problems of 2024-02-03 to 2025-01-05" in suite.version
    parts = [len(suites.load("livecodebench", subset).items) for subset in ("easy", "medium", "hard")]
    assert sum(parts) == 1055 and all(parts)


def test_the_hubs_own_files_are_read(monkeypatch: pytest.MonkeyPatch, own_benchmark_files: Path) -> None:
    """Its loading script runs in no present version of `datasets`."""
    import huggingface_hub

    asked = []

    def download(repository: str, name: str, repo_type: str) -> str:
        asked.append((repository, name, repo_type))
        return str(own_benchmark_files / "livecodebench" / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = data.find(livecodebench.SOURCES[5])
    assert len(found.rows) == 175 and found.origin == "hub:livecodebench/code_generation_lite/test6.jsonl"
    assert asked == [("livecodebench/code_generation_lite", "test6.jsonl", "dataset")]


def test_prompts_are_those_published(tmp_path: Path) -> None:
    """Their code's prompts of our tasks, by their hashes (without the worked example, which is a file of theirs)."""
    file = tmp_path / "some.jsonl"
    file.write_bytes(FILE.read_bytes())
    for name in ("func.json", "stdin.json"):
        (tmp_path / name).write_text(json.dumps([EXAMPLE]))
    items = {item.task_id: item for item in suites.load("livecodebench", None, file).items}
    for task_id, wanted in (
        ("2001_B", ("353dd4b0bf102168", "f54bffdf861a1130")),
        ("9001", ("5b88a158e3dc5522", "261502c61d856d5f")),
    ):
        own = items[task_id].own
        assert own is not None and [one["role"] for one in own.chat] == ["system", "user"]
        told = (own.chat[0]["content"] + own.chat[1]["content"], own.plain)
        assert tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in told) == wanted, task_id
    for broken in ('[{"question": 3}]', "[]", "[7]"):
        (tmp_path / "func.json").write_text(broken)
        with pytest.raises(UserError, match="has no texts 'question' and 'answer'"):
            suites.load("livecodebench", None, file)


@pytest.mark.parametrize(
    ("text", "chat", "solution"),
    [
        ("Try\n```python\nold\n```\nBetter:\n```python\na = 1\nb = 2\n```\nDone.", True, "a = 1\nb = 2"),
        ("```\nprint(1)\n```", True, "print(1)"), ("print(1)", True, ""), ("```python\nprint(1)", True, ""),
        ("```python\nx\n```\n### Explanation\n```\ny\n```", True, "x"),
        ("\nprint(1)\n\n### Question\nmore", False, "print(1)"), ("```python\nx\n```", False, "```python\nx\n```"),
    ],
)  # fmt: skip
def test_what_is_cut_out_of_an_answer(text: str, chat: bool, solution: str) -> None:
    item = suites.load("livecodebench", None, FILE).items[0]
    assert Protocol("diffucoder", chat).solution(item, text) == solution


@needs_sandbox
def test_a_model_and_answers_made_elsewhere_are_scored(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny", context=1024)
    call = ("eval", "livecodebench", "--model", model, "--instruct", "--data", FILE, "--max-new-tokens", "4", "--device", "cpu",
            "--out", tmp_path / "out", "--json")  # fmt: skip
    found = json.loads(said(*call, "--since", "2024-09-15"))
    assert found["tasks"] == 2 and found["tasks_of_benchmark"] == 4 and found["data"]["since"] == "2024-09-15"
    assert found["settings"]["temperature"] == 0.2 and "until" not in found["data"]
    # another window of the same samples: what is there is not made again
    before = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert json.loads(said(*call, "--since", "2024-09-14"))["tasks"] == 3
    assert set(before) < set((tmp_path / "out" / "samples.jsonl").read_text().splitlines())
    file = tmp_path / "answers.jsonl"
    texts = [f"So:\n```python\n{row['solution']}\n```\n" for row in OWN.values()]
    rows = [{"task_id": name, "solution": text} for name, text in zip(OWN, [*texts[:-1], "none"], strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads(said("eval", "judge", file, "--task", "livecodebench", "--data", FILE, "--extract", "--out", tmp_path / "j", "--json"))  # fmt: skip
    assert told["scores"]["livecodebench"]["pass@1"]["score"] == 75.0

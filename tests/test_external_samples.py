"""`dcoder eval judge` on what other systems write: chats, lists, lm-evaluation-harness's samples, numbers as ids, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import dcoder, refused

from dcoder_cli.benchmarks import suites
from dcoder_cli.benchmarks.benchmark import Benchmark, Item, Suite
from dcoder_cli.benchmarks.external_samples import read_samples
from dcoder_cli.benchmarks.protocols import NAMES, Protocol
from dcoder_cli.execution.judge import Judge

pytestmark = pytest.mark.usefixtures("benchmark_files")  # our own tasks, and the published ones where they are

PROSE = "\nIt goes over the list once.\n\n```\n>>> f([1])\n1\n```\n"
FORMS = {
    "nothing": "{}",
    "fence": "```python\n{}\n```",
    "fence without a name": "```\n{}\n```",
    "fence and prose": "```python\n{}\n```\n" + PROSE,
    "prose and fence": "Sure, here it is:\n\n```python\n{}\n```\n" + PROSE,
    "opening fence": "```python\n{}",
    "closing fence": "{}\n```",
    "closing fence and prose": "{}\n```\n" + PROSE,
}


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def judged(file: Path, out: Path, *options: str) -> tuple[dict[str, Any], str]:
    done = dcoder("eval", "judge", file, "--out", out, "--json", *options)
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def lost() -> Iterator[Callable[[Sequence[tuple[Item, str]]], list[str]]]:
    """The tasks whose programs do not pass. A program that was judged is not judged again."""
    from dcoder_cli.execution import sandbox

    if sandbox.best_tier() == "C":
        pytest.skip("no sandbox holds here")
    known: dict[tuple[str, str], bool] = {}
    with Judge() as judge:

        def failing(programs: Sequence[tuple[Item, str]]) -> list[str]:
            new = {(item.prompt, program): item for item, program in programs if (item.prompt, program) not in known}
            futures = {key: judge.submit(item.source.problem, key[1]) for key, item in new.items()}
            known.update({key: future.result().passed for key, future in futures.items()})
            return [item.task_id for item, program in programs if not known[item.prompt, program]]

        yield failing


# A base model that begins with words has not gone on with the code.
@pytest.mark.parametrize(
    ("instruct", "form"),
    [(True, form) for form in FORMS] + [(False, form) for form in FORMS if form != "prose and fence"],
)
@pytest.mark.parametrize("name", NAMES)
def test_every_reference_in_every_form_passes_under_every_protocol(
    name: Any, instruct: bool, form: str, lost: Any
) -> None:
    """A base model goes on with the code of the prompt; a chat writes the whole function after its prefill."""
    suite, protocol = suites.load("humaneval"), Protocol(name, instruct)
    programs = []
    for item in suite.items:
        answer = FORMS[form].format(item.reference if instruct else item.source.answer)
        programs.append((item, protocol.solution(item, answer, protocol.ask(item, suite).prefill)))
    assert not lost(programs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("column", ["solution", "completion", "answer"])
def test_extract_takes_the_program_out_of_any_answer(tmp_path: Path, column: str, form: str, lost: Any) -> None:
    """Whole programs, and bodies that go on after the prompt."""
    suite = suites.load("humaneval", limit=20)
    for whole in (True, False):
        rows = [
            {"task_id": item.task_id, column: FORMS[form].format(item.reference if whole else item.source.answer)}
            for item in suite.items
        ]
        found = read_samples(write(tmp_path / "s.jsonl", rows), suite, column, extract=True)
        programs = [(item, row["solution"]) for item, row in zip(suite.items, found, strict=True)]
        assert len(found) == 20 and not lost(programs), whole


def test_a_chats_answers_are_told_and_extracted(tmp_path: Path) -> None:
    items = suites.load("humaneval", limit=4).items
    rows = [{"task_id": item.task_id, "solution": FORMS["fence and prose"].format(item.reference)} for item in items]
    file = write(tmp_path / "s.jsonl", rows)
    found, told = judged(file, tmp_path / "plain", "--task", "humaneval")
    assert found["scores"]["humaneval"]["pass@1"]["score"] == 0 and not found["extract"]
    assert "4 of 4 samples are no Python" in told and "--extract" in told
    found, told = judged(file, tmp_path / "extracted", "--task", "humaneval", "--extract")
    assert found["scores"]["humaneval"]["pass@1"]["score"] == 100 and found["extract"] and "--extract" not in told
    kept = [json.loads(line) for line in (tmp_path / "extracted" / "samples.jsonl").read_text().splitlines()]
    assert [row["text"] for row in kept] == [row["solution"] for row in rows]
    assert all("```" not in row["solution"] for row in kept)


def test_halves_of_surrogate_pairs_are_judged_and_told(tmp_path: Path) -> None:
    """They are a candidate's words: one bad sample does not stop the others, and no chat wrote it."""
    (item,) = suites.load("micro", limit=1).items
    file = write(tmp_path / "s.jsonl", [{"task_id": item.task_id, "solution": 'x = "\ud800"'}])
    found, told = judged(file, tmp_path / "out", "--task", "micro")
    assert found["counts"]["syntax_error"] == 1
    assert "1 of 1 samples hold half of a surrogate pair" in told and "--extract" not in told


def whole_suite(*ids: str) -> Suite:
    items = tuple(Item(one, "complete", "def f():\n", "f", None) for one in ids)
    return Suite(Benchmark("own", "", None, None), "", items, items, "", "", "", len(items))


def test_lists_columns_and_ids_of_other_systems(tmp_path: Path) -> None:
    suite = whole_suite("Own/1", "Own/12")
    for rows, column, found in (
        ([{"task_id": 12, "solution": "a"}], None, [("Own/12", 0, "a")]),
        ([{"task_id": "12", "solution": ["a", "b"]}, {"task_id": "Own/12", "solution": "c"}], None,
         [("Own/12", 0, "a"), ("Own/12", 1, "b"), ("Own/12", 2, "c")]),
        ([{"doc": {"task_id": "Own/1"}, "resps": [[" 1", " 2"]]}], None,
         [("Own/1", 0, "def f():\n 1"), ("Own/1", 1, "def f():\n 2")]),
        ([{"task_id": 1, "completion": " 1"}], None, [("Own/1", 0, "def f():\n 1")]),
        ([{"task_id": 1, "solution": None, "completion": [" 1"]}], None, [("Own/1", 0, "def f():\n 1")]),
        ([{"task_id": 1, "solution": "x", "answer": "a"}], "answer", [("Own/1", 0, "a")]),
    ):  # fmt: skip
        rows_found = read_samples(write(tmp_path / "s.jsonl", rows), suite, column)
        assert [(row["task_id"], row["sample"], row["solution"]) for row in rows_found] == found


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        ({"task_id": 3, "solution": ""}, None, "unknown task_id 3; own has ids such as 'Own/1'"),
        ({"task_id": True, "solution": ""}, None, "no 'task_id'"),
        ({"task_id": 1, "solution": []}, None, "'solution' must hold a text"),
        ({"task_id": 1, "solution": ["a", 1]}, None, "'solution' must hold a text"),
        ({"task_id": 1, "solution": [[["a"]]]}, None, "'solution' must hold a text"),
        ({"task_id": 1, "answers": "a"}, "answer", "no column 'answer'; did you mean 'answers'?"),
        ({"task_id": 1, "answers": "a"}, None, "known: task_id, answers"),
    ],
)
def test_what_is_no_sample_is_named(tmp_path: Path, row: Any, column: str | None, says: str) -> None:
    from dcoder_cli.base.errors import UserError

    file = write(tmp_path / "s.jsonl", [{"task_id": 1, "solution": "", "answer": ""}, row])
    with pytest.raises(UserError) as caught:
        read_samples(file, whole_suite("Own/1", "Own/2"), column)
    assert says in str(caught.value) and "line 2" in str(caught.value)


def test_extract_has_no_meaning_for_numbers(tmp_path: Path) -> None:
    file = write(tmp_path / "s.jsonl", [{"task_id": "x", "solution": "1"}])
    assert "--extract" in refused("eval", "judge", file, "--task", "gsm8k", "--extract", "--out", tmp_path / "out")


def test_ctrl_c_keeps_what_is_judged_and_the_same_command_goes_on(tmp_path: Path) -> None:
    items = suites.load("micro").items
    slow = f"import time\ndef {items[-1].entry_point}(*a):\n    time.sleep(3)\n"
    rows = [{"task_id": item.task_id, "solution": item.reference} for item in items[:-1]]
    rows += [{"task_id": items[-1].task_id, "solution": slow}] * 3
    file, out = write(tmp_path / "s.jsonl", rows), tmp_path / "out"
    arguments = ["eval", "judge", str(file), "--task", "micro", "--workers", "1", "--out"]
    command = [sys.executable, "-m", "dcoder_cli", *arguments, str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = out / "judged.jsonl"
    deadline = time.monotonic() + 120
    while not lines.is_file() or lines.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in told and "Traceback" not in told, told
    kept = lines.read_bytes().splitlines()
    assert 5 <= len(kept) < len(rows) and not (out / "results.json").exists()
    assert "samples_sha256" in refused(*arguments[:2], write(tmp_path / "t.jsonl", rows[:3]), *arguments[3:], out)
    assert "extract" in refused(*arguments, out, "--extract")
    marked = json.loads(kept[0]) | {"why": "kept"}
    lines.write_bytes(b"\n".join([json.dumps(marked).encode(), *kept[1:], b'{"task_id": "mic']))
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["samples"] == len(rows)
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(found) == len(rows) and found[0]["why"] == "kept"
    assert "already" in refused(*arguments, out)

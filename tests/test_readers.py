"""Everything that reads JSON lines reads them alike: only a newline ends a line, and damage is one line with its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dcoder_cli.analysis.sources import read_trajectories
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.benchmarks import data
from dcoder_cli.benchmarks.benchmark import Benchmark, Item, Suite
from dcoder_cli.benchmarks.external_samples import read_samples
from dcoder_cli.benchmarks.samples import Store
from dcoder_cli.data.decontaminate import load_contamination
from dcoder_cli.data.ngrams import word_codes
from dcoder_cli.data.records import read_records
from dcoder_cli.data.rl import load_prompts
from dcoder_cli.data.sources import parse_sources, plan_units
from dcoder_cli.decoding import trajectory
from dcoder_cli.training.grpo.rollouts import load_rollouts, seal

ODD = "a\u2028b\u2029c\u0085d\x1ce"  # what `str.splitlines` takes for ends of lines
WORDS = "one two three four five six seven eight nine ten eleven"


def prompts(path: Path) -> list[Any]:
    entry = {"file": path.name, "split": "train", "rows": 2, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest = {"format_version": 1, "kind": "rl", "files": [entry], "sequence_length": 1}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    return [row["text"] for row in load_prompts(path.parent)]


def records(path: Path) -> list[Any]:
    units, _ = plan_units(parse_sources([str(path)]))
    return [record.value["text"] for unit in units for piece in unit.pieces for record in read_records(piece)]  # type: ignore[index]


def rollouts(path: Path) -> list[Any]:
    data = path.read_bytes()
    path.write_bytes(data + seal(hashlib.sha256(data)))
    return [one.trajectory.text for one in load_rollouts(path)]


def benchmark(path: Path) -> list[Any]:
    source = data.BenchmarkSource("own", "x", 2, None, None, (), ("text",))
    return [row["text"] for row in data.find(source, path).rows]


def contamination(path: Path) -> list[Any]:
    found = load_contamination([path.parent.name], str(path.parent.parent), 5)
    return [ODD] * 2 if found.find(word_codes(f"{ODD} {WORDS}")) == f"{path.parent.name}: t" else []


def other_samples(path: Path) -> list[Any]:
    own = Benchmark("own", "", None, None)
    suite = Suite(own, "", (Item("t", "whole", "", "f", None),), (), "", "", "", 1)
    return [row["text"] for row in read_samples(path, suite)]


def store(path: Path) -> list[Any]:
    path.rename(path.with_name("judged.jsonl"))
    (path.parent / "settings.json").write_text("{}")
    with Store(path.parent, {}) as kept:
        return [row["text"] for row in kept.judged.values()]


def log(path: Path) -> list[Any]:
    return [row["text"] for row in RunFolder(path.parent).read(path.stem)]


def a_trajectory(number: int) -> dict[str, Any]:
    record = {
        "id": "a",
        "prompt": "",
        "tokens": [1],
        "text": ODD,
        "reveal_step": [0],
        "confidence": [1],
        "entropy": [0],
    }
    return {**record, "prompt_length": 0}


READERS: dict[str, tuple[Callable[[Path], list[Any]], Callable[[int], dict[str, Any]]]] = {
    "rl prompts": (prompts, lambda number: {"task_id": number, "messages": [], "text": ODD}),
    "sources": (records, lambda number: {"text": ODD}),
    "kept rollouts": (
        rollouts,
        lambda number: {
            "place": 0, "prompt": [1], "scored": 1, "trajectory": a_trajectory(0), "reward": {}, "total": 0, "status": "",
        },
    ),
    "benchmark": (benchmark, lambda number: {"text": ODD}),
    "contamination": (contamination, lambda number: {"text": f"{ODD} {WORDS}", "task_id": "t"}),
    "other samples": (other_samples, lambda number: {"task_id": "t", "solution": ODD}),
    "judged samples": (store, lambda number: {"task_id": "t", "sample": number, "text": ODD, "status": "failed"}),
    "run's log": (log, lambda number: {"text": ODD}),
    "trajectories": (lambda path: [one.text for one in trajectory.read(path)], a_trajectory),
    "orders": (
        lambda path: [one.text for one in read_trajectories(path)],
        lambda number: {"order": [0], "text": ODD},
    ),
}  # fmt: skip


CANDIDATES = ("other samples", "judged samples")  # a half of a surrogate pair there is one bad sample


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "own").mkdir()
    yield tmp_path / "own" / "rows.jsonl"


@pytest.mark.parametrize("name", READERS)
def test_only_a_newline_ends_a_line(file: Path, name: str) -> None:
    reader, row = READERS[name]
    # a real \x1c may not stand in JSON, the others may
    text = "".join(json.dumps(row(number), ensure_ascii=False) + "\n" for number in range(2))
    file.write_text("\ufeff" + text, encoding="utf-8", newline="")
    assert "\u2028" in text and reader(file) == [ODD] * 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"a": ', "is not JSON"),
        (b'{"a": "\xe9"}', "is not UTF-8"),
        (b'{"a": "\\udc00"}', "half of a surrogate pair"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    ],
    ids=["JSON", "UTF-8", "surrogate", "nesting"],
)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_one_line_with_its_place(file: Path, name: str, line: bytes, says: str) -> None:
    reader, row = READERS[name]
    if name in CANDIDATES and "surrogate" in says:
        odd = {**row(0), "text": "\ud800", "solution": "\ud800"}
        file.write_text(json.dumps(odd) + "\n")
        assert reader(file) == ["\ud800"]
        return
    file.write_bytes(json.dumps(row(0)).encode() + b"\n\n" + line + b"\n" + json.dumps(row(1)).encode() + b"\n")
    with pytest.raises(UserError) as caught:
        reader(file)
    message = str(caught.value)
    assert says in message and "line 3" in message and str(file.parent) in message and "\n" not in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": 5}, "settings is 5; it must be an object"),
        ({"settings": [1]}, r"settings is \[1\]; it must be an object"),
        ({"prompt_length": "x"}, "prompt_length is 'x'; it must be a number of tokens"),
        ({"prompt_length": 1.5}, "prompt_length is 1.5"),
        ({"tokens": [1.5, 2]}, r"tokens\[0\] is 1.5; a token id is a whole number"),
        ({"tokens": [1, -2]}, r"tokens\[1\] is -2"),
        ({"tokens": [1, 10**40]}, r"tokens\[1\] is 1000\d*\.\.\.\d*;"),
        ({"tokens": ["a", 2]}, r"tokens\[0\] is 'a'"),
        ({"reveal_step": [0, 10**40]}, r"reveal_step\[1\] is 1000"),
        ({"confidence": [1, 10**400]}, r"confidence\[1\] is 1000"),
        ({"entropy": ["x", 1]}, r"entropy\[0\] is 'x', not a number"),
    ],
)
@pytest.mark.parametrize("form", ["reveal_step", "order"])
def test_a_trajectory_of_other_types_is_one_line(file: Path, form: str, changes: dict[str, Any], says: str) -> None:
    if form == "order" and not changes.keys() & {"settings", "tokens"}:
        return  # the short form has none of these
    file.write_text(json.dumps({form: [0, 1], **changes}) + "\n")
    with pytest.raises(UserError, match=f"line 1: {says}") as caught:
        read_trajectories(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(file)) + 150


def test_what_a_trajectory_leaves_unsaid(file: Path) -> None:
    from dcoder_cli.terminal.replay import _plan

    names = dict.fromkeys(("id", "prompt", "text", "model", "settings", "prompt_length", "suffix"))
    file.write_text(json.dumps({"reveal_step": [0, 1], **names}) + "\n")
    (one,) = read_trajectories(file)
    assert (one.prompt, one.text, one.model, one.settings, one.prompt_length) == ("", "", "", {}, 0)
    assert one.id.endswith("rows.jsonl line 1")
    file.write_text(json.dumps({"reveal_step": [0], "settings": {"end_ids": [[1], 7, "x"]}}) + "\n")
    assert _plan(read_trajectories(file)[0], None).stops == {7}  # type: ignore[arg-type]

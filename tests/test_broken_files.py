"""Files that are one value, JSON or YAML: whatever is wrong with one is a line that names it."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import refused

from dcoder_cli.base.config import parse_assignments, read_yaml
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.presets import section
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.benchmarks.samples import Store
from dcoder_cli.data.manifest import read_manifest
from dcoder_cli.data.workspace import Workspace
from dcoder_cli.model import adapters, checkpoint
from dcoder_cli.terminal.chat import Session
from dcoder_cli.training.launch import LaunchOptions, launch_section
from dcoder_cli.training.memory.shape import read_config

JSON_DAMAGE = {
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 200_000,
    "a list": b"[]",
    "null": b"null",
    "cut off": b'{"a": ',
    "empty": b"",
    "half a pair": b'{"a": "\\ud800"}',
}


def conversation(file: Path) -> Any:
    return Session.load(object.__new__(Session), file)


def launch(file: Path) -> Any:
    return launch_section(LaunchOptions(file.parent, None, None, None, None, [], True, None, None))


def base_of_an_adapter(file: Path) -> Any:
    (file.parent / "adapter").mkdir()
    file.rename(file.parent / "adapter" / file.name)
    return adapters.below(file.parent)


# The file's name, and who reads it.
JSON: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a model's config": ("config.json", lambda file: checkpoint.read_config(file.parent)),
    "its answer length": ("generation_config.json", lambda file: checkpoint.read_answer_length(file.parent)),
    "its list of weights": ("model.safetensors.index.json", lambda file: checkpoint.weight_files(file.parent)),
    "a config whose memory is counted": ("config.json", lambda file: read_config(str(file))),
    "what an adapter lies on": ("base.json", base_of_an_adapter),
    "a manifest": ("manifest.json", lambda file: read_manifest(file.parent)),
    "a conversation": ("chat.json", conversation),
    "the starts of a run": ("environment.json", lambda file: RunFolder(file.parent).starts()),
    "the starts of a run to resume": ("environment.json", launch),
    "an evaluation's settings": ("settings.json", lambda file: Store(file.parent, {})),
}


@pytest.mark.parametrize("damage", JSON_DAMAGE)
@pytest.mark.parametrize("name", JSON)
def test_a_broken_json_file_is_one_line_that_names_it(tmp_path: Path, name: str, damage: str) -> None:
    file, reader = JSON[name]
    (tmp_path / file).write_bytes(JSON_DAMAGE[damage])
    with pytest.raises(UserError) as caught:
        reader(tmp_path / file)
    message = str(caught.value)
    assert file in message and "\n" not in message and len(message) < len(str(tmp_path)) + 200, message


def test_a_mark_of_byte_order_is_none_of_the_value(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert checkpoint.read_config(tmp_path) == {"a": 1}
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1}


def test_work_of_a_broken_plan_is_begun_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out")
    workspace.units.mkdir(parents=True)
    assert not workspace.resume({"a": 1}, quiet=True) and workspace.resume({"a": 1}, quiet=True)
    for damage in JSON_DAMAGE.values():
        (workspace.root / "plan.json").write_bytes(damage)
        workspace.units.mkdir(exist_ok=True)
        assert not workspace.resume({"a": 1}, quiet=True)


YAML = {
    "not UTF-8": b"\xff\xfe\x00",
    "deep": b"[" * 20_000,
    "a list": b"- a\n",
    "a text": b"steps",
    "no YAML": b"a: [1\n",
    "a control character": b"a: \x01\n",
    "no date": b"a: 2001-99-99\n",
    "no number": b"a: !!int x\n",
    "a key twice": b"steps: 1\noptimizer: {}\nsteps: 2\n",
    "a key twice within": b"optimizer: {learning_rate: 0.1, learning_rate: 0.2}\n",
    "a program": b"a: !!python/object/apply:os.getcwd []\n",
}


@pytest.mark.parametrize("damage", YAML)
def test_a_broken_yaml_file_is_one_line_that_names_it(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(YAML[damage])
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)
    assert "mine.yaml" in refused("train-stage", "2", "--model", "m", "--data", "d", "--config", file)
    assert "mine.yaml" in refused("generate", "--model", "m", "--preset", file, "x")


@pytest.mark.parametrize("value", ["5", "[1, 2]", "text", "false", '""'])
def test_a_section_that_is_none_is_one_line(tmp_path: Path, value: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"generate: {value}\n1: 2\n")
    with pytest.raises(UserError, match=r"section 'generate' of preset '.*mine\.yaml' must hold a mapping"):
        section(str(file), "generate")
    with pytest.raises(UserError, match=r"has no section 'grpo'; it has generate, 1"):
        section(str(file), "grpo")
    file.write_text("generate:\n")
    assert section(str(file), "generate") == {}


def test_values_that_are_no_yaml_are_text_and_nan_is_no_number() -> None:
    assert parse_assignments(["a=2001-99-99", "b=!!int x", "c=[" + "[" * 9000]) == {
        "a": "2001-99-99", "b": "!!int x", "c": "[" + "[" * 9000,
    }  # fmt: skip
    for value in (".nan", "nan", ".inf", "-.inf"):
        line = refused(
            "train-stage", "2", "--model", "m", "--data", "d", "--preset", "cpu-tiny", "--set",
            f"optimizer.learning_rate={value}",
        )  # fmt: skip
        assert "optimizer.learning_rate = " in line


@pytest.mark.parametrize("value", ["010", "-0777", "1:30", "10:00:00", "1:30.5", "0o17"])
def test_a_number_that_says_another_one_than_it_shows_is_refused(tmp_path: Path, value: str) -> None:
    """YAML 1.1 has 010 for 8 and 1:30 for 90: a run of 8 steps where 10 were asked for."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"steps: {value}\n")
    assert read_yaml(file) == parse_assignments([f"steps={value}"]) == {"steps": value}
    file.write_text("a: [0, 10, -3, 1_000, 0x1F, 0.5, -1.5e-3, .5, 1e-4, .inf, 0.10]\nb: {c: yes, d: null}\n")
    assert read_yaml(file) == {
        "a": [0, 10, -3, 1000, 31, 0.5, -1.5e-3, 0.5, "1e-4", math.inf, 0.1], "b": {"c": True, "d": None},
    }  # fmt: skip


GOOD_MANIFEST: dict[str, Any] = {
    "format_version": 1,
    "kind": "pretrain",
    "sequence_length": 8,
    "tokenizer": {"hash": "h", "vocab_size": 300, "name": "t"},
    "special_tokens": {"eos": {"id": 0, "token": "<eos>"}},
    "sources": [{"name": "a", "taught_tokens": 3}],
    "splits": {"train": {"rows": 1, "documents": 1, "tokens": 8, "padding_tokens": 0}},
    "files": [{"file": "train-0.safetensors", "split": "train", "rows": 1, "sha256": "00", "source": 0, "padding": 0}],
}
GOOD_RUN: dict[str, Any] = {"stage": 2, "model": "m", "data": "d", "config": {}, "data_sha256": "0"}
GOOD_BASE = {"model": "m", "dtype": "float32", "sha256": "0"}
REQUIRED = {
    "format_version", "kind", "sequence_length", "tokenizer", "tokenizer.hash", "tokenizer.vocab_size", "files",
    "files.0.file", "files.0.split", "files.0.rows", "special_tokens.eos.id", "sources.0.name", "splits.train.rows",
    "stage", "model", "data", "config", "dtype", "sha256",
}  # fmt: skip


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a value, by the way to it."""
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*before, key)
        yield from places(one, (*before, key))


def damaged(good: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The value with each field missing, where it must be there, and of every other type."""
    for way in places(good):
        name = ".".join(map(str, way))
        for other in (None, True, -1, 1.5, "text", [], [1], {"x": 1}):
            changed = json.loads(json.dumps(good))
            holder = changed
            for key in way[:-1]:
                holder = holder[key]
            kind = type(holder[way[-1]])
            if other is None:
                if name not in REQUIRED:
                    continue
                del holder[way[-1]]
            elif type(other) is kind and other != -1:
                continue
            else:
                holder[way[-1]] = other
            yield f"{name} = {other!r}", changed


def yaml_record(file: Path) -> Any:
    return RunFolder(file.parent).config()


FIELDS: dict[str, tuple[str, dict[str, Any], Callable[[Path], Any]]] = {
    "a manifest": ("manifest.json", GOOD_MANIFEST, lambda file: read_manifest(file.parent)),
    "a run's record": ("config.yaml", GOOD_RUN, yaml_record),
    "what an adapter lies on": ("base.json", GOOD_BASE, base_of_an_adapter),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_missing_or_of_another_type_is_named(name: str, tmp_path: Path) -> None:
    file, good, reader = FIELDS[name]
    count = 0
    for what, changed in damaged(good):
        shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
        (tmp_path / file).write_text(json.dumps(changed))
        with pytest.raises(UserError) as caught:
            reader(tmp_path / file)
        message = str(caught.value)
        field = what.split(" = ")[0].split(".")[0]
        assert file in message and field in message and "\n" not in message, (what, message)
        count += 1
    assert count > 10


def test_another_kind_and_a_newer_version_of_a_manifest_are_told_apart(tmp_path: Path) -> None:
    def told(**changed: Any) -> str:
        (tmp_path / "manifest.json").write_text(json.dumps({**GOOD_MANIFEST, **changed}))
        with pytest.raises(UserError) as caught:
            read_manifest(tmp_path)
        return str(caught.value)

    assert 'has kind = "text", which must be one of pretrain, sft, rl' in told(kind="text")
    assert "was written by a newer dcoder (format 3; this one reads 2); update dcoder" in told(format_version=3)
    assert "is damaged or was changed" in told(format_version=2), "of that format each has a seal"
    assert "has files[0].source = 1, of 1 sources" in told(files=[{**GOOD_MANIFEST["files"][0], "source": 1}])


def test_what_a_run_to_resume_holds_is_checked_first(tmp_path: Path) -> None:
    def told() -> str:
        with pytest.raises(UserError) as caught:
            RunFolder.check(tmp_path, resume=True)
        return str(caught.value)

    run = RunFolder(tmp_path)
    run.make()
    for data, why in ((b"", "has no stage"), (b"\xff\xfe", "is not UTF-8"), (b"stage: two\n", 'stage = "two"')):
        (tmp_path / "config.yaml").write_bytes(data)
        assert "config.yaml" in (line := told()) and why in line, line
    (tmp_path / "config.yaml").write_text(json.dumps(GOOD_RUN))
    for name in ("metrics", "timings"):
        for line in (
            '{"step": 1}\n{"ste\n{"step": 2}\n',
            '{"loss": 1}\n',
            '{"step": "1"}\n',
            '{"step": 1, "tokens": []}\n',
        ):
            (tmp_path / f"{name}.jsonl").write_text(line)
            assert f"{name}.jsonl" in told()
        (tmp_path / f"{name}.jsonl").write_text('{"step": 1}\n{"ste')  # a kill cut it off
        RunFolder.check(tmp_path, resume=True)
    for name in ("metrics.jsonl", "timings.jsonl", "environment.json"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)  # to open one waits for ever
        assert f"{name}' is no regular file" in told()
        (tmp_path / name).unlink()
    (tmp_path / "checkpoints" / "best").mkdir()
    assert "best' is no link to a checkpoint" in told()
    (tmp_path / "checkpoints" / "best").rmdir()
    for target in ("step-x", "../elsewhere", "step-7"):
        (tmp_path / "checkpoints" / "best").symlink_to(target)
        assert run.linked("best") is None
        (tmp_path / "checkpoints" / "best").unlink()
    (tmp_path / "checkpoints" / "step-7").write_text("no folder")
    (tmp_path / "checkpoints" / "step--1").mkdir()
    assert run.steps() == []


@pytest.mark.parametrize("value", [b"", b"PK\x03\x04", {}, [1], {"torch_rng": 1, "tail": []}, {"tail": [0.5]}], ids=str)
def test_a_state_of_another_kind_is_one_line(value: Any, tmp_path: Path) -> None:
    import torch

    from dcoder_cli.training import saving

    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    (tmp_path / "training").mkdir()
    torch.save(optimizer.state_dict(), tmp_path / "training" / "optimizer.pt")
    file = tmp_path / "training" / "state.pt"
    file.write_bytes(value) if isinstance(value, bytes) else torch.save(value, file)
    with pytest.raises(UserError, match=r"training state in .* cannot be read"):
        saving.load_training_state(tmp_path, layer, optimizer)


def test_a_row_of_an_evaluation_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    for name, row in (
        ("samples", {"task_id": ["a"], "sample": 0, "text": ""}),
        ("samples", {"task_id": "a", "sample": "0", "text": ""}),
        ("samples", {"task_id": "a", "sample": 0, "text": None}),
        ("samples", {"task_id": "a", "sample": 0, "text": "", "forwards": "many"}),
        ("judged", {"task_id": "a", "sample": 0}),
        ("judged", {"task_id": "a", "sample": 0, "status": {}}),
    ):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=rf"{name}\.jsonl' line 1 has .*; mend or remove that line"):
            Store(tmp_path, {})
        (tmp_path / f"{name}.jsonl").unlink()

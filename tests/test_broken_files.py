"""Files that are one value, JSON or YAML: whatever is wrong with one is a line that names it."""

from __future__ import annotations

from collections.abc import Callable
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

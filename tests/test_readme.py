"""What the README says is so."""

from __future__ import annotations

import re
from pathlib import Path

from readme import fill, tables

import dcoder_cli


def test_generated_parts_are_up_to_date(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in tables())
    assert fill(text) == text, "run `python tests/readme.py`"


def test_it_starts_with_two_commands(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert first is not None
    lines = first[1].strip().splitlines()
    assert len(lines) == 2 and lines[0].endswith("dcoder quickstart") and lines[1].endswith("pytest")


def test_the_python_names_exist_and_are_shown(root: Path) -> None:
    shown = re.search(r"from dcoder_cli import (.*)", (root / "README.md").read_text(encoding="utf-8"))
    assert shown is not None
    names = shown[1].split(", ")
    assert set(names) >= {"load", "generate", "arness", "judge"}
    for name in names:
        assert callable(getattr(dcoder_cli, name))


def test_the_tree_names_every_package(root: Path) -> None:
    tree = re.search(r"## The tree\n\n```\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert tree is not None
    for path in (root / "dcoder_cli").iterdir():
        if (path / "__init__.py").is_file():
            assert f"  {path.name}/ " in tree[1], path.name

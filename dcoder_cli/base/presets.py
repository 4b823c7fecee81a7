"""Presets: YAML files in the presets folder, one for each GPU size."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from dcoder_cli.base.config import nearest, read_yaml
from dcoder_cli.base.errors import UserError


def names() -> list[str]:
    """The presets shipped with dcoder, by name."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("dcoder_cli.presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def text(name: str) -> str:
    """A preset's file, header comments included."""
    if name not in names():
        raise UserError(f"unknown preset {name!r}{nearest(name, names())}")
    return resources.files("dcoder_cli.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """A preset's sections. `name` is a shipped preset or the path of a YAML file of the same form."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(name)
    text(name)
    with resources.as_file(resources.files("dcoder_cli.presets").joinpath(f"{name}.yaml")) as path:
        return read_yaml(Path(path))


def section(name: str, part: str) -> dict[str, Any]:
    """A preset's section. Raises UserError where it has none: its numbers would be the defaults' and not the preset's."""
    values = load(name)
    if part not in values:
        raise UserError(f"preset {name!r} has no section {part!r}; it has {', '.join(values)}")
    found: dict[str, Any] = values[part] or {}
    return found

"""The generated parts of the README and of docs/: `python tests/readme.py` writes them, a test checks them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from test_structure import LAYERS

from dcoder_cli.base import presets
from dcoder_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
# Where each part stands.
FILES = {"README.md": ("presets", "commands"), "docs/CONTRIBUTING.md": ("tree",)}


def tables() -> dict[str, str]:
    """What stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    commands = [f"| `dcoder {name}` | {entry.summary} |" for name, entry in COMMANDS.items()]
    headlines = {name: presets.text(name).splitlines()[0].removeprefix(f"# {name}: ") for name in presets.names()}
    return {
        "commands": "\n".join(["| command | |", "|---|---|", *commands]),
        "presets": "\n".join(
            ["| preset | |", "|---|---|", *(f"| `{name}` | {line} |" for name, line in headlines.items())]
        ),
        "tree": "\n".join(["```", *_tree(), "```"]),
    }


def _tree() -> list[str]:
    """A line a folder: the packages from their docstrings, in the order in which imports point down."""

    def said(folder: Path) -> str:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert docstring is not None, folder
        return docstring.splitlines()[0]

    packages = [("  " + layer, said(ROOT / "dcoder_cli" / layer)) for layer in LAYERS[:-1]]
    rows = [
        ("dcoder_cli", "the core; a package imports only from those above it"),
        *packages,
        *((name, said(ROOT / name)) for name in ("commands", "presets")),
        ("docs", "results, formats, recipes for extending, decoding order, contributing"),
        ("tests", "offline; `-m slow` for the long ones, `gpu/run.py` for a card"),
    ]
    return [f"{name + '/':16} {text}" for name, text in rows]


def fill(text: str) -> str:
    """`text` with every generated part brought up to date."""
    for name, table in tables().items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    for name in FILES:
        file = ROOT / name
        file.write_text(fill(file.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)

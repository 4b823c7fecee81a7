"""Text that a user's file holds, put into Markdown and YAML so that it stays text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dcoder_cli.base.console import visible
from dcoder_cli.base.errors import one_line, valid_text

# What GitHub's Markdown reads as nothing else inside a line: there, underscores within words are text.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ,.+()/%=-]|(?<=[A-Za-z0-9])_(?=[A-Za-z0-9])|@(?=[0-9]))*")
_YAML_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./@+-]*")
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


def clean(text: object) -> str:
    """One line that every file takes and that commands no terminal."""
    return one_line(visible(valid_text(str(text))))


def words(text: object) -> str:
    """Text inside a line or a table's cell: as it is where that is safe, else as code."""
    line = clean(text)
    return line if _PLAIN.fullmatch(line) and "www." not in line.lower() else code(line)


def code(text: object) -> str:
    """Text as code, its own backticks included."""
    line = clean(text)
    fence = "`" * (_longest_run(line) + 1)
    space = " " if not line or line[0] in "` " or line[-1] in "` " else ""
    return f"{fence}{space}{line}{space}{fence}"


def block(text: str, language: str) -> str:
    """Lines as a fenced block, whatever they hold."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the cells are Markdown already, but for their bars."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML between two lines of dashes, read alike by YAML 1.1 (Python) and 1.2 (the hub): texts that could be more are quoted."""
    body = yaml.dump(dict(values), Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{body}---\n"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


class _Quoting(yaml.SafeDumper):
    """Quotes every text that is not a plain word."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    line = clean(value)
    plain = _YAML_PLAIN.fullmatch(line) and line.lower() not in _YAML_WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", line, style=None if plain else '"')


_Quoting.add_representer(str, _text)

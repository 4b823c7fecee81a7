"""Tokens' texts as lines of cells: which token stands where on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len

from dcoder_cli.base.console import visible

_TAB = "    "
_JOINERS = "\u200d\ufe0e\ufe0f"  # selectors and joiners make a terminal's idea of a width differ from ours


class Cell(NamedTuple):
    """A stretch of one token's text on one line of the screen."""

    text: str
    token: int


def layout(texts: Sequence[str], columns: int) -> list[list[Cell]]:
    """Tokens' texts as lines of cells no wider than `columns`; a line end is one blank cell at the end of its line."""
    lines: list[list[Cell]] = [[]]
    used = 0
    for token, text in enumerate(texts):
        if text.isascii() and text.isprintable() and used + len(text) <= columns:  # nearly all of them
            lines[-1].append(Cell(text, token))
            used += len(text)
            continue
        for number, part in enumerate(text.replace("\r\n", "\n").split("\n")):
            if number:
                if used < columns:
                    lines[-1].append(Cell(" ", token))
                lines.append([])
                used = 0
            for character in visible(part.replace("\t", _TAB)):
                if character in _JOINERS:
                    continue
                width = cell_len(character)
                if used + width > columns:
                    lines.append([])
                    used = 0
                if lines[-1] and lines[-1][-1].token == token:
                    lines[-1][-1] = Cell(lines[-1][-1].text + character, token)
                else:
                    lines[-1].append(Cell(character, token))
                used += width
    return lines


def placeholder(encoding: str | None) -> str:
    """What a mask shows as: a shaded block, or an underscore where the terminal's encoding lacks it."""
    try:
        "░━─".encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "_"
    return "░"


def clip(text: str, columns: int) -> str:
    """The beginning of a text that fits."""
    while cell_len(text) > columns:
        text = text[:-1]
    return text

"""Text coloured by decoding order, as a picture (DiffuCoder fig. 1a and 10)."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

from dcoder_cli.analysis.colours import ORDER_MAPS, order_colour, text_colour
from dcoder_cli.analysis.plots import new_figure, printable, styled

_POINTS = 8.0
_CHARACTER = _POINTS * 0.602 / 72  # inches: DejaVu Sans Mono advances 0.602 em
_LINE = 0.155
_TAB = 4


@styled
def ordered_text(
    pieces: Sequence[str], reveal_step: Sequence[int], colours: str = "ordered", columns: int = 88, title: str = ""
) -> Any:
    """A figure of the text with each token on the colour of its step, and the scale below.

    Args:
        pieces: the text that each token adds (`sources.pieces`).
        reveal_step: the step that committed each token.
        colours: "ordered" (dark to light, readable in grey and by the colour-blind) or "rainbow" (red to purple, as the paper).
        columns: characters a line; longer lines are broken.
        title: a line above the text.
    """
    cells = layout(pieces, columns)
    lines = 1 + max((line for line, *_ in cells), default=0)
    steps = sorted(set(reveal_step))
    share = {step: index / max(len(steps) - 1, 1) for index, step in enumerate(steps)}
    figure, (axis,) = new_figure(1, width=columns * _CHARACTER / 0.98, height=(lines + 3.5) * _LINE + 0.1)
    figure.set_layout_engine("none")  # laying out hundreds of characters takes longer than drawing them
    axis.set_position((0.01, 0, 0.98, 1))
    axis.set(xlim=(0, columns), ylim=(lines + 2, -1.5))
    axis.axis("off")
    if title:
        axis.text(0, -0.9, printable(title)[:columns], fontsize=8, va="center", parse_math=False)
    for line, column, text, index in cells:
        background = order_colour(share[reveal_step[index]], colours)
        _box(axis, column, line, _width(text), background)
        if text.strip():
            _write(axis, column, line, text, text_colour(background))
    _scale(axis, lines + 0.8, columns, colours, steps)
    return figure


def layout(pieces: Sequence[str], columns: int) -> list[tuple[int, int, str, int]]:
    """`(line, column, text, token)` of every stretch of characters; a line end shows as ⏎ in its token's colour."""
    cells: list[tuple[int, int, str, int]] = []
    line = column = 0
    for index, piece in enumerate(pieces):
        for part in piece.replace("\r", "").replace("\t", " " * _TAB).splitlines(keepends=True):
            text = "".join(_shown(character) for character in part.removesuffix("\n")) + "⏎" * part.endswith("\n")
            while text:
                room = columns - column
                taken = _fitting(text, room)
                if taken:
                    cells.append((line, column, text[:taken], index))
                    column += _width(text[:taken])
                    text = text[taken:]
                if text:
                    line, column = line + 1, 0
            if part.endswith("\n"):
                line, column = line + 1, 0
    return cells


def _fitting(text: str, room: int) -> int:
    used = 0
    for count, character in enumerate(text):
        used += _width(character)
        if used > room:
            return count
    return len(text)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _shown(character: str) -> str:
    """The character, or a stand-in for one that has no glyph of its own or none in the font that comes with matplotlib."""
    if unicodedata.category(character)[0] in "CM":
        return "·"
    return character if _has_glyph(character) else "□" * _width(character)


def _has_glyph(character: str) -> bool:
    return ord(character) < 127 or ord(character) in _glyphs()


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans Mono")).get_charmap())


def _box(axis: Any, column: float, line: float, width: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((column + 0.04, line - 0.46), width - 0.08, 0.92, facecolor=colour, linewidth=0))


def _write(axis: Any, column: float, line: float, text: str, colour: str) -> None:
    """One token's text from its own cell on: the cells have the font's advance, so what rounding adds up to is small."""
    shown = text.lstrip(" ")
    axis.text(
        column + len(text) - len(shown), line + 0.04, shown, fontsize=_POINTS, family="DejaVu Sans Mono", color=colour,
        ha="left", va="center_baseline", parse_math=False,
    )  # fmt: skip


def _scale(axis: Any, line: float, columns: int, colours: str, steps: Sequence[int]) -> None:
    width = min(40, columns - 30)
    for index in range(width):
        _box(axis, 14 + index, line, 1.2, order_colour(index / max(width - 1, 1), colours))
    assert colours in ORDER_MAPS
    axis.text(0, line, f"first: step {steps[0] if steps else 0}", fontsize=7.4, va="center")
    axis.text(15 + width, line, f"last: step {steps[-1] if steps else 0}", fontsize=7.4, va="center")

"""A region of the terminal that is redrawn in place.

Nothing is left to undo: each frame puts attributes, cursor and line wrapping back, so a program that is killed between two
frames leaves the terminal as it was.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TextIO

from rich.color import Color, ColorSystem
from rich.console import COLOR_SYSTEMS, Console

RESET = "\x1b[0m"
# Synchronised output (terminals that lack it ignore it), the cursor hidden and no wrapping while a frame is drawn.
_BEGIN, _END = "\x1b[?2026h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?2026l"


def can_draw(file: TextIO) -> bool:
    """Whether a file is a terminal that understands cursor movements."""
    return file.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


class Screen:
    """Lines of text at the bottom of what was printed, replaced by each `draw`."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = sys.stdout if file is None else file
        console = Console(file=self.file)
        # NO_COLOR (no-color.org) leaves bold, underline and reverse.
        self.colours = None if console.no_color else COLOR_SYSTEMS.get(console.color_system or "")
        self._drawn = 0  # lines of the last frame; the cursor stands on the last
        self._last = ""  # and that line
        self._size = self.size()

    def size(self) -> tuple[int, int]:
        """Columns to write to and lines.

        The last two columns stay free: a character in the last may wrap the line, and a terminal writes ^C where the
        cursor stands.
        """
        try:
            size = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            size = os.terminal_size((80, 24))
        return max(size.columns - 2, 10), max(size.lines, 4)

    def sgr(self, colour: str | None = None, attributes: str = "") -> str:
        """The escape sequence of a `#rrggbb` as far as the terminal has it, and of attributes such as "1;4"."""
        return _sgr(colour if self.colours else None, attributes, self.colours)

    def draw(self, lines: list[str]) -> None:
        """Replace the last frame by lines (at most the terminal's, each no wider than it)."""
        size = self.size()
        back = "\x1b[H" if size != self._size and self._drawn else self._back()  # resized: where it stands is unknown
        self._size, self._drawn, self._last = size, len(lines), lines[-1]
        self._write(_BEGIN + back + "\x1b[J" + "\r\n".join(line + RESET for line in lines) + _END)

    def erase(self) -> None:
        """Remove the last frame."""
        if self._drawn:
            self._write(self._back() + "\x1b[J")
            self._drawn = 0

    def keep(self) -> None:
        """Leave the last frame where it is and go on below it.

        Only its last line is written again, over the ^C: at Ctrl-C a terminal throws away what it had not shown yet, so
        how many lines it shows is unknown, and going up could erase what stands above them.
        """
        if self._drawn:
            self._write(_BEGIN + "\r\x1b[J" + self._last + RESET + _END + "\r\n")
            self._drawn = 0

    def _back(self) -> str:
        return "\r" + (f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else "")

    def _write(self, text: str) -> None:
        encoding = self.file.encoding or "utf-8"
        self.file.write(text.encode(encoding, "replace").decode(encoding))
        self.file.flush()


@functools.cache
def _sgr(colour: str | None, attributes: str, system: ColorSystem | None) -> str:
    codes = [attributes] if attributes else []
    if colour is not None and system is not None:
        if (
            system == ColorSystem.STANDARD
        ):  # the nearest of 16 may be white; blue, magenta and red stand out on both grounds
            red, _, blue = Color.parse(colour).get_truecolor()
            codes.append("34" if red < blue / 2 else "35" if red < 1.5 * blue else "31")
        else:
            codes.extend(Color.parse(colour).downgrade(system).get_ansi_codes())
    return f"\x1b[{';'.join(codes)}m" if codes else ""

"""A terminal for tests: a real pseudo-terminal, and a screen that understands only what dcoder may send."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

# Colours and attributes, cursor up, home, erase below, erase right (readline), and the modes of a frame.
_ALLOWED = re.compile(r"\x1b\[(?:[0-9;]*m|[0-9]*[ABCDKP@]|H|J|\?(?:2026|25|7|2004)[hl])")


class Display:
    """What a terminal of 80x24 shows. An escape sequence that is not ours, or text beyond the last column, fails."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.columns, self.lines = columns, lines
        self.rows = [[" "] * columns]
        self.row = self.column = 0
        self.modes = {"25": True, "7": True, "2026": False}
        self.plain = True  # no attribute is on
        self.frames: list[str] = []
        self.cut = False  # Ctrl-C was pressed: the kernel may have dropped the end of what was written
        self._rest = ""

    def feed(self, text: str) -> None:
        text = self._rest + text
        self._rest = ""
        while text:
            if text[0] == "\x1b":
                found = _ALLOWED.match(text)
                if found is None and self.cut and "\x1b" in text[1:]:  # thrown away at Ctrl-C; a terminal starts anew
                    text = text[text.index("\x1b", 1) :]
                    continue
                if found is None:
                    assert len(text) < 12, f"a foreign escape sequence: {text[:20]!r}"
                    self._rest = text
                    return
                self._control(found.group())
                text = text[found.end() :]
                continue
            self._put(text[0])
            text = text[1:]

    def _control(self, code: str) -> None:
        number, kind = code[2:-1], code[-1]
        if number.startswith("?"):
            self.modes[number[1:]] = kind == "h"
            if code == "\x1b[?2026l":
                self.frames.append(self.text())
        elif kind == "m":
            self.plain = number in ("", "0")
        elif kind == "A":
            self.row -= int(number or 1)
            assert self.row >= 0
        elif kind == "H":
            self.row, self.column = max(0, len(self.rows) - self.lines), 0
        elif kind == "J":
            self.rows[self.row][self.column :] = [" "] * (self.columns - self.column)
            del self.rows[self.row + 1 :]
        elif kind == "K":
            self.rows[self.row][self.column :] = [" "] * (self.columns - self.column)
        elif kind == "P":  # readline: delete and insert characters
            del self.rows[self.row][self.column : self.column + int(number or 1)]
            self.rows[self.row] += [" "] * int(number or 1)
        elif kind == "@":
            self.rows[self.row][self.column : self.column] = [" "] * int(number or 1)
            del self.rows[self.row][self.columns :]
        elif kind == "C":
            self.column += int(number or 1)
        elif kind == "D":
            self.column -= int(number or 1)

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._next_line()
        elif character == "\b":
            self.column -= 1
        elif character == "\t":
            self.column = (self.column // 8 + 1) * 8
        elif character != "\x07":  # the bell: readline at the end of its history
            assert character.isprintable(), f"a control character: {character!r}"
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if self.column + width > self.columns:
                assert self.modes["7"], "a frame is wider than the terminal"
                self._next_line()
                self.column = 0
            self.rows[self.row][self.column : self.column + width] = [character, *[""] * (width - 1)]
            self.column += width

    def _next_line(self) -> None:
        self.row += 1
        while self.row >= len(self.rows):
            self.rows.append([" "] * self.columns)

    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self.rows[-self.lines :])

    def sane(self) -> bool:
        return self.plain and self.modes["25"] and self.modes["7"] and not self.modes["2026"]


def open_pty(columns: int = 80, lines: int = 24) -> tuple[int, int]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    return master, slave


@contextlib.contextmanager
def terminal_file(columns: int = 80, lines: int = 24) -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """A text file that is a terminal, and what was written to it so far (line ends as sent)."""
    master, slave = open_pty(columns, lines)
    received = bytearray()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(master, 65536):
                received.extend(data)

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    file = os.fdopen(slave, "w", encoding="utf-8", newline="")

    def written() -> str:
        file.flush()
        before = -1
        while before != len(received):
            before = len(received)
            time.sleep(0.05)
        return received.decode()

    try:
        yield file, written
    finally:
        file.close()
        os.close(master)


class Program:
    """`dcoder` as a process whose terminal is ours."""

    def __init__(self, arguments: Sequence[object], **environment: str) -> None:
        self.master, slave = open_pty()
        env = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dcoder_cli", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.raw = ""
        self.display = Display()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # Ctrl-C may cut a character

    def wait_for(self, pattern: str, seconds: float = 90) -> str:
        """Read until a pattern stands in what was written since the last call; that text."""
        start, until = len(self.raw), time.monotonic() + seconds
        while not re.search(pattern, self.raw[start:]):
            assert time.monotonic() < until and self._read(1.0), f"no {pattern!r} in:\n{self.raw[start:]}"
        return self.raw[start:]

    def send(self, text: str) -> None:
        self.display.cut |= "\x03" in text
        os.write(self.master, text.encode())

    def interrupt(self, pattern: str, seconds: float = 90) -> None:
        """Press Ctrl-C until a pattern is written.

        Once is not enough at a prompt: CPython's readline loses a signal that comes after it read
        a key and before it waits for the next one, as a person's second Ctrl-C mends.
        """
        start, until = len(self.raw), time.monotonic() + seconds
        while not re.search(pattern, self.raw[start:]):
            assert time.monotonic() < until, f"no {pattern!r} in:\n{self.raw[start:]}"
            self.send("\x03")
            pause = time.monotonic() + 1.0
            while time.monotonic() < pause and not re.search(pattern, self.raw[start:]):
                assert self._read(0.1)

    def end(self, seconds: float = 90) -> int:
        """Read to the end; the exit code."""
        until = time.monotonic() + seconds
        while self._read(1.0):
            assert time.monotonic() < until, self.raw
        os.close(self.master)
        return self.process.wait(30)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other end is closed
            return False
        text = self._decoder.decode(data)
        self.raw += text
        self.display.feed(text)
        return True

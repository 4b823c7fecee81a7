"""What people and machines see: results on stdout, everything else on stderr, rank 0 only.

Names and text of data, models and files are untrusted: whatever is printed here for people is `visible`, and never markup.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment


def rank() -> int:
    """This process's rank under accelerate or torchrun; 0 when alone."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def world_size() -> int:
    """The number of processes under accelerate or torchrun; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Untrusted(RenderHook):
    """What is printed is made `visible` once it is laid out; control codes of rich's own are no text and stay."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(one) for one in renderables]


class _Visible:
    """A renderable whose text is `visible`."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self._inner, options):
            yield Segment(text if control else visible(text), style, control)


def _console(file: Any, **chosen: Any) -> Console:
    """Brackets and colons in a text are text: no markup, no emoji."""
    console = Console(file=file, quiet=rank() != 0, highlight=False, markup=False, emoji=False, **chosen)
    if not console.width:  # COLUMNS=0, as some editors and build machines set it: rich would print nothing
        console.width = 80
    console.push_render_hook(_Untrusted())
    return console


def stdout() -> Console:
    """A console for results. Piped output has no colour and is never wrapped."""
    console = _console(sys.stdout)
    return console if console.is_terminal else _console(sys.stdout, width=10_000, soft_wrap=True)


def stderr() -> Console:
    """A console for notes, warnings and progress."""
    return _console(sys.stderr, soft_wrap=True)


def note(message: str) -> None:
    """One line for the user on stderr."""
    stderr().print(message)


def warn(message: str) -> None:
    """One line of warning on stderr."""
    stderr().print(f"warning: {message}", style="yellow")


def visible(text: str) -> str:
    """`text` that cannot command a terminal: every control character but line end and tab becomes a picture of itself.

    What a model or a file wrote is untrusted. Escape (C0 and C1) could retitle the window, move the cursor or fake
    output; directional overrides reorder what is read.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_PICTURES)


# C0 and DEL have pictures in Unicode (U+2400 on); C1 and the directional overrides and isolates have none.
_PICTURES: dict[int, str | int | None] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **{
        code: f"<{code:02x}>"
        for code in (*range(0x80, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    },
}


def emit_text(text: str) -> None:
    """Text that a model wrote, and a line end, on stdout, rank 0 only: unchanged when piped, `visible` on a terminal."""
    if rank() == 0:
        write_terminal(visible(text) + "\n") if sys.stdout.isatty() else sys.stdout.write(text + "\n")
        sys.stdout.flush()


def write_terminal(text: str) -> None:
    """Write to stdout; what its encoding lacks shows as `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


# Of what every command prints with --json (docs/formats.md). Up where a key goes, changes its type or its meaning; new
# keys leave it.
SCHEMA_VERSION = 1


def emit_json(value: Mapping[str, Any]) -> None:
    """One JSON object on a line of stdout, `schema_version` first; rank 0 only. The one place where commands print JSON.

    NaN and infinity become null: JSON has neither. What stdout's encoding lacks stands as escapes.
    """
    assert "schema_version" not in value
    if rank() == 0:
        value = {"schema_version": SCHEMA_VERSION, **_finite(value)}
        line = json.dumps(value, ensure_ascii=False)
        try:
            line.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            line = json.dumps(value)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class Bar:
    """A handle on one progress bar: `advance(n, status)`."""

    def __init__(self, show: Callable[[float, str | None, float | None], None]) -> None:
        self._show = show

    def advance(self, amount: float = 1, status: str | None = None, total: float | None = None) -> None:
        """Move on by `amount`; show `status` (rate, loss ...) behind the bar; `total` where it is known only now."""
        self._show(amount, status, total)


@contextmanager
def bar(
    label: str, total: float | None, done: float = 0, quiet: bool = False, at_once: bool = False, late: bool = False
) -> Iterator[Bar]:
    """Progress on stderr with count, status and time left, on the first process: a bar, or lines in a log.

    Where stderr is no terminal (nohup, Slurm, CI) it is plain lines: one at the start, one every `_EVERY` seconds and
    one at the end. The first waits for the first step or `_EVERY`, so that an input refused inside stays one line.

    Args:
        label: what goes on.
        total: how much there is to do, None where nobody knows yet.
        done: how much of it was done before.
        quiet: show nothing.
        at_once: the first line comes now; for work whose input is checked already.
        late: a log hears nothing of what ends within `_EVERY`; for work that is short but for large inputs.
    """
    if quiet or rank() != 0:
        yield Bar(lambda amount, status, total: None)
        return
    console = stderr()
    # FORCE_COLOR makes rich take a file for a terminal, and a dumb terminal cannot redraw a line.
    if not (sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal):
        with _Lines(label, total, done, at_once, late) as lines:
            yield Bar(lines.advance)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(visible(label), total=total, completed=int(done), status="")

        def show(amount: float, status: str | None, total: float | None) -> None:
            fields: dict[str, Any] = {} if status is None else {"status": visible(status)}
            progress.update(task, total=total, advance=amount, **fields)

        yield Bar(show)


_EVERY = 30.0  # seconds between the lines of a log (ours)


class _Lines:
    """Progress as lines of a log: no escape codes, no carriage returns. A thread writes them, however long a step takes."""

    def __init__(self, label: str, total: float | None, done: float, at_once: bool, late: bool = False) -> None:
        self._label, self._total, self._done, self._before = visible(label), total, done, done
        self._status, self._told, self._at_once, self._late = "", False, at_once, late
        self._began, self._lock, self._ended = time.monotonic(), threading.Lock(), threading.Event()
        self._first: tuple[float, float] | None = None  # when the first step ended, and how much was done by then
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> _Lines:
        if self._at_once:
            self._tell()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is None and (self._told or not self._late):  # else the error's own line is the last
            self._tell(ended=True)

    def advance(self, amount: float, status: str | None, total: float | None) -> None:
        with self._lock:
            self._done += amount
            self._status = self._status if status is None else visible(status)
            self._total = self._total if total is None else total
            self._first = self._first or (time.monotonic(), self._done)
            first = not (self._told or self._late)
        if first:
            self._tell()

    def _tick(self) -> None:
        while not self._ended.wait(_EVERY):
            self._tell()

    def _tell(self, ended: bool = False) -> None:
        with self._lock:
            self._told = True
            now = time.monotonic()
            parts = [f"{self._label}: {_count(self._done)}{'' if self._total is None else '/' + _count(self._total)}"]
            parts += [self._status] if self._status else []
            if ended:
                parts.append(f"ended after {_clock(now - self._began)}")
            elif self._total is not None and self._first is not None and self._done > self._first[1]:
                parts.append(f"{_clock((self._total - self._done) / self._rate(now))} left")
            print("  ".join(parts), file=sys.stderr, flush=True)

    def _rate(self, now: float) -> float:
        """Steps a second after the first, which compiles or loads; of all as long as that is the larger part of the time."""
        since, done = self._first or (self._began, self._before)
        if done == self._done or now - since < since - self._began:
            since, done = self._began, self._before
        return (self._done - done) / max(now - since, 1e-9)


def _count(value: float) -> str:
    """`1234.0` as `1,234`; a fraction with one digit."""
    return f"{value:,.1f}".removesuffix(".0")


def _clock(seconds: float) -> str:
    """`3725` as `1:02:05`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

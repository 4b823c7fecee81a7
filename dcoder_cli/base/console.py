"""What people and machines see: results on stdout, everything else on stderr, rank 0 only."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def rank() -> int:
    """This process's rank under accelerate or torchrun; 0 when alone."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def world_size() -> int:
    """The number of processes under accelerate or torchrun; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def stdout() -> Console:
    """A console for results. Piped output has no colour and is never wrapped."""
    console = Console(file=sys.stdout, quiet=rank() != 0, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, quiet=rank() != 0, highlight=False, width=10_000, soft_wrap=True)
    return console


def stderr() -> Console:
    """A console for notes, warnings and progress."""
    return Console(file=sys.stderr, quiet=rank() != 0, highlight=False, soft_wrap=True)


def note(message: str) -> None:
    """One line for the user on stderr."""
    stderr().print(message, markup=False)


def warn(message: str) -> None:
    """One line of warning on stderr."""
    stderr().print(f"warning: {message}", markup=False, style="yellow")


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


def emit_json(value: Any) -> None:
    """One JSON document on stdout, rank 0 only. NaN and infinity become null: JSON has neither."""
    if rank() == 0:
        sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False) + "\n")
        sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class Bar:
    """A handle on one progress bar: `advance(n, status)`."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1, status: str | None = None) -> None:
        """Move on by `amount` and show `status` (rate, loss ...) behind the bar."""
        if self._progress is not None and self._task is not None:
            if status is None:
                self._progress.update(self._task, advance=amount)
            else:
                self._progress.update(self._task, advance=amount, status=status)


@contextmanager
def bar(label: str, total: float | None, done: float = 0, quiet: bool = False) -> Iterator[Bar]:
    """A progress bar on stderr with rate and time left; silent when stderr is no terminal or on other ranks."""
    console = stderr()
    if quiet or rank() != 0 or not console.is_terminal:
        yield Bar(None, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(label, total=total, completed=int(done), status="")
        yield Bar(progress, task)

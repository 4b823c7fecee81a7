"""What becomes of a row that cannot be used: it is dropped, counted by reason, and shown by example.

One policy for pretrain, sft and rl: a row of another form than its source's first is dropped and the rest is used. Only
where the first usable row of a source fails, which means wrong columns, or where nothing is left, is the command refused.
A damaged file is no bad row: what cannot be read as rows ends the command (base/jsonl.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dcoder_cli.base.errors import UserError

EXAMPLES = 5  # named in the manifest, for each reason (ours)


class BadRow(UserError):
    """A row that cannot be used.

    Attributes:
        reason: in few words, the same for all rows with this fault: what rows are counted by.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SourceStopped(UserError):
    """A source that comes over the network ended before its end: the same call can go on."""


class Dropped:
    """Counts, bytes and examples of what was dropped, by reason.

    Attributes:
        entries: reason -> [rows, bytes of their text, names of the first EXAMPLES].
    """

    def __init__(self) -> None:
        self.entries: dict[str, list[Any]] = {}

    def add(self, reason: str, name: str, detail: str = "", size: int = 0) -> None:
        """Count a row of this name; `detail` is what is said of it beside the reason."""
        entry = self.entries.setdefault(reason, [0, 0, []])
        entry[0] += 1
        entry[1] += size
        if len(entry[2]) < EXAMPLES:
            entry[2].append(f"{name} ({detail})" if detail else name)

    def count(self) -> int:
        """All rows."""
        return sum(entry[0] for entry in self.entries.values())

    def report(self) -> dict[str, Any]:
        """As a manifest says it, by reason, without bytes."""
        return {key: {"documents": entry[0], "examples": entry[2]} for key, entry in sorted(self.entries.items())}

    def __str__(self) -> str:
        return ", ".join(f"{entry[0]} {reason}" for reason, entry in sorted(self.entries.items())) or "none"


@dataclass
class Tally:
    """How often something was met that drops no row, with the names of the first EXAMPLES."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one of this name."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(name)

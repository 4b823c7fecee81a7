"""A row on its way: what was asked, its steps, and which rows are evaluated together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dcoder_cli.decoding.proposal import Draws, RowRandom
from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.decoding.watching import Observer, OnCommit
from dcoder_cli.diffusion import schedules, unmasking

_WORTH = 512  # an evaluation more, which reads all weights again, must save so many columns of padding (ours)
# What rows must share to be judged together.
_JUDGED = (
    "rule", "temperature", "top_p", "top_k", "alg_temperature", "compat", "cfg_scale", "stop_penalty", "min_new_tokens",
    "tie_break", "logits_mib", "mode", "commit", "threshold", "factor", "entropy_bound",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ticket:
    """A row to decode, with its settings and who looks on; observers are told the request's index."""

    request: Request
    settings: Settings
    observer: Observer | None = None
    on_commit: OnCommit | None = None


@dataclass(frozen=True)
class Decoded:
    """A row that is done.

    Attributes:
        columns: tokens, reveal_step, confidence, entropy, tied, tied_from of its answer.
        forwards: evaluations of the network that it took part in; a guided step counts two.
        batch: rows that shared one of them, on (harmonic) average.
        seconds: since it was given a slot.
    """

    ticket: Ticket
    columns: dict[str, list[Any]]
    forwards: int
    batch: float
    seconds: float


@dataclass
class Slot:
    """A row in its slot.

    Attributes:
        plan: for each step (block, commits). width: new tokens of a block.
        judged: what it must share with those it is judged with.
        step: its next step. block, left: the block it is in, and the masks there.
        count: commits of its next step; None where the commit rule says.
        draws: its random numbers there.
        age: evaluations of this block since the whole row was evaluated; 0 = that comes next.
        pads: columns that stand left of it where topk looks at it (batches of the public samplers).
        share: the part of its evaluations that was its own: one over their rows, summed.
        kept: how many new tokens are its answer.
    """

    slot: int
    ticket: Ticket
    plan: list[tuple[int, int]]
    width: int
    judged: tuple[Any, ...]
    random: RowRandom
    began: float
    pads: int
    step: int = 0
    block: int = -1
    left: int = 0
    count: int | None = None
    draws: Draws = field(default_factory=lambda: Draws(torch.empty(0), torch.empty(0), torch.empty(0)))
    age: int = 0
    forwards: int = 0
    share: float = 0.0
    kept: int = 0
    over: bool = False

    @classmethod
    def of(cls, ticket: Ticket, slot: int, longest: int, began: float) -> Slot:
        """A ticket's row; `longest`: columns that topk sees of it, its own tokens at least."""
        request, settings = ticket.request, ticket.settings
        width = settings.block_for(request.new_tokens) if settings.mode == "fast" else settings.block_length
        return cls(
            slot, ticket, schedules.plan(request.new_tokens, settings.steps, width, settings.compat),
            width or request.new_tokens, tuple(getattr(settings, name) for name in _JUDGED),
            RowRandom(request, settings, unmasking.canonical(settings.rule)), began,
            longest - request.length, kept=request.new_tokens,
        )  # fmt: skip

    @property
    def first(self) -> int:
        """Column of its first new token."""
        return len(self.ticket.request.prefix)

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.ticket.request.length

    @property
    def caches(self) -> bool:
        """Whether it keeps keys and values."""
        settings = self.ticket.settings
        return settings.mode == "fast" and (settings.cache or "none") != "none"

    def window(self) -> tuple[int, int]:
        """The columns [first, end) that are evaluated against kept ones."""
        first = self.first + self.block * self.width
        return first, first + self.width if self.ticket.settings.cache == "dual" else self.length

    def prepare(self) -> None:
        """Go on to the next step that commits something, with its random numbers; `over` where there is none."""
        settings = self.ticket.settings
        if settings.mode == "fast":
            if not self.left:
                self.block, self.left, self.age = self.block + 1, self.width, 0
                if self.block * self.width >= self.ticket.request.new_tokens:
                    self.over = True
                    return
            self.draws = self.random.draw()
            self.count = self.plan[self.step][1] if settings.commit == "schedule" else None
            return
        while self.step < len(self.plan):
            self.draws = self.random.draw()
            block, count = self.plan[self.step]
            if block != self.block:
                self.block, self.left = block, self.width
            if settings.compat == "dream":
                per_block = len(self.plan) // (self.plan[-1][0] + 1)
                count = schedules.dream_count(self.left, self.step % per_block, per_block)
            self.count = min(count, self.left)
            if self.count:
                return
            self.step += 1
        self.over = True


def evaluations(rows: Sequence[Slot]) -> Iterator[tuple[list[Slot], str]]:
    """Rows that are evaluated together, and how: "whole" rows, whole rows to be kept ("fill"), or a "window" of kept ones."""
    kinds: dict[str, list[Slot]] = {}
    for row in rows:
        kind = "whole"
        if row.caches:
            refresh = row.ticket.settings.cache_refresh
            kind = "fill" if not row.age or (refresh is not None and row.age >= refresh) else "window"
        kinds.setdefault(kind, []).append(row)
    for kind, some in kinds.items():
        falling = sorted(some, key=lambda row: -row.length)
        start = 0
        for place, row in enumerate(falling):
            if (falling[start].length - row.length) * (len(falling) - place) >= _WORTH:
                yield sorted(falling[start:place], key=lambda row: row.slot), kind
                start = place
        yield sorted(falling[start:], key=lambda row: row.slot), kind

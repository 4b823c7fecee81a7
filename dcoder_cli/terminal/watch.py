"""The text being denoised, live in a terminal: masks, tokens in the colour of their step, and what a forward yields."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from rich.cells import cell_len

from dcoder_cli.analysis.colours import terminal_colour
from dcoder_cli.analysis.pieces import Pieces
from dcoder_cli.base import console
from dcoder_cli.base.console import visible
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model.backbone import Model
from dcoder_cli.terminal.cells import Cell, clip, layout, placeholder
from dcoder_cli.terminal.screen import RESET, Screen, can_draw

FRAME = 0.05  # ours: 20 frames a second look continuous
SHARE = 0.05  # ours: of the time at most, also where a frame takes long to draw
RECENT = 12  # commits that decide which part of a long text is shown
_NEW, _LATE, _FAINT = "1;7", "4", "2"  # reverse and bold; underlined; faint


class StepPlan(NamedTuple):
    """What is about to be denoised.

    Attributes:
        pieces: tokens as text.
        stops: ids that end the text.
        new_tokens: masks to fill.
        steps: denoising steps; None = as many as it takes.
        mask: the id of a mask; None for an AR model, and where nothing commits masks.
        blocks: the length of blocks that are decoded one after another; 0 = all at once.
        left_to_right: show no masks ahead, as an AR model has none.
        forwards: evaluations a step.
    """

    pieces: Pieces
    stops: frozenset[int]
    new_tokens: int
    steps: int | None
    mask: int | None = None
    blocks: int = 0
    left_to_right: bool = False
    forwards: int = 1

    @classmethod
    def of(cls, model: Model, settings: Settings) -> StepPlan:
        """Of a call of `generate`."""
        open_ended = settings.mode == "fast" and settings.commit != "schedule"
        return cls(
            pieces=Pieces(model.tokenizer),
            stops=frozenset(model.ids.stops),
            new_tokens=settings.max_new_tokens,
            steps=None if open_ended else settings.steps or settings.max_new_tokens,
            mask=model.ids.mask if model.is_diffusion else None,
            blocks=settings.block_length or 0,
            left_to_right=not model.is_diffusion,
            forwards=2 if settings.cfg_scale else 1,
        )


class Watch:
    """A sampler's `on_commit` and `on_done`, drawn. A context manager: leaving it leaves the terminal as it was.

    Of a batch one row is shown, the first. Tokens committed since the last frame are reversed and those of the last
    tenth of the steps underlined, so the order shows without colour.
    """

    def __init__(
        self,
        plan: StepPlan,
        names: Sequence[str] = ("0",),
        screen: Screen | None = None,
        delay: float = 0.0,
        live: bool = True,
    ) -> None:
        """`delay`: seconds to wait after each step; `live`: tell tokens a second, which a replay has not."""
        self.screen = screen or Screen()
        self.plan, self.names, self.delay, self.live = plan, names, delay, live
        self.pieces, self.stops, self.steps = plan.pieces, plan.stops, plan.steps
        self.placeholder = placeholder(self.screen.file.encoding)
        self._open()

    def __enter__(self) -> Watch:
        self._open()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or (self.row is None and kind is not KeyboardInterrupt):
            self.screen.erase()
        else:  # stopped midway: what there is stays to be seen
            self.screen.keep()

    def _open(self) -> None:
        """Forget the last batch."""
        self.row: int | None = None
        self.batch: set[int] = set()
        self.tokens: list[int | None] = [None] * self.plan.new_tokens
        self.reveal = [-1] * len(self.tokens)
        self.order: list[int] = []  # positions of the row shown, as committed
        self.fresh: set[int] = set()
        self.total = self.forwards = 0
        self.step, self.top = -1, 0
        self.began = time.perf_counter()
        self.next_frame = 0.0

    def on_commit(self, step: int, row: int, positions: list[int], tokens: list[int]) -> None:
        """What a row has just committed; see `denoise.OnCommit`."""
        if self.row is None:
            self.row = row
        if step != self.step:
            self.step, self.forwards = step, self.forwards + self.plan.forwards
        self.batch.add(row)
        self.total += len(positions)
        if row != self.row:
            return
        if (
            len(self.order) and step < self.reveal[self.order[-1]]
        ):  # the same row once more: a search for a span's length
            began = self.began
            self._open()
            self.row, self.step, self.forwards, self.began = row, step, 1, began
        missing = max(positions, default=-1) + 1 - len(self.tokens)
        if missing > 0:
            self.tokens += [None] * missing
            self.reveal += [-1] * missing
        for position, token in zip(positions, tokens, strict=True):
            if token != self.plan.mask:
                self.tokens[position], self.reveal[position] = token, step
                self.order.append(position)
                self.fresh.add(position)
        if self.delay:
            self._draw()
            time.sleep(self.delay)
            self.began += self.delay
        elif time.perf_counter() >= self.next_frame:
            self._draw()

    def on_done(self, trajectory: Trajectory) -> None:
        """A row of the batch is finished: the next commit opens a new batch."""
        if self.row is not None:
            self._draw()
            self._open()

    def _draw(self) -> None:
        began = time.perf_counter()
        self.screen.draw(self.frame(*self.screen.size()))
        self.fresh.clear()
        now = time.perf_counter()
        self.next_frame = now + max(FRAME, (now - began) / SHARE)

    def frame(self, columns: int, height: int) -> list[str]:
        """The lines of one frame: the part of the text around the latest commits, then the status."""
        texts = self._texts()
        lines = layout(texts, columns)
        room = height - 3
        self._scroll(lines, room)
        first_stop = next((i for i, token in enumerate(self.tokens) if token in self.stops), len(self.tokens))
        late = self.step - max(1, self._last() // 10)
        drawn = []
        for line in lines[self.top : self.top + room]:
            parts = []
            for text, token in line:
                if token in self.fresh:
                    style = self.screen.sgr(self._colour(token), _NEW)
                elif self.tokens[token] is None or token >= first_stop:
                    style = self.screen.sgr(None, _FAINT)
                else:
                    style = self.screen.sgr(self._colour(token), _LATE if self.reveal[token] > late else "")
                parts.append(f"{style}{text}{RESET}")
            drawn.append("".join(parts))
        return [*drawn, *self._status(columns, room, len(lines))]

    def _texts(self) -> list[str]:
        """The text of each position up to the end of the block being decoded; runs of tokens are decoded together."""
        known = self.tokens
        if self.plan.left_to_right:
            known = known[: len(self.order)]
        elif self.plan.blocks:
            width = self.plan.blocks
            known = known[: (max(self.order, default=0) // width + 1) * width]
        texts: list[str] = []
        run: list[int] = []
        for token in [*known, None]:
            if token is not None:
                run.append(token)
                continue
            texts.extend(self.pieces(run))
            run = []
            texts.append(self.placeholder)
        return texts[:-1]

    def _scroll(self, lines: list[list[Cell]], room: int) -> None:
        """Keep most of the latest commits in sight, moving as seldom as can be."""
        recent = set(self.order[-RECENT:])
        places = sorted(number for number, line in enumerate(lines) if any(cell.token in recent for cell in line))
        if places:
            middle = places[len(places) // 2]
            if not self.top <= middle < self.top + room:
                self.top = middle - room // 2
        self.top = max(0, min(self.top, len(lines) - room))

    def _colour(self, token: int) -> str:
        return terminal_colour(self.reveal[token] / max(self._last(), 1))

    def _last(self) -> int:
        """The last step; where their number is open, the last so far."""
        return self.step if self.steps is None else self.steps - 1

    def _status(self, columns: int, room: int, lines: int) -> list[str]:
        seconds = max(time.perf_counter() - self.began, 1e-9)
        done, total = len(self.order), len(self.tokens)
        rate = f"{done / self.forwards:.1f}" if self.forwards else "-"
        left = f"step {self.step + 1}" + (f"/{self.steps} " if self.steps else " ")
        right = f" {done}/{total} tokens · {rate} tokens/forward"
        if self.live:
            right += f" · {self.total / seconds:,.0f} tok/s"
        width = min(24, columns - cell_len(left) - cell_len(right))
        notes = []
        if len(self.names) > 1:
            name = self.names[self.row] if self.row is not None else self.names[0]
            others = len(self.batch) - 1
            notes.append(
                f"{visible(name)!r}" + (f" and {others} more rows" if others else "") + f" of {len(self.names)}"
            )
        if lines > room:
            notes.append(f"lines {self.top + 1}-{min(self.top + room, lines)} of {lines}")
        bar = self._bar(width, (self.step + 1) / self.steps if self.steps else done / total) if width > 3 else ""
        status = left + bar + right if bar else (left + right)[:columns]
        return ["", status, clip(" · ".join(notes), columns)] if notes else ["", status]

    def _bar(self, width: int, done: float) -> str:
        """How far it is, in the colours of the steps: the key to the colours of the tokens."""
        full, empty = ("━", "─") if self.placeholder == "░" else ("#", "-")
        share = [index / (width - 1) for index in range(width)]
        parts = [
            f"{self.screen.sgr(terminal_colour(value))}{full if index < round(done * width) else empty}{RESET}"
            for index, value in enumerate(share)
        ]
        return "".join(parts)

    def coloured(self, trajectory: Trajectory, tokens: Sequence[int] | None = None) -> str:
        """A finished text with every token in the colour of its step, whole and unwrapped, for the terminal.

        `tokens`: what to show instead of the trajectory's own, where those are unknown.
        """
        tokens = trajectory.tokens if tokens is None else tokens
        tokens = tokens[: next((place for place, token in enumerate(tokens) if token in self.stops), len(tokens))]
        special = self.pieces.special
        pieces = self.pieces.of(tokens, trajectory.text)
        texts = ["" if token in special else text for token, text in zip(tokens, pieces, strict=True)]
        named = trajectory.text or self.pieces.tokenizer is not None
        if named and "".join(texts) != trajectory.text:  # a tokenizer whose pieces do not add up to the text
            return visible(trajectory.text)
        last = max(trajectory.reveal_step, default=0) or 1
        parts = []
        for text, step in zip(texts, trajectory.reveal_step, strict=False):
            style = self.screen.sgr(terminal_colour(step / last))
            parts.append(f"{style}{visible(text)}{RESET}" if style and text.strip() else visible(text))
        return "".join(parts)


def viewer(model: Model, settings: Settings, names: Sequence[str], delay: float = 0.0) -> Watch | None:
    """A live view for a call of `generate`, or None, with a note, where stdout is no terminal that can show it."""
    if console.rank() != 0:
        return None
    if not can_draw(sys.stdout):
        console.note("note: --watch needs a terminal on stdout; writing plain text instead")
        return None
    return Watch(StepPlan.of(model, settings), names, delay=delay)

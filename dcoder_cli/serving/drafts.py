"""An answer as it grows: which of its text is settled, where it ends, and the draft around it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from dcoder_cli.decoding.requests import Request
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.text import continuation, decode


class Draft:
    """The places of one answer, filled in any order; text is settled from the left.

    Args:
        stops: texts that end an answer; neither they nor what follows belongs to it.
    """

    def __init__(self, model: Model, request: Request, stops: Sequence[str]) -> None:
        self.model, self.request, self.stops = model, request, stops
        self.tokens: list[int | None] = [None] * request.new_tokens
        self.step = -1
        self.ended = False  # by a stop text, or an end token with all before it
        self._settled = 0
        self._given = ""

    def commit(self, step: int, positions: Sequence[int], tokens: Sequence[int]) -> str:
        """Fill places in; the text that this settles behind what was given before, often none."""
        self.step = step
        for position, token in zip(positions, tokens, strict=True):
            if token != self.model.ids.mask:
                self.tokens[position] = token
        before = self._settled
        while self._settled < len(self.tokens) and self.tokens[self._settled] is not None:
            self._settled += 1
        return self._more(self.text(), final=False) if self._settled > before and not self.ended else ""

    def text(self) -> str:
        """What is settled, up to its end."""
        settled = self.settled()
        end = next((at for at, token in enumerate(settled) if token in self.model.ids.stops), None)
        self.ended = self.ended or end is not None
        return continuation(self.model.tokenizer, self.request.prefix, settled[:end])

    def end(self, text: str) -> str:
        """The answer is `text` and done: what of it was not given yet."""
        return self._more(text, final=True)

    def cut(self, text: str) -> tuple[str, bool]:
        """A text before the first of the stop texts, and whether there was one."""
        at = min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=None)
        return (text, False) if at is None else (text[:at], True)

    def count(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` the answer has: up to the end token, or the one that completes a stop text."""
        end = next((at + 1 for at, token in enumerate(tokens) if token in self.model.ids.stops), len(tokens))
        if not self.stops or not self._stopped(tokens[:end]):
            return end
        return bisect_left(range(end), True, key=lambda size: self._stopped(tokens[:size]))

    def settled(self) -> list[int]:
        """The tokens on the left that are all there."""
        return [token for token in self.tokens[: self._settled] if token is not None]

    def _stopped(self, tokens: Sequence[int]) -> bool:
        kept = [token for token in tokens if token not in self.model.ids.stops]
        return self.cut(continuation(self.model.tokenizer, self.request.prefix, kept))[1]

    def pieces(self) -> list[str | None]:
        """Every place's own text; None where nothing is committed, a dot for an end token or a pad."""
        stops = self.model.ids.stops
        return [
            None if token is None else "·" if token in stops else decode(self.model.tokenizer, [token])
            for token in self.tokens
        ]

    def _more(self, text: str, final: bool) -> str:
        text, stopped = self.cut(text)
        self.ended = self.ended or stopped
        if not (final or self.ended):
            text = text[: len(text) - self._held_back(text)]
        if not text.startswith(self._given):
            return ""  # what comes later changed a character that was given: rather nothing than a wrong one
        more, self._given = text[len(self._given) :], text
        return more

    def _held_back(self, text: str) -> int:
        """Characters at the end that may turn out otherwise: half of a character, or the beginning of a stop text."""
        broken = len(text) - len(text.rstrip("\ufffd"))
        begun = max(
            (size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        return max(broken, begun)

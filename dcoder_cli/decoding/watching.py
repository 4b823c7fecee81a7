"""Who looks on while rows are decoded."""

from __future__ import annotations

from collections.abc import Callable

# observer(step, row, positions, confidence, entropy): every still masked new token of a row, before the commit.
Observer = Callable[[int, int, list[int], list[float], list[float]], None]
# on_commit(step, row, positions, tokens): what a row has just committed. A token that is the mask itself (the public
# samplers may draw it) leaves its place masked.
OnCommit = Callable[[int, int, list[int], list[int]], None]

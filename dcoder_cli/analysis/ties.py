"""What ties decided: their share of a decoding's steps, and the orders that they left open.

A step is tied where a token that it committed had a rival that the rule scored exactly as high (`Trajectory.tied`).
The step's setting `tie_break` then chose, and another would have chosen otherwise.

How far AR-ness could have moved is told by `open_orders`: the same tokens put into other orders that the recorded ties
allow (`Trajectory.tied_from`: each token could have come at any step from there on), as a sampler would have that at
every step takes the leftmost token it may, or the rightmost, or the one that continues a run, or avoids one. For
global@k these are the ends of what is possible where all of a run of ties was tied from its start, and for local@k the
ends that such samplers reach. Assumed is that tokens and scores stay as they were, which a real model does not promise:
`dcoder arness --sensitivity` decodes anew.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal, get_args

from dcoder_cli.decoding.trajectory import Trajectory

Preference = Literal["left", "right", "follow", "avoid"]
PREFERENCES: tuple[Preference, ...] = get_args(Preference)
MUCH = 0.1  # ours: a share of tied steps above which a number is said to be of the tie break


def tied_share(trajectory: Trajectory, length: int | None = None) -> float | None:
    """Share of the steps of the first `length` new tokens that a tie decided; None where ties were not recorded."""
    if trajectory.tied is None:
        return None
    steps = trajectory.reveal_step[:length]
    tied = {step for step, by_tie in zip(steps, trajectory.tied[:length], strict=True) if by_tie}
    return len(tied) / len(set(steps))


def open_orders(steps: Sequence[int], tied_from: Sequence[int]) -> dict[Preference, list[int]]:
    """For each preference the step of every token in the order that it makes of the ties.

    Args:
        steps: the step of each token.
        tied_from: for each token the first step at which it could have come; at most its step.

    Returns:
        lists as `steps`; all equal to it where no tie left a choice.
    """
    if list(steps) == list(tied_from):
        return {preference: list(steps) for preference in PREFERENCES}
    return {preference: _order(steps, tied_from, preference) for preference in PREFERENCES}


def _order(steps: Sequence[int], tied_from: Sequence[int], preference: Preference) -> list[int]:
    counts: dict[int, int] = {}
    for step in steps:
        counts[step] = counts.get(step, 0) + 1
    arrivals = sorted(range(len(steps)), key=lambda token: tied_from[token])
    sign = 1 if preference in ("left", "follow") else -1  # the heap gives the leftmost, or the rightmost
    waiting: list[int] = []
    free: set[int] = set()
    placed = [-1] * len(steps)
    arrived, last = 0, -2
    for step in sorted(counts):
        while arrived < len(arrivals) and tied_from[arrivals[arrived]] <= step:
            heapq.heappush(waiting, sign * arrivals[arrived])
            free.add(arrivals[arrived])
            arrived += 1
        for _ in range(counts[step]):
            if preference == "follow" and last + 1 in free:
                token = last + 1
            else:
                token = _first(waiting, free, sign)
                if preference == "avoid" and token == last + 1 and len(free) > 1:
                    free.remove(token)
                    other = _first(waiting, free, sign)
                    free.add(token)
                    heapq.heappush(waiting, sign * token)
                    token = other
            free.remove(token)
            placed[token], last = step, token
    return placed


def _first(waiting: list[int], free: set[int], sign: int) -> int:
    """Takes the first free token off the heap; those that were placed meanwhile are dropped."""
    while True:
        token = sign * heapq.heappop(waiting)
        if token in free:
            return token

"""What analysis reads: trajectory files of any system, and tokens as pieces of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcoder_cli.analysis.pieces import Pieces
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.jsonl import lines
from dcoder_cli.decoding import trajectory
from dcoder_cli.decoding.trajectory import Trajectory


def read_trajectories(path: str | Path) -> list[Trajectory]:
    """Trajectories of a JSON-lines file, in dcoder's form or in the short form for other systems.

    dcoder's form gives each new token its `reveal_step`. The short form gives the positions in decoding order:
    `{"order": [3, 0, 1, 2]}`, or a list of positions for each step, `{"order": [[0, 2], [1, 3]]}`; `id`, `prompt`,
    `text`, `tokens`, `tied`, `model` and `settings` may stand beside it. A file holds one of the two forms.

    Raises:
        UserError: a broken file or line; in the short form also a position that is missing, repeated or no position.
    """
    found = list(lines(path, "trajectory file"))
    if not found or not _is_order(found[0].value):
        return trajectory.read(path)
    return [_from_order(value, f"{path} line {number}") for number, value in found]


def _is_order(record: Any) -> bool:
    return isinstance(record, dict) and "order" in record and "reveal_step" not in record


def _from_order(record: Any, where: str) -> Trajectory:
    order = record.get("order") if isinstance(record, dict) else None
    if not isinstance(order, list) or not order:
        raise UserError(f"{where} has no list 'order'; give the positions in decoding order, [0, 1, ..]")
    steps: dict[int, int] = {}
    for step, entry in enumerate(order):
        for position in entry if isinstance(entry, list) else [entry]:
            if isinstance(position, bool) or not isinstance(position, int) or position < 0:
                raise UserError(f"{where}: order[{step}] holds {position!r}, which is no position; use 0, 1, ..")
            if position in steps:
                raise UserError(
                    f"{where}: position {position} is committed at steps {steps[position]} and {step}; each position once"
                )
            steps[position] = step
    missing = next((position for position in range(len(steps)) if position not in steps), None)
    if not steps or missing is not None:
        raise UserError(
            f"{where}: position {missing or 0} is never committed (the order names {len(steps)}, "
            f"the last is {max(steps, default=0)}); every new token needs a step"
        )
    length = len(steps)
    tokens = record.get("tokens")
    if tokens is not None and (not isinstance(tokens, list) or len(tokens) != length):
        size = len(tokens) if isinstance(tokens, list) else "no list"
        raise UserError(f"{where}: tokens has {size} entries but order names {length} positions; they must match")
    trajectory.check_numbers(tokens or [], "tokens", where)
    return Trajectory(
        tokens=[0] * length if tokens is None else tokens,
        reveal_step=[steps[position] for position in range(length)],
        confidence=[float("nan")] * length,
        entropy=[float("nan")] * length,
        prompt_length=0,
        **trajectory.read_names(record, where),
        **trajectory.read_ties(record, [steps[position] for position in range(length)], where),
    )


def pieces(trajectory: Trajectory, tokenizer: Any | None) -> list[str]:
    """Each new token as the text it adds (see `Pieces`); where a file has no tokens either, the positions."""
    tokens = trajectory.tokens
    if tokenizer is None:
        return Pieces(None)(tokens if any(tokens) else list(range(len(tokens))))
    return Pieces(tokenizer).of(tokens, trajectory.text)

"""A saved trajectory, denoised once more in a terminal with the drawing of `--watch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dcoder_cli.analysis.pieces import Pieces, tokenizer_of
from dcoder_cli.analysis.sources import read_trajectories
from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.terminal.screen import Screen, can_draw
from dcoder_cli.terminal.watch import StepPlan, Watch

DELAY = 0.05  # seconds a step: 20 a second, as the report's player; ours


def replay(
    file: Path, names: Sequence[str] = (), model: str | None = None, delay: float = DELAY, screen: Screen | None = None
) -> None:
    """Show samples of a trajectory file, then their texts; where stdout is no terminal, the texts alone.

    Args:
        file: trajectories of any system.
        names: ids of the samples; none: the first.
        model: a folder or hub id whose tokenizer shows the tokens; default: the trajectories' own model.
        delay: seconds between steps.

    Raises:
        UserError: the file is broken, or has no such sample.
    """
    found = read_trajectories(file)
    chosen = [_named(found, name, file) for name in names] or found[:1]
    if model is not None:
        from dcoder_cli.model.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(model)
    else:
        tokenizer = tokenizer_of(chosen, file)
    if not names and len(found) > 1:
        console.note(f"sample {console.visible(found[0].id)!r} of {len(found)}; name others after the options")
    drawn = can_draw(sys.stdout) or screen is not None
    for one in chosen:
        tokens = one.tokens if tokenizer is not None or any(one.tokens) else list(range(len(one.tokens)))
        plan = _plan(one, Pieces(tokenizer))
        watch = Watch(plan, [one.id], screen, delay, live=False) if drawn else None
        if len(chosen) > 1:
            console.emit_text(f"# {one.id}")
        if watch is None:
            console.emit_text(one.text or "".join(plan.pieces(tokens)))
            continue
        with watch:
            for step, positions in _steps(one):
                watch.on_commit(step, 0, positions, [tokens[position] for position in positions])
        console.write_terminal(watch.coloured(one, tokens) + "\n")


def _named(found: Sequence[Trajectory], name: str, file: Path) -> Trajectory:
    sample = next((one for one in found if one.id == name), None)
    if sample is None:
        some = ", ".join(repr(one.id) for one in found[:3])
        raise UserError(
            f"{str(file)!r} has no sample {name!r}; it has {len(found)}: {some}{', ..' if len(found) > 3 else ''}"
        )
    return sample


def _steps(trajectory: Trajectory) -> list[tuple[int, list[int]]]:
    steps: dict[int, list[int]] = {}
    for position, step in enumerate(trajectory.reveal_step):
        steps.setdefault(step, []).append(position)
    return sorted(steps.items())


def _plan(trajectory: Trajectory, pieces: Pieces) -> StepPlan:
    ends, blocks = (trajectory.settings.get(name) for name in ("end_ids", "block_length"))
    return StepPlan(
        pieces=pieces,
        stops=frozenset(one for one in (ends if isinstance(ends, list) else ()) if type(one) is int),
        new_tokens=len(trajectory.reveal_step),
        steps=max(trajectory.reveal_step) + 1,
        blocks=blocks if type(blocks) is int and blocks > 0 else 0,
    )

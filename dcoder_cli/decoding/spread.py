"""Decoding shared out over processes (accelerate, torchrun, --nproc): every row's tokens are those of one process.

Rows of like length stay together, and every row keeps the random numbers of its place in the whole call. As with another
batch size, a logit may differ in its last bit, and where two candidates are that near, so may the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dcoder_cli.decoding import ranks, sampler
from dcoder_cli.decoding.requests import Prompt, Settings, encode, encode_prompt
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.decoding.watching import Observer
from dcoder_cli.model.backbone import Model

Value = TypeVar("Value")


def decode(
    model: Model,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    ids: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    observer: Observer | None = None,
    infill_lengths: Sequence[int] | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
    **more: Any,
) -> list[Trajectory]:
    """`sampler.decode` on all processes together: each decodes a share, and each is given all trajectories.

    Args and errors are those of `sampler.decode`; every process calls it with the same. `observer` and `on_done` are
    told of this process's share, rows by their place in the whole.
    """
    given = {"infill_lengths": infill_lengths, "on_done": on_done, **more}
    if ranks.world_size() == 1:
        return sampler.decode(model, prompts, settings, ids=ids, seeds=seeds, observer=observer, **given)
    names = list(ids) if ids is not None else [str(place) for place in range(len(prompts))]
    own_seeds = list(seeds) if seeds is not None else list(range(len(prompts)))
    made = [encode_prompt(model, prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    if infill_lengths is None:  # what cannot be is refused by all, not by the one whose share it is in
        encode(model, made, settings, names, own_seeds)
    mine = places(len(made), lambda place: made[place].length)

    def observe(step: int, row: int, *seen: Any) -> None:
        assert observer is not None
        observer(step, mine[row], *seen)

    found = sampler.decode(
        model,
        [made[place] for place in mine],
        settings,
        ids=[names[place] for place in mine],
        seeds=[own_seeds[place] for place in mine],
        observer=observe if observer is not None else None,
        **given,
    )
    return together(len(made), mine, found)


def places(count: int, length: Callable[[int], int]) -> list[int]:
    """This process's share of `count` rows, ascending: of the rows by length, every so many-th."""
    return sorted(sorted(range(count), key=length)[ranks.rank() :: ranks.world_size()])


def together(count: int, mine: Sequence[int], values: Sequence[Value]) -> list[Value]:
    """What all processes have for their places, in order of the places; each is given all of it."""
    every: dict[int, Value] = {}
    for part in ranks.gathered(dict(zip(mine, values, strict=True))):
        every.update(part)
    return [every[place] for place in range(count)]

"""The scores behind the claims: stage 4 at small scale and the decoding orders, means over seeds and changes from stage 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dcoder_cli.experiments.claims import ORDER, Claim
from dcoder_cli.experiments.effects import Effect, effect_of
from dcoder_cli.experiments.measures import Measures
from dcoder_cli.experiments.quantities import HELD_OUT, KINDS, Quantity, StudySettings, has_kinds, views

BASE = "sft"  # stage 3, which stage 4 changes
STAGE_4 = ("grpo", "grpo-decoupled", "grpo-full-mask")
# Columns of stage 4's table: what is measured in which view.
COLUMNS = (("pass@1", "filtered"), ("pass@1", "plain"), ("pass@1", "many hot"), ("pass@many", "many hot"))


@dataclass(frozen=True)
class Score:
    """A quantity over the seeds, in its own unit (shares from 0 to 1).

    Attributes:
        change: of a stage-4 checkpoint from stage 3, paired by seed (and task); None elsewhere.
    """

    quantity: Quantity
    effect: Effect
    change: Effect | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields, flat."""
        change = None if self.change is None else self.change.to_json()
        return {**vars(self.quantity), **self.effect.to_json(), "change_from_stage_3": change}


def quantities_of(claims: Sequence[Claim], settings: StudySettings) -> list[Quantity]:
    """All that a call measures: what its claims compare, and the table of stage 4 where a claim is about stage 4.

    Whatever is decoded one token a step has all its numbers: both orders, the share of ties, the pass rate.
    """
    found = [quantity for claim in claims for quantity in claim.quantities]
    roles = {quantity.role for quantity in found}
    if roles & set(STAGE_4):
        sets = (HELD_OUT, KINDS) if has_kinds(settings) else (HELD_OUT,)
        found += [
            Quantity(role, what, view, tasks)
            for role in (BASE, *STAGE_4)
            if role in roles
            for tasks in sets
            for what, view in COLUMNS
        ]
    single = {name for name, view in views(settings).items() if view.samples == 1}
    found += [
        Quantity(one.role, what, one.view, one.tasks)
        for one in found
        if one.view in single
        for what in (*ORDER, "tied", "pass@1")
    ]
    return list(dict.fromkeys(found))


def uses(claims: Sequence[Claim], settings: StudySettings) -> set[str]:
    """What of a call its claims depend on: "tasks", the answers' "length", "top-p", "judge", "pretrain", "rl"."""
    wanted = quantities_of(claims, settings)
    found = {one.needs for one in wanted if one.needs is not None}
    found |= {"tasks" for one in wanted if one.view or one.what == "sink"}
    found |= {"length" for one in wanted if one.what != "loss"}
    found |= {"judge" for one in wanted if one.judged}
    low, high = (views(replace(settings, top_p=top_p)) for top_p in (0.5, 0.9))
    found |= {"top-p" for one in wanted if one.needs == "rl" or (one.view and low[one.view] != high[one.view])}
    return found


def scores(quantities: Sequence[Quantity], replicates: Sequence[Measures]) -> list[Score]:
    """Those that every replicate has."""
    return [
        Score(one, effect_of([measures.value(one) for measures in replicates]), _change(one, replicates))
        for one in quantities
        if _known(one, replicates)
    ]


def _known(one: Quantity, replicates: Sequence[Measures]) -> bool:
    return all(measures.has(one) and measures.value(one) for measures in replicates)


def _change(one: Quantity, replicates: Sequence[Measures]) -> Effect | None:
    before = Quantity(BASE, one.what, one.view, one.tasks)
    if one.role not in STAGE_4 or not _known(before, replicates):
        return None
    pairs = [(measures.value(one), measures.value(before)) for measures in replicates]
    return effect_of([{task: own[task] - old[task] for task in own if task in old} for own, old in pairs])

"""What came out of a claim: its effect over the replicates, both sides of the comparison, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dcoder_cli.experiments.claims import ORDER, PRIMARY, Claim
from dcoder_cli.experiments.effects import Effect, Values, Verdict, effect_of, holm, verdict_of
from dcoder_cli.experiments.measures import Measures
from dcoder_cli.experiments.quantities import Quantity


@dataclass(frozen=True)
class Side:
    """One quantity of a claim over the seeds, in its own unit (shares from 0 to 1).

    Attributes:
        tied: share of steps that a tie decided, mean over seeds, of an order; None where it is unknown or no order.
    """

    quantity: Quantity
    sign: int
    effect: Effect
    tied: float | None = None


@dataclass(frozen=True)
class ClaimFinding:
    """A claim's effect; None where it was not measured. `why` tells that, or why it is not comparable.

    Attributes:
        adjusted: Holm's p of a primary claim whose interval is over seeds.
        sides: what is compared.
    """

    claim: Claim
    effect: Effect | None
    verdict: Verdict
    adjusted: float | None = None
    why: str = ""
    sides: tuple[Side, ...] = ()


def check(claims: Sequence[Claim], replicates: Sequence[Measures]) -> list[ClaimFinding]:
    """Measure claims on every replicate. One whose checkpoints or data are missing is "not measured"."""
    found = [_measure(claim, replicates) for claim in claims]
    tested = {
        one.claim.name: one.effect.p
        for one in found
        if one.claim.primary and one.effect is not None and one.effect.over == "seeds"
    }
    adjusted = holm(tested, len(PRIMARY))
    return [_judge(one, adjusted.get(one.claim.name)) for one in found]


def _measure(claim: Claim, replicates: Sequence[Measures]) -> ClaimFinding:
    for _, quantity in claim.terms:
        for measures in replicates:
            if not measures.has(quantity):
                return ClaimFinding(claim, None, "not measured", why=_lacks(quantity, measures))
    values = [[measures.value(quantity) for _, quantity in claim.terms] for measures in replicates]
    signs = [sign * claim.scale for sign, _ in claim.terms]
    effect = effect_of([_sum(signs, own) for own in values])
    sides = tuple(
        Side(quantity, sign, effect_of([own[place] for own in values]), _tied(quantity, replicates))
        for place, (sign, quantity) in enumerate(claim.terms)
    )
    return ClaimFinding(claim, effect, "not shown", why=_uneven(claim, replicates), sides=sides)


def _judge(one: ClaimFinding, adjusted: float | None) -> ClaimFinding:
    """The finding with its verdict."""
    if one.effect is None:
        return one
    verdict: Verdict = "not comparable" if one.why else verdict_of(one.effect, adjusted)
    return ClaimFinding(one.claim, one.effect, verdict, adjusted, one.why or _blank(one.effect), one.sides)


def _blank(effect: Effect) -> str:
    if effect.low is not None:
        return ""
    few = len(effect.by_seed) == 1
    return "one number of one seed has no interval" if few else "all seeds are equal: there is no spread to judge by"


def _lacks(quantity: Quantity, measures: Measures) -> str:
    if quantity.role not in measures.replicate.models:
        return f"needs --model {quantity.role}=PATH"
    if quantity.needs and getattr(measures.replicate, quantity.needs) is None:
        return f"needs --{quantity.needs} DIR"
    return f"{measures.settings.task} has no tasks held out by kind"


def _sum(signs: Sequence[float], values: Sequence[Values]) -> Values:
    """By task: the signed sum, of tasks that all have."""
    shared = [task for task in values[0] if all(task in other for other in values)]
    return {task: sum(sign * own[task] for sign, own in zip(signs, values, strict=True)) for task in shared}


def _tied(quantity: Quantity, replicates: Iterable[Measures]) -> float | None:
    if quantity.what not in ORDER:
        return None
    tied = Quantity(quantity.role, "tied", quantity.view, quantity.tasks)
    shares = [mean(values) for measures in replicates if (values := measures.value(tied))]
    return sum(shares) / len(shares) if shares else None


def _uneven(claim: Claim, replicates: Sequence[Measures]) -> str:
    """Why the two sides are not comparable, with both numbers; "" where in every replicate one of the pairs is even.

    Two models that pass nothing are not even: there is nothing to compare.
    """
    if not claim.comparable:
        return ""
    known = [pair for pair in claim.comparable if all(measures.has(one) for one in pair[:2] for measures in replicates)]
    words, even = [], [False] * len(replicates)
    for first, second, within in known:
        one, other = ([mean(measures.value(quantity)) for measures in replicates] for quantity in (first, second))
        even = [so or (abs(a - b) <= within and a + b > 0) for so, a, b in zip(even, one, other, strict=True)]
        words.append(f"{first.what} {sum(one) / len(one):.2f} against {sum(other) / len(other):.2f}")
    return "" if all(even) else f"comparable in {sum(even)} of {len(even)} seeds: {', '.join(words)}"


def mean(values: Values) -> float:
    """The mean over tasks."""
    return sum(values.values()) / len(values)

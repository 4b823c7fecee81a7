"""DiffuCoder's claims as checks: what is compared, in which direction, and when it counts as shown.

A claim's effect is positive where it speaks for the claim. Each seed gives values by task (or prompt, or one number).
From FEW seeds on, and where a seed gives one number, the 95% interval is Student's over the seeds' means. With fewer
seeds it is a paired bootstrap over tasks of their mean over seeds: it holds for these models, not for other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dcoder_cli.analysis.statistics import t_quantile
from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks.measures import Measures, Values
from dcoder_cli.benchmarks.passk import bootstrap

FEW = 5  # Student's quantile is 4.3 at 3 seeds and 12.7 at 2: too few to say anything; ours
Verdict = Literal["shown", "not shown", "contrary", "not measured"]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: for --claim.
        statement: what is claimed. unit: of its effect.
        source: where the paper says it.
        roles: checkpoints it needs. needs: "pretrain" or "rl" where it needs these data.
        effect: values of one family, positive where they speak for the claim.
        judged: whether model-written code is run for it.
    """

    name: str
    statement: str
    unit: str
    source: str
    roles: tuple[str, ...]
    effect: Callable[[Measures], Values]
    needs: str | None = None
    judged: bool = True


@dataclass(frozen=True)
class Finding:
    """A claim's effect with its 95% interval; None where it was not measured, for which `why` tells.

    Attributes:
        over: what the interval is over, "seeds" or "tasks"; "" without one.
    """

    claim: Claim
    effect: float | None
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]
    verdict: Verdict
    over: str = ""
    why: str = ""


def _minus(first: Values, second: Values) -> Values:
    return {name: first[name] - second[name] for name in first if name in second}


def _points(values: Values) -> Values:
    return {name: 100 * value for name, value in values.items()}


def _drop(measures: Measures, role: str) -> Values:
    return _minus(measures.passed(role), measures.passed(role, half=True))


def _lab(measures: Measures, against: str) -> Values:
    """Mean squared error of a token's estimate, of another estimator over coupled's, minus 1; the paper's lambda = 1."""
    errors = measures.lab("sft")
    return {"ratio": errors[against] / errors["coupled"] - 1}


CLAIMS = (
    Claim(
        "adaptation", "adapting an AR model beats training from random weights at equal diffusion training", "nats a token",
        "2, 3", ("adapted", "scratch"), lambda m: _minus(m.loss("scratch"), m.loss("adapted")), "pretrain",
        judged=False,
    ),
    Claim(
        "temperature-order", "AR-ness falls as temperature rises (global@1)", "points", "4.3, fig. 5", ("sft",),
        lambda m: _points(_minus(m.order("sft"), m.order("sft", hot=True))),
    ),
    Claim(
        "temperature-pass", "pass@many rises with temperature", "points", "4.3, fig. 6", ("sft",),
        lambda m: _points(_minus(m.any("sft"), m.any("sft", hot=False))),
    ),
    Claim(
        "adapted-order", "an adapted model decodes more left to right than one from random weights (global@1)",
        "points", "4.2, fig. 3", ("sft", "scratch-sft"),
        lambda m: _points(_minus(m.order("sft"), m.order("scratch-sft"))),
    ),
    Claim(
        "entropy-sink", "confidence at the first step is highest next to the prompt", "points", "4.1, fig. 3a",
        ("adapted",), lambda m: _points(m.sink("adapted")), judged=False,
    ),
    Claim(
        "variance-decoupled", "coupled masks estimate log-probabilities better than decoupled (error ratio - 1)",
        "x", "5, A.4", ("sft",), lambda m: _lab(m, "decoupled"), "rl",
    ),
    Claim(
        "variance-full-mask", "coupled masks estimate log-probabilities better than the full mask (error ratio - 1)",
        "x", "5, A.4", ("sft",), lambda m: _lab(m, "full-mask"), "rl",
    ),
    Claim(
        "grpo", "coupled-GRPO raises pass@1 above stage 3", "points", "5, table 2", ("sft", "grpo"),
        lambda m: _points(_minus(m.passed("grpo"), m.passed("sft"))),
    ),
    Claim(
        "grpo-hot", "the same at the hot temperature", "points", "5, table 2", ("sft", "grpo"),
        lambda m: _points(_minus(m.share("grpo"), m.share("sft"))),
    ),
    Claim(
        "grpo-full-mask", "coupled-GRPO beats full-mask GRPO at equal steps (pass@1)", "points", "5, table 2",
        ("grpo", "grpo-full-mask"), lambda m: _points(_minus(m.passed("grpo"), m.passed("grpo-full-mask"))),
    ),
    Claim(
        "grpo-full-mask-hot", "the same at the hot temperature", "points", "5, fig. 7",
        ("grpo", "grpo-full-mask"), lambda m: _points(_minus(m.share("grpo"), m.share("grpo-full-mask"))),
    ),
    Claim(
        "grpo-decoupled", "coupled-GRPO beats decoupled GRPO at equal steps (pass@1)", "points", "5, table 2",
        ("grpo", "grpo-decoupled"), lambda m: _points(_minus(m.passed("grpo"), m.passed("grpo-decoupled"))),
    ),
    Claim(
        "grpo-decoupled-hot", "the same at the hot temperature", "points", "5, fig. 7",
        ("grpo", "grpo-decoupled"), lambda m: _points(_minus(m.share("grpo"), m.share("grpo-decoupled"))),
    ),
    Claim(
        "grpo-order", "AR-ness falls after coupled-GRPO (global@1)", "points", "5, fig. 8", ("sft", "grpo"),
        lambda m: _points(_minus(m.order("sft"), m.order("grpo"))),
    ),
    Claim(
        "grpo-speed", "at half the steps pass@1 drops less after coupled-GRPO", "points", "5, fig. 1c",
        ("sft", "grpo"), lambda m: _points(_minus(_drop(m, "sft"), _drop(m, "grpo"))),
    ),
)  # fmt: skip


def choose(names: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of these names, all without any. Raises UserError for an unknown one."""
    known = {claim.name: claim for claim in CLAIMS}
    for name in names:
        if name not in known:
            raise UserError(f"--claim {name!r} is unknown; use {', '.join(known)}")
    return tuple(known[name] for name in names) or CLAIMS


def roles_of(claims: Sequence[Claim]) -> tuple[str, ...]:
    """The checkpoints that claims need, each once."""
    return tuple(dict.fromkeys(role for claim in claims for role in claim.roles))


def check(claim: Claim, families: Sequence[Measures]) -> Finding:
    """Measure a claim on every family. A claim whose checkpoints or data are missing is "not measured"."""
    for role in claim.roles:
        if any(role not in measures.family.models for measures in families):
            return Finding(claim, None, None, None, (), "not measured", why=f"needs --model {role}=PATH")
    if claim.needs and any(getattr(measures.family, claim.needs) is None for measures in families):
        return Finding(claim, None, None, None, (), "not measured", why=f"needs --{claim.needs} DIR")
    values = [claim.effect(measures) for measures in families]
    means = [float(np.mean(list(value.values()))) for value in values]
    mean = float(np.mean(means))
    tasks = set.intersection(*(set(value) for value in values))
    if len(means) > 1 and (len(means) >= FEW or len(tasks) == 1):
        reach = t_quantile(len(means) - 1) * float(np.std(means, ddof=1)) / len(means) ** 0.5
        low, high, over = mean - reach, mean + reach, "seeds"
    elif len(tasks) > 1:
        estimate = bootstrap([float(np.mean([value[task] for value in values])) for task in sorted(tasks)])
        low, high, over = estimate.low, estimate.high, "tasks"
    else:
        return Finding(claim, mean, None, None, tuple(means), "not shown", why="one number of one seed has no interval")
    verdict: Verdict = "shown" if low > 0 else "contrary" if high < 0 else "not shown"
    return Finding(claim, mean, low, high, tuple(means), verdict, over)

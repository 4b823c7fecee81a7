"""DiffuCoder's claims as checks: what is compared, in which direction, and when it counts as shown.

**Primary claims** are six, and were fixed before the five replicates of docs/results.md were trained (an earlier version's replicates,
whose orders ties decided, and one seed's orders under the present sampler had been seen): `adaptation`,
`variance-decoupled` (under the estimators' own expectation, which is what the paper proves), `grpo-hot` (pass@1 at the
temperature that stage 4 samples at), `grpo-order` and `temperature-order` (global AR-ness@1, the one of which the paper
says it), `temperature-pass`. Their p-values (two-sided t over seeds) are corrected by Holm for all six, whichever are
asked for. One of them is "shown" where the corrected p is below 0.05 over at least 5 seeds and the effect positive,
"contrary" where it is negative.

All other claims are **exploratory**: many looks at the same models. They, and primary ones of fewer seeds, are at best
"suggestive", where the uncorrected 95% interval leaves 0 out ("suggestive against" where it lies below).

A claim's effect is a signed sum of quantities, positive where it speaks for the claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcoder_cli.base.errors import UserError
from dcoder_cli.experiments.quantities import KINDS, Quantity

# Two models decode comparably well within these: ours. 0.05 nats is a seventh of what adaptation gains at small scale, 5
# points the standard error of a pass rate of 105 tasks.
EQUAL_LOSS, EQUAL_PASS = 0.05, 0.05
ORDER = ("global@1", "local@1")
Terms = tuple[tuple[int, Quantity], ...]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: for --claim.
        statement: what is claimed. unit: of its effect.
        source: where the paper says it.
        terms: signs and quantities; the effect is `scale` times their sum.
        primary: named in advance, see the module's docstring.
        comparable: pairs of quantities of which one must be equal within a number, or the comparison says nothing. A
            pair that is not there (a given checkpoint's) is left out.
    """

    name: str
    statement: str
    unit: str
    source: str
    terms: Terms
    primary: bool = False
    scale: float = 1.0
    comparable: tuple[tuple[Quantity, Quantity, float], ...] = ()

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """All that is measured for it, each once."""
        own = [quantity for _, quantity in self.terms]
        ties = [Quantity(one.role, "tied", one.view, one.tasks) for one in own if one.what in ORDER]
        return tuple(dict.fromkeys([*own, *ties, *(one for pair in self.comparable for one in pair[:2])]))

    @property
    def roles(self) -> tuple[str, ...]:
        """Checkpoints without which there is no effect."""
        return tuple(dict.fromkeys(quantity.role for _, quantity in self.terms))


def _less(first: Quantity, second: Quantity) -> Terms:
    """The effect `first - second`."""
    return ((1, first), (-1, second))


def _passed(role: str, view: str = "cold", tasks: str = "") -> Quantity:
    return Quantity(role, "pass@1", view, tasks) if tasks else Quantity(role, "pass@1", view)


def _order(role: str, view: str = "cold", what: str = "global@1") -> Quantity:
    return Quantity(role, what, view)


def _errors(truth: str, worse: str) -> Terms:
    """log2 of another estimator's mean squared error over coupled's: 1 is twice the error."""
    return _less(Quantity("sft", f"error {truth} {worse}"), Quantity("sft", f"error {truth} coupled"))


_LOSS = {role: Quantity(role, "loss") for role in ("adapted", "scratch", "scratch-long")}
_EVEN = (
    (_LOSS["adapted"], _LOSS["scratch-long"], EQUAL_LOSS),
    (_passed("sft"), _passed("scratch-sft"), EQUAL_PASS),
)
_P = "points"
_D = "doublings"

CLAIMS = (
    Claim(
        "adaptation", "adapting an AR model beats training from random weights at equal diffusion training",
        "nats a token", "2, 3", _less(_LOSS["scratch"], _LOSS["adapted"]), primary=True,
    ),
    Claim(
        "variance-decoupled", "coupled masks estimate their expectation with less error than decoupled",
        _D, "5, A.4", _errors("own", "decoupled"), primary=True,
    ),
    Claim(
        "grpo-hot", "coupled-GRPO raises pass@1 at the temperature it samples at", _P, "5, table 2",
        _less(_passed("grpo", "many hot"), _passed("sft", "many hot")), primary=True, scale=100,
    ),
    Claim(
        "grpo-order", "AR-ness falls after coupled-GRPO (global@1)", _P, "5, fig. 8",
        _less(_order("sft"), _order("grpo")), primary=True, scale=100,
    ),
    Claim(
        "temperature-order", "AR-ness falls as temperature rises (global@1)", _P, "4.3, fig. 5",
        _less(_order("sft"), _order("sft", "hot")), primary=True, scale=100,
    ),
    Claim(
        "temperature-pass", "pass@many rises with temperature", _P, "4.3, fig. 6",
        _less(Quantity("sft", "pass@many", "many hot"), Quantity("sft", "pass@many", "many cold")), primary=True,
        scale=100,
    ),
    # ---- exploratory
    Claim(
        "grpo", "coupled-GRPO raises pass@1 at the cold temperature", _P, "5, table 2",
        _less(_passed("grpo"), _passed("sft")), scale=100,
    ),
    Claim(
        "grpo-filtered", "coupled-GRPO raises pass@1 at the cold temperature with the paper's top-p", _P, "5, table 2",
        _less(_passed("grpo", "filtered"), _passed("sft", "filtered")), scale=100,
    ),
    Claim(
        "grpo-many", "coupled-GRPO raises pass@many at the hot temperature", _P, "5, fig. 6",
        _less(Quantity("grpo", "pass@many", "many hot"), Quantity("sft", "pass@many", "many hot")), scale=100,
    ),
    Claim(
        "grpo-kinds", "coupled-GRPO raises pass@1 on kinds of tasks never trained on, hot", _P, "5, table 2",
        _less(_passed("grpo", "many hot", KINDS), _passed("sft", "many hot", KINDS)), scale=100,
    ),
    Claim(
        "grpo-full-mask", "coupled-GRPO beats full-mask GRPO at equal steps (pass@1, cold)", _P, "5, table 2",
        _less(_passed("grpo"), _passed("grpo-full-mask")), scale=100,
    ),
    Claim(
        "grpo-full-mask-hot", "coupled-GRPO beats full-mask GRPO at equal steps (pass@1, hot)", _P, "5, fig. 7",
        _less(_passed("grpo", "many hot"), _passed("grpo-full-mask", "many hot")), scale=100,
    ),
    Claim(
        "grpo-decoupled", "coupled-GRPO beats decoupled GRPO at equal steps (pass@1, cold)", _P, "5, table 2",
        _less(_passed("grpo"), _passed("grpo-decoupled")), scale=100,
    ),
    Claim(
        "grpo-decoupled-hot", "coupled-GRPO beats decoupled GRPO at equal steps (pass@1, hot)", _P, "5, fig. 7",
        _less(_passed("grpo", "many hot"), _passed("grpo-decoupled", "many hot")), scale=100,
    ),
    Claim(
        "grpo-speed", "at half the steps pass@1 drops less after coupled-GRPO", _P, "5, fig. 1c",
        (
            *_less(_passed("sft"), _passed("sft", "half")),
            *_less(_passed("grpo", "half"), _passed("grpo")),
        ), scale=100,
    ),
    Claim(
        "grpo-order-local", "AR-ness falls after coupled-GRPO (local@1)", _P, "5, fig. 8",
        _less(_order("sft", what="local@1"), _order("grpo", what="local@1")), scale=100,
    ),
    Claim(
        "grpo-order-paper", "AR-ness falls after coupled-GRPO (global@1, the paper's protocol)", _P, "5, fig. 8",
        _less(_order("sft", "paper cold"), _order("grpo", "paper cold")), scale=100,
    ),
    Claim(
        "temperature-order-local", "AR-ness falls as temperature rises (local@1)", _P, "4.3, fig. 5",
        _less(_order("sft", what="local@1"), _order("sft", "hot", "local@1")), scale=100,
    ),
    Claim(
        "temperature-order-paper", "AR-ness falls as temperature rises (global@1, the paper's protocol)", _P,
        "4.3, fig. 5", _less(_order("sft", "paper cold"), _order("sft", "paper hot")), scale=100,
    ),
    Claim(
        "adapted-order", "an adapted model decodes more left to right than one from random weights (global@1)", _P,
        "4.2, fig. 3", _less(_order("sft"), _order("scratch-sft")), scale=100, comparable=_EVEN,
    ),
    Claim(
        "adapted-order-paper",
        "an adapted model decodes more left to right than one from random weights (global@1, the paper's protocol)", _P, "4.2, fig. 3",
        _less(_order("sft", "paper cold"), _order("scratch-sft", "paper cold")), scale=100, comparable=_EVEN,
    ),
    Claim(
        "entropy-sink", "confidence at the first step is highest next to the prompt", _P, "4.1, fig. 3a",
        ((1, Quantity("adapted", "sink")),), scale=100,
    ),
    Claim(
        "variance-decoupled-path", "coupled masks are closer to the decoding path's log-probability than decoupled", _D,
        "5, A.4", _errors("path", "decoupled"),
    ),
    Claim(
        "variance-decoupled-masks", "coupled masks are closer to the mean over masks than decoupled", _D, "5, A.4",
        _errors("masks", "decoupled"),
    ),
    Claim(
        "variance-full-mask-path", "coupled masks are closer to the decoding path's log-probability than the full mask",
        _D, "5, A.4", _errors("path", "full-mask"),
    ),
    Claim(
        "variance-full-mask-masks", "coupled masks are closer to the mean over masks than the full mask", _D, "5, A.4",
        _errors("masks", "full-mask"),
    ),
)  # fmt: skip
PRIMARY = tuple(claim.name for claim in CLAIMS if claim.primary)


def choose(names: Sequence[str]) -> tuple[Claim, ...]:
    """The claims of these names, all without any. Raises UserError for an unknown one."""
    known = {claim.name: claim for claim in CLAIMS}
    for name in names:
        if name not in known:
            raise UserError(f"--claim {name!r} is unknown; use {', '.join(known)}")
    return tuple(known[name] for name in names) or CLAIMS

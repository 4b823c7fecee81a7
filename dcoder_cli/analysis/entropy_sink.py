"""The entropy sink: how certainty depends on the distance from the prompt (DiffuCoder 4.1, fig. 3a and fig. 9).

At the first denoising step everything after the prompt is masked; confidence falls off in an L shape to its right.
Shapes: L positions (new tokens), S denoising steps, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcoder_cli.base.errors import UserError

Array = NDArray[np.float64]
_CHUNK = 64  # places whose logits exist at a time: 39 MB a copy at 152,064 tokens


def first_step_profile(model: Any, prompts: Sequence[Sequence[int]], length: int = 512) -> dict[str, Any]:
    """Confidence and entropy of every position at the first denoising step, averaged over prompts.

    One forward pass a prompt, at temperature 1 and with nothing filtered: confidence is the probability of the most
    probable token, entropy is in nats. The mask token itself is excluded, since a sampler never commits it.

    Args:
        model: a masked-diffusion model (`logits`, `ids.mask`, `device`, `name`).
        prompts: token ids of each prompt.
        length: number of masked positions after each prompt (512 in DiffuCoder B.2).

    Returns:
        `prompts`, `distance` (1..L), `confidence` and `entropy` (means by distance), `low` and `high` (95% interval
        of the mean confidence) and `fit` (see `fit_decay`).

    Raises:
        UserError: no prompt, a length below 4, or an AR model.
    """
    import torch

    from dcoder_cli.analysis.statistics import summary

    if model.ids.mask is None:
        raise UserError(
            f"model {getattr(model, 'name', '?')!r} has no mask token, so it has no denoising step; use a diffusion model"
        )
    if not prompts:
        raise UserError("there are 0 prompts; the first-step profile needs at least one")
    if length < 4:
        raise UserError(f"length = {length} is too short to fit a decay; use at least 4")
    confidence_NL, entropy_NL = np.empty((len(prompts), length)), np.empty((len(prompts), length))
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([[*prompt, *[model.ids.mask] * length]], dtype=torch.long, device=model.device)
        with torch.inference_mode():
            hidden_LD = model.hidden(ids)[0, len(prompt) :]
            for at in range(0, length, _CHUNK):
                here = slice(at, at + _CHUNK)
                logits_nV = model.head(hidden_LD[here])
                logits_nV[:, model.ids.mask] = -torch.inf
                logs_nV = torch.log_softmax(logits_nV, dim=-1)
                chance_nV = logs_nV.exp()
                confidence_NL[row, here] = chance_nV.amax(dim=-1).cpu().numpy()
                entropy_NL[row, here] = -(chance_nV * logs_nV.masked_fill(chance_nV == 0, 0)).sum(dim=-1).cpu().numpy()
    columns = summary(confidence_NL)
    return {
        "prompts": len(prompts),
        "distance": list(range(1, length + 1)),
        "confidence": columns["mean"],
        "low": columns["low"],
        "high": columns["high"],
        "entropy": [float(value) for value in entropy_NL.mean(axis=0)],
        "fit": fit_decay(confidence_NL.mean(axis=0)),
    }


def fit_decay(confidence_L: Sequence[float] | Array) -> dict[str, float | None]:
    """Least-squares fit of `floor + rise * exp(-(d - 1) / decay_length)` to confidence at distances d = 1..L.

    The decay length lies between 0.05 and 10 L tokens; the best of fits that start at 1, sqrt(L) and L / 2. Nothing is
    fitted where there is no decay: a flat or rising profile, or one whose best length exceeds L (a straight line),
    gives None.

    Returns:
        `decay_length` in tokens (confidence above the floor falls to 1/e), `floor`, `rise` (confidence next to the
        prompt, above the floor) and `r2` (share of the variance explained).
    """
    values = np.asarray(confidence_L, dtype=np.float64)
    nothing: dict[str, float | None] = {"decay_length": None, "floor": None, "rise": None, "r2": None}
    length = len(values)
    spread = float(np.square(values - values.mean()).sum())
    if length < 4 or spread < 1e-12:
        return nothing
    from scipy.optimize import least_squares

    def errors(fitted: Array) -> Array:  # in the logarithm of the decay length, which is a scale
        return fitted[0] + fitted[1] * np.exp(-np.arange(length) / np.exp(fitted[2])) - values  # type: ignore[no-any-return]

    bounds = ([-np.inf, -np.inf, math.log(0.05)], [np.inf, np.inf, math.log(10 * length)])
    starts = ([values[-1], values[0] - values[-1], math.log(decay)] for decay in (1.0, length**0.5, length / 2))
    best = min((least_squares(errors, start, bounds=bounds) for start in starts), key=lambda found: found.cost)
    floor, rise, decay = float(best.x[0]), float(best.x[1]), math.exp(best.x[2])
    if rise <= 0 or decay > length:
        return nothing
    return {"decay_length": decay, "floor": floor, "rise": rise, "r2": 1 - 2 * float(best.cost) / spread}


@dataclass
class EntropyMap:
    """Entropy of every still masked position at every step; pass `observe` to the sampler as its observer.

    The mean over rows is kept, and the first row alone; memory is a few [S, L] arrays, whatever the batch. With block
    lengths the sampler reports the positions of the current block only, so the others stay NaN.
    """

    total: dict[int, Array] = field(default_factory=dict)
    count: dict[int, Array] = field(default_factory=dict)
    first: dict[int, Array] = field(default_factory=dict)

    def observe(
        self, step: int, row: int, positions: Sequence[int], confidence: Sequence[float], entropy: Sequence[float]
    ) -> None:
        """Take in one row at one step: `positions` (0 = first new token) still masked, and their entropies in nats."""
        if not len(positions):
            return
        where, values = np.asarray(positions, dtype=np.int64), np.asarray(entropy, dtype=np.float64)
        size = int(where.max()) + 1
        for table in (self.total, self.count):
            old = table.get(step, np.zeros(0))
            if len(old) < size:
                table[step] = np.concatenate([old, np.zeros(size - len(old))])
        self.total[step][where] += values
        self.count[step][where] += 1
        if row == 0 and step not in self.first:
            self.first[step] = np.full(size, np.nan)
            self.first[step][where] = values

    def add(self, other: EntropyMap) -> None:
        """Take in what another process has observed of its rows."""
        for own, more in ((self.total, other.total), (self.count, other.count)):
            for step, values in more.items():
                old = own.get(step, np.zeros(0))
                size = max(len(old), len(values))
                own[step] = np.pad(old, (0, size - len(old))) + np.pad(values, (0, size - len(values)))
        for step, values in other.first.items():
            self.first.setdefault(step, values)

    def mean(self) -> Array:
        """[S, L]: mean entropy over the rows that still mask the position at the step; NaN where none does."""
        averages = {}
        for step, total in self.total.items():
            averages[step] = np.divide(
                total, self.count[step], out=np.full(len(total), np.nan), where=self.count[step] > 0
            )
        return _grid(averages)

    def first_row(self) -> Array:
        """[S, L]: entropy of the first row; NaN where the position is not masked any more."""
        return _grid(self.first)


def _grid(rows: dict[int, Array]) -> Array:
    if not rows:
        return np.zeros((0, 0))
    grid = np.full((max(rows) + 1, max(len(row) for row in rows.values())), np.nan)
    for step, row in rows.items():
        grid[step, : len(row)] = row
    return grid

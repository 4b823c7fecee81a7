"""Estimating the same completions again and again with fresh masks, for the variance lab (variance.py).

Shapes: C completions, B of them in a micro batch, N tokens, P passes, W weights of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.diffusion.coupled import MaskSettings, Passes
from dcoder_cli.diffusion.estimators import is_own, make_passes
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import EntryLogProbs, log_probabilities, plan_rows, scored_mask
from dcoder_cli.training.grpo.loss import grpo_loss, units
from dcoder_cli.training.grpo.rollouts import Rollout

PAIRED = ("coupled", "decoupled")  # a full mask and pairs: what they estimate moves with lambda
_WEIGHT_DRAWS = 256  # masks from which the expected weight of an estimator of the user's own is known; ours


@dataclass(frozen=True)
class Drawn:
    """Many estimates: mean and variance of each token's, the share of unseen tokens, and the gradients' moments.

    `passes`: forward passes of one estimate, the mean over draws and completions.
    """

    draws: int
    passes: float
    mean_CN: Tensor
    variance_CN: Tensor
    unseen: float
    gradient_W: Tensor | None
    gradient_square: float
    cosines: list[float]


@dataclass(frozen=True)
class Once:
    """One estimate of every completion over its expected weight, the loss' gradient, the share of unseen tokens, and passes."""

    estimate_CN: Tensor
    gradient_W: Tensor | None
    unseen: float
    passes: float


class Bench:
    """The completions, and a way to estimate them again and again."""

    def __init__(self, model: Model, rollouts: Sequence[Rollout], advantage_C: Tensor, config: GrpoConfig) -> None:
        self.model, self.rollouts, self.advantage_C, self.config = model, rollouts, advantage_C, config
        self.module = EntryLogProbs(model)
        self.scored_CN = scored_mask([item.completion for item in rollouts])
        self.weights = [weight for weight in self.module.parameters() if weight.requires_grad]

    def draw(
        self, estimator: str, pairs: int, draws: int, purpose: str, with_gradients: bool, truth: Drawn | None = None
    ) -> Drawn:
        """`draws` estimates with fresh masks, and their gradients' cosines with the truth's."""
        mean_CN, square_CN = torch.zeros(2, *self.scored_CN.shape, dtype=torch.float64)
        mean_W = torch.zeros(sum(weight.numel() for weight in self.weights), device=self.model.device)
        gradient_square, unseen, passes, cosines = 0.0, 0.0, 0.0, []
        for number in range(draws):
            once = self._once(estimator, pairs, (purpose, number), with_gradients)
            estimate_CN, gradient_W = once.estimate_CN, once.gradient_W
            delta_CN = estimate_CN - mean_CN
            mean_CN = mean_CN + delta_CN / (number + 1)
            square_CN = square_CN + delta_CN * (estimate_CN - mean_CN)
            unseen += once.unseen / draws
            passes += once.passes / draws
            if gradient_W is not None:
                mean_W += (gradient_W - mean_W) / (number + 1)
                gradient_square += float(gradient_W.double().square().sum()) / draws
                if truth is not None:
                    cosines.append(cosine(gradient_W, truth.gradient_W))
        variance_CN = square_CN / max(1, draws - 1)
        gradient_mean_W = mean_W if with_gradients else None
        return Drawn(draws, passes, mean_CN, variance_CN, unseen, gradient_mean_W, gradient_square, cosines)

    def _once(self, estimator: str, pairs: int, draw: tuple[str, int], with_gradients: bool) -> Once:
        """One estimate of every completion."""
        config, model = self.config, self.model
        assert model.ids.mask is not None
        estimates: list[Tensor] = []
        missed, rows = torch.zeros((), dtype=torch.float64), 0
        weight = self._weight(estimator, pairs)
        divisor = units([item.completion.scored for item in self.rollouts], config.loss_normaliser)
        self.module.zero_grad(set_to_none=True)
        for start in range(0, len(self.rollouts), config.micro_batch):
            part = self.rollouts[start : start + config.micro_batch]
            passes = [self._passes(estimator, pairs, item, draw) for item in part]
            pad = model.ids.pad if model.ids.pad is not None else 0
            plan = plan_rows([item.completion for item in part], passes, model.ids.mask, pad)
            with torch.set_grad_enabled(with_gradients):
                new_BN = log_probabilities(self.module, plan, model.device)
            scored_BN = scored_mask([item.completion for item in part]).to(model.device)
            if with_gradients:
                advantage_B = self.advantage_C[start : start + len(part)].to(model.device)
                loss = grpo_loss(
                    new_BN, new_BN.detach(), None, advantage_B, scored_BN, config.clip, 0.0, config.loss_normaliser
                )
                (loss.loss / divisor).backward()  # type: ignore[no-untyped-call]
            value_BN = torch.where(scored_BN, new_BN.detach(), 0.0).double().cpu() / weight
            whole_BN = torch.zeros(len(part), self.scored_CN.shape[1], dtype=torch.float64)
            whole_BN[:, : value_BN.shape[1]] = value_BN
            estimates.append(whole_BN)
            for item, own in zip(part, passes, strict=True):
                partly_PN = own.masked_PN[[place for place in range(len(own.masked_PN)) if place not in own.blank]]
                missed += (~partly_PN.any(dim=0))[: item.completion.scored].sum()
                rows += len(own.masked_PN)
        gradient_W = (
            torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in self.weights])
            if with_gradients
            else None
        )
        unseen = float(missed / self.scored_CN.sum())
        return Once(torch.cat(estimates), gradient_W, unseen, rows / len(self.rollouts))

    def _weight(self, estimator: str, pairs: int) -> float:
        """The expected weight of a token in an estimate, mean over tokens; of the user's own from many masks."""
        if estimator in PAIRED:
            return (1 + 2 * pairs) / (1 + pairs)
        if not is_own(estimator):
            return 1.0
        settings, found = self._settings(pairs), 0.0
        for number in range(_WEIGHT_DRAWS):
            completion = self.rollouts[number % len(self.rollouts)].completion
            random = generator(self.config.seed, f"weight {estimator}", pairs, number)
            passes = make_passes(estimator, len(completion.tokens), len(completion.prompt), random, settings)
            found += float(passes.weight_PN.sum(0).mean()) / _WEIGHT_DRAWS
        if found == 0:
            raise UserError(f"estimator {estimator!r} gives all tokens the weight 0, so it estimates nothing; mend it")
        return found

    def _settings(self, pairs: int) -> MaskSettings:
        return MaskSettings(pairs, self.config.t_range, self.config.prompt_mask)

    def _passes(self, estimator: str, pairs: int, item: Rollout, draw: tuple[str, int]) -> Passes:
        config, completion = self.config, item.completion
        random = generator(config.seed, f"{draw[0]} {estimator}", pairs, draw[1], item.place)
        lengths, settings = (len(completion.tokens), len(completion.prompt)), self._settings(pairs)
        parts = [make_passes(estimator, *lengths, random, settings)]
        # At equal passes: one that makes fewer, as d1 makes one, is drawn as often as they allow. The full mask is no draw.
        if estimator not in (*PAIRED, "full-mask"):
            count = (1 + 2 * pairs) // len(parts[0].masked_PN)
            parts += [make_passes(estimator, *lengths, random, settings) for _ in range(count - 1)]
        if len(parts) == 1:
            return parts[0]
        starts = [sum(len(part.masked_PN) for part in parts[:place]) for place in range(len(parts))]
        return Passes(
            torch.cat([part.masked_PN for part in parts]),
            torch.cat([part.weight_PN for part in parts]) / len(parts),
            torch.cat([part.prompt_masked_PM for part in parts]),
            tuple(start + place for start, part in zip(starts, parts, strict=True) for place in part.blank),
        )


def cosine(left_W: Tensor, right_W: Tensor | None) -> float:
    assert right_W is not None
    return float(torch.nn.functional.cosine_similarity(left_W.double(), right_W.double(), dim=0))

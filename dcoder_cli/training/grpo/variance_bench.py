"""Estimating the same completions again and again with fresh masks, for the variance lab (variance.py).

Shapes: C completions, B of them in a micro batch, N tokens, P passes, W weights of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.diffusion.coupled import Passes, make_passes
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import EntryLogProbs, log_probabilities, plan_rows, scored_mask
from dcoder_cli.training.grpo.loss import grpo_loss, units
from dcoder_cli.training.grpo.rollouts import Rollout


@dataclass(frozen=True)
class Drawn:
    """Many estimates: mean and variance of each token's, the share of unseen tokens, and the gradients' moments."""

    draws: int
    mean_CN: Tensor
    variance_CN: Tensor
    unseen: float
    gradient_W: Tensor | None
    gradient_square: float
    cosines: list[float]


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
        gradient_square, unseen, cosines = 0.0, 0.0, []
        for number in range(draws):
            estimate_CN, gradient_W, missed = self._once(estimator, pairs, (purpose, number), with_gradients)
            delta_CN = estimate_CN - mean_CN
            mean_CN = mean_CN + delta_CN / (number + 1)
            square_CN = square_CN + delta_CN * (estimate_CN - mean_CN)
            unseen += missed / draws
            if gradient_W is not None:
                mean_W += (gradient_W - mean_W) / (number + 1)
                gradient_square += float(gradient_W.double().square().sum()) / draws
                if truth is not None:
                    cosines.append(cosine(gradient_W, truth.gradient_W))
        variance_CN = square_CN / max(1, draws - 1)
        return Drawn(draws, mean_CN, variance_CN, unseen, mean_W if with_gradients else None, gradient_square, cosines)

    def _once(
        self, estimator: str, pairs: int, draw: tuple[str, int], with_gradients: bool
    ) -> tuple[Tensor, Tensor | None, float]:
        """One estimate of every completion over its expected weight, the loss' gradient, the share of unseen tokens."""
        config, model = self.config, self.model
        assert model.ids.mask is not None
        estimates: list[Tensor] = []
        missed = torch.zeros((), dtype=torch.float64)
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
            weight = (1 + 2 * pairs) / (1 + pairs) if estimator in ("coupled", "decoupled") else 1.0
            value_BN = torch.where(scored_BN, new_BN.detach(), 0.0).double().cpu() / weight
            whole_BN = torch.zeros(len(part), self.scored_CN.shape[1], dtype=torch.float64)
            whole_BN[:, : value_BN.shape[1]] = value_BN
            estimates.append(whole_BN)
            for item, own in zip(part, passes, strict=True):
                partly_PN = own.masked_PN[[place for place in range(len(own.masked_PN)) if place not in own.blank]]
                missed += (~partly_PN.any(dim=0))[: item.completion.scored].sum()
        gradient_W = (
            torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in self.weights])
            if with_gradients
            else None
        )
        return torch.cat(estimates), gradient_W, float(missed / self.scored_CN.sum())

    def _passes(self, estimator: str, pairs: int, item: Rollout, draw: tuple[str, int]) -> Passes:
        config, completion = self.config, item.completion
        random = generator(config.seed, f"{draw[0]} {estimator}", pairs, draw[1], item.place)
        count = 1 + 2 * pairs if estimator == "d1" else 1  # d1 is one pass: at equal passes it is drawn that often
        parts = [
            make_passes(
                estimator, len(completion.tokens), len(completion.prompt), random, pairs, config.t_range,
                config.prompt_mask,
            )
            for _ in range(count)
        ]  # fmt: skip
        if count == 1:
            return parts[0]
        return Passes(
            torch.cat([part.masked_PN for part in parts]),
            torch.cat([part.weight_PN for part in parts]) / count,
            torch.cat([part.prompt_masked_PM for part in parts]),
            (),
        )


def cosine(left_W: Tensor, right_W: Tensor | None) -> float:
    assert right_W is not None
    return float(torch.nn.functional.cosine_similarity(left_W.double(), right_W.double(), dim=0))

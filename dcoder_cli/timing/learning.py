"""What both training benches share: a step of a model that stays as it is, and whether two steps agree elementwise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.model import lean
from dcoder_cli.model.backbone import Model
from dcoder_cli.timing import models, race, rate, report

# How far numbers of tokens (nats), and gradients (of the largest entry of their tensor), may lie apart (ours, measured): sums
# in another order in float32; in bf16 every activation is rounded to 8 bits, and rows in other company otherwise.
TOKENS = {torch.float32: 1e-4, torch.bfloat16: 0.25}
GRADIENTS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
_BACKWARD = 3.0  # a training step has three times the operations of its forward pass


@dataclass(frozen=True)
class Found:
    """What a watched step made.

    Attributes:
        tokens: losses or log-probabilities, one a token. loss: of the step.
        norm: of all gradients, before they are clipped. gradients: by weight, clipped, on the CPU.
    """

    tokens: Tensor
    loss: float
    norm: float
    gradients: dict[str, Tensor]


class Stepper:
    """Steps of AdamW at a learning rate of 0: all of a step's work, from the same weights each time.

    The forward pass is in `dtype`; weights, gradients and moments are float32, as in training.
    """

    def __init__(self, choice: models.ModelChoice, device: str | None, dtype: str | None, seed: int) -> None:
        from dcoder_cli.model import loading

        place = loading.choose_device(device)
        self.dtype = loading.choose_dtype(dtype, {"dtype": "bfloat16"}, place)
        if self.dtype not in TOKENS:
            raise UserError(f"--dtype {dtype} is none that training computes in; use float32 or bfloat16")
        self.model: Model = choice.load(str(place), "float32", seed)
        self.model.train()
        lean.keep_less(self.model.network)
        self.device = self.model.device
        fused = self.device.type in ("cuda", "cpu")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=fused)

    def autocast(self) -> AbstractContextManager[Any]:
        """What a forward pass runs in."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def work(self, forward: Callable[[], tuple[Tensor, Tensor]]) -> race.Work:
        """A step as it is timed, as it is watched, and as its forward passes are counted."""
        return race.Work(partial(self.step, forward), partial(self.watch, forward), partial(self.count, forward))

    def step(self, forward: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Loss, gradients, their clipping, and the update. `forward` gives numbers of tokens, and the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        _, loss = forward()
        loss.backward()  # type: ignore[no-untyped-call]
        self._update()
        self.optimizer.zero_grad(set_to_none=True)

    def watch(self, forward: Callable[[], tuple[Tensor, Tensor]]) -> Found:
        """The same, with what it made."""
        self.optimizer.zero_grad(set_to_none=True)
        tokens, loss = forward()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self._update()
        # Not copied on a CPU, where a copy would be part of the peak that is being measured.
        gradients = {name: one.grad.cpu() for name, one in self.model.named_parameters() if one.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return Found(tokens.detach().float().cpu(), float(loss.detach()), norm, gradients)

    def count(self, forward: Callable[[], tuple[Tensor, Tensor]]) -> rate.ForwardCounts:
        """The forward passes alone, counted."""
        with torch.no_grad(), rate.counting(self.model) as counts:
            forward()
        return counts

    def _update(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(norm)


def told(timing: race.Timing, shape: Any, frozen: float = 0.0) -> dict[str, Any]:
    """A step's matrix operations; `frozen`: of the share of its forward passes that has no backward pass."""
    if timing.result is None:
        return {}
    forward = timing.counts.operations(shape)
    return {"matrix_operations": forward * (frozen + (1 - frozen) * _BACKWARD), "loss": timing.result.loss}


def agree(ours: Found, plain: Found, dtype: torch.dtype, what: str) -> report.Agreement:
    """Whether two steps made the same loss, numbers of tokens and gradients, the last two entry by entry."""
    apart = float((ours.tokens - plain.tokens).abs().max())
    gradient, worst = 0.0, ""
    floor = 1e-3 * max(float(one.abs().max()) for one in plain.gradients.values())  # of tensors that hardly have any
    for name, one in plain.gradients.items():
        mine = ours.gradients.get(name)
        scale = max(float(one.abs().max()), floor, 1e-30)
        off = float("inf") if mine is None else float((mine - one).abs().max()) / scale
        if not off <= gradient:
            gradient, worst = off, name
    tolerances = TOKENS[dtype], GRADIENTS[dtype]
    norms = abs(ours.norm - plain.norm) / max(plain.norm, 1e-30)
    losses = abs(ours.loss - plain.loss) / max(abs(plain.loss), 1.0)
    gradient = max(gradient, norms)
    same = max(apart, losses) <= tolerances[0] and gradient <= tolerances[1]
    same = same and ours.gradients.keys() == plain.gradients.keys()
    numbers = {
        "largest_difference": apart, "tolerance": tolerances[0], "largest_gradient_difference": gradient,
        "gradient_tolerance": tolerances[1], "of": worst, "loss": ours.loss, "plain_loss": plain.loss,
        "norm": ours.norm, "plain_norm": plain.norm,
    }  # fmt: skip
    words = (
        f"{'agree' if same else 'DISAGREE'}: {what} within {max(apart, losses):.2g} nats ({tolerances[0]:g} allowed), gradients within "
        f"{gradient:.2g} of the largest of their tensor ({tolerances[1]:g} allowed)"
    )
    return report.Agreement(same, words, numbers)

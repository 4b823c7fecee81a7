"""`bench grpo`: an update of coupled-GRPO beside the same with every pass a whole row and all logits.

A lap is what stage 4 does for one update after its rollouts: frozen log-probabilities, those of the policy, the clipped loss
with its KL term, gradients, AdamW. Rollouts are `bench generate`'s, verdicts `bench judge`'s.

Shapes: B completions, N tokens of the longest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.diffusion.coupled import MaskSettings, Passes
from dcoder_cli.diffusion.estimators import make_passes
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.timing import learning, models, plain_training, race, rate, report
from dcoder_cli.timing.generate import prompts
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import Completion, EntryLogProbs, log_probabilities, plan_rows, scored_mask
from dcoder_cli.training.grpo.loss import grpo_loss


@dataclass(frozen=True)
class GrpoBench:
    """What is measured: an update on every number of completions of every length, one micro-batch each.

    Attributes:
        batches: completions of an update. group: of one prompt, which share the pass that masks everything.
        prompt_tokens, new_tokens: of the longest; half of them at least.
    """

    batches: Sequence[int] = (8,)
    new_tokens: Sequence[int] = (64,)
    prompt_tokens: int = 32
    group: int = 4
    model: str | None = None
    shape: str | None = None
    repeats: int = 5
    device: str | None = None
    dtype: str | None = None
    seed: int = 0

    @property
    def cases(self) -> list[tuple[int, int]]:
        """Completions and tokens of each. Raises UserError where a group is not whole."""
        for batch in self.batches:
            if batch % self.group:
                raise UserError(
                    f"--batch {batch} is no multiple of --group {self.group}, the completions of one prompt"
                )
        return [(batch, new) for new in self.new_tokens for batch in self.batches]


def runs(asked: GrpoBench) -> int:
    """How often `on_run` will be called."""
    return 1 + len(asked.cases) * (race.RUNS_ASIDE + 2 * asked.repeats)


def bench(asked: GrpoBench, on_run: Callable[[str], None]) -> dict[str, Any]:
    """The document of report.py.

    Raises:
        UserError: a wrong setting, rows longer than the model's context (before weights are read), a model that is none.
        WorkFailed: out of memory.
    """
    race.check_repeats(asked.repeats)
    cases, choice = asked.cases, models.choose(asked.model, asked.shape)
    longest = max(asked.new_tokens)
    choice.check_length(asked.prompt_tokens + longest, f"{asked.prompt_tokens} prompt and {longest} new tokens")
    stepper = learning.Stepper(choice, asked.device, asked.dtype, asked.seed)
    reached = rate.measure(stepper.device, stepper.dtype)
    on_run("matrix rate measured")
    found = [_case(stepper, choice, asked, batch, new, reached, on_run) for batch, new in cases]
    subject = {**models.told(choice, stepper.model), "dtype": str(stepper.dtype).removeprefix("torch.")}
    return report.document("grpo", subject, stepper.device, reached, asked.repeats, found)


@dataclass(frozen=True)
class _Batch:
    """What an update learns from; `noise`: of old and reference, so that ratios and KL are not those of equal policies."""

    completions: list[Completion]
    passes: list[Passes]
    advantages: list[float]
    noise: tuple[Tensor, Tensor]


def _case(
    stepper: learning.Stepper, choice: models.ModelChoice, asked: GrpoBench, batch: int, new: int,
    reached: rate.MatrixRate, on_run: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    made = _batch(stepper, asked, batch, new)
    module = EntryLogProbs(stepper.model)
    mask, pad = stepper.model.ids.mask, stepper.model.ids.pad or 0
    assert mask is not None

    def ours() -> Tensor:
        plan = plan_rows(made.completions, made.passes, mask, pad)
        with stepper.autocast():
            return log_probabilities(module, plan, stepper.device)

    def plain() -> Tensor:
        with stepper.autocast():
            return plain_training.estimate(stepper.model, made.completions, made.passes)

    works = stepper.work(partial(_update, ours, _loss, made)), stepper.work(partial(_update, plain, _plain_loss, made))
    timings = race.race(works, asked.repeats, stepper.device, on_run)
    mine, his = (timing.result for timing in timings)
    scored = sum(one.scored for one in made.completions)
    agreement = report.NOTHING
    if his is not None:
        agreement = learning.agree(mine, his, stepper.dtype, f"log-probabilities of {scored:,} tokens")
    more = (learning.told(timings[0], choice.shape, 0.5), learning.told(timings[1], choice.shape, 0.5))
    what = {"completions": batch, "group": asked.group, "prompt_tokens": asked.prompt_tokens, "new_tokens": new}
    return report.case(what, "tokens", scored, *timings, agreement, more, reached)


def _batch(stepper: learning.Stepper, asked: GrpoBench, batch: int, new: int) -> _Batch:
    source, config = random.Random(f"bench completions {asked.seed}"), GrpoConfig()
    asks = prompts(stepper.model, batch // asked.group, asked.prompt_tokens, asked.seed)
    words = range(min(stepper.model.vocab_size, 2048) - 2)
    completions, passes = [], []
    for place in range(batch):
        prompt = asks[place // asked.group]
        scored = new - (place % asked.group) * (new // 2) // max(1, asked.group - 1)
        completions.append(Completion(tuple(prompt), tuple(source.choices(words, k=new)), scored))
        masks = generator(asked.seed, "bench masks", place)
        passes.append(make_passes(config.estimator, new, len(prompt), masks, MaskSettings()))
    noise = generator(asked.seed, "bench policies")
    old_BN, reference_BN = (0.3 * torch.randn(batch, new, generator=noise).to(stepper.device) for _ in range(2))
    return _Batch(completions, passes, [source.gauss(0, 1) for _ in range(batch)], (old_BN, reference_BN))


def _update(
    logp: Callable[[], Tensor], loss: Callable[[Tensor, Tensor, Tensor, _Batch], Tensor], made: _Batch
) -> tuple[Tensor, Tensor]:
    """Estimates of the policy, and the loss."""
    with torch.no_grad():
        frozen_BN = logp()
    old_BN, reference_BN = (frozen_BN + noise_BN for noise_BN in made.noise)
    new_BN = logp()
    return new_BN, loss(new_BN, old_BN, reference_BN, made)


def _loss(new_BN: Tensor, old_BN: Tensor, reference_BN: Tensor, made: _Batch) -> Tensor:
    advantage_B = torch.tensor(made.advantages, device=new_BN.device)
    scored_BN = scored_mask(made.completions).to(new_BN.device)
    config = GrpoConfig()
    found = grpo_loss(new_BN, old_BN, reference_BN, advantage_B, scored_BN, config.clip, config.kl_coef)
    return found.loss / found.count


def _plain_loss(new_BN: Tensor, old_BN: Tensor, reference_BN: Tensor, made: _Batch) -> Tensor:
    config = GrpoConfig()
    return plain_training.grpo_loss(
        new_BN, old_BN, reference_BN, made.advantages, made.completions, config.clip, config.kl_coef
    )

"""`bench train`: a step of stages 1 to 3, with logits at masked places only, beside one with all logits.

Shapes: B rows, L tokens of each, N masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcoder_cli.data.batches import Batch
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.timing import learning, models, plain_training, race, rate, report
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.objective import Example, TokenLoss, make_example, token_losses


@dataclass(frozen=True)
class TrainBench:
    """What is measured: a step on every number of rows of every length, one micro-batch each."""

    batches: Sequence[int] = (4,)
    row_tokens: Sequence[int] = (256,)
    model: str | None = None
    shape: str | None = None
    repeats: int = 5
    device: str | None = None
    dtype: str | None = None
    seed: int = 0

    @property
    def cases(self) -> list[tuple[int, int]]:
        """Rows and tokens of each."""
        return [(batch, length) for length in self.row_tokens for batch in self.batches]


def runs(asked: TrainBench) -> int:
    """How often `on_run` will be called."""
    return 1 + len(asked.cases) * (race.RUNS_ASIDE + 2 * asked.repeats)


def bench(asked: TrainBench, on_run: Callable[[str], None]) -> dict[str, Any]:
    """The document of report.py.

    Raises:
        UserError: a wrong setting, rows longer than the model's context (before weights are read), a model that is none.
        WorkFailed: out of memory.
    """
    race.check_repeats(asked.repeats)
    choice = models.choose(asked.model, asked.shape)
    choice.check_length(max(asked.row_tokens), f"--row-tokens {max(asked.row_tokens)}")
    stepper = learning.Stepper(choice, asked.device, asked.dtype, asked.seed)
    reached = rate.measure(stepper.device, stepper.dtype)
    on_run("matrix rate measured")
    cases = [_case(stepper, choice, asked, batch, length, reached, on_run) for batch, length in asked.cases]
    subject = {**models.told(choice, stepper.model), "dtype": str(stepper.dtype).removeprefix("torch.")}
    return report.document("train", subject, stepper.device, reached, asked.repeats, cases)


def _case(
    stepper: learning.Stepper, choice: models.ModelChoice, asked: TrainBench, batch: int, length: int,
    reached: rate.MatrixRate, on_run: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    example = _example(stepper, asked.seed, batch, length)
    ours = partial(_ours, stepper, TokenLoss(stepper.model), example)
    works = stepper.work(ours), stepper.work(partial(_plain, stepper, example))
    timings = race.race(works, asked.repeats, stepper.device, on_run)
    mine, plain = (timing.result for timing in timings)
    masked = len(example.places_N)
    agreement = report.NOTHING
    if plain is not None:
        agreement = learning.agree(mine, plain, stepper.dtype, f"losses of {masked:,} masked tokens")
    more = (learning.told(timings[0], choice.shape), learning.told(timings[1], choice.shape))
    what = {"rows": batch, "row_tokens": length, "masked_tokens": masked}
    return report.case(what, "tokens", batch * length, *timings, agreement, more, reached)


def forward(stepper: learning.Stepper, seed: int, batch: int, length: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """The losses of a step on rows of random tokens, as stages 1 to 3 compute them, for `Stepper.step`."""
    return partial(_ours, stepper, TokenLoss(stepper.model), _example(stepper, seed, batch, length))


def _example(stepper: learning.Stepper, seed: int, batch: int, length: int) -> Example:
    """Rows of random tokens, noised as a stage does; the first place of a row is never asked."""
    mask = stepper.model.ids.mask
    assert mask is not None
    ids_BL = torch.randint(
        0, min(stepper.model.vocab_size, 2048) - 2, (batch, length), generator=generator(seed, "bench")
    )
    eligible_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    eligible_BL[:, 0] = False
    rows = Batch(ids_BL, eligible_BL, None, None, range(batch))
    config = StageConfig(seed=seed, steps=1, global_batch=batch, micro_batch=batch, stratified_t=True)
    return make_example(rows, config, 0, mask)


def _ours(stepper: learning.Stepper, module: TokenLoss, example: Example) -> tuple[Tensor, Tensor]:
    with stepper.autocast():
        weighted, losses_N = token_losses(module, example, None, False, False, stepper.device)
    return losses_N, weighted / example.denominator.to(stepper.device)


def _plain(stepper: learning.Stepper, example: Example) -> tuple[Tensor, Tensor]:
    with stepper.autocast():
        losses_BL = plain_training.token_losses(
            stepper.model, example.noised_BL.to(stepper.device), example.batch.ids_BL.to(stepper.device)
        )
    loss = (losses_BL * example.weights_BL.to(stepper.device)).sum() / example.denominator.to(stepper.device)
    return losses_BL.flatten()[example.places_N.to(stepper.device)], loss

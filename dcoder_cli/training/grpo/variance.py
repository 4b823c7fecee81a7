"""The variance lab: how well each estimator of stage 4 knows what it estimates, at equal numbers of forward passes.

Real completions of real prompts are estimated again and again with fresh masks. Two things are compared with a truth of
many draws: the per-token log-probabilities, and the gradient of the GRPO loss that they lead to. Estimators weigh a
token differently (DiffuCoder's sum over a pair has weight 2 / (lambda + 1) beside 1 / (lambda + 1) for the full mask), so
log-probabilities are divided by their expected weight first.

What a log-probability should be has three answers, and an estimator that is near to one may be far from another. `error`
gives the mean squared error against each (TRUTHS):

    own     the estimator's own expectation: its variance alone. The paper's theorem (A.4) is about this one, and it
            compares estimators of one expectation only: the full mask has 0 by construction, wherever it points.
    path    the log-probability along the decoding path that was taken (truths.py).
    masks   the mean over masks with t uniform in (0, 1): the token's term of the ELBO (truths.py).

`bias` is the distance to a fourth, the coupled estimator's expectation, and so says nothing for or against coupled.
Shapes: C completions, N tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.ranges import Range
from dcoder_cli.data.rl import load_prompts
from dcoder_cli.diffusion.coupled import MaskSettings
from dcoder_cli.diffusion.estimators import ESTIMATORS, is_own, try_estimator
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.execution.judge import Judge
from dcoder_cli.model.loading import load
from dcoder_cli.training import setup
from dcoder_cli.training.grpo import truths
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.loss import advantages
from dcoder_cli.training.grpo.record import flat_groups
from dcoder_cli.training.grpo.rewards import Rewarder, check_prompts
from dcoder_cli.training.grpo.rollouts import Rollout, check_sampling, encode_prompts, roll_out
from dcoder_cli.training.grpo.variance_bench import PAIRED, Bench, Drawn, cosine

PAIRS = (1, 2, 4)  # lambda at which variances are measured; ours. Gradients are taken at the first, the paper's
TRUTHS = ("own", "path", "masks")
TRUTH = 4  # the truth has this many times the draws of a row; ours
_COMPARED = tuple(name for name in ESTIMATORS if name != "full-mask")  # which has no randomness: one draw tells all


@dataclass(frozen=True)
class Row:
    """One estimator at one number of passes.

    Attributes:
        passes: forward passes a completion, the all-masked one counted once.
        bias: root of the mean over tokens of (mean estimate - the coupled estimator's expectation at as many pairs)^2,
            nats, the noise of both means taken out.
        variance: mean over tokens of the variance of one estimate, nats^2.
        error: mean squared error of one estimate, nats^2, mean over tokens, against each of TRUTHS: squared distance of
            the mean estimate (the noise of both taken out, not below 0) plus variance.
        unseen: share of tokens that no pass but the all-masked one sees (a pair may miss a token only if decoupled).
        gradient_noise: E|g - mean g|^2 / |truth|^2 of the loss' gradient; None where it was not measured.
        gradient_cosine: of the mean gradient with the truth, 1 = same direction; None likewise.
        gradient_cosine_one: mean cosine of one draw's gradient with the truth: what a training step gets.
    """

    estimator: str
    pairs: int
    passes: int
    bias: float
    variance: float
    unseen: float
    gradient_noise: float | None = None
    gradient_cosine: float | None = None
    gradient_cosine_one: float | None = None
    error: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Lab:
    """All rows, and on what they were measured. `flat` groups were left out: equal rewards have no gradient.

    `masks_standard_error`: of the Monte Carlo truth "masks", root mean square over tokens, nats.
    """

    rows: list[Row]
    completions: int
    prompts: int
    flat: float
    draws: int
    truth_draws: int
    seconds: float
    masks_standard_error: float = 0.0


def measure(
    model_name: str,
    data: str,
    config: GrpoConfig,
    draws: int = 32,
    prompts: int = 4,
    pairs: Sequence[int] = PAIRS,
    gradients: bool = True,
    device: str | None = None,
    announce: Callable[[str], None] = lambda _: None,
    unsafe: bool = False,
) -> Lab:
    """Roll out, then estimate with every estimator, and with `config.estimator` where it is the user's own.

    Args:
        model_name, data: as for stage 4.
        config: rollouts, group size, ratios of the pairs, seed and micro batch come from it.
        draws: of each estimator; the truth has TRUTH times as many.
        prompts: groups measured.
        pairs: lambdas.
        gradients: measure the loss' gradients too, at the first lambda, on groups whose rewards differ.
        unsafe: agree to run model-written code without a sandbox where none holds.

    Raises:
        UserError: wrong input, or every group has equal rewards.
    """
    began = time.perf_counter()
    Range(2, 10**6, also=": a variance needs two").check("--draws", draws)
    Range(1).check("prompts", prompts)
    if config.lora is not None:
        raise UserError(
            "--measure-variance measures the gradient of the model's own weights; leave lora out (--set lora=null)"
        )
    asked = load_prompts(data, "train")[: config.prompts_per_step]
    check_prompts(asked, config.rewards)
    check_sampling(config)
    own = [config.estimator] if is_own(config.estimator) else []
    for name in own:
        for number in pairs:
            settings = MaskSettings(number, config.t_range, config.prompt_mask)
            try_estimator(name, config.rollout.max_new_tokens, settings)
    model = load(model_name, device=device, dtype="float32")
    if not config.train_embeddings:
        setup.freeze_embeddings(model)
    if not model.is_diffusion:
        raise UserError(f"stage 4 needs a diffusion model but {model_name!r} is an AR checkpoint; convert it first")
    ids = encode_prompts(model, asked, config.rollout.max_new_tokens)
    announce(f"{len(asked)} x {config.group_size} rollouts")
    judge = Judge(unsafe=unsafe) if "code" in config.rewards else None
    try:
        rollouts = roll_out(model, asked, ids, 0, 0, config, Rewarder(config.rewards, judge, config.format == "strict"))
    finally:
        if judge is not None:
            judge.close()
    chosen, advantage = _groups(rollouts, config, prompts, gradients)
    if not chosen:
        raise UserError(
            f"all {len(asked)} groups have equal rewards, so there is no gradient to measure; use other prompts, a higher rollout.temperature or a larger group_size"
        )
    bench = Bench(model, chosen, torch.tensor(advantage), config)
    announce("the truths: the decoding path, and masks of all ratios")
    known = _truths(bench, 3 * TRUTH * draws)
    announce(f"the coupled estimator's expectation: {TRUTH * draws} draws")
    truth = bench.draw("coupled", 1, TRUTH * draws, "truth", gradients)
    full = bench.draw("full-mask", 1, 1, "lab", gradients, truth)
    rows = [_row("full-mask", 0, full, truth, truth.mean_CN, known)]
    for estimator in (*_COMPARED, *own):
        for number in pairs:
            announce(f"{estimator}, {1 + 2 * number} passes")
            drawn = bench.draw(estimator, number, draws, "lab", gradients and number == pairs[0], truth)
            # More pairs weigh the full mask less, so what the paired estimate moves with them; the others' does not.
            paired = estimator in PAIRED
            target_CN = _truth_of(number, truth.mean_CN, full.mean_CN) if paired else truth.mean_CN
            rows.append(_row(estimator, number, drawn, truth, target_CN, known))
    return Lab(
        rows, len(chosen), len(chosen) // config.group_size, flat_groups(rollouts, config.group_size), draws,
        TRUTH * draws, round(time.perf_counter() - began, 1), known.masks_standard_error(),
    )  # fmt: skip


def _groups(
    rollouts: Sequence[Rollout], config: GrpoConfig, prompts: int, uneven: bool
) -> tuple[list[Rollout], list[float]]:
    """The first `prompts` groups, or the first whose rewards differ, with their advantages."""
    chosen: list[Rollout] = []
    advantage: list[float] = []
    for start in range(0, len(rollouts), config.group_size):
        group = rollouts[start : start + config.group_size]
        own = advantages([item.reward.total for item in group], config.advantage, config.scale_advantage)
        if (any(own) or not uneven) and len(chosen) < prompts * config.group_size:
            chosen += group
            advantage += own
    return chosen, advantage


def _truths(bench: Bench, rows: int) -> truths.Truths:
    """The truths "path" and "masks" of the bench's rollouts, the second with `rows` masks a completion or more."""
    completions = [item.completion for item in bench.rollouts]
    steps = [item.trajectory.reveal_step for item in bench.rollouts]
    sources = [generator(bench.config.seed, "truth masks", item.place) for item in bench.rollouts]
    return truths.Truths(
        bench.scored_CN,
        truths.path(bench.module, completions, steps),
        *truths.masks(bench.module, completions, rows, sources),
    )


def _truth_of(pairs: int, one_CN: Tensor, full_CN: Tensor) -> Tensor:
    """The truth for `pairs` pairs from that for one: (full + pairs * pair) / (1 + 2 * pairs), pair = 3 * one - full."""
    return (full_CN + pairs * (3 * one_CN - full_CN)) / (1 + 2 * pairs)


def _row(estimator: str, pairs: int, drawn: Drawn, truth: Drawn, target_CN: Tensor, known: truths.Truths) -> Row:
    """A row from its draws, the draws of the coupled estimator, and the expectation it should have."""
    count = known.scored_CN.sum()
    variance = float(drawn.variance_CN[known.scored_CN].sum() / count)
    squared = float((drawn.mean_CN - target_CN)[known.scored_CN].square().sum() / count)
    of_truth = float(truth.variance_CN[known.scored_CN].sum() / count) / truth.draws
    bias = math.sqrt(max(0.0, squared - variance / drawn.draws - of_truth))
    own = Row(
        estimator,
        pairs,
        round(drawn.passes),
        bias,
        variance,
        drawn.unseen,
        error=known.errors(drawn.mean_CN, drawn.variance_CN, drawn.draws),
    )
    if drawn.gradient_W is None:
        return own
    mean_square = float(drawn.gradient_W.double().square().sum())
    noise = (drawn.gradient_square - mean_square) * drawn.draws / max(1, drawn.draws - 1)
    signal = mean_square - noise / drawn.draws
    return replace(
        own,
        gradient_noise=noise / signal if signal > 0 else math.inf,
        gradient_cosine=cosine(drawn.gradient_W, truth.gradient_W),
        gradient_cosine_one=sum(drawn.cosines) / len(drawn.cosines),
    )

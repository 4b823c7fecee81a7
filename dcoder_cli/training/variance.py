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
Shapes: C completions, N tokens, W weights of the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.data.rl import load_prompts
from dcoder_cli.diffusion.coupled import Passes, make_passes
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.execution.judge import Judge
from dcoder_cli.model.backbone import Model, load
from dcoder_cli.training import setup, truths
from dcoder_cli.training.estimate import EntryLogProbs, log_probabilities, plan_rows, scored_mask
from dcoder_cli.training.grpo_config import GrpoConfig
from dcoder_cli.training.grpo_loss import advantages, grpo_loss, units
from dcoder_cli.training.grpo_record import flat_groups
from dcoder_cli.training.rewards import Rewarder, check_prompts
from dcoder_cli.training.rollouts import Rollout, check_sampling, encode_prompts, roll_out

PAIRS = (1, 2, 4)  # lambda at which variances are measured; ours. Gradients are taken at the first, the paper's
TRUTHS = ("own", "path", "masks")
TRUTH = 4  # the truth has this many times the draws of a row; ours
_COMPARED = ("coupled", "decoupled", "d1")  # full-mask has no randomness: one draw tells all


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
    """Roll out, then estimate with every estimator.

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
    if draws < 2 or prompts < 1:
        raise UserError(f"--draws {draws} and prompts {prompts}: a variance needs at least 2 draws and 1 prompt")
    if config.lora is not None:
        raise UserError(
            "--measure-variance measures the gradient of the model's own weights; leave lora out (--set lora=null)"
        )
    asked = load_prompts(data, "train")[: config.prompts_per_step]
    check_prompts(asked, config.rewards)
    check_sampling(config)
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
    bench = _Bench(model, chosen, torch.tensor(advantage), config)
    announce("the truths: the decoding path, and masks of all ratios")
    bench.find_truths(3 * TRUTH * draws)
    announce(f"the coupled estimator's expectation: {TRUTH * draws} draws")
    truth = bench.draw("coupled", 1, TRUTH * draws, "truth", gradients)
    full = bench.draw("full-mask", 1, 1, "lab", gradients, truth)
    rows = [bench.row("full-mask", 0, full, truth, truth.mean_CN)]
    for estimator in _COMPARED:
        for number in pairs:
            announce(f"{estimator}, {1 + 2 * number} passes")
            drawn = bench.draw(estimator, number, draws, "lab", gradients and number == pairs[0], truth)
            # More pairs weigh the full mask less, so what is estimated moves with them; d1 has no pairs.
            target_CN = truth.mean_CN if estimator == "d1" else _truth_of(number, truth.mean_CN, full.mean_CN)
            rows.append(bench.row(estimator, number, drawn, truth, target_CN))
    return Lab(
        rows, len(chosen), len(chosen) // config.group_size, flat_groups(rollouts, config.group_size), draws,
        TRUTH * draws, round(time.perf_counter() - began, 1), bench.masks_standard_error(),
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


def _truth_of(pairs: int, one_CN: Tensor, full_CN: Tensor) -> Tensor:
    """The truth for `pairs` pairs from that for one: (full + pairs * pair) / (1 + 2 * pairs), pair = 3 * one - full."""
    return (full_CN + pairs * (3 * one_CN - full_CN)) / (1 + 2 * pairs)


@dataclass(frozen=True)
class _Drawn:
    """Many estimates: mean and variance of each token's, the share of unseen tokens, and the gradients' moments."""

    draws: int
    mean_CN: Tensor
    variance_CN: Tensor
    unseen: float
    gradient_W: Tensor | None
    gradient_square: float
    cosines: list[float]


class _Bench:
    """The completions, and a way to estimate them again and again."""

    def __init__(self, model: Model, rollouts: Sequence[Rollout], advantage_C: Tensor, config: GrpoConfig) -> None:
        self.model, self.rollouts, self.advantage_C, self.config = model, rollouts, advantage_C, config
        self.module = EntryLogProbs(model)
        self.scored_CN = scored_mask([item.completion for item in rollouts])
        self.weights = [weight for weight in self.module.parameters() if weight.requires_grad]

    def find_truths(self, rows: int) -> None:
        """Measure the truths "path" and "masks", the second with `rows` masks a completion or more."""
        completions = [item.completion for item in self.rollouts]
        sources = [generator(self.config.seed, "truth masks", item.place) for item in self.rollouts]
        self.path_CN = truths.path(self.module, completions, [item.trajectory.reveal_step for item in self.rollouts])
        self.masks_CN, self.masks_error_CN = truths.masks(self.module, completions, rows, sources)

    def masks_standard_error(self) -> float:
        """Of the truth "masks": root mean square over tokens, nats."""
        return float(self.masks_error_CN[self.scored_CN].square().mean().sqrt())

    def _errors(self, drawn: _Drawn) -> dict[str, float]:
        """Mean squared error of one estimate against each of TRUTHS."""

        def mean(values_CN: Tensor) -> float:
            return float(values_CN[self.scored_CN].mean())

        variance = mean(drawn.variance_CN)
        noise = variance / drawn.draws
        to_path = mean((drawn.mean_CN - self.path_CN).square()) - noise
        to_masks = mean((drawn.mean_CN - self.masks_CN).square()) - noise - self.masks_standard_error() ** 2
        return {"own": variance, "path": max(0.0, to_path) + variance, "masks": max(0.0, to_masks) + variance}

    def draw(
        self, estimator: str, pairs: int, draws: int, purpose: str, with_gradients: bool, truth: _Drawn | None = None
    ) -> _Drawn:
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
                    cosines.append(_cosine(gradient_W, truth.gradient_W))
        variance_CN = square_CN / max(1, draws - 1)
        return _Drawn(draws, mean_CN, variance_CN, unseen, mean_W if with_gradients else None, gradient_square, cosines)

    def row(self, estimator: str, pairs: int, drawn: _Drawn, truth: _Drawn, target_CN: Tensor) -> Row:
        count = self.scored_CN.sum()
        variance = float(drawn.variance_CN[self.scored_CN].sum() / count)
        squared = float((drawn.mean_CN - target_CN)[self.scored_CN].square().sum() / count)
        of_truth = float(truth.variance_CN[self.scored_CN].sum() / count) / truth.draws
        bias = math.sqrt(max(0.0, squared - variance / drawn.draws - of_truth))
        own = Row(estimator, pairs, 1 + 2 * pairs, bias, variance, drawn.unseen, error=self._errors(drawn))
        if drawn.gradient_W is None:
            return own
        mean_square = float(drawn.gradient_W.double().square().sum())
        noise = (drawn.gradient_square - mean_square) * drawn.draws / max(1, drawn.draws - 1)
        signal = mean_square - noise / drawn.draws
        return replace(
            own,
            gradient_noise=noise / signal if signal > 0 else math.inf,
            gradient_cosine=_cosine(drawn.gradient_W, truth.gradient_W),
            gradient_cosine_one=sum(drawn.cosines) / len(drawn.cosines),
        )

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


def _cosine(left_W: Tensor, right_W: Tensor | None) -> float:
    assert right_W is not None
    return float(torch.nn.functional.cosine_similarity(left_W.double(), right_W.double(), dim=0))

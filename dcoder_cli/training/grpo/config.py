"""Configuration of stage 4, coupled-GRPO. Torch-free: presets and --help read it.

Defaults are the paper's (DiffuCoder B.1 and Algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import Attention
from dcoder_cli.base.ranges import Between, Count, CountOrNone, Range, Rows, Seed, check
from dcoder_cli.diffusion.estimators import check_name
from dcoder_cli.training.config import Epochs, LoraConfig, OptimizerConfig


def _optimizer() -> OptimizerConfig:
    # DiffuCoder B.1, coupled-GRPO: learning rate, betas, weight decay, gradient norm, cosine with a 10% floor.
    return OptimizerConfig(learning_rate=1e-6, betas=(0.9, 0.99), weight_decay=0.1, warmup_steps=0, max_grad_norm=0.2)


Weight = Annotated[float, Range(free="a reward may be large, small, or a penalty")]


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are sampled.

    Attributes:
        max_new_tokens: 256 (DiffuCoder B.1).
        steps: denoising steps; null = one token a step (256: DiffuCoder B.1).
        temperature: 1.2 (DiffuCoder 5).
        top_p, top_k: off, so that the sampled distribution is the model's.
        rule: entropy (DiffuCoder B.2).
        tie_break: which of equal scores comes first, as in generate; null = the model's own order ("topk" is what the
            authors' sampler does).
        logits_mib: memory for logits while sampling, as in generate; changes no token.
        mode: "exact", or "fast": confident tokens are committed together, several times cheaper, from a policy slightly
            other than the exact one. Rows are decoded to their end in both, so that padding means the same.
        threshold: of the fast mode (its default of 0.9 where null).
        batch_size: rows decoded together; no effect on the samples.
    """

    max_new_tokens: Count = 256
    steps: Count | None = None
    temperature: Annotated[float, Range(above=0, also=": a group of equal samples teaches nothing")] = 1.2
    top_p: Annotated[float, Range(above=0, most=1)] | None = None
    top_k: Count | None = None
    rule: str = "entropy"
    tie_break: Literal["model", "left", "right", "random", "topk"] | None = None
    logits_mib: Count | None = None
    mode: Literal["exact", "fast"] = "exact"
    threshold: Annotated[float, Range(0, 1, also="; 0 commits all at once, 1 one a step")] | None = None
    batch_size: Rows = 32

    def __post_init__(self) -> None:
        check(self, "rollout.")
        if self.mode == "exact" and self.threshold is not None:
            raise UserError(f"rollout.threshold = {self.threshold} applies to rollout.mode fast only; leave it out")
        if self.mode == "fast" and self.steps is not None:
            raise UserError(f"rollout.steps = {self.steps} applies to rollout.mode exact only; give rollout.threshold")
        if self.steps is not None and not 1 <= self.steps <= self.max_new_tokens:
            raise UserError(
                f"rollout.steps = {self.steps} must lie between 1 and max_new_tokens = {self.max_new_tokens}"
            )


@dataclass(frozen=True)
class GrpoConfig:
    """Stage 4.

    Attributes:
        seed: of prompts, rollouts and masks, each with its own generator.
        steps: rollout steps; null = `epochs` over the prompts.
        epochs: 1 (DiffuCoder B.1).
        prompts_per_step: prompts a rollout, over all processes (ours; the paper names none).
        group_size: completions a prompt, G (10: DiffuCoder B.1).
        micro_batch: completions in one forward pass.
        inner_iterations: updates on one rollout, mu, each with fresh masks (2: DiffuCoder B.1).
        estimator: coupled (DiffuCoder 5), full-mask (d1 without prompt masking), decoupled, d1, or `module:function`.
        pairs: complementary pairs, lambda (1: DiffuCoder 5); for decoupled the same number of passes.
        t_range: mask ratios of the pairs ([0.2, 0.8]: DiffuCoder 5).
        prompt_mask: share of prompt tokens d1 masks (0.15: d1).
        advantage: mean, or leave-one-out of the group as baseline (DiffuCoder 5, A.3).
        scale_advantage: divide by the group's standard deviation (the paper does not).
        clip: epsilon of the ratio's clipping (0.5: DiffuCoder B.1).
        loss_normaliser: what the loss is averaged over. "completion": the tokens of each completion, then the completions
            (GRPO's and DiffuCoder's Algorithm 1). "token": all tokens of all completions of the update alike (DAPO, arXiv
            2503.14476), whatever micro-batches and processes they are spread over.
        kl_coef: beta of the k3 KL estimate to the reference (0.01: DiffuCoder B.1).
        reference_sync: optimiser updates (not rollouts: each has `inner_iterations` of them) between moves of the
            reference to the policy (64: DiffuCoder B.1); 0 = never.
        reference_alpha: how far it then moves, reference = alpha * policy + (1 - alpha) * reference (TRL's
            ref_model_mixup_alpha). 1 = a copy, as the paper reads; TRL's own default, which the released recipe runs with, is 0.6.
        rewards: weight of each reward (code 2.0 and format 0.5: DiffuCoder B.1), or of `module:function`.
        format: what counts as well formed. "strict": exactly one ```python fence and nothing after it, else format and
            code earn 0 (DiffuCoder's released code). "lenient": the first Python fence, whatever stands around it (ours).
        rollout: see RolloutConfig.
        optimizer: see OptimizerConfig.
        train_embeddings: false leaves the token embeddings and the head as they are: a token that is rarely sampled gets
            a whole step of Adam from each of its few noisy gradients (ours; DiffuCoder trains all). With lora they never train.
        lora: see LoraConfig; null = all weights train. The reference is then the model with the adapter off: no copy of
            it is held, and it never moves (reference_sync 0).
        precision, attention, activation_checkpointing, kernels: as in the other stages.
        evaluate_every: steps between evaluations on the held-out prompts; 0 = only before and after.
        evaluate_prompts: held-out prompts used.
        checkpoint_every, keep_checkpoints: as in the other stages.
        samples_every: steps between sample completions written to samples/.
    """

    seed: Seed = 0
    steps: Annotated[int, Range(1, also=", or null for epochs")] | None = None
    epochs: Epochs = 1.0
    prompts_per_step: Rows = 16
    group_size: Annotated[int, Range(2, 2**20, also=": the advantage compares completions of one prompt")] = 10
    micro_batch: Rows = 10
    inner_iterations: Annotated[int, Range(1, 1000)] = 2
    estimator: str = "coupled"
    pairs: Annotated[int, Range(1, 1000)] = 1
    t_range: tuple[Between, Between] = (0.2, 0.8)
    prompt_mask: Annotated[float, Range(0, below=1)] = 0.15
    advantage: Literal["mean", "leave-one-out"] = "mean"
    scale_advantage: bool = False
    clip: Annotated[float, Range(above=0, infinite=True)] = 0.5
    loss_normaliser: Literal["completion", "token"] = "completion"
    kl_coef: Annotated[float, Range(0, most=1e6)] = 0.01
    reference_sync: CountOrNone = 64
    reference_alpha: Annotated[
        float, Range(above=0, most=1, also="; for a reference that stays use reference_sync 0")
    ] = 1.0
    rewards: dict[str, Weight] = field(default_factory=lambda: {"code": 2.0, "format": 0.5})
    format: Literal["strict", "lenient"] = "strict"
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optimizer: OptimizerConfig = field(default_factory=_optimizer)
    train_embeddings: bool = True
    lora: LoraConfig | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    attention: Attention = "sdpa"
    activation_checkpointing: bool = False
    kernels: Literal["none", "liger"] = "none"
    evaluate_every: CountOrNone = 0
    evaluate_prompts: CountOrNone = 64
    checkpoint_every: CountOrNone = 50
    keep_checkpoints: Count = 2
    samples_every: CountOrNone = 10

    def __post_init__(self) -> None:
        check(self)
        check_name(self.estimator)
        if self.lora is not None and self.kl_coef > 0 and self.reference_sync:
            raise UserError(
                f"reference_sync = {self.reference_sync} cannot be with lora: its reference is the model with the adapter off, which never moves; use --set reference_sync=0{' --set reference_alpha=1' if self.reference_alpha != 1 else ''}"
            )
        if self.lora is not None:
            self.lora.base(self.precision)
        if self.reference_alpha != 1 and not self.reference_sync:
            raise UserError(
                f"reference_alpha = {self.reference_alpha} mixes at a reference_sync, and that is 0 (never); leave it out"
            )
        low, high = self.t_range
        if not 0 < low <= high < 1:
            raise UserError(
                f"t_range = [{low}, {high}] must lie between 0 and 1, ends excluded: both passes of a pair need masks"
            )
        if not self.rewards:
            raise UserError("rewards is empty; name at least one, for example code: 2.0")

    @property
    def holds_reference(self) -> bool:
        """Whether a copy of the model is the reference: with LoRA it is the model without its adapter."""
        return self.kl_coef > 0 and self.lora is None

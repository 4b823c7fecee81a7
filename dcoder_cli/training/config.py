"""Configuration of training stages 0-3. Torch-free: presets and --help read it.

Defaults are DiffuCoder's stage 1 where the paper gives a number (DiffuCoder B.1); presets set the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import Attention
from dcoder_cli.base.ranges import Between, Count, CountOrNone, Range, Rows, Seed, Share, check

Epochs = Annotated[float, Range(above=0, most=1e6)]
_Beta = Annotated[float, Range(0, below=1)]

STAGES = {"0": 0, "ar": 0, "1": 1, "adapt": 1, "2": 2, "mid": 2, "3": 3, "sft": 3}
STAGE_NAMES = ("ar", "adapt", "mid", "sft")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warmup and cosine decay.

    Attributes:
        name: adamw, with two float32 moments a weight (8 bytes), or adamw-8bit, which keeps them in 8 bits with a scale for
            each block of 256 (arXiv 2110.02861; about 2 bytes), by bitsandbytes or torchao.
        learning_rate: peak (2e-5: DiffuCoder B.1, stage 1).
        betas, eps: Adam's own defaults (the paper names none for stages 1-3).
        weight_decay: 0: the paper says Adam; applied to matrices only where set. A step leaves 1 - learning_rate *
            weight_decay of a weight, which must be above 0.
        warmup_steps: linear warmup; used where warmup_ratio is null (20,000: DiffuCoder B.1, stage 1).
        warmup_ratio: share of all steps instead (0.1: DiffuCoder B.1, stage 3).
        schedule: cosine to `floor` of the peak, or constant after warmup.
        floor: last learning rate over peak (0.1: DiffuCoder B.1).
        max_grad_norm: gradient clipping (1.0: the public codes' default); null, 0 or .inf = off.
        fused: the fused kernel where it exists.
    """

    name: Literal["adamw", "adamw-8bit"] = "adamw"
    learning_rate: Annotated[float, Range(above=0, most=100)] = 2e-5
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: Annotated[float, Range(above=0, most=1)] = 1e-8  # 0 divides 0 by 0 where a token of the vocabulary is not seen
    weight_decay: Annotated[float, Range(0, most=1e6)] = 0.0
    warmup_steps: CountOrNone = 20_000
    warmup_ratio: Share | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    floor: Share = 0.1
    max_grad_norm: Annotated[float, Range(0, infinite=True, also="; null does not clip")] | None = 1.0
    fused: bool = True

    def __post_init__(self) -> None:
        check(self, "optimizer.")
        if self.learning_rate * self.weight_decay >= 1:
            raise UserError(
                f"optimizer.weight_decay = {self.weight_decay:g} times learning_rate = {self.learning_rate:g} must be below 1: a step would leave nothing of a weight; lower it"
            )

    def warmup(self, total_steps: int) -> int:
        """Warmup steps of a run of `total_steps`."""
        return self.warmup_steps if self.warmup_ratio is None else round(self.warmup_ratio * total_steps)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on frozen weights: W + alpha / rank * B A, only A and B train (LoRA, arXiv 2106.09685).

    It wants a larger learning rate than full training (3e-4 in LoRA's public code for RoBERTa). There is no dropout: with
    it, coupled-GRPO's ratio would not be exactly 1 at unchanged weights.

    Attributes:
        rank: 8 (LoRA's public code, RoBERTa).
        alpha: 16 (the same).
        target_modules: linear layers of the blocks by their name in transformers; all of them (ours: the paper adapts
            attention only, LoRA 4.2).
        base_dtype: number format of the frozen weights. auto: bfloat16 where `precision` is bf16, half of float32's memory
            and, for weights that a checkpoint stores in bfloat16, the same numbers bit for bit; else float32. nf4: 4 bits
            (QLoRA, arXiv 2305.14314), by bitsandbytes on a GPU. Adapters, norms and the residual stream are float32.
        save_merged: whether a checkpoint holds the merged model (all of its weights, in the base's number format) beside the
            adapter. false: the adapter alone, small; it loads with the model that it lies on (ours: true, so that a
            checkpoint loads anywhere).
    """

    rank: Annotated[int, Range(1, 2**16, also="; --set lora=null trains all weights")] = 8
    alpha: Annotated[float, Range(above=0, most=1e6)] = 16.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    base_dtype: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    save_merged: bool = True

    def __post_init__(self) -> None:
        check(self, "lora.")
        if not self.target_modules:
            raise UserError("lora.target_modules is empty; name a linear layer, for example q_proj")
        if self.base_dtype == "nf4" and not self.save_merged:
            raise UserError(
                "lora.save_merged = false cannot be with base_dtype nf4: without bitsandbytes there are no 4-bit weights to merge an adapter into; use --set lora.save_merged=true"
            )

    def base(self, precision: str) -> str:
        """The number format of the frozen weights in a run of this precision: float32, bfloat16 or nf4.

        Raises:
            UserError: weights that only autocast can multiply, and a run without it.
        """
        if self.base_dtype == "auto":
            return "bfloat16" if precision == "bf16" else "float32"
        if self.base_dtype != "float32" and precision != "bf16":
            raise UserError(
                f"lora.base_dtype = {self.base_dtype} computes in bfloat16, and precision is {precision}; use --set precision=bf16, or lora.base_dtype=auto"
            )
        return self.base_dtype


@dataclass(frozen=True)
class StageConfig:
    """One training stage.

    Attributes:
        seed: of the row order and the noise.
        steps: optimiser steps; null = `epochs` over the data.
        epochs: passes over the data where `steps` is null (stage 3: 1 + 4, DiffuCoder B.1).
        global_batch: rows a step over all processes and accumulation (10 nodes x 8 GPUs x 2: DiffuCoder B.1).
        micro_batch: rows in one forward pass of one process (2: DiffuCoder B.1); accumulation follows from it.
        precision: number format of the forward pass; weights that train, and the optimiser, are float32 either way.
        attention: sdpa, flash_attention_2, flex or eager.
        activation_checkpointing: recompute activations in the backward pass.
        compile: torch.compile the blocks.
        kernels: liger = fused RMSNorm, rotary embedding and SwiGLU of liger-kernel (arXiv 2410.10989; a GPU only).
        check_data: read all rows once, before the first step, and compare their checksums; a set of hundreds of GB takes the
            time of reading it from its disk.
        prefetch: steps whose rows are read and noised ahead, by a thread, while the device computes; 0 = none; null = 2 on
            a GPU (PyTorch's DataLoader), 0 on a CPU, where the thread takes the time that it saves.
        weighting: elbo (1/t), uniform, or cart (Dream).
        cart_p: CART's p.
        normalizer: what the loss is divided by: eligible (the ELBO per token), masked, positions or answer.
        t_min: smallest mask ratio.
        stratified_t: spread t evenly over each global batch.
        anneal_steps: steps from causal to full attention in stage 1 (10,000: DiffuCoder B.1); 0 = full from the start.
        truncate_share: share of rows cut to a random length (1%: DiffuCoder B.1, stages 1 and 2).
        clean_prefix_share: share of rows with a random-length prefix that is never noised (1%: the same).
        conditional_phase_in: epochs over which the never-noised prompt is phased in (stage 3: 1, DiffuCoder B.1).
        isolate_documents: tokens attend within their own packed document only.
        evaluate_every: steps between evaluations on the held-out rows; 0 = only at the end.
        evaluate_rows: held-out rows used, shared out evenly over the sources.
        checkpoint_every: steps between checkpoints; 0 = only at the end.
        keep_checkpoints: the last so many are kept, and the best.
        early_stopping: evaluations without a better held-out loss before stopping; 0 = off.
        stop_at_loss: held-out loss at or below which an evaluation ends the training, to compare models at equal loss
            instead of equal steps (ours); null = off.
        log_every: steps between lines of metrics.
        optimizer: see OptimizerConfig.
        lora: see LoraConfig; null = all weights train. Stages 2 and 3 only.
    """

    seed: Seed = 0
    steps: Annotated[int, Range(1, also=", or null for epochs")] | None = None
    epochs: Epochs = 1.0
    global_batch: Rows = 160
    micro_batch: Rows = 2
    precision: Literal["bf16", "fp32"] = "bf16"
    attention: Attention = "sdpa"
    activation_checkpointing: bool = False
    compile: bool = False
    kernels: Literal["none", "liger"] = "none"
    check_data: bool = True
    prefetch: Annotated[int, Range(0, 1000, also=", or null for the device's default")] | None = None
    weighting: Literal["elbo", "uniform", "cart"] = "elbo"
    cart_p: Between = 0.1
    normalizer: Literal["eligible", "masked", "positions", "answer"] = "eligible"
    t_min: Between = 1e-3
    stratified_t: bool = False
    anneal_steps: CountOrNone = 0
    truncate_share: Share = 0.0
    clean_prefix_share: Share = 0.0
    conditional_phase_in: Annotated[float, Range(0, most=1e6)] = 0.0
    isolate_documents: bool = False
    evaluate_every: CountOrNone = 1000
    evaluate_rows: CountOrNone = 256
    checkpoint_every: CountOrNone = 1000
    keep_checkpoints: Count = 2
    early_stopping: CountOrNone = 0
    stop_at_loss: Annotated[float, Range(above=0, also="; null trains all steps")] | None = None
    log_every: Count = 1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.lora is not None:
            self.lora.base(self.precision)

    def total_steps(self, rows: int) -> int:
        """Optimiser steps of a run over a training set of `rows` rows."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * rows / self.global_batch))

    def check_annealing(self, total_steps: int) -> None:
        """Raises UserError where stage 1 would end before its attention is full: the model would still be half causal."""
        if self.anneal_steps > total_steps:
            raise UserError(
                f"anneal_steps = {self.anneal_steps} is more than this run's {total_steps} steps, so attention would not get full; "
                f"use --set anneal_steps={max(1, total_steps // 10)} (a tenth of the steps: DiffuCoder B.1), or 0 for full from the start"
            )


def stage_number(name: str) -> int:
    """0-3 of a stage's number or name. Raises UserError for another."""
    if name not in STAGES:
        raise UserError(f"stage {name!r} is unknown; use 0 (ar), 1 (adapt), 2 (mid) or 3 (sft)")
    return STAGES[name]

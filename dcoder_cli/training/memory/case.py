"""One section of a preset on given hardware: its settings as the memory formula takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.ranges import Count, Rows
from dcoder_cli.training.config import LoraConfig, StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.memory import parts
from dcoder_cli.training.memory.parts import DecodingPass, MemoryEstimate
from dcoder_cli.training.memory.pieces import ForwardPass, Spread, Way
from dcoder_cli.training.memory.shape import Shape

GIB = 1024**3
# Tokens. pretrain: DiffuCoder B.1. sft: ours, the README's. prompt: of stage 4, the default of `tokenize rl`. question: of generate
# and eval, ours: more than any of HumanEval's with its chat.
ROWS = {"pretrain": 4096, "sft": 2048, "prompt": 200, "question": 512}
# Copies of a chunk's logits that are alive at once while tokens are chosen: as they came, probabilities, two to score with.
# decoding/room.py plans for one more, which some settings take.
ALIVE = 4


@dataclass(frozen=True)
class Decoding:
    """generate and eval: rows decoded together, and how the model is loaded."""

    max_new_tokens: Count = 256
    batch_size: Rows = 8  # of both commands
    logits_mib: Count | None = None
    mode: Literal["exact", "fast"] = "exact"
    dtype: Literal["float32", "bfloat16"] = "float32"  # as training here stores it


@dataclass(frozen=True)
class Case:
    """A section with its settings on so many GPUs.

    Attributes:
        section: stage0 to stage3, grpo, generate or eval.
        config: the section's settings.
        spread, gpus: how the processes share the model.
        rows: tokens of a row by kind of data, as ROWS.
        cpu: whether it runs on a CPU, where sampling has other defaults.
    """

    section: str
    shape: Shape
    config: StageConfig | GrpoConfig | Decoding
    spread: Spread = "one"
    gpus: int = 1
    rows: dict[str, int] = field(default_factory=lambda: dict(ROWS))
    cpu: bool = False

    def changed(self, **changes: Any) -> Case:
        """With other settings of the section; `gpus`, `spread` are the case's. Raises UserError for wrong ones."""
        own = {name: changes.pop(name) for name in ("gpus", "spread") if name in changes}
        return replace(self, config=replace(self.config, **changes), **own)

    @property
    def way(self) -> Way:
        """How a process of it computes."""
        config = self.config
        if isinstance(config, Decoding):
            return Way("bf16" if config.dtype == "bfloat16" else "fp32")
        base = "float32" if config.lora is None else _base(config.lora, config.precision)
        return Way(
            config.precision, self.spread, self.gpus, config.activation_checkpointing, config.lora, base,
            config.optimizer.name == "adamw-8bit", isinstance(config, GrpoConfig) and not config.train_embeddings,
        )  # fmt: skip

    @property
    def micro_batches(self) -> int:
        """Of one process in one update."""
        config = self.config
        if isinstance(config, StageConfig):
            return math.ceil(config.global_batch / self.gpus / config.micro_batch)
        assert isinstance(config, GrpoConfig)
        return math.ceil(config.prompts_per_step * config.group_size / self.gpus / config.micro_batch)

    @property
    def batch(self) -> ForwardPass:
        """The largest forward pass of training: a micro-batch's rows, all of their places asked."""
        config, sdpa = self.config, self.config_attention
        if isinstance(config, StageConfig):
            length = self.rows["sft" if self.section == "stage3" else "pretrain"]
            count = min(config.micro_batch, math.ceil(config.global_batch / self.gpus))
            # sdpa is given a mask where attention is causal or annealed, and one for each row where rows have pads
            shared = self.section == "stage0" or (self.section == "stage1" and config.anneal_steps > 0)
            own = config.isolate_documents or config.truncate_share > 0
            mask = count if own else int(shared)
            return ForwardPass(count, length, count * length, mask if sdpa else 0, config.attention != "eager")
        assert isinstance(config, GrpoConfig)
        completions = min(config.micro_batch, math.ceil(config.prompts_per_step / self.gpus) * config.group_size)
        prompts = math.ceil(completions / config.group_size)
        new = config.rollout.max_new_tokens
        # The passes of the estimator (diffusion/coupled.py): a shared one for each prompt, and pairs of complements
        pairs = 2 * config.pairs * completions
        count = {"full-mask": prompts, "d1": completions}.get(config.estimator, prompts + pairs)
        asked = {"full-mask": prompts, "d1": completions}.get(config.estimator, prompts + config.pairs * completions)
        length = self.rows["prompt"] + new
        return ForwardPass(count, length, asked * new, count if sdpa else 0, config.attention != "eager")

    @property
    def config_attention(self) -> bool:
        """Whether attention takes its mask as a tensor (sdpa and eager)."""
        return not isinstance(self.config, Decoding) and self.config.attention in ("sdpa", "eager")

    def estimate(self) -> MemoryEstimate:
        """Bytes on each GPU, by phase and part."""
        from dcoder_cli.diffusion.vocabulary import chunk_rows

        config, shape, way = self.config, self.shape, self.way
        if isinstance(config, Decoding):
            sampling = self._sampling(config.batch_size, config.max_new_tokens, config.mode, config.logits_mib)
            return parts.decoding(shape, way, sampling, 2 if config.dtype == "bfloat16" else 4)
        several = self.micro_batches > 1
        chunk = chunk_rows(shape.vocab, "cpu" if self.cpu else "cuda")
        if isinstance(config, StageConfig):
            return parts.training(shape, way, self.batch, chunk, several)
        rollout = config.rollout
        sampled = math.ceil(config.prompts_per_step / self.gpus) * config.group_size
        sampling = self._sampling(
            min(rollout.batch_size, sampled), rollout.max_new_tokens, rollout.mode, rollout.logits_mib
        )
        reference = None
        if config.holds_reference:  # as training/grpo/reference.py holds it
            reference = 2.0 if config.precision == "bf16" and config.reference_alpha == 1 else 4.0
        return parts.grpo(shape, way, self.batch, chunk, several, sampling, reference)

    def _sampling(self, rows: int, new: int, mode: str, logits_mib: int | None) -> DecodingPass:
        from dcoder_cli.decoding import room
        from dcoder_cli.decoding.requests import BLOCK

        before = self.rows["question" if isinstance(self.config, Decoding) else "prompt"]
        judged = BLOCK if mode == "fast" and new % BLOCK == 0 else new  # of each row, at a step
        batch = ForwardPass(rows, before + new, rows * judged, rows)
        bound = (logits_mib or (room.CPU_MIB if self.cpu else room.ACCELERATOR_MIB)) * 2**20
        whole = 4.0 * batch.asked * self.shape.vocab
        if not self.cpu:
            return DecodingPass(batch, ALIVE * min(bound / room.COPIES, whole), mode == "fast")
        chunk = min(bound / room.CPU_COPIES, whole)
        part = min(chunk, room.CACHED, max(room.WORTH, chunk / room.COPIES))
        return DecodingPass(batch, chunk + (ALIVE - 1) * part, mode == "fast")


def _base(lora: LoraConfig, precision: str) -> str:
    """The number format of the frozen weights."""
    return ("bfloat16" if precision == "bf16" else "float32") if lora.base_dtype == "auto" else lora.base_dtype


def spread_of(launch: dict[str, Any], gpus: int) -> Spread:
    """How a preset's launch section shares the model. Raises UserError for another way than one process, DDP or FSDP."""
    kind = str(launch.get("distributed_type", "NO")).upper()
    if gpus == 1 or kind == "NO":
        return "one"
    if kind == "FSDP":
        return "fsdp"
    if kind.startswith("MULTI_"):
        return "ddp"
    raise UserError(f"launch: distributed_type = {kind} is not what dcoder trains under; use FSDP, MULTI_GPU or NO")

"""Whether a section fits its cards, and which settings would: the search behind `dcoder presets fit`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.training.config import LoraConfig, StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.memory.case import GIB, Case, Decoding
from dcoder_cli.training.memory.parts import MemoryEstimate

# What a card keeps for itself. The CUDA context and the loaded kernels: 1 to 2 GB, 1.3 measured (Hugging Face's "Model training
# anatomy"). What the caching allocator cannot use between blocks, and collectives' buffers: 5% (ours; PyTorch names no number).
CONTEXT_GIB = 1.5
FRAGMENTED = 0.05
# Ours, to order settings by time, not to predict it: an H100's dense bf16 rate at the share of it that training reaches, the
# rate of a node's links for gathered weights, and the tokens at which a forward pass reaches half of its rate.
FLOPS, LINK, HALF = 0.4 * 989e12, 200e9, 1024
MOST_GPUS = 128


def budget(memory_gib: float, cpu: bool = False) -> float:
    """Bytes of a card that may be planned with."""
    return memory_gib * GIB * (1 - FRAGMENTED) - (0 if cpu else CONTEXT_GIB * GIB)


@dataclass(frozen=True)
class Choice:
    """Settings that were tried: what is other than asked, the bytes on each GPU, and seconds for the work of one step."""

    changes: dict[str, Any]
    case: Case
    total: float
    seconds: float

    def told(self) -> str:
        """The changes as `--set` would have them."""
        words = []
        for name, value in self.changes.items():
            shown = "null" if value is None else "true" if value is True else "false" if value is False else value
            if name == "lora" and value is not None:
                words.append(f"lora.rank={value.rank}")
            elif name == "gpus":
                words.append(f"{value} GPUs")
            elif name == "spread":
                words += {"fsdp": ["under FSDP2"], "ddp": ["under DDP"], "one": []}[value]
            elif name == "batch_size" and isinstance(self.case.config, GrpoConfig):
                words.append(f"rollout.batch_size={shown}")
            elif name == "optimizer":
                words.append("optimizer.name=adamw-8bit")
            else:
                words.append(f"{name}={shown}")
        return " ".join(words) or "as it is"


@dataclass(frozen=True)
class Fit:
    """A section on its cards.

    Attributes:
        case, estimate: what was asked, and its memory.
        budget: bytes of a card.
        fastest: of the settings that fit on as many GPUs, the fastest; None where none fits.
        otherwise: what would fit where nothing does: on more GPUs, by LoRA, with 8-bit Adam; the fastest of each kind.
    """

    case: Case
    estimate: MemoryEstimate
    budget: float
    fastest: Choice | None
    otherwise: list[Choice]

    @property
    def fits(self) -> bool:
        """The verdict."""
        return self.estimate.total <= self.budget

    @property
    def speed(self) -> float:
        """How many times as fast the fastest is as what was asked, by the count of `seconds`."""
        return 1.0 if self.fastest is None else seconds(self.case) / self.fastest.seconds


def fit(case: Case, memory_gib: float, cpu: bool = False) -> Fit:
    """The memory of a case, the verdict, and what else would fit a card of `memory_gib` GiB."""
    room = budget(memory_gib, cpu)
    fastest = _fastest(_tried(case, {}), room)
    otherwise = []
    if fastest is None:
        kinds: list[Iterator[dict[str, Any]]] = [_more_gpus(case), _by_lora(case), _eight_bit(case)]
        for kind in kinds:
            found = next((one for changes in kind if (one := _fastest(_tried(case, changes), room))), None)
            if found is not None:
                otherwise.append(found)
    return Fit(case, case.estimate(), room, fastest, otherwise)


def _fastest(choices: Iterator[Choice], room: float) -> Choice | None:
    """Of equally fast ones the one that needs less, and changes less."""
    fitting = [one for one in choices if one.total <= room]
    return min(fitting, key=lambda one: (round(one.seconds, 9), len(one.changes), one.total), default=None)


def _tried(case: Case, changes: dict[str, Any]) -> Iterator[Choice]:
    """The case with `changes`, and every micro-batch, checkpointing or batch of rows on top."""
    try:
        start = case.changed(**changes)
    except UserError:
        return
    config = start.config
    if isinstance(config, Decoding):
        inner: list[dict[str, Any]] = [{"batch_size": 2**power} for power in range(8)]
    else:
        most = _most_rows(start)
        sizes = sorted({config.micro_batch, *(2**power for power in range(9))})
        inner = [
            {"micro_batch": size, "activation_checkpointing": again}
            for size in sizes
            for again in (False, True)
            if size <= most and (isinstance(config, GrpoConfig) or most % size == 0)
        ]
        if isinstance(config, GrpoConfig):
            batches = sorted({config.rollout.batch_size, *(2**power for power in range(2, 9))})
            inner = [{**one, "batch_size": size} for one in inner for size in batches]
    for more in inner:
        made = _with(start, more)
        other = {name: value for name, value in {**changes, **more}.items() if value != _now(case, name)}
        yield Choice(other, made, made.estimate().total, seconds(made))


def _with(case: Case, changes: dict[str, Any]) -> Case:
    from dataclasses import replace

    if isinstance(case.config, GrpoConfig) and "batch_size" in changes:
        rollout = replace(case.config.rollout, batch_size=changes["batch_size"])
        return case.changed(**{name: value for name, value in changes.items() if name != "batch_size"}, rollout=rollout)
    return case.changed(**changes)


def _now(case: Case, name: str) -> Any:
    if name == "batch_size" and isinstance(case.config, GrpoConfig):
        return case.config.rollout.batch_size
    return getattr(case if name in ("gpus", "spread") else case.config, name)


def _most_rows(case: Case) -> int:
    """Rows (completions) of one process in one update."""
    config = case.config
    if isinstance(config, StageConfig):
        return math.ceil(config.global_batch / case.gpus)
    assert isinstance(config, GrpoConfig)
    return math.ceil(config.prompts_per_step / case.gpus) * config.group_size


def _more_gpus(case: Case) -> Iterator[dict[str, Any]]:
    """Twice as many GPUs, and so on, sharded; only numbers that the step's rows or prompts share out over."""
    config = case.config
    if isinstance(config, Decoding):
        return
    whole = config.global_batch if isinstance(config, StageConfig) else config.prompts_per_step
    count = max(2, case.gpus * (2 if case.spread == "fsdp" else 1))
    while count <= MOST_GPUS:
        if whole % count == 0:
            yield {"gpus": count, "spread": "fsdp"}
        count *= 2


def _by_lora(case: Case) -> Iterator[dict[str, Any]]:
    """Stages 2 to 4 on as many GPUs: a copy of the base on each, then sharded."""
    config = case.config
    if isinstance(config, Decoding) or case.section in ("stage0", "stage1") or config.lora is not None:
        return
    more = {"reference_sync": 0, "reference_alpha": 1.0} if isinstance(config, GrpoConfig) else {}
    yield {"lora": LoraConfig(), **more, "spread": "one" if case.gpus == 1 else "ddp"}
    if case.gpus > 1:
        yield {"lora": LoraConfig(), **more, "spread": "fsdp"}


def _eight_bit(case: Case) -> Iterator[dict[str, Any]]:
    from dataclasses import fields, replace

    config = case.config
    if isinstance(config, Decoding):
        if config.dtype == "float32":
            yield {"dtype": "bfloat16"}
    elif any(one.name == "name" for one in fields(config.optimizer)):
        less: dict[str, Any] = {"name": "adamw-8bit"}
        yield {"optimizer": replace(config.optimizer, **less)}


def seconds(case: Case) -> float:
    """Of one step of the section on its GPUs, to order settings by: floating-point operations, and weights gathered.

    A forward pass takes 2 operations a parameter and token, a backward pass 4 (frozen weights: 2), computing again 2. Gathered
    weights and reduced gradients go over the links while that runs. Decoding: a step for every new token of a batch of rows.
    """
    config, shape = case.config, case.shape
    parameters = shape.layers * shape.matrices + shape.table
    if isinstance(config, Decoding):
        rows, new = 128, config.max_new_tokens
        return _decoding(parameters, rows, config.batch_size, case.rows["question"] + new, new)
    way, batch, count = case.way, case.batch, case.micro_batches
    per_token = 2 + (2 if way.lora else 4) + (2 if way.checkpointing else 0)
    passes = per_token * parameters * count * _tokens(batch.tokens)
    whole = shape.parameters * way.computed
    moved = count * (2 * whole + (4 * shape.parameters if not way.lora else 0)) if way.spread == "fsdp" else 0
    once = max(passes / FLOPS, moved / LINK)
    if isinstance(config, StageConfig):
        return once
    frozen = 2 * parameters * count * _tokens(batch.tokens) / FLOPS
    rollout = config.rollout
    rows = _most_rows(case)
    length = case.rows["prompt"] + rollout.max_new_tokens
    steps = rollout.steps or rollout.max_new_tokens
    return config.inner_iterations * (once + 2 * frozen) + _decoding(
        parameters, rows, rollout.batch_size, length, steps
    )


def _decoding(parameters: int, rows: int, batch_size: int, length: int, steps: int) -> float:
    batches = math.ceil(rows / batch_size)
    return batches * steps * 2 * parameters * _tokens(min(rows, batch_size) * length) / FLOPS


def _tokens(tokens: int) -> float:
    """Tokens whose time a forward pass of so many takes: short ones do not fill the card."""
    return tokens + HALF

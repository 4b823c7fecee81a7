"""The memory of a stage on each GPU, by part: for every phase of a step what is there, and the phase that holds most.

weights      what the process stores of the model: float32, or its share; LoRA: the base and the adapters
gradients    of what trains, with those in flight: a bucket's copy (DDP), what is being reduced (FSDP2), the head's
moments      Adam's two
reference    stage 4's frozen model
gathered     weights in the form in which they are computed with: bf16 copies (autocast), whole ones (FSDP2, rollouts)
activations  what autograd keeps, and what a block needs for a moment
logits       of the places read at once
cache        keys and values of the fast mode
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dcoder_cli.training.memory import pieces
from dcoder_cli.training.memory.pieces import ForwardPass, Way
from dcoder_cli.training.memory.shape import Shape

PARTS = ("weights", "gradients", "moments", "reference", "gathered", "activations", "logits", "cache")
NF4 = 0.5 + 4 / 64  # bytes a weight: 4 bits, and a float32 scale for each block of 64 (QLoRA, arXiv 2305.14314)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a GPU.

    Attributes:
        phases: name -> part -> bytes; a part that is not named is 0.
    """

    phases: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def peak_phase(self) -> str:
        """The phase that holds most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, float]:
        """Every part at the peak, in the order of PARTS."""
        at_peak = self.phases[self.peak_phase]
        return {part: at_peak.get(part, 0.0) for part in PARTS}

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return sum(self.parts.values())


def stored(shape: Shape, way: Way) -> dict[str, float]:
    """Weights and moments, which are there all the time from the second update on."""
    trains = pieces.trainable(shape, way)
    small = shape.parameters - shape.layers * shape.matrices
    base = {"float32": 4.0 * shape.parameters, "bfloat16": 2.0 * shape.parameters,
            "nf4": NF4 * shape.layers * shape.matrices + 2.0 * small}  # fmt: skip
    weights = 4.0 * shape.parameters if way.lora is None else base[way.base] + 4 * trains
    # 8-bit: a byte a number, and a float32 scale for each block of 256 (bitsandbytes, Dettmers et al., arXiv 2110.02861)
    moment = 2 * (1 + 4 / 256) if way.eight_bit else 8
    return {"weights": way.shared(weights), "moments": way.shared(moment * trains)}


def training(shape: Shape, way: Way, batch: ForwardPass, rows: int, accumulates: bool) -> MemoryEstimate:
    """Stages 0 to 3.

    Args:
        batch: a micro-batch.
        rows: rows of logits at once (diffusion/vocabulary.py's `chunk_rows`).
        accumulates: a step has more than one micro-batch, so gradients are there while the next is computed.
    """
    phases = _update(shape, way, batch, rows, accumulates, at_once=True)
    return MemoryEstimate({name: stored(shape, way) | phase for name, phase in phases.items()})


@dataclass(frozen=True)
class DecodingPass:
    """How completions are decoded.

    Attributes:
        batch: rows decoded together, prompt and answer.
        logits: bytes of logits and of what is computed from them at once (decoding's budget).
        cache: whether keys and values of whole rows are kept (mode fast, cache prefix or dual).
    """

    batch: ForwardPass
    logits: float
    cache: bool = False


def grpo(
    shape: Shape,
    way: Way,
    batch: ForwardPass,
    rows: int,
    accumulates: bool,
    sampling: DecodingPass,
    reference: float | None,
) -> MemoryEstimate:
    """Stage 4.

    Args:
        batch: the rows of all passes of a micro-batch of completions.
        reference: bytes a weight of the reference; None without one (no KL term, or LoRA, whose adapter is switched off).
    """
    there = stored(shape, way)
    if reference is not None:
        there["reference"] = way.shared(reference * shape.parameters)
    logits = pieces.head_logits(shape, way, batch.asked, rows)
    every, _, _ = pieces.casts(shape, way)
    ahead, _, _ = pieces.gathered(shape, way)
    passing = pieces.passing_block(shape, way, batch) + _end(shape, way, batch)
    whole = way.computed * shape.parameters if way.spread == "fsdp" else every  # gathered once for all decoding
    phases = {
        **{f"rollout, {name}": held | {"gathered": float(whole)} for name, held in _decoding(shape, way, sampling).items()},
        "old and reference": {"gathered": float(every + ahead), "activations": float(passing), "logits": float(logits)},
    }  # fmt: skip
    phases |= _update(shape, way, batch, rows, accumulates, at_once=False)
    return MemoryEstimate({name: there | phase for name, phase in phases.items()})


def decoding(shape: Shape, way: Way, sampling: DecodingPass, number: int) -> MemoryEstimate:
    """generate and eval: the model loaded with `number` bytes a weight, no training."""
    weights = {"weights": float(number * shape.parameters)}
    return MemoryEstimate({name: weights | held for name, held in _decoding(shape, way, sampling).items()})


def _decoding(shape: Shape, way: Way, sampling: DecodingPass) -> dict[str, dict[str, float]]:
    """The two phases of a denoising step: the blocks, then the logits of what may be committed."""
    batch = sampling.batch
    cache = float(2 * shape.layers * way.computed * shape.keys * batch.tokens if sampling.cache else 0)
    passing, end = pieces.passing_block(shape, way, batch), _end(shape, way, batch)
    return {
        "blocks": {"activations": float(passing), "cache": cache},
        "logits": {"activations": float(end), "logits": sampling.logits, "cache": cache},
    }


def _end(shape: Shape, way: Way, batch: ForwardPass) -> int:
    """Final hidden states: as they are, shifted, and at the places read."""
    return way.stream * shape.hidden * (batch.tokens + batch.asked)


def _update(
    shape: Shape, way: Way, batch: ForwardPass, rows: int, accumulates: bool, at_once: bool
) -> Mapping[str, dict[str, float]]:
    """The phases of a micro-batch's forward and backward pass, and its end, when all gradients are there.

    `at_once`: logits are computed and teach in the forward pass (stages 0-3); else they are computed again to teach.
    """
    gradients = way.shared(4.0 * pieces.trainable(shape, way)) * (
        2 if way.spread == "ddp" else 1
    )  # DDP: and its buckets
    before = gradients if accumulates else 0.0
    kept = pieces.kept(shape, way, batch)
    again = pieces.held_by_block(shape, way, batch) if way.checkpointing else 0
    passing = pieces.passing_block(shape, way, batch)
    copies = [cast + whole for cast, whole in zip(pieces.casts(shape, way), pieces.gathered(shape, way), strict=True)]
    in_flight, waiting = pieces.head_gradient(shape, way)
    logits = pieces.head_logits(shape, way, batch.asked, rows)
    reducing, at_end = pieces.reducing(shape, way)
    if at_once and way.spread == "fsdp":  # the head teaches while no block is gathered
        copies[1] = way.computed * shape.root
    stream = way.stream * shape.hidden * (batch.tokens + batch.asked)
    last = way.stream * shape.hidden * batch.tokens
    if way.spread != "fsdp":  # the embedding's gradient, and a tied head's, which waited for it
        at_end = waiting + (4 * shape.table if way.lora is None and not way.frozen_tables else 0)
    return {
        "forward": {
            "gradients": before, "gathered": copies[0], "logits": 0 if at_once else logits,
            "activations": kept + (passing if way.checkpointing else last),
        },
        "head" if at_once else "backward of the head": {
            "gradients": before + in_flight, "gathered": copies[1], "logits": logits, "activations": kept + stream,
        },
        "backward of the blocks": {
            "gradients": before + (0 if way.spread == "fsdp" else waiting) + reducing, "gathered": copies[2],
            "activations": kept + again + pieces.backward_block(shape, way, batch),
        },
        "end of the backward pass": {"gradients": gradients + at_end, "activations": 2.0 * last},
    }  # fmt: skip

"""The terms of the memory formula: bytes that one process holds while it computes, each from what the code allocates.

What autograd keeps of a block was read off transformers' blocks (Qwen2's and Llama's are alike) and PyTorch's derivatives: a
linear layer keeps its input where its weight trains, RMSNorm its float32 input and what it is scaled from, attention q, k, v,
its output and a number a head, SiLU and the product after it their inputs. Measured beside it: docs/sizes.md.

Letters: T tokens of a micro-batch, D hidden size, F intermediate size, V vocabulary. All results are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dcoder_cli.training.config import LoraConfig
from dcoder_cli.training.memory.shape import Shape

Spread = Literal["one", "ddp", "fsdp"]


@dataclass(frozen=True)
class Way:
    """How a process computes.

    Attributes:
        precision: bf16 or fp32, of the forward pass.
        spread: one process, DDP, or FSDP2 (full shard: every process holds 1 / gpus of weights, gradients and moments).
        gpus: processes.
        checkpointing: blocks are computed again in the backward pass.
        lora: adapters alone train. `base`: the number format of the frozen weights below them.
        eight_bit: Adam's moments in 8 bits.
        frozen_tables: embedding and head do not train (stage 4's train_embeddings: false).
    """

    precision: Literal["bf16", "fp32"] = "bf16"
    spread: Spread = "one"
    gpus: int = 1
    checkpointing: bool = False
    lora: LoraConfig | None = None
    base: str = "float32"
    eight_bit: bool = False
    frozen_tables: bool = False

    @property
    def computed(self) -> int:
        """Bytes of a number that a linear layer makes."""
        return 2 if self.precision == "bf16" else 4

    @property
    def casts(self) -> bool:
        """Whether float32 matrices are cast to bf16 as they are used. FSDP2 gathers bf16, and LoRA's base may be bf16."""
        return self.precision == "bf16" and self.spread != "fsdp" and (self.lora is None or self.base == "float32")

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream: the embedding's, bf16 only where FSDP2 gathers it so (LoRA makes it float32)."""
        return self.computed if self.spread == "fsdp" and self.lora is None else 4

    def shared(self, numbers: float) -> float:
        """A process's part of what is spread over all."""
        return numbers / self.gpus if self.spread == "fsdp" else numbers


@dataclass(frozen=True)
class ForwardPass:
    """The rows of one forward pass.

    Attributes:
        rows, length: B and L.
        asked: places whose logits are read (stages 0-3: all of them, where t is near 1).
        mask: masks of L x L that attention is given: 0 = none, 1 = one for all rows, else one a row.
        flash: whether attention is a fused kernel (sdpa, flash-attention and flex are; eager holds L x L scores a head).
    """

    rows: int
    length: int
    asked: int
    mask: int = 0
    flash: bool = True

    @property
    def tokens(self) -> int:
        """T."""
        return self.rows * self.length

    def with_rows(self, rows: int) -> ForwardPass:
        """The same with another number of rows."""
        return replace(self, rows=rows, asked=round(self.asked * rows / self.rows), mask=min(self.mask, rows))


def trainable(shape: Shape, way: Way) -> int:
    """Parameters that train."""
    if way.lora is not None:
        return shape.adapters(way.lora.rank, way.lora.target_modules)
    tables = shape.table * (1 if shape.tied else 2)
    return shape.parameters - (tables if way.frozen_tables else 0)


def held_by_block(shape: Shape, way: Way, batch: ForwardPass) -> int:
    """What autograd keeps of one block."""
    width, c, s = shape.hidden, way.computed, way.stream
    keys = shape.queries if batch.mask else shape.keys  # with a mask, keys and values are repeated for every query head
    mixed = c < s  # a float32 stream is cast to bf16 for each layer that reads it
    norm = s * width + 4  # its input, and a number (model/lean.py)
    if way.lora is None:
        inputs = 5 * c * width if mixed else 2 * c * width  # q, k, v, gate, up; or one for q, k, v and one for gate, up
        inputs += c * shape.intermediate  # of the layer down
    else:  # frozen layers keep nothing of their input; A keeps its own cast of it
        adapted = set(way.lora.target_modules)
        read = ({"q_proj", "k_proj", "v_proj"} & adapted, {"gate_proj", "up_proj"} & adapted)
        inputs = c * width * sum(len(names) if mixed else bool(names) for names in read)
        inputs += c * shape.intermediate * ("down_proj" in adapted)
        inputs += c * shape.queries * ("o_proj" in adapted and mixed)
    attention = c * (2 * shape.queries + 2 * keys) + 4 * shape.heads  # q, k, v, the output, a number a head
    mlp = 2 * c * shape.intermediate  # gate and up (model/lean.py)
    scores = 0 if batch.flash else (4 + c) * shape.heads * batch.length  # eager: float32 softmax, and its cast
    masks = c * batch.mask * batch.length**2 if batch.flash else 0  # a fused kernel takes the mask as numbers
    return batch.tokens * (2 * norm + inputs + attention + mlp + scores) + masks


def passing_block(shape: Shape, way: Way, batch: ForwardPass) -> int:
    """What one block needs for a moment in a forward pass that keeps nothing: residual, its input, gate, up, their product."""
    c, s = way.computed, way.stream
    cast = c * shape.hidden if c < s else 0
    return batch.tokens * (3 * c * shape.intermediate + 2 * s * shape.hidden + cast)


def backward_block(shape: Shape, way: Way, batch: ForwardPass) -> int:
    """What one block's backward pass needs beside what is kept: two gradients of width F, the stream's, one weight's."""
    largest = max((out * into for _, out, into in shape.linear), default=0)
    weight = 0 if way.lora is not None else largest * (6 if way.casts else way.computed)
    return batch.tokens * (2 * way.computed * shape.intermediate + 2 * way.stream * shape.hidden) + weight


def kept(shape: Shape, way: Way, batch: ForwardPass) -> int:
    """What autograd keeps of a whole forward pass but the head: all blocks (their inputs, with checkpointing) and the end.

    The end: the last norm, and the hidden states at the places asked.
    """
    s, tokens = way.stream, batch.tokens
    block = s * shape.hidden * tokens if way.checkpointing else held_by_block(shape, way, batch)
    end = tokens * (shape.hidden * s + 4) + batch.asked * shape.hidden * s
    own = batch.mask * batch.length**2 + 8 * 4 * tokens  # the mask itself, ids, positions
    return shape.layers * block + end + own


def casts(shape: Shape, way: Way) -> tuple[int, int, int]:
    """bf16 copies of float32 weights under autocast: all at the end of a forward pass, in the head's, in a block's backward.

    Autocast keeps each copy until it ends, and it spans the forward pass; without checkpointing the graph then holds them.
    """
    if way.lora is not None and way.base == "nf4":  # a matrix of 4-bit numbers is made bf16 when its turn comes
        one = 2 * max((out * into for _, out, into in shape.linear), default=0)
        return one, one, one
    if not way.casts:
        return 0, 0, 0
    every = 2 * (shape.layers * shape.matrices + shape.table)
    if way.checkpointing:
        return every, 2 * shape.table, 2 * shape.matrices
    return every, every, every - 2 * shape.table


def gathered(shape: Shape, way: Way) -> tuple[int, int, int]:
    """Weights that FSDP2 has gathered, at the end of a forward pass, in the head's backward, in a block's backward.

    The root's (embedding, last norm, head) stay gathered from the forward to the end of the backward pass. Of blocks there are
    the one that computes, and the flat buffer of the one that is fetched ahead.
    """
    if way.spread != "fsdp":
        return 0, 0, 0
    c = way.computed
    root, block = c * shape.root, c * shape.block
    return root + 2 * block, root + 2 * block, root + 2 * block


def reducing(shape: Shape, way: Way) -> tuple[int, int]:
    """Gradients on their way under FSDP2: in a block's backward, and at the end, the root's.

    In a block's: the float32 copy of the block before, which is kept until its collective has ended, and the head's gradient,
    which waits for the root's turn. At the end, when the root's weights are
    shared again: its gradients and their float32 copy.
    """
    if way.spread != "fsdp" or way.lora is not None:
        return 0, 0
    c = way.computed
    return c * shape.table + 4 * shape.block, (c + 4) * shape.root + 4 * shape.block


def head_logits(shape: Shape, way: Way, asked: int, rows: int) -> int:
    """A chunk's logits (diffusion/vocabulary.py): float32, which become their own gradient; and where products are bf16, those."""
    return (6 if way.computed == 2 else 4) * min(asked, rows) * shape.vocab


def head_gradient(shape: Shape, way: Way) -> tuple[int, int]:
    """The head's gradient: while chunks are taught, and what waits in the blocks' backward for a tied head's embedding.

    It is added up in float32. bf16 products come as a matrix of their own first; as large is the copy that FSDP2 is given.
    """
    if way.lora is not None or way.frozen_tables:
        return 0, 0
    number = way.computed if way.spread == "fsdp" else 4
    return (6 if way.computed == 2 else 4) * shape.table, number * shape.table if shape.tied else 0

"""Cross-entropies and log-probabilities over a large vocabulary: logits exist for a chunk of places at a time.

Where the weight of every place is known beforehand (stages 0-3), a chunk's logits are computed once: its gradient is
taken in the forward pass, the idea of Liger's fused linear cross-entropy (arXiv 2410.10989). Where it follows from the
log-probabilities themselves (stage 4), the backward pass computes the logits of a trained head again.

Shapes: N places, n of them in a chunk, D hidden size, V vocabulary, E entries (place, token), e of them in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from dcoder_cli.model.head import head_matrix, product

if TYPE_CHECKING:
    from dcoder_cli.model.backbone import Model

# Ours: 512 rows of Qwen2.5-Coder's 152,064-word vocabulary, 0.3 GB of float32 logits, small beside a 7B model's activations.
CHUNK_LOGITS = 512 * 152_064
# Ours, on a CPU: logits that its caches hold, but rows enough that to read the head is little beside multiplying by it. Of 512
# hidden and 152,064 words one thread did 88 GFLOP/s with 64 rows, 100 with 128, 106 with 256 and 105 with 512.
CPU_LOGITS, CPU_ROWS = 2**22, 128


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """Rows of logits that may exist at once on a kind of device."""
    if device_type == "cpu":
        return max(CPU_ROWS, CPU_LOGITS // vocab_size)
    return max(1, CHUNK_LOGITS // vocab_size)


@dataclass(frozen=True)
class Head:
    """What makes logits of hidden states.

    Attributes:
        logits: hidden states [n, D] -> logits [n, V], float32 (float64 of a float64 model).
        parameters: the tensors in it that may train.
        matrix_VD: where logits are the product with this matrix, and nothing else; it is then all of `parameters`.
    """

    logits: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor] = ()
    matrix_VD: Tensor | None = None


def head_of(model: Model) -> Head:
    """A model's head, to be asked for inside the forward pass that uses it: FSDP2 has then gathered its weights."""
    return Head(model.head, list(model.network.lm_head.parameters()), head_matrix(model.network))


def weighted_cross_entropy(
    head: Head, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """The sum of weight times cross-entropy in nats, and each place's cross-entropy [N], which carries no gradient.

    Each chunk's logits are computed once. Where gradients of hidden states or head are wanted they are made there and then,
    the head's added up in float32, and the backward pass multiplies them by the sum's: it can run once.

    Args:
        weights_N: float32 constants.
        rows: rows of logits at once (see `chunk_rows`).
    """
    inputs = (hidden_ND, *(head.parameters if head.matrix_VD is None else (head.matrix_VD,)))
    wanted = [torch.is_grad_enabled() and one.requires_grad for one in inputs]
    walk = _by_autograd if head.matrix_VD is None else _by_matrix

    def all_chunks() -> tuple[Tensor, list[Tensor | None]]:
        return walk(head, hidden_ND, targets_N, weights_N, rows, wanted)

    if any(wanted):
        total, losses_N = _Accumulated.apply(all_chunks, weights_N, *inputs)  # type: ignore[no-untyped-call]
        return total, losses_N
    losses_N, _ = all_chunks()
    return (losses_N * weights_N).sum(), losses_N


class _Accumulated(torch.autograd.Function):
    """A sum whose gradients were found while it was computed."""

    @staticmethod
    def forward(
        ctx: Any, all_chunks: Callable[[], tuple[Tensor, list[Tensor | None]]], weights_N: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses_N, ctx.gradients = all_chunks()
        ctx.formats = [one.dtype for one in inputs]
        ctx.mark_non_differentiable(losses_N)
        return (losses_N * weights_N).sum(), losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a weighted_cross_entropy have been given out; compute it again")
        # In place: the head's is as large as the head.
        return (
            None,
            None,
            *(
                None if one is None else one.mul_(upstream).to(number)
                for one, number in zip(gradients, ctx.formats, strict=True)
            ),
        )


def _by_autograd(
    head: Head, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor, rows: int, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses of all places, and what is wanted of the gradients of hidden states and parameters, for any head."""
    trained = [one for one, want in zip(head.parameters, wanted[1:], strict=True) if want]
    sums = [torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32)) for one in trained]
    gradient_ND = torch.empty_like(hidden_ND) if wanted[0] else None
    losses = []
    for part in _chunks(len(hidden_ND), rows):
        hidden_nD = hidden_ND[part].detach().requires_grad_(wanted[0])
        with torch.set_grad_enabled(any(wanted)):
            losses_n = F.cross_entropy(head.logits(hidden_nD), targets_N[part], reduction="none")
            weighted = (losses_n * weights_N[part]).sum()
        losses.append(losses_n.detach())
        if not any(wanted):
            continue
        asked = [hidden_nD, *trained] if wanted[0] else trained
        found = list(torch.autograd.grad(weighted, asked, allow_unused=True, materialize_grads=True))
        if gradient_ND is not None:
            gradient_ND[part] = found.pop(0)
        for total, one in zip(sums, found, strict=True):
            total += one
    left = iter(sums)
    return torch.cat(losses), [gradient_ND, *(next(left) if want else None for want in wanted[1:])]


def _by_matrix(
    head: Head, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor, rows: int, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The same for a head that is a matrix: one buffer holds the logits of all chunks in turn, then their gradient."""
    assert head.matrix_VD is not None
    linear = _Product(hidden_ND, head.matrix_VD, rows)
    losses_N = torch.empty(len(hidden_ND), dtype=linear.wide, device=hidden_ND.device)
    gradient_ND = torch.empty_like(hidden_ND) if wanted[0] else None
    gradient_VD = linear.room() if wanted[1] else None
    for part in _chunks(len(hidden_ND), rows):
        targets_n1, weights_n1 = targets_N[part, None], weights_N[part, None]
        logits_nV = linear.logits(part)
        given_n1 = logits_nV.gather(1, targets_n1)
        largest_n1, sum_n1 = _exponentials_(logits_nV)
        losses_N[part] = (largest_n1 - given_n1 + sum_n1.log())[:, 0]
        if any(wanted):  # weight times softmax less one at the target
            share_n1 = weights_n1 / sum_n1
            logits_nV.mul_(share_n1)
            logits_nV.scatter_(1, targets_n1, logits_nV.gather(1, targets_n1) - weights_n1)
            linear.teach(part, logits_nV, gradient_ND, gradient_VD)
    return losses_N, [gradient_ND, gradient_VD]


def log_probabilities(head: Head, hidden_ND: Tensor, place_E: Tensor, target_E: Tensor, rows: int) -> Tensor:
    """log P(target) of each entry at its place of `hidden_ND`, float32 [E], with gradients.

    The backward pass computes a trained head's logits again, chunk by chunk; of a frozen head that is a matrix it needs none.
    """
    order_E = torch.argsort(place_E, stable=True)
    bounds = torch.tensor([part.start for part in _chunks(len(hidden_ND), rows)] + [len(hidden_ND)])
    cuts = torch.searchsorted(place_E[order_E], bounds.to(place_E.device)).tolist()
    entries = [order_E[low:high] for low, high in pairwise(cuts)]
    if head.matrix_VD is not None:
        wanted = torch.is_grad_enabled() and hidden_ND.requires_grad
        return _LogProbabilities.apply(hidden_ND, head.matrix_VD, place_E, target_E, entries, rows, wanted)  # type: ignore[no-any-return, no-untyped-call]

    def one_chunk(hidden_nD: Tensor, place_e: Tensor, target_e: Tensor) -> Tensor:
        logits_nV = head.logits(hidden_nD)
        return logits_nV[place_e, target_e] - torch.logsumexp(logits_nV, dim=-1)[place_e]

    parts = []
    for part, own_e in zip(_chunks(len(hidden_ND), rows), entries, strict=True):
        given = (hidden_ND[part], place_E[own_e] - part.start, target_E[own_e])
        parts.append(one_chunk(*given) if len(entries) == 1 else checkpoint(one_chunk, *given, use_reentrant=False))
    return torch.cat(parts)[torch.argsort(order_E)]


class _LogProbabilities(torch.autograd.Function):
    """log P of entries for a head that is a matrix W.

    The gradient of a place's hidden state is sum over its entries of g (W[target] - sum over tokens of P W). The last sum
    needs no g, so with a frozen W it is found in the forward pass. There it is held without the likeliest token's W, and its
    (P - 1) W is in it: where P is nearly 1, the small difference is then not one of two large numbers, each rounded.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, matrix_VD: Tensor, place_E: Tensor, target_E: Tensor,
        entries: list[Tensor], rows: int, wanted: bool,
    ) -> Tensor:  # fmt: skip
        linear = _Product(hidden_ND, matrix_VD, rows)
        frozen = wanted and not matrix_VD.requires_grad
        result_E = torch.empty(len(place_E), dtype=linear.wide, device=hidden_ND.device)
        lse_N1 = torch.empty(len(hidden_ND), 1, dtype=linear.wide, device=hidden_ND.device)
        likeliest_N = torch.empty(len(hidden_ND) if frozen else 0, dtype=torch.int64, device=hidden_ND.device)
        others_ND = torch.empty_like(hidden_ND) if frozen else None
        for part, own_e in zip(_chunks(len(hidden_ND), rows), entries, strict=True):
            logits_nV, mine_e = linear.logits(part), place_E[own_e] - part.start
            given_e = logits_nV[mine_e, target_E[own_e]]
            if frozen and len(logits_nV):
                likeliest_N[part] = logits_nV.argmax(dim=1)
            largest_n1, sum_n1 = _exponentials_(logits_nV)
            lse_N1[part] = largest_n1 + sum_n1.log()
            result_E[own_e] = given_e - largest_n1[mine_e, 0] - sum_n1.log()[mine_e, 0]
            if frozen:
                logits_nV.div_(sum_n1)
                likeliest_n1 = likeliest_N[part, None]
                logits_nV.scatter_(1, likeliest_n1, logits_nV.gather(1, likeliest_n1) - 1)
                linear.teach(part, logits_nV, others_ND, None)
        ctx.save_for_backward(hidden_ND, matrix_VD, place_E, target_E, lse_N1, likeliest_N, others_ND)
        ctx.entries, ctx.rows, ctx.low = entries, rows, linear.low
        return result_E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_E: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, matrix_VD, place_E, target_E, lse_N1, likeliest_N, others_ND = ctx.saved_tensors
        places = len(hidden_ND)
        sum_N1 = torch.zeros(places, 1, dtype=upstream_E.dtype, device=upstream_E.device)
        sum_N1[:, 0].index_put_((place_E,), upstream_E, accumulate=True)
        if others_ND is not None:
            target_ED, likeliest_ED = (matrix_VD[ids_E].to(ctx.low) for ids_E in (target_E, likeliest_N[place_E]))
            own_ED = target_ED.to(upstream_E.dtype) - likeliest_ED
            gradient_ND = -sum_N1 * others_ND
            gradient_ND.index_put_((place_E,), upstream_E[:, None] * own_ED, accumulate=True)
            return gradient_ND.to(hidden_ND.dtype), *[None] * 6
        linear = _Product(hidden_ND, matrix_VD, ctx.rows, ctx.low)
        gradient_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        gradient_VD = linear.room() if ctx.needs_input_grad[1] else None
        for part, own_e in zip(_chunks(places, ctx.rows), ctx.entries, strict=True):
            logits_nV = linear.logits(part).sub_(lse_N1[part]).exp_().mul_(-sum_N1[part])
            at = (place_E[own_e] - part.start, target_E[own_e])
            logits_nV.index_put_(at, upstream_E[own_e].to(logits_nV.dtype), accumulate=True)
            linear.teach(part, logits_nV, gradient_ND, gradient_VD)
        return gradient_ND, None if gradient_VD is None else gradient_VD.to(matrix_VD.dtype), *[None] * 5


class _Product:
    """Logits of a matrix, and what a gradient of theirs teaches, as a linear layer computes both.

    Attributes:
        low: the format of the products: autocast's, where it is on, else the matrix's own.
        wide: the format of logits and of sums: float32, or float64.
    """

    def __init__(self, hidden_ND: Tensor, matrix_VD: Tensor, rows: int, low: torch.dtype | None = None) -> None:
        self.low = _format(matrix_VD) if low is None else low
        self.wide = torch.promote_types(self.low, torch.float32)
        self.hidden_ND, self.matrix_VD = hidden_ND.detach(), matrix_VD.detach().to(self.low)
        shape = (min(rows, len(hidden_ND)), len(matrix_VD))
        self._low_nV = torch.empty(shape, dtype=self.low, device=hidden_ND.device)
        self._wide_nV = self._low_nV if self.wide == self.low else torch.empty_like(self._low_nV, dtype=self.wide)

    def logits(self, part: slice) -> Tensor:
        """Logits of a chunk, in a buffer that the next chunk's take over."""
        hidden_nD = self.hidden_ND[part].to(self.low)
        low_nV = product(hidden_nD, self.matrix_VD, self._low_nV[: len(hidden_nD)])
        return low_nV if self.wide == self.low else self._wide_nV[: len(low_nV)].copy_(low_nV)

    def room(self) -> Tensor:
        """Where `teach` adds up the matrix's gradient: its first chunk is put there, so nothing need be."""
        self._begun = False
        return torch.empty_like(self.matrix_VD, dtype=self.wide)

    def teach(self, part: slice, gradient_nV: Tensor, into_ND: Tensor | None, into_VD: Tensor | None) -> None:
        """Put the hidden states' gradient into its rows, and add the matrix's, in the wide format."""
        if self.wide != self.low:
            gradient_nV = self._low_nV[: len(gradient_nV)].copy_(gradient_nV)
        if into_ND is not None:
            into_ND[part] = torch.mm(gradient_nV, self.matrix_VD)
        if into_VD is None:
            return
        hidden_nD = self.hidden_ND[part].to(self.low)
        if self.wide != self.low:
            taught_VD = torch.mm(gradient_nV.T, hidden_nD)
            _ = into_VD.add_(taught_VD) if self._begun else into_VD.copy_(taught_VD)
        elif self._begun:
            into_VD.addmm_(gradient_nV.T, hidden_nD)
        else:
            torch.mm(gradient_nV.T, hidden_nD, out=into_VD)
        self._begun = True


def _format(matrix_VD: Tensor) -> torch.dtype:
    kind = matrix_VD.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast and matrix_VD.dtype != torch.float64 else matrix_VD.dtype


def _exponentials_(logits_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Make logits exp(logit - largest) in place; each row's largest, and the sum of what is now there, [n, 1] both."""
    largest_n1 = logits_nV.amax(dim=1, keepdim=True)
    return largest_n1, logits_nV.sub_(largest_n1).exp_().sum(dim=1, keepdim=True)


def _chunks(count: int, rows: int) -> Iterator[slice]:
    """Slices of `rows` places; of none, an empty one."""
    for start in range(0, max(1, count), rows):
        yield slice(start, min(start + rows, count))

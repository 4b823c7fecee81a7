"""Cross-entropies and log-probabilities in chunks against whole logits: numbers, gradients, how often logits are made, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dcoder_cli.diffusion import vocabulary
from dcoder_cli.diffusion.vocabulary import Head, chunk_rows, log_probabilities, weighted_cross_entropy

V, D = 60, 16
Gradients = tuple[Tensor, ...]


class Case:
    """Hidden states, a head that is a matrix (or a callable that nobody looks into), targets and weights of any size."""

    def __init__(self, count: int, matrix: bool, frozen: bool = False, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.weight = torch.randn(V, D, dtype=dtype).mul_(0.5).requires_grad_(not frozen)
        self.hidden_ND = torch.randn(count, D, dtype=dtype, requires_grad=True)
        self.targets_N, self.weights_N = torch.randint(0, V, (count,)), torch.rand(count) * 5
        self.inputs = [self.hidden_ND] if frozen else [self.hidden_ND, self.weight]
        self.rows: list[int] = []
        self.head = Head(self.logits, [self.weight], self.weight if matrix else None)

    def logits(self, hidden_nD: Tensor) -> Tensor:
        self.rows.append(len(hidden_nD))
        logits_nV = F.linear(hidden_nD, self.weight)
        return logits_nV if logits_nV.dtype == torch.float64 else logits_nV.float()

    def plain(self, upstream: float = 1.0) -> tuple[Tensor, Gradients]:
        losses_N = F.cross_entropy(self.logits(self.hidden_ND), self.targets_N, reduction="none")
        return losses_N, torch.autograd.grad((losses_N * self.weights_N).sum() * upstream, self.inputs)

    def ours(self, rows: int, upstream: float = 1.0) -> tuple[Tensor, Gradients]:
        weighted, losses_N = weighted_cross_entropy(self.head, self.hidden_ND, self.targets_N, self.weights_N, rows)
        assert not losses_N.requires_grad
        torch.testing.assert_close(weighted.detach(), (losses_N * self.weights_N).sum())
        return losses_N, torch.autograd.grad(weighted * upstream, self.inputs)


def near(ours: Gradients, plain: Gradients, within: float) -> None:
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert float((one - other).norm()) <= within * float(other.norm()), (one - other).abs().max()


both = pytest.mark.parametrize("matrix", [True, False], ids=["matrix", "any head"])


@both
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("count", "rows"), [(30, 1), (30, 7), (30, 30), (30, 64), (1, 7)])
def test_loss_and_gradients_are_those_of_whole_logits(count: int, rows: int, frozen: bool, matrix: bool) -> None:
    case = Case(count, matrix, frozen)
    losses_N, gradients = case.plain(upstream=0.37)
    ours_N, found = case.ours(rows, upstream=0.37)
    torch.testing.assert_close(ours_N, losses_N.detach(), rtol=1e-6, atol=2e-6)
    near(found, gradients, 1e-6)


@both
def test_a_float64_model_stays_float64(matrix: bool) -> None:
    case = Case(30, matrix, dtype=torch.float64)
    case.weights_N = case.weights_N.double()
    (losses_N, gradients), (ours_N, found) = case.plain(), case.ours(7)
    torch.testing.assert_close(ours_N, losses_N.detach(), rtol=1e-14, atol=1e-14)
    near(found, gradients, 1e-14)


@both
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16], ids=["autocast", "gathered"])
def test_bfloat16_rounds_the_products_alone(matrix: bool, kept: torch.dtype) -> None:
    """Under autocast, and with a matrix that FSDP2 gathers in bfloat16: the losses of a linear layer to the bit.

    Gradients are as near to those of a linear layer as those are to float64's: the order of rounding differs.
    """
    case = Case(30, matrix, dtype=kept)
    autocast: Callable[[], AbstractContextManager[Any]] = (
        nullcontext if kept == torch.bfloat16 else lambda: torch.autocast("cpu", torch.bfloat16)
    )
    with autocast():
        losses_N, gradients = case.plain()
        ours_N, found = case.ours(7)
    torch.testing.assert_close(ours_N, losses_N.detach(), rtol=1e-6, atol=2e-6)
    near(found, gradients, 1e-2)
    exact = Case(30, matrix, dtype=torch.float64)
    exact.weight.data, exact.hidden_ND.data = case.weight.detach().double(), case.hidden_ND.detach().double()
    true = exact.plain()[1]
    for one, linear, want in zip(found, gradients, true, strict=True):
        assert float((one - want).norm()) <= 1.3 * float((linear - want).norm())


@both
def test_where_the_target_is_all_but_sure_gradients_are_not_a_difference_of_rounded_numbers(matrix: bool) -> None:
    """Under autocast, P of every target above 0.95: (P - 1) is made before it is rounded, with a frozen head too."""
    case = Case(8, matrix, frozen=True)
    case.weight.data = F.normalize(case.weight.data, dim=1) * 4
    case.hidden_ND.data = case.weight[case.targets_N] * 1.5
    place_E = torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        plain_E = F.log_softmax(case.logits(case.hidden_ND), dim=-1)[place_E, case.targets_N]
        ours_E = log_probabilities(case.head, case.hidden_ND, place_E, case.targets_N, 3)
        weighted, _ = weighted_cross_entropy(case.head, case.hidden_ND, case.targets_N, torch.ones(8), 3)
    assert float(plain_E.detach().exp().min()) > 0.95
    (expected,) = torch.autograd.grad(plain_E.sum(), case.hidden_ND)
    near(torch.autograd.grad(ours_E.sum(), case.hidden_ND), (expected,), 1e-2)
    near(torch.autograd.grad(weighted, case.hidden_ND), (-expected,), 1e-2)


@both
def test_a_tied_head_teaches_the_embedding_with_it(matrix: bool) -> None:
    """One table read as an embedding and as a head; two micro-batches add up."""
    case = Case(20, matrix)
    ids_N = torch.randint(0, V, (20,))
    grads = []
    for whole in (True, False):
        case.weight.grad = None
        for _ in range(2):
            hidden_ND = F.embedding(ids_N, case.weight).tanh()
            if whole:
                losses_N = F.cross_entropy(case.logits(hidden_ND), case.targets_N, reduction="none")
                loss = (losses_N * case.weights_N).sum()
            else:
                loss, _ = weighted_cross_entropy(case.head, hidden_ND, case.targets_N, case.weights_N, 7)
            (loss / 3).backward()  # type: ignore[no-untyped-call]
        assert case.weight.grad is not None
        grads.append(case.weight.grad)
    near((grads[1],), (grads[0],), 1e-6)


@both
def test_nothing_masked_is_a_zero_with_gradients(matrix: bool) -> None:
    """Sharded processes meet in the backward pass, whoever has nothing masked."""
    case = Case(0, matrix)
    losses_N, (hidden_ND, weight_VD) = case.ours(7)
    assert losses_N.shape == (0,) and hidden_ND.shape == (0, D)
    assert weight_VD.shape == (V, D) and not weight_VD.any()
    with torch.no_grad():
        assert float(weighted_cross_entropy(case.head, case.hidden_ND, case.targets_N, case.weights_N, 7)[0]) == 0.0


class Products(TorchDispatchMode):
    """Counts matrix products, and the most rows of logits that are made at once."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.rows = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.count += name in ("mm", "addmm", "addmm_")
        if isinstance(result, Tensor) and result.dim() == 2 and result.shape[1] == V:
            self.rows = max(self.rows, result.shape[0])
        return result


@both
@pytest.mark.parametrize(("frozen", "products"), [(False, 3), (True, 2)])
def test_logits_of_a_chunk_are_made_once(matrix: bool, frozen: bool, products: int) -> None:
    """Four chunks: logits, what they teach the hidden states, and the head if it trains. Without gradients logits alone."""
    case = Case(100, matrix, frozen)
    with Products() as seen:
        case.ours(25)
    assert seen.count == 4 * products and seen.rows == 25
    assert case.rows == ([] if matrix else [25] * 4)
    with torch.no_grad(), Products() as seen:
        weighted_cross_entropy(case.head, case.hidden_ND, case.targets_N, case.weights_N, 25)
    assert seen.count == 4 and seen.rows == 25


def test_gradients_are_given_out_once() -> None:
    case = Case(5, True)
    weighted, _ = weighted_cross_entropy(case.head, case.hidden_ND, case.targets_N, case.weights_N, 7)
    weighted.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="compute it again"):
        weighted.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("matrix", [True, False])
@pytest.mark.parametrize(("frozen", "products"), [(False, 4), (True, 2)])
@pytest.mark.parametrize("rows", [4, 64])
def test_log_probabilities_are_those_of_whole_logits(matrix: bool, frozen: bool, products: int, rows: int) -> None:
    """Places with several entries, with one, and with none; a place asked for the same token twice."""
    case = Case(12, matrix, frozen)
    place_E = torch.tensor([3, 3, 3, 0, 11, 7, 7, 4, 2, 3, 7])
    target_E = torch.randint(0, V, (11,))
    target_E[1] = target_E[0]
    upstream_E = torch.randn(11)
    plain_E = F.log_softmax(case.logits(case.hidden_ND), dim=-1)[place_E, target_E]
    expected = torch.autograd.grad((plain_E * upstream_E).sum(), case.inputs)
    with Products() as seen:
        ours_E = log_probabilities(case.head, case.hidden_ND, place_E, target_E, rows)
        found = torch.autograd.grad((ours_E * upstream_E).sum(), case.inputs)
    torch.testing.assert_close(ours_E.detach(), plain_E.detach(), rtol=1e-6, atol=2e-6)
    near(found, expected, 1e-6)
    if matrix:
        assert seen.count == -(-12 // rows) * products
    with torch.no_grad():
        torch.testing.assert_close(log_probabilities(case.head, case.hidden_ND, place_E, target_E, rows), ours_E.detach(), rtol=0, atol=0)  # fmt: skip


def test_a_head_is_a_matrix_only_where_it_is_nothing_else() -> None:
    class Network(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.lm_head = head

    class Model:
        head = staticmethod(lambda hidden_nD: hidden_nD)

    class Capped(nn.Linear):
        def forward(self, hidden_nD: Tensor) -> Tensor:
            return super().forward(hidden_nD).tanh()

    def heads() -> Iterator[tuple[nn.Module, bool]]:
        yield nn.Linear(D, V, bias=False), True
        yield nn.Linear(D, V), False
        yield Capped(D, V, bias=False), False
        hooked = nn.Linear(D, V, bias=False)
        hooked.register_forward_hook(lambda module, given, made: made / 2)
        yield hooked, False

    for layer, plain in heads():
        model: Any = Model()
        model.network = Network(layer)
        found = vocabulary.head_of(model)
        assert (found.matrix_VD is layer.weight) == plain
        assert {id(one) for one in found.parameters} == {id(one) for one in layer.parameters()}


def test_rows_of_a_chunk() -> None:
    """A GPU's: 0.3 GB. A CPU's: 16 MiB, and 128 rows at least."""
    assert [chunk_rows(152_064, kind) for kind in ("cuda", "meta", "cpu")] == [512, 512, 128]
    assert chunk_rows(1_536, "cpu") == 2_730 and chunk_rows(10**9, "cuda") == 1

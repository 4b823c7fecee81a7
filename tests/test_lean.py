"""Training that keeps and computes less: norms and MLPs that keep fewer activations, and the last block where few rows are read.

Outputs are compared bit for bit with transformers' own, and gradients with autograd's through them, in float32.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grpo_runs import common, make_place
from helpers import make_model, make_shards, make_tokenizer, said
from test_sampler import GOLDEN
from torch import Tensor, nn

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.model import last_block, lean
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import setup
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.denoise import train
from dcoder_cli.training.grpo.estimate import EntryLogProbs
from dcoder_cli.training.objective import TokenLoss

IDS = torch.arange(5, 53).view(3, 16)
WEIGHTS = torch.linspace(-1, 1, 48).view(3, 16, 1)


@pytest.fixture(params=["dream", "llada"])
def model(request: pytest.FixtureRequest) -> Model:
    """Qwen2's blocks with the shift, and Llama's without."""
    return load(GOLDEN / request.param, device="cpu").train()


def gradients(model: Model) -> dict[str, Tensor]:
    found = {name: one.grad.clone() for name, one in model.network.named_parameters() if one.grad is not None}
    model.network.zero_grad(set_to_none=True)
    return found


def same(mine: dict[str, Tensor], his: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert mine.keys() == his.keys()
    for name, one in his.items():
        assert float((mine[name] - one).abs().max()) <= tolerance * max(float(one.abs().max()), 1e-3), name


def kept(model: Model) -> tuple[Tensor, int]:
    """Final hidden states of a pass that will be taught, and the bytes that autograd keeps of it, each memory once."""
    memories: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memories[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {one.untyped_storage().data_ptr() for one in model.network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden_BLD = model.hidden(IDS)
    return hidden_BLD, sum(size for memory, size in memories.items() if memory not in weights)


@pytest.mark.parametrize(
    "family", ["qwen2.modeling_qwen2.Qwen2", "llama.modeling_llama.Llama", "qwen3.modeling_qwen3.Qwen3"]
)
def test_every_class_that_is_changed_computes_what_it_did(family: str) -> None:
    from transformers import LlamaConfig

    path, name = f"transformers.models.{family}".rsplit(".", 1)
    module = importlib.import_module(path)
    parts = nn.ModuleList(
        [
            getattr(module, f"{name}RMSNorm")(16, eps=1e-3),
            getattr(module, f"{name}MLP")(LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2)),
        ]
    )
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in parts.parameters():
            one.copy_(torch.randn(one.shape, generator=source))
    given = torch.randn(2, 3, 16, generator=source, requires_grad=True)
    weights = torch.randn(2, 3, 16, generator=source)

    def step() -> tuple[list[Tensor], list[Tensor]]:
        made = [part(given) for part in parts]
        wanted = [given, *parts.parameters()]
        return made, list(torch.autograd.grad(sum((one * weights).sum() for one in made), wanted))

    whole, truth = step()
    lean.keep_less(SimpleNamespace(model=parts))
    made, found = step()
    assert all("forward" in part.__dict__ for part in parts)
    assert all(torch.equal(one, other) for one, other in zip(made, whole, strict=True))
    for one, other in zip(found, truth, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_the_blocks_own_and_less_is_kept(model: Model, dtype: torch.dtype) -> None:
    model.network.to(dtype)
    (whole_BLD, all_bytes), shape = kept(model), model.network.config
    lean.keep_less(model.network)
    lean_BLD, fewer = kept(model)
    assert torch.equal(lean_BLD, whole_BLD)
    # of a token: SiLU(gate) of each MLP, and one input of each norm; a float32 copy of it too, where it is none itself
    norms = (2 * shape.num_hidden_layers + 1) * shape.hidden_size
    expected = shape.num_hidden_layers * shape.intermediate_size * dtype.itemsize + norms * 4
    assert all_bytes - fewer == expected * IDS.numel()


def test_gradients_are_autograds(model: Model) -> None:
    (model.hidden(IDS) * WEIGHTS).sum().backward()
    whole = gradients(model)
    lean.keep_less(model.network)
    (model.hidden(IDS) * WEIGHTS).sum().backward()
    same(gradients(model), whole)
    for name, one in model.network.named_parameters():  # frozen norms, as LoRA has them
        one.requires_grad_("norm" not in name)
    (model.hidden(IDS) * WEIGHTS).sum().backward()
    same(gradients(model), {name: one for name, one in whole.items() if "norm" not in name})


def test_gradients_in_bfloat16_are_no_further_from_the_truth(model: Model) -> None:
    (model.hidden(IDS) * WEIGHTS).sum().backward()
    truth = gradients(model)

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BLD = model.hidden(IDS)
        (hidden_BLD.float() * WEIGHTS).sum().backward()
        found = gradients(model)
        return sum(float((found[name] - one).square().sum()) for name, one in truth.items()) ** 0.5

    plain = error()
    lean.keep_less(model.network)
    assert 0 < error() < 1.05 * plain


def test_a_copy_computes_with_its_own_weights_and_a_bench_with_the_blocks_as_written(model: Model) -> None:
    lean.keep_less(model.network)
    copied = copy.deepcopy(model)
    before_BLD = model.hidden(IDS)
    with torch.no_grad():
        for one in model.network.parameters():
            one.zero_()
    assert torch.equal(copied.hidden(IDS), before_BLD)
    with lean.as_written(model.network):
        assert all("forward" not in one.__dict__ for one in model.network.modules())
    assert (
        sum("forward" in one.__dict__ for one in model.network.modules())
        == 3 * model.network.config.num_hidden_layers + 1
    )


def places(*some: tuple[int, int]) -> Tensor:
    return torch.tensor([row * 16 + column for row, column in some])


# The first place of a row, whose hidden state is its own, beside its neighbour, which reads the same one in a shifted model; a
# first token behind pads; and more than the fewest rows that a product takes.
PLACES = places((0, 0), (0, 1), (0, 7), (1, 4), *((1, column) for column in range(6, 16)), (2, 0), (2, 3), (2, 15))
PADS = torch.tensor([[1] * 16, [0] * 4 + [1] * 12, [1] * 16])


@pytest.mark.parametrize("pads", [None, PADS], ids=["no pads", "left pads"])
@pytest.mark.parametrize("few", [False, True])
def test_what_few_read_rows_teach_is_what_they_teach_in_a_whole_block(
    model: Model, pads: Tensor | None, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_N = PLACES[:3] if few else PLACES
    given = asked_N, IDS.flatten()[asked_N], torch.linspace(0.1, 1, len(asked_N)), pads, None, None, False
    rows: list[int] = []
    model.network.model.layers[-1].mlp.register_forward_hook(lambda _, given, __: rows.append(given[0][..., 0].numel()))

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        weighted, losses_N = TokenLoss(model)(IDS, *given)
        weighted.backward()
        return losses_N, gradients(model)

    losses_N, some = step()
    monkeypatch.setattr(last_block, "FEWEST", 1000)
    whole_N, whole = step()
    assert rows == [48 if few else len(PLACES), 48]
    assert torch.allclose(losses_N, whole_N, rtol=0, atol=1e-6)
    same(some, whole)


def test_stage_4_reads_few_rows_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    row_E, place_E = PLACES.repeat(2) // 16, PLACES.repeat(2) % 16  # a place is read twice
    target_E = torch.arange(len(row_E)) % 40

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        values_E = EntryLogProbs(model)(IDS, PADS, row_E, place_E, target_E)
        (values_E * torch.linspace(-1, 1, len(row_E))).sum().backward()
        return values_E.detach(), gradients(model)

    rows: list[int] = []
    model.network.model.layers[-1].mlp.register_forward_hook(lambda _, given, __: rows.append(given[0][..., 0].numel()))
    values_E, some = step()
    monkeypatch.setattr(last_block, "FEWEST", 1000)
    whole_E, whole = step()
    assert rows == [len(PLACES), 48]
    assert torch.allclose(values_E, whole_E, rtol=0, atol=1e-5)
    same(some, whole)


def test_a_block_that_is_computed_again_is_computed_whole(model: Model) -> None:
    """In the backward pass nobody says which rows were read."""
    lean.keep_less(model.network)
    given = PLACES, IDS.flatten()[PLACES], torch.ones(len(PLACES)), None, None, None, False
    TokenLoss(model)(IDS, *given)[0].backward()
    expected = gradients(model)
    setup.recompute_activations(model.network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # transformers renames what says that it is so
        TokenLoss(model)(IDS, *given)[0].backward()
    same(gradients(model), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_stages_train_so_where_blocks_are_not_compiled(
    tmp_path: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, asked = make_tokenizer(), []
    make_model(tmp_path / "model", tokenizer=tokenizer)
    make_shards(tmp_path / "data", tokenizer)
    monkeypatch.setattr(lean, "keep_less", asked.append)
    monkeypatch.setattr("torch.nn.Module.compile", lambda self: None)
    settings: dict[str, Any] = {
        "precision": "fp32",
        "global_batch": 2,
        "micro_batch": 2,
        "steps": 1,
        "compile": compiled,
    }
    train(2, str(tmp_path / "model"), str(tmp_path / "data"), str(tmp_path / "run"), build(StageConfig, settings, {}), device="cpu", quiet=True)  # fmt: skip
    assert len(asked) == (not compiled)


def test_stage_4_trains_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, asked = make_place(tmp_path), []
    monkeypatch.setattr(lean, "keep_less", asked.append)
    monkeypatch.chdir(place)
    said(*common(place, tmp_path / "run", without="steps"), "--set=steps=1")
    assert len(asked) == 1

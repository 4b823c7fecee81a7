"""`compile: true`: the losses of uncompiled blocks, one graph for all blocks, none broken, and none made again as steps go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, make_shards, make_tokenizer
from torch import nn

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.data.batches import RowOrder, RowRules
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.denoise import train
from dcoder_cli.training.feed import Feed
from dcoder_cli.training.objective import TokenLoss, token_losses

CPU = torch.device("cpu")
SMALL = {
    "precision": "fp32", "global_batch": 4, "micro_batch": 2, "steps": 8, "evaluate_every": 0, "checkpoint_every": 0,
    "truncate_share": 0.3, "prefetch": 0, "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer, num_hidden_layers=3)
    make_shards(folder / "pretrain", tokenizer)
    return folder


@pytest.fixture(autouse=True)
def counters() -> Iterator[Any]:
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def run(place: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    config = build(StageConfig, SMALL, changes)
    train(2, str(place / "model"), str(place / "pretrain"), str(out), config, device="cpu", quiet=True)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(compiled: list[dict[str, Any]], plain: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(compiled, plain, strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        else:
            assert ours["heldout"]["loss"] == pytest.approx(theirs["heldout"]["loss"], rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_train_as_plain_ones_on_one_graph(
    place: Path, tmp_path: Path, counters: Any, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """Through the backend that captures forward and backward graphs and runs them as they are: no compiler is needed.

    Rows are cut in some steps, so blocks run with a mask and without; the number of masked places changes in each.
    """
    compiled: list[nn.Module] = []
    real = nn.Module.compile

    def capture(module: nn.Module, **options: Any) -> None:
        compiled.append(module)
        real(module, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", capture)
    plain = run(place, tmp_path / "plain", activation_checkpointing=checkpointing)
    assert not compiled
    same(run(place, tmp_path / "compiled", activation_checkpointing=checkpointing, compile=True), plain)
    assert len(compiled) == 3, "each block"
    assert not counters["graph_break"]
    # With a mask and without, for training; the same again without gradients, for the evaluation at the end.
    assert 2 <= counters["stats"]["unique_graphs"] <= 4


def test_no_graph_is_made_after_the_first_steps(place: Path, counters: Any) -> None:
    """The number of masked places differs in every micro-batch; what is compiled never sees it."""
    shards = ShardSet.open(place / "pretrain")
    config = build(StageConfig, SMALL)
    feed = Feed(shards, RowRules(0, 1, True), config, 2, 3, RowOrder(len(shards), 0), range(4), CPU)
    module = TokenLoss(load(place / "model", device="cpu"))
    module.train()
    for block in module.model.network.model.layers:
        block.compile(backend="aot_eager")
    places, graphs = set(), []
    for step in range(6):
        for example in feed.step(step).examples:
            places.add(len(example.places_N))
            token_losses(module, example, None, False, False, CPU)[0].backward()  # type: ignore[no-untyped-call]
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(places) > 6 and graphs == [1] * 6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_inductor_trains_as_the_plain_blocks(place: Path, tmp_path: Path, counters: Any, checkpointing: bool) -> None:
    plain = run(place, tmp_path / "plain", activation_checkpointing=checkpointing)
    same(run(place, tmp_path / "compiled", activation_checkpointing=checkpointing, compile=True), plain)
    assert not counters["graph_break"] and 2 <= counters["stats"]["unique_graphs"] <= 4

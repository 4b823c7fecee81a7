"""Recorded evaluations, simulated on a CPU: what a CUDA graph would hold is traced once (make_fx) and run as traced.

The traced graph repeats PyTorch's operators on the same tensors and nothing of Python's, as a CUDA graph repeats its
kernels, so that whatever an evaluation looked up on the host when it was recorded, or put in new memory, shows as wrong
tokens. On a GPU: tests/gpu/test_gpu_graphs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, refused
from test_sampler import RAGGED
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from dcoder_cli import generate, load
from dcoder_cli.decoding import graphs
from dcoder_cli.decoding.engine import Engine
from dcoder_cli.decoding.requests import Settings, encode
from dcoder_cli.decoding.rows import Ticket
from dcoder_cli.model import attention
from dcoder_cli.model.backbone import Model
from dcoder_cli.timing import rate

WAYS: list[dict[str, Any]] = [
    {},
    {"rule": "confidence", "temperature": 0.7, "block_length": 6},
    {"cfg_scale": 0.8},
    {"mode": "fast", "block_length": 6},
    {"mode": "fast", "block_length": 6, "cache": "prefix", "threshold": 0.6},
    {"mode": "fast", "block_length": 4, "cache": "dual", "cache_refresh": 2},
]


class Traced:
    """Records as `CudaGraphs` does."""

    def __init__(self, device: torch.device) -> None:
        self.shapes: list[tuple[tuple[int, ...], ...]] = []
        self.operators: set[str] = set()

    def __call__(self, function: graphs.Function, inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
        self.shapes.append(tuple(tuple(one.shape) for one in inputs))
        traced = make_fx(lambda *given: function(*given), tracing_mode="real")(*inputs)
        self.operators |= {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
        made = torch.empty(0)

        def play() -> Tensor:
            new = traced(*inputs)
            made.set_(new) if made.shape != new.shape else made.copy_(new)
            return made

        return play


@pytest.fixture(scope="module", params=["Dream", "llada"])
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Model:
    folder = make_model(tmp_path_factory.mktemp("graphs") / "model", initializer_range=0.3)
    return (
        load(folder, device="cpu", dtype="float32") if request.param == "Dream" else load(_llada(folder), device="cpu")
    )


def _llada(folder: Path) -> Path:
    """The same without the shift."""
    import json

    config = json.loads((folder / "config.json").read_text())
    config["dcoder"]["shift"] = False
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def recorders(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[Traced]:
    made: list[Traced] = []

    def new(device: torch.device) -> Traced:
        made.append(Traced(device))
        return made[-1]

    monkeypatch.setattr(graphs, "CudaGraphs", new)
    monkeypatch.setattr(model, "recordings", {})
    monkeypatch.setattr(attention, "has_pads", lambda _: True)  # as on a GPU, where to look is to wait
    return made


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_recorded_evaluations_give_the_tokens_of_those_as_written(
    model: Model, way: dict[str, Any], recorders: list[Traced], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [*RAGGED, [5, 6], [7] * 30]
    expected = generate(model, prompts, max_new_tokens=12, batch_size=3, **way)
    monkeypatch.setattr(model, "cuda_graphs", True)
    found = generate(model, prompts, max_new_tokens=12, batch_size=3, **way)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.tokens, ours.reveal_step) == (theirs.tokens, theirs.reveal_step)
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-5)
    # Rows of many lengths, in threes, twos and ones: few shapes, and nothing that a GPU would wait for.
    shapes = recorders[0].shapes
    assert len(set(shapes)) == len(shapes) <= 8 and {ids[0] for ids, *_ in shapes} <= {1, 2, 3}
    assert {ids[1] for ids, *_ in shapes} == {64}
    waits = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.lift_fresh_copy.default"}
    assert not waits & recorders[0].operators


def test_rows_that_outgrow_the_caches_are_recorded_anew(
    model: Model, recorders: list[Traced], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short row, then one that needs more columns, then short ones again: the tables have moved in between."""
    settings = Settings(max_new_tokens=12, mode="fast", block_length=6, cache="dual", early_stop=False)
    prompts = [[5, 6, 7], [8] * 70, [9, 10], [11] * 5]

    def decoded() -> list[list[int]]:
        engine, found = Engine(model, 1), []
        for ticket in (Ticket(one, settings) for one in encode(model, prompts, settings, None, None)):
            engine.add(ticket)
        for row in engine.run():
            found.append(row.columns["tokens"])
        return found

    expected = decoded()
    monkeypatch.setattr(model, "cuda_graphs", True)
    assert decoded() == expected
    # Of each length a window and, of its second block, whole rows to be kept; the first fills made the room.
    assert [shape[0][1] for shape in recorders[0].shapes] == [64, 64, 128, 128, 64, 64]


def test_the_longest_unused_recording_is_given_up(
    model: Model, recorders: list[Traced], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "cuda_graphs", True)
    monkeypatch.setattr(graphs, "MOST", 1)
    monkeypatch.setattr(graphs, "COLUMNS", 16)
    for _ in range(2):
        generate(model, [[5] * 40, [6]], max_new_tokens=3, batch_size=1)
    assert [shape[0] for shape in recorders[0].shapes] == [(1, 48), (1, 16)] * 2


def test_the_next_call_plays_what_the_last_one_recorded(
    model: Model, recorders: list[Traced], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "cuda_graphs", True)
    for settings in WAYS:
        first = generate(model, RAGGED, max_new_tokens=12, batch_size=2, **settings)
        made = len(recorders[0].shapes)
        again = generate(model, RAGGED, max_new_tokens=12, batch_size=2, **settings)
        assert [one.tokens for one in again] == [one.tokens for one in first]
        assert len(recorders) == 1 and len(recorders[0].shapes) - made <= 1  # a first fill makes the room, unrecorded
    with rate.counting(model) as counts:
        generate(model, RAGGED, max_new_tokens=12, batch_size=2)
    assert counts.forwards > 0 and model.cuda_graphs


@pytest.mark.parametrize(
    "command", ["generate --model {} hi", "bench generate", "chat --model {}", "serve {}", "eval micro --model {}"]
)
def test_where_there_is_no_gpu_it_is_refused(command: str, tmp_path: Path) -> None:
    line = command.format(make_model(tmp_path / "model")).split()
    told = refused(*line, "--cuda-graphs", "--device", "cpu")
    assert told == "error: --cuda-graphs needs a CUDA device, not cpu; leave it out"

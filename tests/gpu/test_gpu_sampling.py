"""Sampling on a card: the same tokens again and in any batch, and its memory at the shape of Qwen2.5-Coder-7B."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ground import Ground, compare
from places import BOTH, BOTH_SLOW, Place, drawn, note, outline, peak_of, tidy
from test_graphs import Traced

from dcoder_cli import generate
from dcoder_cli.base.config import build
from dcoder_cli.decoding import graphs
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.decoding.sampler import decode
from dcoder_cli.model import attention
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.memory.case import Decoding

RAGGED = [[7], [3, 4, 5], list(range(20, 42)), [9, 8, 200, 6], list(range(50, 61))]
MODES: list[dict[str, Any]] = [{}, {"mode": "fast", "threshold": 0.5}, {"mode": "fast", "cache": "prefix"}]


def lively(place: Place, folder: Path, dtype: torch.dtype) -> Model:
    """A model whose distributions differ from place to place, and are not flat."""
    return drawn(outline(folder / "outline", place.size("blocks")), place.torch, dtype, lively=True)


@pytest.mark.parametrize("place", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_call_gives_the_same_tokens(place: Place, dtype: torch.dtype, tmp_path: Path) -> None:
    model = lively(place, tmp_path, dtype)
    for mode in MODES:
        settings = {"max_new_tokens": place.pick(32, 8), "temperature": 0.8, "top_p": 0.95, "batch_size": 5, **mode}
        one, other = (generate(model, RAGGED, **settings) for _ in range(2))
        for first, again in zip(one, other, strict=True):
            assert (first.tokens, first.reveal_step) == (again.tokens, again.reveal_step), mode
            assert first.confidence == again.confidence and first.entropy == again.entropy, mode
        assert len({tuple(item.tokens) for item in one}) == len(RAGGED)


@pytest.mark.parametrize("place", BOTH)
@pytest.mark.parametrize("mode", MODES, ids=["exact", "dual", "prefix"])
def test_a_row_in_a_batch_is_the_row_alone(place: Place, mode: dict[str, Any], tmp_path: Path) -> None:
    """float32. Products of other shapes round otherwise, by 1e-6: scores so near are rare, and these rows have none."""
    model = lively(place, tmp_path, torch.float32)
    for more in ({"rule": "left-to-right"}, {"rule": "entropy", "temperature": 0.8, "top_p": 0.95}):
        settings = {"max_new_tokens": place.pick(16, 8), **mode, **more}
        together = generate(model, RAGGED, batch_size=5, **settings)
        for index, prompt in enumerate(RAGGED):
            alone = generate(model, [prompt], seeds=[index], **settings)[0]
            assert (together[index].tokens, together[index].reveal_step) == (alone.tokens, alone.reveal_step), (
                index,
                more,
            )


@pytest.mark.parametrize("place", BOTH)
@pytest.mark.parametrize("mode", MODES, ids=["exact", "dual", "prefix"])
def test_played_graphs_give_the_tokens_of_evaluations_as_written(
    place: Place, mode: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32, in pools of two, so that rows enter and leave; a CPU traces what a card records."""
    if not place.card:
        monkeypatch.setattr(graphs, "CudaGraphs", Traced)
        monkeypatch.setattr(attention, "has_pads", lambda _: True)
    model = lively(place, tmp_path, torch.float32)
    for more in ({}, {"temperature": 0.8, "top_p": 0.95}, *([{"cfg_scale": 0.8}] if not mode else [])):
        settings = {"max_new_tokens": place.pick(32, 8), "batch_size": 2, **mode, **more}
        model.cuda_graphs = False
        expected = generate(model, RAGGED, **settings)
        model.cuda_graphs = True
        for ours, theirs in zip(generate(model, RAGGED, **settings), expected, strict=True):
            assert (ours.tokens, ours.reveal_step) == (theirs.tokens, theirs.reveal_step), more


PROMPT = 64


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Place, tuple[Ground, Model]]]:
    """The model of size `seven` at each place, made once."""
    made: dict[Place, tuple[Ground, Model]] = {}
    yield made
    made.clear()
    tidy()


@pytest.mark.parametrize("place", BOTH_SLOW)
@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_sampling_within_the_memory_it_is_said_to_take(
    place: Place,
    mode: str,
    rows: int,
    ground: dict[Place, tuple[Ground, Model]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """256 new tokens behind 64, in bfloat16; two denoising steps, or all of a block at once. Flat distributions: top-p sorts all."""
    if place not in ground:
        place.needs(22)
        here = Ground(place, tmp_path_factory.mktemp("seven"), "seven")
        ground[place] = here, drawn(here.outline("dream"), place.torch, torch.bfloat16)
    here, model = ground[place]
    rows, new = place.pick(rows, rows // 16), place.pick(256, 32)
    more = {"steps": 2} if mode == "exact" else {"mode": "fast", "threshold": 0.0, "early_stop": False}
    settings = build(Settings, {"max_new_tokens": new, "temperature": 0.2, "top_p": 0.95, **more})
    prompts = [[5 + (7 * row + at) % 200 for at in range(PROMPT)] for row in range(rows)]
    peak = peak_of(place)
    peak.start()
    began = time.perf_counter()
    found = decode(model, prompts, settings, batch_size=rows)
    place.wait()
    seconds = time.perf_counter() - began
    beyond = peak.stop()
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    assert all(len(one.tokens) == new for one in found)
    name = f"sampling, {mode}, {rows} rows of {PROMPT} + {new}, {place.size('seven')['hidden_size']} wide"
    estimate = here.fitted(
        "generate", Decoding(max_new_tokens=new, batch_size=rows, mode=mode, dtype="bfloat16"), question=PROMPT  # type: ignore[arg-type]
    )  # fmt: skip
    note(name, seconds=seconds, forwards=found[0].settings["forwards"], beyond_the_weights_mib=round(beyond / 2**20, 1))
    compare(place, name, beyond + weights, estimate, toys=False)  # of 303 tokens top-p keeps 256 with their places

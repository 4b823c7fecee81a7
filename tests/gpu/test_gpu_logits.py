"""Logits on a card against the CPU's float32: layouts, attentions, number formats, and every kind of mask.

Weights are rounded to bfloat16 first, so that all compute with the same ones and only arithmetic differs. An error is over
the root mean square of the same token's logits in the reference; compared are the root mean square of all and the largest.

float32: a sum of K products errs by about sqrt(K) 2^-24, 2e-6 at K = 1000. Allowed are 3e-5 in the mean, well below what
matrix units in TF32, which must be off, make of one product (3e-4), and ten times that for the worst of millions.
bfloat16: a rounding errs by up to 2^-9, 0.2%, and dozens of them a layer add up. Measured between the CPU's own bfloat16 and
float32 at this shape: mean 0.025 to 0.032, worst 0.20. Allowed are 0.05 and 0.35. A wrong mask is off by 0.8 to 1.2, and 4 to 8.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from places import CPU, Place, cases, drawn, needs_attention, note, outline
from torch import Tensor

from dcoder_cli import load
from dcoder_cli.model.attention import annealed

MEAN = {"float32": 3e-5, "bfloat16": 0.05}
WORST = {"float32": 3e-4, "bfloat16": 0.35}
LAYOUTS = ("dream", "llada")


def masks(length: int) -> dict[str, dict[str, Any]]:
    """Two rows: pads left and right, packed documents, an annealed mask, and all of them at once."""
    pads_BL = torch.ones(2, length, dtype=torch.bool)
    pads_BL[0, : length // 5] = False
    pads_BL[1, length - length // 3 :] = False
    third, rest = length // 3, length - length // 3
    documents_BL = torch.tensor([[0] * third + [1] * rest, [0] * (rest - 1) + [1] + [2] * third])
    pattern_LL = annealed(length, 0.3, torch.Generator().manual_seed(0))
    return {
        "plain": {},
        "pads": {"attention_mask_BL": pads_BL},
        "documents": {"document_ids_BL": documents_BL},
        "annealed": {"pattern_LL": pattern_LL},
        "all": {"attention_mask_BL": pads_BL, "document_ids_BL": documents_BL, "pattern_LL": pattern_LL},
    }


def asked(attention: str, dtype: str) -> tuple[str, ...]:
    """The masks that an attention is tried with: flash has none for annealing, flex compiles a kernel for each."""
    if attention == "flash_attention_2":
        return ("plain", "pads", "documents")
    if attention == "flex":
        return ("documents", "all") if dtype == "bfloat16" else ("all",)
    return ("plain", "pads", "documents", "annealed", "all")


def length_of(place: Place) -> int:
    return int(place.pick(400, 40))


@cache
def expected(layout: str, place: Place, folder: Path) -> dict[str, Tensor]:
    """Reference logits by mask, and the checkpoint they are of, written to `folder`."""
    outline(folder / "outline", place.size("blocks"), layout)
    model = drawn(folder / "outline", CPU.torch, torch.bfloat16, lively=True)
    model.save(folder / layout)
    model.float()
    with torch.no_grad():
        return {
            name: model.logits(ids(place), **given) for name, given in masks(length_of(place)).items()
        }  # fmt: skip


def ids(place: Place) -> Tensor:
    return torch.randint(3, 290, (2, length_of(place)), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logits")


def errors(ours_BLV: Tensor, theirs_BLV: Tensor, given: dict[str, Any]) -> tuple[float, float]:
    """Root mean square and largest error at tokens that are no pads."""
    real_BL = given.get("attention_mask_BL", torch.ones(ours_BLV.shape[:2], dtype=torch.bool))
    ours_NV, theirs_NV = ours_BLV.cpu()[real_BL], theirs_BLV[real_BL]
    off_NV = (ours_NV - theirs_NV) / theirs_NV.pow(2).mean(dim=0).sqrt()
    return float(off_NV.pow(2).mean().sqrt()), float(off_NV.abs().max())


@pytest.mark.parametrize(
    ("place", "layout", "attention", "dtype"),
    cases(
        [(layout, attention, dtype) for layout in LAYOUTS for attention in ("sdpa", "eager") for dtype in MEAN],
        # flash has no float32; flex compiles for long, so for one layout. On a CPU tests/test_packed_attention.py has both.
        [
            *((layout, "flash_attention_2", "bfloat16") for layout in LAYOUTS),
            *(("dream", "flex", dtype) for dtype in MEAN),
        ],
    ),
)  # fmt: skip
def test_logits_are_the_cpus(place: Place, layout: str, attention: str, dtype: str, folder: Path) -> None:
    needs_attention(attention)
    assert not torch.backends.cuda.matmul.allow_tf32
    home = folder / f"{layout}-{place.device}"
    references = expected(layout, place, home)
    model = load(home / layout, device=place.torch, dtype=dtype, attention=attention)
    found = {}
    for name in asked(attention, dtype):
        given = masks(length_of(place))[name]
        with torch.no_grad():
            logits_BLV = model.logits(
                ids(place).to(place.torch), **{key: one.to(place.torch) for key, one in given.items()}
            )
        assert logits_BLV.dtype == torch.float32
        found[name] = errors(logits_BLV, references[name], given)
    note(f"logits: {layout}, {attention}, {dtype}", mean_and_worst=found)
    for name, (mean, worst) in found.items():
        assert math.isfinite(mean) and mean <= MEAN[dtype] and worst <= WORST[dtype], (name, mean, worst)


def test_a_wrong_mask_is_far_beyond_what_is_allowed(folder: Path) -> None:
    """Or the tolerances would prove nothing."""
    references = expected("dream", CPU, folder / "dream-cpu")
    for name in ("pads", "documents", "annealed", "all"):
        mean, worst = errors(references["plain"], references[name], masks(length_of(CPU))[name])
        assert mean > 2 * MEAN["bfloat16"] and worst > WORST["bfloat16"], (name, mean, worst)

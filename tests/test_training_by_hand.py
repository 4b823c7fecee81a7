"""A run of every stage against the same run written down row by row: rows, noise, loss, clipping, AdamW and its schedule.

Nothing of the loop, of what feeds it and of what it computes is used: only the model, the annealed mask and the random
numbers by their names. Losses, norms and weights are compared elementwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adamw import AdamW, cosine
from helpers import make_model, make_shards, make_tokenizer
from torch import Tensor

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.attention import annealed
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.denoise import train

STEPS, BATCH, SEED = 5, 6, 3
PEAK, WARMUP, FLOOR, BETAS, EPS, DECAY, MOST = 1e-2, 2, 0.1, (0.9, 0.95), 1e-8, 0.1, 0.7
SHARE, T_MIN, ANNEAL, PHASE = 0.5, 0.2, 3, 0.8
CONFIG = {
    "seed": SEED, "steps": STEPS, "global_batch": BATCH, "micro_batch": 4, "precision": "fp32", "t_min": T_MIN,
    "truncate_share": SHARE, "clean_prefix_share": SHARE, "evaluate_every": 0, "evaluate_rows": 1, "checkpoint_every": 0,
    "optimizer": {"learning_rate": PEAK, "warmup_steps": WARMUP, "floor": FLOOR, "betas": list(BETAS), "eps": EPS,
                  "weight_decay": DECAY, "max_grad_norm": MOST},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("by-hand")
    tokenizer = make_tokenizer()
    make_model(folder / "ar", ar=True, tokenizer=tokenizer)
    make_model(folder / "diffusion", tokenizer=tokenizer)
    make_shards(folder / "pretrain", tokenizer, rows=10)
    make_shards(folder / "sft", load(folder / "diffusion").tokenizer, "sft", rows=10)
    return folder


def uniform(purpose: str, step: int, row: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator(SEED, purpose, step, row))


def row_loss(model: Any, shards: ShardSet, stage: int, step: int, row: int, pad: int) -> tuple[Tensor, int]:
    """A row's weighted cross-entropy, summed, and how many of its tokens may be noised."""
    epoch, offset = divmod(step * BATCH + row, len(shards))
    index = int(np.random.default_rng([SEED, epoch]).permutation(len(shards))[offset])
    columns = shards.rows([index])
    ids = torch.tensor(columns["tokens"][0].astype(np.int64))
    length = len(ids)
    eligible = torch.ones(length, dtype=torch.bool)
    if stage == 3:
        passed = step * BATCH / len(shards)
        if not (passed < PHASE and float(uniform("phase", step, row)) >= passed / PHASE):
            eligible = torch.tensor(columns["eligible"][0].astype(bool))
    real = torch.ones(length, dtype=torch.bool)
    if float(uniform("truncate", step, row)) < SHARE:
        cut = 1 + int(float(uniform("truncate length", step, row)) * (length - 1))
        ids[cut:], eligible[cut:], real[cut:] = pad, False, False
    if float(uniform("prefix", step, row)) < SHARE:
        eligible[: int(float(uniform("prefix length", step, row)) * length)] = False
    eligible[0] = False  # nothing predicts the first token of a shifted model
    masked, weight, given = eligible, 1.0, ids
    if stage:
        t = T_MIN + (1 - T_MIN) * uniform("t", step, row, 1)
        masked, weight = eligible & (uniform("noise", step, row, length) < t), float(1 / t)
        given = ids.masked_fill(masked, model.ids.mask)
    pattern = None
    if stage == 1 and step + 1 < ANNEAL:
        pattern = annealed(length, (step + 1) / ANNEAL, generator(SEED, "anneal", step))
    logits_LV = model.logits(given[None], real[None], causal=stage == 0, pattern_LL=pattern)[0]
    losses_L = F.cross_entropy(logits_LV, ids, reduction="none")
    return (losses_L[masked] * weight).sum(), int(eligible.sum())


def by_hand(place: Path, stage: int) -> tuple[list[tuple[float, float, float]], Any]:
    """Loss, norm and learning rate of every step, and the model at the end."""
    model = load(place / ("ar" if stage == 0 else "diffusion"), device="cpu")
    shards = ShardSet.open(place / ("sft" if stage == 3 else "pretrain"), "train")
    pad = model.ids.pad if model.ids.pad is not None else 0
    optimizer = AdamW(list(model.parameters()), BETAS, EPS, DECAY, MOST)
    told = []
    for step in range(STEPS):
        parts = [row_loss(model, shards, stage, step, row, pad) for row in range(BATCH)]
        loss = sum(part for part, _ in parts) / sum(count for _, count in parts)  # type: ignore[arg-type]
        rate = cosine(step, STEPS, PEAK, WARMUP, FLOOR)
        told.append((float(loss.detach()), optimizer.update(loss, rate), rate))
    return told, model


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_is_what_it_is_by_hand(place: Path, tmp_path: Path, stage: int) -> None:
    own = {1: {"anneal_steps": ANNEAL}, 3: {"conditional_phase_in": PHASE}}.get(stage, {})
    model, data = place / ("ar" if stage == 0 else "diffusion"), place / ("sft" if stage == 3 else "pretrain")
    done = train(
        stage, str(model), str(data), str(tmp_path / "run"), build(StageConfig, CONFIG, own), device="cpu", quiet=True
    )
    expected, by_then = by_hand(place, stage)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["loss"], line["grad_norm"], line["learning_rate"]) for line in lines if "loss" in line]
    assert np.allclose(seen, expected, rtol=2e-4, atol=0), (seen, expected)
    assert any(norm > MOST for _, norm, _ in expected) and any(norm != expected[0][1] for _, norm, _ in expected)
    theirs = load(done.checkpoint, device="cpu").network.state_dict()
    # Adam divides by the gradient's size: where it is nearly 0, rounding moves a weight by a share of a step of 1e-2.
    for name, value in by_then.network.state_dict().items():
        assert torch.allclose(theirs[name], value, rtol=1e-3, atol=5e-4), (name, (theirs[name] - value).abs().max())

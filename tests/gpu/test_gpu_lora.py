"""LoRA at the shape of Qwen2.5-Coder-7B with random weights: the base in bfloat16 or nf4, stage 3 and stage 4."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from ground import Ground, compare, speed
from places import BOTH_SLOW, Place, cases, note

from dcoder_cli.model import adapters
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.layouts import LAYOUTS
from dcoder_cli.model.loading import empty_network
from dcoder_cli.model.special_ids import SpecialIds
from dcoder_cli.training import setup
from dcoder_cli.training.config import LoraConfig
from dcoder_cli.training.lora import add_adapter
from dcoder_cli.training.memory.shape import read_config, shape_of
from dcoder_cli.training.objective import TokenLoss

LORA = {"rank": 8, "save_merged": False}


@pytest.mark.parametrize(("place", "way"), cases([("bfloat16",), ("8-bit Adam",)], [("nf4",)], slow=True))
def test_stage_3_within_the_memory_it_is_said_to_take(place: Place, way: str, tmp_path: Path) -> None:
    """Eight steps on one batch with checkpointing; the speed is the median of the last five."""
    place.needs(22)
    if way == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs the package bitsandbytes")
    if way == "8-bit Adam" and not any(importlib.util.find_spec(one) for one in ("bitsandbytes", "torchao")):
        pytest.skip("needs the package bitsandbytes or torchao")
    here = Ground(place, tmp_path, "seven", rows=4, length=place.pick(1024, 32))
    changes = {
        "activation_checkpointing": True, "lora": {**LORA, **({"base_dtype": "nf4"} if way == "nf4" else {})},
        "optimizer": {
            "learning_rate": 1e-3, "warmup_steps": 0, "name": "adamw-8bit" if way == "8-bit Adam" else "adamw",
        },
    }  # fmt: skip
    ran = here.stage(3, tmp_path / "run", 8, measure=True, **changes)
    name = f"LoRA, stage 3, {place.size('seven')['hidden_size']} wide, {way}"
    losses = [line["loss"] for line in ran.steps]
    note(name, losses=losses, **speed(here, ran.median("seconds", 3), lora=True))
    assert all(math.isfinite(line["loss"]) and 0 < line["grad_norm"] < math.inf for line in ran.steps)
    assert losses[-1] < losses[0]
    compare(place, name, ran.peak, here.fitted("stage3", here.stage_config(**changes)))


@pytest.mark.parametrize("place", BOTH_SLOW)
def test_stage_4_within_the_memory_it_is_said_to_take(place: Place, tmp_path: Path) -> None:
    """One step of two updates. The reference is the policy with its adapter off, so the first update's KL is exactly 0."""
    place.needs(22)
    here = Ground(place, tmp_path, "seven")
    changes = {
        "activation_checkpointing": True, "lora": LORA, "reference_sync": 0, "rollout": {"max_new_tokens": place.pick(32, 8)},
        "inner_iterations": 1,
    }  # fmt: skip
    ran = here.grpo(tmp_path / "run", 1, measure=True, **changes)
    (line,) = ran.steps
    name = f"LoRA, stage 4, {place.size('seven')['hidden_size']} wide"
    note(name, step=line, seconds=ran.laps[0])
    assert line["kl"] == 0 and line["ratio"] == 1 and line["reward_std"] > 0 and 0 < line["grad_norm"] < math.inf
    compare(place, name, ran.peak, here.fitted("grpo", here.grpo_config(**changes)))


@pytest.mark.slow
def test_a_step_of_7b_has_the_shapes_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, so without numbers: adapters, losses and gradients of the real shape, whatever machine this is."""
    meta, name = torch.device("meta"), "qwen2.5-coder-7b"
    config = {**read_config(name), "model_type": "Dream", "mask_token_id": 3}
    shape, lora = shape_of(config, name), LoraConfig()
    monkeypatch.setattr(adapters, "fingerprint", lambda weights, tied: "")  # it reads numbers
    network = empty_network(config, LAYOUTS["Dream"], "sdpa", meta)
    ids = SpecialIds(3, None, None, None, None, frozenset())
    model = Model(network, config, LAYOUTS["Dream"], ids, [], None, name)
    add_adapter(model, lora, 0)
    setup.recompute_activations(network)
    module = TokenLoss(model.to(meta))
    module.train()
    places_N = torch.arange(2 * 1024, device=meta)
    tokens_BL, ones_N = torch.zeros(2, 1024, dtype=torch.int64, device=meta), torch.ones(2 * 1024, device=meta)
    weighted, losses_N = module(tokens_BL, places_N, places_N, ones_N, None, None, None, False)
    weighted.backward()
    assert losses_N.shape == (2 * 1024,) and losses_N.dtype == torch.float32
    trained = [one for one in module.parameters() if one.requires_grad]
    assert all(one.grad is not None and one.grad.shape == one.shape for one in trained)
    assert sum(one.numel() for one in trained) == shape.adapters(lora.rank, lora.target_modules) == 20_185_088
    assert sum(one.numel() for one in module.parameters()) - 20_185_088 == shape.parameters == 7_615_616_512

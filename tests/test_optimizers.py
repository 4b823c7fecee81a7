"""8-bit Adam: the moments that it keeps, how far its steps are from AdamW's, resuming, and what is said where it is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, make_shards, make_tokenizer, refused

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.training import denoise, optimizers, saving
from dcoder_cli.training.config import OptimizerConfig, StageConfig

EIGHT = OptimizerConfig(name="adamw-8bit", learning_rate=1e-2, weight_decay=0.1)
NEEDS = pytest.mark.skipif(
    not optimizers._eight_bit_libraries(), reason="neither bitsandbytes nor torchao is installed"
)
DEVICES = [pytest.param("cpu", marks=NEEDS), pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS])]


def steps(config: OptimizerConfig, device: str, count: int = 20) -> tuple[torch.nn.Module, Any]:
    """A matrix of 16,384 numbers and a bias, moved by gradients of a fixed regression."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 128).to(device)
    inputs, targets = torch.randn(64, 128, device=device), torch.randn(64, 128, device=device)
    optimizer = optimizers.make_optimizer(layer, config)
    for step in range(count):
        optimizers.set_learning_rate(optimizer, config.learning_rate * (1 - step / count))
        torch.nn.functional.mse_loss(layer(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer, optimizer


@pytest.mark.parametrize("device", DEVICES)
def test_8_bit_steps_are_near_adamw_s_in_a_quarter_of_the_memory(device: str) -> None:
    """Each number beside AdamW's: 20 steps at most 0.105 long in all, and 8-bit ones end within a tenth of that."""
    plain, kept = steps(OptimizerConfig(learning_rate=1e-2, weight_decay=0.1), device)
    ours, optimizer = steps(EIGHT, device)
    start = steps(EIGHT, device, count=0)[0]
    for one, two, begun in zip(plain.parameters(), ours.parameters(), start.parameters(), strict=True):
        assert (one - begun).abs().max() > 0.05
        torch.testing.assert_close(two, one, rtol=0, atol=0.01)
    sizes = [sum(bytes_of(value) for value in each.state[next(model.parameters())].values()) for model, each in ((plain, kept), (ours, optimizer))]  # fmt: skip
    assert sizes[1] < 0.3 * sizes[0], sizes


def bytes_of(value: Any) -> int:
    if not isinstance(value, torch.Tensor):
        return 0
    parts = [getattr(value, name) for name in ("codes", "scale") if hasattr(value, name)]
    return sum(part.numel() * part.element_size() for part in parts or [value])


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_with_8_bit_adam_resumes_exactly(device: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_model(tmp_path / "model", tokenizer=tokenizer, hidden_size=64, intermediate_size=128)
    make_shards(tmp_path / "data", tokenizer)

    def train(out: str, steps: int, resume: bool = False) -> None:
        settings = {
            "steps": steps, "global_batch": 4, "micro_batch": 4, "precision": "fp32", "checkpoint_every": 2, "evaluate_every": 0,
            "optimizer": {"name": "adamw-8bit", "learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"},
        }  # fmt: skip
        config = build(StageConfig, settings)
        denoise.train(
            2, str(tmp_path / "model"), str(tmp_path / "data"), str(tmp_path / out), config, resume, device, quiet=True
        )

    train("whole", 6)
    train("parts", 4)
    train("parts", 6, resume=True)
    whole, parts = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts"))
    assert [line for line in parts if '"step": 4, "heldout"' not in line] == whole  # an evaluation where it stopped
    ours, theirs = (load(tmp_path / name).network.state_dict() for name in ("parts", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert "optimizer.name = adamw cannot change" in refused(
        "train-stage", "2", "--out", tmp_path / "parts", "--resume", f"--device={device}", "--set=optimizer.name=adamw"
    )


def test_without_a_package_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    make_model(tmp_path / "model", tokenizer=tokenizer)
    make_shards(tmp_path / "data", tokenizer)
    find = importlib.util.find_spec
    missing = ("bitsandbytes", "torchao")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in missing else find(name, *more))
    asked = ["train-stage", "2", "--model", tmp_path / "model", "--data", tmp_path / "data", "--out", tmp_path / "run"]
    line = refused(*asked, "--device=cpu", "--set=precision=fp32", "--set=optimizer.name=adamw-8bit")
    assert "needs the package bitsandbytes or torchao; install it with `pip install 'dcoder[gpu]'`" in line
    assert not (tmp_path / "run").exists()


def test_torchs_own_generator_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    """Nothing of ours draws from it, but what a user's own function draws must not depend on where a run was cut."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    torch.manual_seed(99)
    saving._write_state(tmp_path, {"step": 3, "tail": []})
    torch.save(optimizer.state_dict(), tmp_path / "training" / "optimizer.pt")
    undisturbed = torch.rand(5)
    torch.manual_seed(1)
    assert saving.load_training_state(tmp_path, torch.nn.Linear(1, 1), optimizer)["step"] == 3
    assert torch.equal(torch.rand(5), undisturbed)


def test_a_state_of_another_library_is_refused(tmp_path: Path) -> None:
    """A checkpoint of a machine with torchao, resumed where AdamW is torch's."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    (tmp_path / "training").mkdir()
    torch.save({"torch_rng": torch.get_rng_state(), "tail": []}, tmp_path / "training" / "state.pt")
    torch.save(optimizer.state_dict(), tmp_path / "training" / "optimizer.pt")
    saving.load_training_state(tmp_path, torch.nn.Linear(1, 1), optimizer)
    optimizer.param_groups[0]["library"] = "torchao"
    torch.save(optimizer.state_dict(), tmp_path / "training" / "optimizer.pt")
    with pytest.raises(UserError, match="is of torchao, and here it would be of torch; install torchao"):
        saving.load_training_state(tmp_path, torch.nn.Linear(1, 1), optimizer)

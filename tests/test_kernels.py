"""Liger's kernels in the blocks: the same weights by the same names, the same numbers, and what is said without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import make_model, make_shards, make_tokenizer, refused
from torch import nn

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.model import kernels
from dcoder_cli.training.config import LoraConfig, StageConfig
from dcoder_cli.training.denoise import train
from dcoder_cli.training.lora import add_adapter

IDS_BL = torch.randint(5, 290, (2, 16), generator=torch.Generator().manual_seed(0))


class Norm(nn.Module):
    """What stands for LigerRMSNorm where there is no GPU: the formula, with a count of its calls."""

    calls = 0

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Norm.calls += 1
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class Mlp(nn.Module):
    """The same for LigerSwiGLUMLP, which makes its own weights from a config."""

    calls = 0

    def __init__(self, config: Any) -> None:
        super().__init__()
        for name, shape in {"gate_proj": (1, 0), "up_proj": (1, 0), "down_proj": (0, 1)}.items():
            sizes = (config.hidden_size, config.intermediate_size)
            setattr(self, name, nn.Linear(sizes[shape[1]], sizes[shape[0]], bias=False))

    def forward(self, x: torch.Tensor) -> Any:
        Mlp.calls += 1
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen2 import modeling_qwen2

    package = ModuleType("liger_kernel.transformers")
    package.LigerRMSNorm, package.LigerSwiGLUMLP, package.liger_rotary_pos_emb = Norm, Mlp, None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", modeling_qwen2.apply_rotary_pos_emb)  # put back after


@pytest.mark.parametrize("lora", [False, True])
def test_every_norm_and_mlp_is_liger_s_around_the_same_weights(tmp_path: Path, stand_ins: None, lora: bool) -> None:
    make_model(tmp_path / "model")
    plain, ours = load(tmp_path / "model"), load(tmp_path / "model")
    if lora:
        add_adapter(ours, LoraConfig(), 0)
    before = dict(ours.network.named_parameters())
    kernels.use_liger(ours)
    kernels.use_liger(ours)  # twice is once
    after = dict(ours.network.named_parameters())
    assert set(before) == set(after) and all(after[key] is before[key] for key in before)
    assert not any(parameter.is_meta for parameter in after.values())
    Norm.calls = Mlp.calls = 0
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(IDS_BL), plain.logits(IDS_BL), rtol=1e-5, atol=1e-5)
    assert (Norm.calls, Mlp.calls) == (2 * 2 + 1, 2)


def test_a_run_that_asks_for_them_trains_with_them(
    tmp_path: Path, stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    make_model(tmp_path / "model", tokenizer=tokenizer)
    make_shards(tmp_path / "data", tokenizer)
    settings = {"steps": 1, "global_batch": 2, "precision": "fp32", "evaluate_every": 0}
    data, losses = [str(tmp_path / name) for name in ("model", "data")], []
    for name in ("none", "liger"):
        Norm.calls = 0
        config = build(StageConfig, settings, {"kernels": name})
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "check", lambda name, device: None)
            losses.append(train(2, *data, str(tmp_path / name), config, device="cpu", quiet=True).loss)
        assert (Norm.calls > 0) == (name == "liger")
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    asked = ["train-stage", "2", "--model", data[0], "--data", data[1], "--out", tmp_path / "run", "--device=cpu"]
    assert "kernels = liger needs a CUDA device" in refused(*asked, "--set=kernels=liger", "--set=precision=fp32")


def test_without_a_gpu_or_the_package_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.check("none", torch.device("cpu"))
    with pytest.raises(UserError, match="kernels = liger needs a CUDA device, not cpu"):
        kernels.check("liger", torch.device("cpu"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package liger-kernel; install it with `pip install 'dcoder\[gpu\]'`"
    ):
        kernels.check("liger", torch.device("cuda"))


def test_doctor_tells_what_is_there_and_how_to_get_it() -> None:
    from dcoder_cli.commands.doctor import _rows

    from dcoder_cli.benchmarks.environment import describe

    found = describe(hub=False)
    found["optional"]["liger-kernel"]["version"], found["optional"]["bitsandbytes"]["version"] = None, "0.50.2"
    rows = dict(_rows(found))
    assert rows["liger-kernel"] == "no: not installed (pip install 'dcoder[gpu]')" and rows["bitsandbytes"] == "0.50.2"
    assert rows["peft"] == found["optional"]["peft"]["version"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_liger_computes_and_teaches_what_the_blocks_do(tmp_path: Path, dtype: torch.dtype) -> None:
    pytest.importorskip("liger_kernel")
    make_model(tmp_path / "model", hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
    plain, ours = load(tmp_path / "model", "cuda"), load(tmp_path / "model", "cuda")
    logits = []
    for model, fused in ((plain, False), (ours, True)):  # the plain one first: rotary embedding is the process's
        if fused:
            kernels.use_liger(model)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            logits_BLV = model.logits(IDS_BL.cuda())
        logits_BLV.pow(2).mean().backward()
        logits.append(logits_BLV.detach())
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(*logits, **near)
    for one, two in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(
            one.grad, two.grad, rtol=near["rtol"], atol=near["atol"] * float(one.grad.abs().max())
        )

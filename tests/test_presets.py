"""Every preset against the real configuration classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers import dcoder, refused

from dcoder_cli.base import presets
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.data.rl import RlSettings
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig

STAGES = ("stage0", "stage1", "stage2", "stage3")


@pytest.mark.parametrize("name", presets.names())
def test_every_section_of_every_preset_is_read_by_its_class(name: str, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    from dcoder_cli.decoding.requests import Settings

    values = presets.load(name)
    # only stage 4 was released, and LoRA begins with stage 2
    stages = {"released": (), "gpu-80gb-lora": STAGES[2:]}.get(name, STAGES)
    assert set(values) == {"hardware", *stages, "grpo", "generate", "eval", "launch"}
    for stage in stages:
        config = build(StageConfig, values[stage])
        assert config.global_batch % config.micro_batch == 0
    build(GrpoConfig, values["grpo"])
    build(Settings, values["generate"])
    assert presets.evaluation(name) == ({}, 32)
    file = tmp_path / "launch.yaml"
    file.write_text(yaml.safe_dump(values["launch"]))
    assert load_config_from_file(str(file)).num_processes == values["launch"]["num_processes"]
    hardware = presets.hardware(name)
    assert (max(1, hardware.gpus), hardware.machines) == (
        values["launch"]["num_processes"], values["launch"]["num_machines"],
    )  # fmt: skip
    assert presets.text(name).startswith(f"# {name}: ")


def test_the_paper_preset_has_the_papers_numbers() -> None:
    values = presets.load("paper")
    one, two, three = (build(StageConfig, values[stage]) for stage in STAGES[1:])
    grpo = build(GrpoConfig, values["grpo"])
    assert (one.steps, one.global_batch * 4096 * one.steps, one.micro_batch) == (100_000, 65_536_000_000, 2)
    assert (one.optimizer.learning_rate, one.optimizer.warmup_steps, one.optimizer.floor, one.anneal_steps) == (
        2e-5,
        20_000,
        0.1,
        10_000,
    )
    assert (one.truncate_share, one.clean_prefix_share) == (two.truncate_share, two.clean_prefix_share) == (0.01, 0.01)
    assert (two.optimizer.learning_rate, two.optimizer.warmup_steps, two.epochs) == (1e-5, 2000, 4)
    assert (three.optimizer.learning_rate, three.optimizer.warmup_ratio, three.epochs, three.conditional_phase_in) == (
        1e-5,
        0.1,
        5,
        1,
    )
    optimizer = grpo.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay, optimizer.max_grad_norm) == (
        1e-6,
        (0.9, 0.99),
        0.1,
        0.2,
    )
    assert (grpo.group_size, grpo.rollout.steps, grpo.rollout.temperature, grpo.inner_iterations) == (10, 256, 1.2, 2)
    assert (grpo.clip, grpo.kl_coef, grpo.reference_sync, grpo.t_range, grpo.pairs) == (0.5, 0.01, 64, (0.2, 0.8), 1)
    assert values["launch"]["num_processes"] == 80 and values["launch"]["num_machines"] == 10


def test_stage_4_as_the_text_and_as_the_released_code() -> None:
    """PAPER's section 5, number for number: (text, released)."""
    table = {
        "rollout.temperature": (1.2, 1.0), "rollout.top_p": (None, 0.95), "rollout.tie_break": (None, "topk"),
        "rollout.max_new_tokens": (256, 256), "rollout.steps": (256, 256),
        "group_size": (10, 10), "inner_iterations": (2, 2), "clip": (0.5, 0.5), "kl_coef": (0.01, 0.01),
        "reference_sync": (64, 64), "reference_alpha": (1.0, 0.6), "loss_normaliser": ("completion", "token"),
        "format": ("strict", "strict"), "seed": (0, 42), "epochs": (1, 1), "precision": ("bf16", "bf16"),
        "estimator": ("coupled", "coupled"), "pairs": (1, 1), "t_range": ((0.2, 0.8), (0.2, 0.8)),
        "advantage": ("mean", "leave-one-out"), "scale_advantage": (False, False), "lora": (None, None),
        "rollout.rule": ("entropy", "entropy"), "rollout.batch_size": (32, 10), "rollout.mode": ("exact", "exact"), "train_embeddings": (True, True),
        "optimizer.learning_rate": (1e-6, 1e-6), "optimizer.floor": (0.1, 0.1), "optimizer.warmup_steps": (0, 0),
        "optimizer.warmup_ratio": (None, None), "optimizer.schedule": ("cosine", "cosine"), "optimizer.betas": ((0.9, 0.99), (0.9, 0.99)),
        "optimizer.weight_decay": (0.1, 0.1), "optimizer.max_grad_norm": (0.2, 0.2),
        "rewards": ({"code": 2.0, "format": 0.5}, {"code": 2.0, "format": 0.5}),
    }  # fmt: skip
    for which, name in enumerate(("paper", "released")):
        config = build(GrpoConfig, presets.load(name)["grpo"])
        for key, values in table.items():
            found: object = config
            for part in key.split("."):
                found = getattr(found, part)
            assert found == values[which], (name, key)
    released = build(GrpoConfig, presets.load("released")["grpo"])
    assert released.prompts_per_step * released.group_size == 80 == 8 * released.micro_batch * 2
    assert presets.load("released")["launch"]["num_processes"] == 8
    assert RlSettings((), "", "").max_prompt_tokens == 200  # both; of `tokenize rl`


def test_a_preset_without_the_section_is_refused(tmp_path: Path) -> None:
    message = refused(
        "train-stage", "1", "--preset", "released", "--model", "m", "--data", "d", "--out", tmp_path / "o"
    )
    assert "preset 'released' has no section 'stage1'; it has hardware, grpo, generate, eval, launch" in message


def test_global_batch_and_schedule_are_the_papers_on_every_gpu_size() -> None:
    paper = presets.load("paper")
    for name in ("gpu-16gb", "gpu-24gb", "gpu-80gb", "8x80gb"):
        for stage in STAGES[1:]:
            ours, theirs = presets.load(name)[stage], paper[stage]
            assert {**ours, "micro_batch": 0} == {**theirs, "micro_batch": 0}, (name, stage)


def test_the_command_shows_them() -> None:
    listed = json.loads(dcoder("presets", "list", "--json").stdout)["presets"]
    assert set(listed) == {
        "cpu-tiny", "gpu-16gb", "gpu-24gb", "gpu-80gb", "gpu-80gb-lora", "8x80gb", "paper", "released",
    }  # fmt: skip
    assert dcoder("presets", "show", "paper").stdout == presets.text("paper")
    assert (
        yaml.safe_load(dcoder("presets", "show", "8x80gb", "--section", "launch").stdout)["distributed_type"] == "FSDP"
    )
    assert "did you mean 'gpu-24gb'" in refused("presets", "show", "gpu-25gb")
    assert "no section" in refused("presets", "show", "paper", "--section", "x")


def test_an_unknown_key_in_any_layer_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean 'rollout\.temperature'"):
        build(GrpoConfig, {"rollout": {"temprature": 1.0}})
    with pytest.raises(UserError, match="did you mean 'anneal_steps'"):
        build(StageConfig, {"aneal_steps": 1})
    with pytest.raises(UserError, match=r"betas.*2 entries"):
        build(StageConfig, {"optimizer": {"betas": [0.9]}})

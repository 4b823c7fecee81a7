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
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.grpo_config import GrpoConfig

STAGES = ("stage0", "stage1", "stage2", "stage3")


@pytest.mark.parametrize("name", presets.names())
def test_every_section_of_every_preset_is_read_by_its_class(name: str, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    from dcoder_cli.diffusion.requests import Settings

    values = presets.load(name)
    assert set(values) == {*STAGES, "grpo", "generate", "launch"}
    for stage in STAGES:
        config = build(StageConfig, values[stage])
        assert config.global_batch % config.micro_batch == 0
    build(GrpoConfig, values["grpo"])
    build(Settings, values["generate"])
    file = tmp_path / "launch.yaml"
    file.write_text(yaml.safe_dump(values["launch"]))
    assert load_config_from_file(str(file)).num_processes == values["launch"]["num_processes"]
    header = [line for line in presets.text(name).splitlines() if line.startswith("#")]
    assert header[0].startswith(f"# {name}: ") and any("train-stage adapt --preset " + name in line for line in header)


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


def test_global_batch_and_schedule_are_the_papers_on_every_gpu_size() -> None:
    paper = presets.load("paper")
    for name in ("gpu-24gb", "gpu-80gb", "8x80gb"):
        for stage in STAGES[1:]:
            ours, theirs = presets.load(name)[stage], paper[stage]
            assert {**ours, "micro_batch": 0} == {**theirs, "micro_batch": 0}, (name, stage)


def test_the_command_shows_them() -> None:
    listed = json.loads(dcoder("presets", "list", "--json").stdout)
    assert set(listed) == {"cpu-tiny", "gpu-24gb", "gpu-80gb", "8x80gb", "paper"}
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

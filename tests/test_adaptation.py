"""Adaptation is worth it: stage 1 from an AR model against stage 1 from random weights, at equal tokens, over seeds."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest

from dcoder_cli.base import presets
from dcoder_cli.base.config import build
from dcoder_cli.data.pipeline import PretrainSettings, tokenize_pretrain
from dcoder_cli.model.conversion import convert_checkpoint, initialise
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.denoise import train

SEEDS = (0, 1, 2)
STEPS = 300  # of the AR model, and of each stage 1


@pytest.mark.slow
def test_stage_1_from_an_ar_model_beats_random_weights_at_equal_tokens(tmp_path: Path) -> None:
    library = sysconfig.get_paths()["stdlib"]
    settings = PretrainSettings(
        (f"{library}/asyncio", f"{library}/json", f"{library}/email", f"{library}/http", f"{library}/logging", f"{library}/unittest"),
        str(tmp_path / "data"), train_tokenizer=1024, seq_len=64, heldout=0.1, quiet=True,
    )  # fmt: skip
    tokenize_pretrain(settings)
    preset, small = (
        presets.load("cpu-tiny"),
        {"steps": STEPS, "anneal_steps": STEPS // 2, "evaluate_every": 0, "checkpoint_every": 0},
    )
    losses: dict[str, list[float]] = {"from AR": [], "from random": []}
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        initialise("tiny", folder / "start", str(tmp_path / "data" / "tokenizer"), [], 0, True, None, seed, None)
        ar = train(
            0,
            str(folder / "start"),
            settings.out,
            str(folder / "ar"),
            build(StageConfig, preset["stage0"], small, {"seed": seed}),
            quiet=True,
        )
        for name, source in (("from AR", ar.checkpoint), ("from random", folder / "start")):
            convert_checkpoint(str(source), folder / name)
            config = build(StageConfig, preset["stage1"], small, {"seed": seed})
            result = train(1, str(folder / name), settings.out, str(folder / f"run {name}"), config, quiet=True)
            assert result.heldout is not None
            losses[name].append(result.heldout["loss"])
    print(json.dumps(losses))
    for adapted, scratch in zip(losses["from AR"], losses["from random"], strict=True):
        assert adapted < scratch - 0.2, losses

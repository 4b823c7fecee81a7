"""The memory formula and `dcoder presets fit`: counted by hand, every preset on its own hardware, and the command's answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import dcoder, make_model, refused, said

from dcoder_cli.base import presets
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.presets import Hardware
from dcoder_cli.training.config import LoraConfig, StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.memory import ask, pieces
from dcoder_cli.training.memory.ask import FitQuestion
from dcoder_cli.training.memory.case import GIB, Case, Decoding
from dcoder_cli.training.memory.fit import budget, fit
from dcoder_cli.training.memory.parts import PARTS, stored
from dcoder_cli.training.memory.pieces import ForwardPass, Way
from dcoder_cli.training.memory.shape import Shape, read_config, shape_of


def shape(name: str = "qwen2.5-coder-7b") -> Shape:
    return shape_of(read_config(name), name)


@pytest.mark.parametrize(
    ("name", "parameters"),  # of the public checkpoints' safetensors headers
    [("qwen2.5-coder-0.5b", 494_032_768), ("qwen2.5-coder-3b", 3_085_938_688), ("qwen2.5-coder-7b", 7_615_616_512)],
)
def test_parameters_are_those_of_the_public_checkpoints(name: str, parameters: int) -> None:
    found = shape(name)
    assert found.parameters == parameters
    assert found.root + found.layers * found.block == parameters


def test_the_formula_by_hand() -> None:
    """A block of D = 8, F = 16, 2 heads of 4 (1 for keys), float32, 3 tokens, nothing masked.

    Kept of it: each norm its input and a number, 2 x 9; what q, k, v read, 8, and gate and up, 8; q, out (8 each), k, v
    (4 each), a number a head, 2; gate, up, what down reads, 3 x 16. (18 + 16 + 24 + 2 + 48) x 4 bytes x 3 tokens.
    """
    one = Shape("x", 8, 2, 16, 32, 8, 4, 2, True, 1000, 256, 300, 250, 64, (("q_proj", 8, 8),))
    batch = ForwardPass(1, 3, 3)
    assert pieces.held_by_block(one, Way("fp32"), batch) == (18 + 16 + 24 + 2 + 48) * 4 * 3
    # bf16 under autocast: norms stay float32, each of q, k, v, gate, up casts what it reads, the rest is half as wide
    assert pieces.held_by_block(one, Way("bf16"), batch) == (18 * 4 + 5 * 8 * 2 + 24 * 2 + 2 * 4 + 48 * 2) * 3
    # checkpointing keeps a block's input alone: 2 blocks x 8 x 4 bytes x 3 tokens, and the end's
    less = pieces.kept(one, Way("fp32"), batch) - pieces.kept(one, Way("fp32", checkpointing=True), batch)
    assert less == 2 * (pieces.held_by_block(one, Way("fp32"), batch) - 8 * 4 * 3)
    assert (
        pieces.held_by_block(one, Way("fp32"), replace(batch, mask=1)) - pieces.held_by_block(one, Way("fp32"), batch)
        == (2 * 4 * 4 * 3) + 4 * 3 * 3
    )  # keys and values for both heads, and the mask in numbers


def test_the_heads_part_by_hand() -> None:
    """V = 32, D = 8: a table of 256. 10 places, 4 at once: a float32 buffer of 4 x 32, and where products are bf16 one of those.

    The head's gradient is 256 float32, and a product of 256 bf16 on its way to them; a tied one waits for the embedding's.
    """
    one = Shape("x", 8, 2, 16, 32, 8, 4, 2, True, 1000, 256, 300, 250, 64, (("q_proj", 8, 8),))
    assert pieces.head_logits(one, Way("fp32"), 10, 4) == 4 * 4 * 32
    assert pieces.head_logits(one, Way("bf16"), 10, 4) == (4 + 2) * 4 * 32
    assert pieces.head_logits(one, Way("fp32"), 3, 4) == 4 * 3 * 32
    assert pieces.head_gradient(one, Way("fp32")) == (4 * 256, 4 * 256)
    assert pieces.head_gradient(replace(one, tied=False), Way("bf16")) == ((4 + 2) * 256, 0)
    assert pieces.head_gradient(one, Way("bf16", "fsdp", 8)) == ((4 + 2) * 256, 2 * 256)
    assert pieces.head_gradient(one, Way("bf16", lora=LoraConfig(rank=2))) == (0, 0)
    # Logits teach in the forward pass of stages 0 to 3, and are computed again for it in stage 4.
    stage, grpo = build(StageConfig, {}), build(GrpoConfig, {})
    assert "head" in Case("stage2", one, stage).estimate().phases
    phases = Case("grpo", one, grpo).estimate().phases
    assert phases["forward"]["logits"] == phases["backward of the head"]["logits"] > 0 and "head" not in phases


def test_weights_gradients_and_moments_are_shared_by_fsdp_and_copied_by_ddp() -> None:
    """DESIGN: 7.6B over 8 GPUs: weights 3.8, gradients 3.8, moments 7.6 GB a GPU; whole bf16 weights 15.2 GB while decoding."""
    config = build(GrpoConfig, presets.load("8x80gb")["grpo"])
    phases = Case("grpo", shape(), config, "fsdp", 8).estimate().phases
    rollout = phases["rollout, logits"]
    assert rollout["weights"] / 1e9 == pytest.approx(3.8, abs=0.05)
    assert rollout["moments"] / 1e9 == pytest.approx(7.6, abs=0.05)
    assert rollout["gathered"] / 1e9 == pytest.approx(15.2, abs=0.05)
    assert rollout["reference"] / 1e9 == pytest.approx(1.9, abs=0.05)
    assert phases["forward"]["gradients"] / 1e9 == pytest.approx(3.8, abs=0.05)
    copied = Case("grpo", shape(), config, "ddp", 8).estimate().phases["forward"]
    assert copied["weights"] == 4 * 7_615_616_512 and copied["gradients"] == 2 * copied["weights"]
    assert Case("grpo", shape(), replace(config, kl_coef=0.0), "ddp", 8).estimate().parts["reference"] == 0


def test_lora_trains_a_hundredth_and_holds_its_base_in_bf16() -> None:
    adapters = 28 * 8 * ((3584 + 3584) * 2 + (3584 + 512) * 2 + (3584 + 18944) * 3)
    found = stored(shape(), Way(lora=LoraConfig(rank=8), base="bfloat16"))
    assert found == {"weights": 2 * 7_615_616_512 + 4 * adapters, "moments": 8 * adapters}
    shared = stored(shape(), Way(spread="fsdp", gpus=8, lora=LoraConfig(rank=8), base="bfloat16"))
    assert shared == {name: value / 8 for name, value in found.items()}
    four_bit = stored(shape(), Way(lora=LoraConfig(rank=8), base="nf4", eight_bit=True))
    assert 4.5e9 < four_bit["weights"] < 6.1e9 and four_bit["moments"] == 2 * (1 + 4 / 256) * adapters


@pytest.mark.parametrize("name", presets.names())
def test_every_section_of_every_preset_fits_its_hardware(name: str) -> None:
    found = ask.answer(FitQuestion(preset=name))
    assert set(found.fits) == {one for one in presets.load(name) if one not in ("launch", "hardware")} | {"eval"}
    for section, one in found.fits.items():
        assert one.fits, (name, section, one.estimate.total / GIB, one.budget / GIB)
        assert one.fastest is not None and one.fastest.total <= one.budget and one.speed >= 1


def test_what_does_not_fit_says_so_and_what_would(tmp_path: Path) -> None:
    """7B in full on one card of 80 GB: 16 bytes a weight alone are 113 GiB. By LoRA, or on more cards, it fits."""
    found = ask.answer(FitQuestion(model="qwen2.5-coder-7b", gpus=1, gpu_memory=80, stages=("sft",))).fits["stage3"]
    assert not found.fits and found.fastest is None
    assert found.estimate.parts["moments"] > 56 * GIB
    told = [one.told() for one in found.otherwise]
    assert any("GPUs" in one for one in told) and any("lora" in one for one in told), told
    for one in found.otherwise:
        assert one.case.estimate().total == one.total <= found.budget
        assert one.seconds > 0


def test_the_fastest_that_fits_is_the_fastest_of_all_that_fit() -> None:
    """By trying: of micro-batches 1 to 16 with and without checkpointing none that fits is counted faster."""
    from dcoder_cli.training.memory.fit import seconds

    case = ask.answer(FitQuestion(preset="gpu-24gb", stages=("1",))).fits["stage1"].case
    for memory in (12, 16, 24, 80):
        found = fit(case, memory)
        tried = [
            case.changed(micro_batch=size, activation_checkpointing=again)
            for size in (1, 2, 4, 8, 16)
            for again in (False, True)
        ]
        fitting = [seconds(one) for one in tried if one.estimate().total <= budget(memory)]
        if found.fastest is None:
            assert not fitting
        else:
            assert found.fastest.seconds <= min(fitting) * (1 + 1e-9)


def test_a_card_keeps_something_for_itself() -> None:
    assert budget(80) == 80 * GIB * 0.95 - 1.5 * GIB
    case = Case("generate", shape(), Decoding())
    total = case.estimate().total / GIB
    assert fit(case, (total + 1.5) / 0.95 + 0.01).fits and not fit(case, (total + 1.5) / 0.95 - 0.01).fits


def test_the_command_and_the_document() -> None:
    """docs/sizes.md holds what the command prints, for every preset, in 80 columns."""
    from sizes import FILE, fill

    printed = dcoder("presets", "fit", "--preset", "8x80gb").stdout
    lines = printed.splitlines()
    assert lines[0].startswith("8x80gb: qwen2.5-coder-7b on 8 x 80 GB")
    sections = ["stage0", "stage1", "stage2", "stage3", "grpo", "generate", "eval"]
    assert [line.split()[0] for line in lines[3:10]] == sections
    assert all(line.endswith("ok") for line in lines[3:10])
    text = FILE.read_text(encoding="utf-8")
    assert fill(text) == text, "run `python tests/sizes.py`"
    block = text[text.index("<!-- fits -->") : text.index("<!-- /fits -->")]
    assert printed in block and all(len(line) <= 80 for line in block.splitlines())


def test_the_command_reads_a_folder_and_a_config_json_and_prints_json(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    found = json.loads(said("presets", "fit", "--model", model, "--stage", "sft", "--stage", "eval", "--json"))
    assert found["preset"] == "cpu-tiny" and set(found["sections"]) == {"stage3", "eval"}
    one = found["sections"]["stage3"]
    assert one["bytes"] == pytest.approx(sum(one["parts"].values()), abs=8) and one["fits"]
    assert tuple(one["parts"]) == PARTS
    same = json.loads(said("presets", "fit", "--model", model / "config.json", "--stage", "sft", "--json"))
    assert same["sections"]["stage3"]["parts"] == one["parts"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "needs --preset or --model"),
        ("--preset gpu-25gb", "did you mean 'gpu-24gb'"),
        ("--model qwen2.5-coder-8b", "did you mean 'qwen2.5-coder-"),
        ("--preset paper --stage 5", "stage '5' is unknown; use 0"),
        ("--preset released --stage 1", "has no section 'stage1'"),
        ("--preset paper --gpus 0", "--gpus 0 must be above 0"),
        ("--preset paper --gpu-memory -1", "--gpu-memory -1.0 must be above 0"),
        ("--preset paper --set micro_batch=4", "name it with --stage"),
        ("--preset paper --stage 1 --set micro_batsh=4", "did you mean 'micro_batch'"),
        ("--preset paper --stage 1 --gpus 7", "global_batch = 160 must be a multiple of the 7 GPUs"),
        ("--preset paper --stage grpo --gpus 80", "prompts_per_step = 16 must be a multiple of the 80 GPUs"),
    ],
)
def test_a_wrong_question_is_one_line(line: str, message: str) -> None:
    assert message in refused("presets", "fit", *line.split())


def test_a_preset_of_ones_own_needs_no_hardware_where_all_of_it_is_said(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("stage1: {micro_batch: 1, global_batch: 8}\n")
    assert "has no section 'hardware'" in refused("presets", "fit", "--preset", own, "--gpus", "2")
    asked = FitQuestion(preset=str(own), model="qwen2.5-coder-0.5b", gpus=2, gpu_memory=80)
    found = ask.answer(asked).fits
    assert set(found) == {"stage1"} and found["stage1"].case.spread == "fsdp" and found["stage1"].fits


def test_hardware_is_checked() -> None:
    from dcoder_cli.training.launch import MODELS

    for name, (model, parameters) in MODELS.items():
        assert presets.hardware(name).model == model.lower()
        assert shape(model.lower()).parameters == pytest.approx(parameters, rel=0.02)
    paper = presets.hardware("paper")
    assert (paper.gpus_for("stage1"), paper.machines_for("stage1")) == (80, 10)
    assert (paper.gpus_for("stage2"), paper.machines_for("stage2")) == (64, 8)
    assert (paper.gpus_for("grpo"), paper.machines_for("grpo")) == (8, 1)
    assert presets.hardware("cpu-tiny").gpus_for("stage1") == 1
    with pytest.raises(UserError, match="gpus = 60 GPUs do not make whole machines"):
        Hardware("tiny", 60, 80, machines=8)
    with pytest.raises(UserError, match="grpo = 12 GPUs do not make whole machines of 8"):
        Hardware("tiny", 80, 80, machines=10, sections={"grpo": 12})

"""LoRA's frozen weights in other number formats, and what its checkpoints hold: merged or not, older ones, read by peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused
from torch.utils._python_dispatch import TorchDispatchMode

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.model import adapters
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.inspection import inspect
from dcoder_cli.model.layouts import LAYOUTS
from dcoder_cli.training import denoise, saving
from dcoder_cli.training.config import LoraConfig, StageConfig
from dcoder_cli.training.lora import adapter_state, add_adapter, load_adapter, merged_weights

IDS_BL = torch.randint(0, 290, (2, 12), generator=torch.Generator().manual_seed(0))
CONFIG = {
    "steps": 6, "global_batch": 8, "micro_batch": 4, "precision": "bf16", "evaluate_every": 3, "checkpoint_every": 2, "t_min": 0.05,
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"}, "lora": {"rank": 2, "alpha": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are stored in bfloat16, as the public ones are, and shards."""
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = make_tokenizer()
    make_model(folder / "float32", tokenizer=tokenizer, initializer_range=0.2)
    load(folder / "float32").to(torch.bfloat16).save(folder / "model", stage="mid")
    make_shards(folder / "data", tokenizer)
    return folder


def tune(
    place: Path,
    out: Path,
    resume: bool = False,
    on_step: Any = None,
    model: str = "model",
    device: str = "cpu",
    **changes: Any,
) -> Any:
    AcceleratorState._reset_state()  # else one process has one precision
    config = build(StageConfig, CONFIG, changes)
    data = str(place / "data")
    return denoise.train(2, str(place / model), data, str(out), config, resume, device, quiet=True, on_step=on_step)


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bf16 with the default base: bfloat16."""
    out = tmp_path_factory.mktemp("run") / "run"
    tune(place, out)
    return out


def steps_of(run: Path) -> list[str]:
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if "grad_norm" in line]


def adapted(folder: Path, dtype: str) -> Model:
    model = load(folder, "cpu", dtype)
    add_adapter(model, LoraConfig(rank=2, alpha=8.0), 0, dtype)
    return model


class LargestFloat32(TorchDispatchMode):
    """How many float32 numbers the largest tensor had that was made meanwhile."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.device.type == "cpu":
            self.size = max(self.size, value.numel())
        return value


def test_a_bfloat16_base_gives_the_numbers_of_a_float32_one_in_half_the_memory(
    place: Path, run: Path, tmp_path: Path
) -> None:
    tune(place, tmp_path / "wide", lora={"rank": 2, "alpha": 8, "base_dtype": "float32"})
    assert (run / "metrics.jsonl").read_text() == (tmp_path / "wide" / "metrics.jsonl").read_text()
    narrow, wide = ({k: v for k, v in load_state(out).items()} for out in (run, tmp_path / "wide"))
    assert all(torch.equal(narrow[key], wide[key]) for key in wide) and len(wide) == 2 * 2 * 7
    with LargestFloat32() as seen:
        model = adapted(place / "model", "bfloat16")
    assert seen.size < 32 * 32, "no weight of the base was float32 on the way"
    for key, value in model.network.named_parameters():
        small = ".lora_" in key or "norm" in key
        assert value.dtype == (torch.float32 if small else torch.bfloat16), key
        assert value.requires_grad == (".lora_" in key), key


def load_state(run: Path) -> dict[str, torch.Tensor]:
    return adapters.read(run / "checkpoints" / "last" / "adapter", LAYOUTS["Dream"])[0]


def test_merged_weights_are_summed_in_float32_and_stored_as_the_base_is(place: Path, run: Path) -> None:
    stored, base = load(run, dtype="bfloat16").network.state_dict(), load(place / "model").network.state_dict()
    state = load_state(run)
    assert load(run).config["dtype"] == "bfloat16"
    for key, value in stored.items():
        a, b = (state.get(key.replace(".weight", f".lora_{part}.weight")) for part in "AB")
        expected = base[key] if a is None or b is None else base[key] + 4.0 * b @ a
        assert torch.equal(value, expected.to(torch.bfloat16)), key
        assert torch.equal(value.float(), base[key]) == (a is None), key
    needed = saving.checkpoint_bytes(adapted(place / "model", "bfloat16"))
    sizes = [file.stat().st_size for file in (run / "checkpoints" / "step-6").rglob("*.safetensors")]
    assert sum(sizes) == pytest.approx(needed, rel=0.3)


def test_a_bfloat16_run_resumes_exactly(place: Path, run: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int, *_: Any) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        tune(place, tmp_path / "killed", on_step=kill)
    tune(place, tmp_path / "killed", resume=True)
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    ours, theirs = load_state(tmp_path / "killed"), load_state(run)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_peft_reads_the_adapter_and_computes_the_same(place: Path, run: Path) -> None:
    import peft

    folder = run / "checkpoints" / "last" / "adapter"
    base = load(place / "model", dtype="float32")
    theirs = peft.PeftModel.from_pretrained(load(place / "model", dtype="float32").network, folder).eval()
    ours = adapted(place / "model", "float32")
    for key, value in load_state(run).items():
        adapter_state(ours)[key.replace(".weight", ".default.weight")].copy_(value)
    hidden_BLD = theirs.base_model.model.model(input_ids=IDS_BL, use_cache=False, is_causal=False).last_hidden_state
    expected_BLV = ours.head(ours.network.model(input_ids=IDS_BL, use_cache=False, is_causal=False).last_hidden_state)
    torch.testing.assert_close(theirs.base_model.model.lm_head(hidden_BLD), expected_BLV, rtol=0, atol=0)
    assert (ours.logits(IDS_BL) - base.logits(IDS_BL)).abs().max() > 0.01
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(place / "model") and config["target_modules"] == sorted(
        LoraConfig().target_modules
    )
    name = adapters.peft_key("model.layers.0.mlp.down_proj.lora_A.weight", LAYOUTS["llada"])
    assert name == "base_model.model.model.transformer.blocks.0.ff_out.lora_A.weight"


def test_a_checkpoint_of_the_adapter_alone_loads_everywhere_as_the_merged_one(
    place: Path, run: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(place, tmp_path / "place")
    alone = {"rank": 2, "alpha": 8, "save_merged": False}
    tune(place, tmp_path / "small", lora=alone)
    folder = tmp_path / "small" / "checkpoints" / "last"
    assert not list(folder.glob("*.safetensors")) and (folder / "tokenizer.json").is_file()
    ours, merged = load(tmp_path / "small"), load(run)
    for key, value in merged.network.state_dict().items():
        assert torch.equal(ours.network.state_dict()[key], value), key
    answer = dcoder(
        "generate", "--model", tmp_path / "small", "--max-new-tokens", "4", "--device", "cpu", "--json", "x = 1"
    )
    assert len(json.loads(answer.stdout)["tokens"]) == 4
    assert inspect(str(tmp_path / "small"))["parameters"] == inspect(str(run))["parameters"]
    # Another adapter on top of it: its base is an adapter alone too.
    tune(place, tmp_path / "second", model=str(tmp_path / "small"), lora=alone)
    tune(place, tmp_path / "merged", model=str(run))
    ours, merged = load(tmp_path / "second"), load(tmp_path / "merged")
    assert all(torch.equal(ours.network.state_dict()[key], value) for key, value in merged.network.state_dict().items())
    # The base changes, or goes.
    make_model(place / "model", tokenizer=make_tokenizer(), seed=3)
    with pytest.raises(UserError, match=r"is not what the adapter in .* was trained on"):
        load(tmp_path / "small")
    shutil.rmtree(place / "model")
    assert "holds an adapter alone" in refused("generate", "--model", tmp_path / "small", "--device=cpu", "x")


def test_a_checkpoint_of_before_there_was_an_adapter_folder_resumes(place: Path, tmp_path: Path) -> None:
    """It had training/adapter.pt beside merged float32 weights, and knew its base by them."""
    wide = {"rank": 2, "alpha": 8, "base_dtype": "float32"}
    tune(place, tmp_path / "whole", lora=wide)
    tune(place, tmp_path / "older", lora=wide, steps=4)
    folder = tmp_path / "older" / "checkpoints" / "step-4"
    model = adapted(place / "model", "float32")
    load_adapter(model, folder)
    torch.save(adapter_state(model), folder / "training" / "adapter.pt")
    shutil.rmtree(folder / "adapter")
    record = tmp_path / "older" / "config.yaml"
    record.write_text("".join(line for line in record.read_text().splitlines(True) if "base_dtype" not in line and "save_merged" not in line))  # fmt: skip
    tune(place, tmp_path / "older", resume=True)  # the default, auto, which is bfloat16 for a run that begins now
    assert steps_of(tmp_path / "older") == steps_of(tmp_path / "whole")
    shutil.rmtree(tmp_path / "older" / "checkpoints" / "step-6" / "adapter")
    torch.save(adapter_state(model), tmp_path / "older" / "checkpoints" / "step-6" / "training" / "adapter.pt")
    with pytest.raises(UserError, match="is not what this run began with"):
        tune(place, tmp_path / "older", resume=True, steps=8)


def test_bad_input_is_one_line(place: Path, run: Path, tmp_path: Path) -> None:
    base = [
        "train-stage",
        "2",
        "--model",
        place / "model",
        "--data",
        place / "data",
        "--out",
        tmp_path / "run",
        "--device=cpu",
    ]
    assert "needs a CUDA device, not cpu" in refused(*base, "--set=lora.base_dtype=nf4", "--set=precision=bf16")
    assert "precision is fp32" in refused(*base, "--set=lora.base_dtype=bfloat16", "--set=precision=fp32")
    assert "save_merged = false cannot be" in refused(*base, "--set=lora={base_dtype: nf4, save_merged: false}")
    assert not (tmp_path / "run").exists()
    shutil.copytree(run, tmp_path / "again", symlinks=True)
    AcceleratorState._reset_state()
    again = ["train-stage", "2", "--out", tmp_path / "again", "--resume", "--device=cpu"]
    assert "in bfloat16, and they would now be float32" in refused(*again, "--set=precision=fp32")


@pytest.mark.gpu
def test_nf4_trains_resumes_and_stores_what_it_computes(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    four = {"rank": 2, "alpha": 8, "base_dtype": "nf4"}
    tune(place, tmp_path / "run", device="cuda", lora=four, steps=4)
    tune(place, tmp_path / "run", device="cuda", lora=four, resume=True)
    live = load(place / "model", "cpu", "bfloat16")
    add_adapter(live, LoraConfig(rank=2, alpha=8.0), 0, "nf4")
    load_adapter(live, tmp_path / "run" / "checkpoints" / "step-6")
    live.to("cuda")
    stored = load(tmp_path / "run", "cuda", "bfloat16")
    for key, value in merged_weights(live):
        assert torch.equal(value, stored.network.state_dict()[key].cpu()), key
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(stored.logits(IDS_BL.cuda()), live.logits(IDS_BL.cuda()), rtol=0.05, atol=0.1)

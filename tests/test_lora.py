"""LoRA in stages 2-4: the reference is the model with the adapter off, checkpoints are merged, resuming is exact."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import make_model, make_prompts, make_shards, make_tokenizer, refused
from test_grpo import completions, draw

from dcoder_cli import load
from dcoder_cli.base import presets
from dcoder_cli.base.config import build, parse_assignments, to_dict
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import denoise, saving
from dcoder_cli.training.config import LoraConfig, StageConfig
from dcoder_cli.training.grpo import step
from dcoder_cli.training.grpo import train as grpo_train
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import EntryLogProbs, log_probabilities, plan_rows, scored_mask
from dcoder_cli.training.grpo.loss import grpo_loss
from dcoder_cli.training.lora import adapter_off, adapter_state, add_adapter, load_adapter, merged_weights

CPU = torch.device("cpu")
LORA = {"rank": 2, "alpha": 8}
GRPO = {
    "steps": 6, "prompts_per_step": 2, "group_size": 4, "micro_batch": 3, "inner_iterations": 1, "checkpoint_every": 2,
    "kl_coef": 0.05, "reference_sync": 0, "precision": "fp32", "rewards": {"reward:vowels": 1.0}, "rollout": {"max_new_tokens": 8, "mode": "exact"},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"}, "lora": LORA,
}  # fmt: skip
STAGE = {
    "steps": 24, "global_batch": 8, "micro_batch": 4, "precision": "fp32", "evaluate_every": 6, "checkpoint_every": 5, "t_min": 0.05,
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant"}, "lora": LORA,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that counts as tuned, the same as only converted and as mid-trained, prompts, shards and a reward."""
    folder = tmp_path_factory.mktemp("lora")
    tokenizer = make_tokenizer()
    make_model(folder / "converted", tokenizer=tokenizer, context=256, initializer_range=0.2)
    model = load(folder / "converted")
    model.save(folder / "model", stage="sft")
    model.save(folder / "mid", stage="mid")
    make_shards(folder / "pretrain", tokenizer)
    make_shards(folder / "sft", model.tokenizer, "sft")
    train, heldout = (
        [
            {"task_id": f"{split}{i}", "messages": [{"role": "user", "content": f"{'x' * i}?"}], "entry_point": "f",
             "tests": {"shown": [], "hidden": ["assert f(1) == 1"]}} for i in range(6)
        ]
        for split in ("train", "heldout")
    )  # fmt: skip
    make_prompts(folder / "data", train, heldout)
    (folder / "reward.py").write_text("def vowels(prompt, text):\n    return sum(c in 'aeiou' for c in text) / 8\n")
    return folder


@pytest.fixture(autouse=True)
def _own_rewards(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)


def grpo(
    place: Path, out: Path, resume: bool = False, on_step: Any = None, model: str = "model", **changes: Any
) -> grpo_train.GrpoResult:
    config = build(GrpoConfig, presets.load("cpu-tiny")["grpo"], GRPO, changes)  # as the command line does
    return grpo_train.train(
        str(place / model), str(place / "data"), str(out), config, resume, "cpu", quiet=True, on_step=on_step
    )


def tune(place: Path, out: Path, stage: int, resume: bool = False, on_step: Any = None, **changes: Any) -> Any:
    data = place / ("sft" if stage == 3 else "pretrain")
    config = build(StageConfig, STAGE, changes)
    return denoise.train(
        stage, str(place / "model"), str(data), str(out), config, resume, "cpu", quiet=True, on_step=on_step
    )


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


def adapted(folder: Path, checkpoint: Path | None = None) -> Model:
    """A model with an adapter: a checkpoint's, or one that is not 0."""
    model = load(folder, device="cpu")
    add_adapter(model, LoraConfig(rank=2, alpha=8.0), seed=0)
    if checkpoint is not None:
        load_adapter(model, checkpoint)
        return model
    source = torch.Generator().manual_seed(7)
    for key, value in adapter_state(model).items():
        if "lora_B" in key:
            value.copy_(0.1 * torch.randn(value.shape, generator=source))
    return model


def plan_of(model: Model) -> Any:
    items = completions()
    return plan_rows(items, draw("coupled", items), model.ids.mask, model.ids.pad)


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One stage-4 run, every log-probability without gradient that it computed, and what it held at its steps."""
    out = tmp_path_factory.mktemp("run") / "run"
    frozen: list[tuple[bool, Any, torch.Tensor]] = []
    held: list[int] = []
    plain = step._frozen

    def keep(accelerator: Any, module: Any, plan: Any) -> torch.Tensor:
        value = plain(accelerator, module, plan)
        layer = accelerator.unwrap_model(module).model.network.model.layers[0].self_attn.q_proj
        frozen.append((bool(layer.disable_adapters), plan, value))
        return value

    def count(*_: Any) -> None:
        held.append(sum(isinstance(item, torch.nn.Embedding) for item in gc.get_objects()))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(place)
        patch.setattr(step, "_frozen", keep)
        gc.collect()
        before = sum(isinstance(item, torch.nn.Embedding) for item in gc.get_objects())
        result = grpo(place, out, on_step=count, inner_iterations=2)
    return {"out": out, "result": result, "frozen": frozen, "models": max(held) - before}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_step_has_ratio_one_and_no_kl(place: Path, tmp_path: Path, precision: str) -> None:
    AcceleratorState._reset_state()  # one process, one precision, unless it forgets
    grpo(place, tmp_path / "run", steps=2, precision=precision)
    AcceleratorState._reset_state()
    first, *later = steps_of(tmp_path / "run")
    assert first["ratio"] == 1.0 and first["kl"] == 0.0 and first["grad_norm"] > 0
    assert all(line["ratio"] == 1.0 and line["kl"] > 1e-5 for line in later)


def test_the_reference_is_the_original_elementwise_and_the_policy_is_not(place: Path, run: dict[str, Any]) -> None:
    original = EntryLogProbs(load(place / "model", device="cpu"))
    references = [(plan, value) for off, plan, value in run["frozen"] if off]
    policies = [(plan, value) for off, plan, value in run["frozen"] if not off]
    assert len(references) == 6 * 2 * 3 and len(policies) == 6 * 3  # steps x (inner iterations, or all but one) x parts
    with torch.no_grad():
        for plan, value in references:
            torch.testing.assert_close(value, log_probabilities(original, plan, CPU), rtol=0, atol=0)
        plan, value = policies[-1]
        assert (value - log_probabilities(original, plan, CPU)).abs().max() > 1e-2


def test_no_copy_of_the_model_is_held_or_stored(place: Path, run: dict[str, Any], tmp_path: Path) -> None:
    assert run["models"] == 1
    folder = run["result"].checkpoint
    assert not (folder / "training" / "reference.pt").exists()
    model = adapted(place / "model")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == sum(value.numel() for value in adapter_state(model).values())
    sizes = {file.name: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    assert 4 * trained <= sizes["adapter_model.safetensors"] and 8 * trained <= sizes["optimizer.pt"]
    needed = sizes["adapter_model.safetensors"] + sizes["optimizer.pt"] + sizes["model.safetensors"]
    assert needed == pytest.approx(saving.checkpoint_bytes(model), rel=0.3)  # torch.save adds 300 bytes a tensor
    grpo(place, tmp_path / "full", steps=1, lora=None)
    full = tmp_path / "full" / "checkpoints" / "step-1" / "training"
    assert (full / "reference.pt").exists() and (full / "optimizer.pt").stat().st_size > 4 * sizes["optimizer.pt"]


def test_gradients_are_those_of_merged_weights(place: Path) -> None:
    """A and B as leaves, W + alpha / rank * B A written out, the plain network called with it: float64."""
    model = adapted(place / "model").double()
    plain = load(place / "model", device="cpu").double()
    items, plan = completions(), plan_of(model)
    source = torch.Generator().manual_seed(1)
    shape = (len(items), max(len(item.tokens) for item in items))
    noise = [torch.randn(shape, generator=source, dtype=torch.float64) for _ in range(2)]
    advantage_B = torch.randn(len(items), generator=source, dtype=torch.float64)

    def loss(new_BN: torch.Tensor) -> torch.Tensor:
        other = [new_BN.detach() + 0.5 * part for part in noise]
        return grpo_loss(new_BN, *other, advantage_B, scored_mask(items), clip=0.5, kl_coef=0.01).loss

    loss(log_probabilities(EntryLogProbs(model), plan, CPU)).backward()
    leaves = {key: value.clone().requires_grad_() for key, value in adapter_state(model).items()}
    weights = dict(plain.network.named_parameters())
    for key, b in leaves.items():
        if ".lora_B." in key:
            name = key.replace(".lora_B.default.", ".")
            weights[name] = weights[name].detach() + 8.0 / 2 * b @ leaves[key.replace(".lora_B.", ".lora_A.")]
    names = {f"model.network.{key}": value for key, value in weights.items()}
    new_BN = torch.func.functional_call(
        EntryLogProbs(plain), names, (plan.ids_RL, plan.attention_RL, plan.row_E, plan.place_E, plan.target_E)
    )
    flat = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
    flat = flat.index_add(0, plan.completion_E * shape[1] + plan.token_E, new_BN * plan.weight_E.double())
    expected = torch.autograd.grad(loss(flat.view(shape)), list(leaves.values()))
    grads = {key: value.grad for key, value in model.network.named_parameters() if value.requires_grad}
    assert set(grads) == set(leaves) and len(leaves) == 2 * 2 * 7
    for key, want in zip(leaves, expected, strict=True):
        assert want.abs().max() > 1e-6, key
        torch.testing.assert_close(grads[key], want, rtol=1e-4, atol=1e-6 * float(want.abs().max()))


def test_a_checkpoint_is_the_live_model_merged_and_disturbs_nothing(place: Path, run: dict[str, Any]) -> None:
    base = load(place / "model", device="cpu")
    live, stored = adapted(place / "model", run["result"].checkpoint), load(run["result"].checkpoint, device="cpu")
    before = {key: value.clone() for key, value in live.network.state_dict().items()}
    merged = dict(merged_weights(live))
    assert all(torch.equal(value, before[key]) for key, value in live.network.state_dict().items())
    ids_BL = torch.randint(0, 290, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(stored.logits(ids_BL), live.logits(ids_BL), rtol=1e-5, atol=1e-5)
        assert (live.logits(ids_BL) - base.logits(ids_BL)).abs().max() > 0.01
    plain = base.network.state_dict()
    assert set(stored.network.state_dict()) == set(plain) == set(merged)
    for key, value in stored.network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, merged[key])
        assert torch.equal(value, plain[key]) == ("_proj.weight" not in key), key
    assert stored.config["dcoder"]["stage"] == "grpo" and "adapter" not in json.dumps(stored.config)


def test_kill_9_and_resume_in_stage_4_gives_the_same_run(place: Path, run: dict[str, Any], tmp_path: Path) -> None:
    whole, killed = (run["out"] / "metrics.jsonl").read_text(), tmp_path / "killed"
    settings = [f"--set={key}={json.dumps(value)}" for key, value in {**GRPO, "inner_iterations": 2}.items()]
    arguments = [
        "grpo",
        "--model",
        place / "model",
        "--data",
        place / "data",
        "--out",
        killed,
        "--device=cpu",
        *settings,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "dcoder_cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while (
        not (killed / "rollouts" / "step-3-1-of-1.jsonl").exists() and process.poll() is None and time.time() < deadline
    ):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed / "checkpoints" / "step-2").exists()
    grpo(place, killed, resume=True, inner_iterations=2)
    lines = map(json.loads, (killed / "metrics.jsonl").read_text().splitlines())
    same = [{key: value for key, value in line.items() if "arness" not in key} for line in lines]  # the command's extra
    assert same == [json.loads(line) for line in whole.splitlines()]
    ours, theirs = load(killed / "checkpoints" / "last"), load(run["result"].checkpoint)
    for key, value in theirs.network.state_dict().items():
        assert torch.equal(ours.network.state_dict()[key], value), key


def test_a_bfloat16_base_gives_the_rollouts_and_updates_of_a_float32_one(place: Path, tmp_path: Path) -> None:
    """The weights are bfloat16 where they are stored; what is small stays float32 whatever the base is."""
    load(place / "model").to(torch.bfloat16).save(tmp_path / "narrow")
    AcceleratorState._reset_state()
    for name in ("auto", "float32"):
        lora = {**LORA, "base_dtype": name}
        grpo(
            place,
            tmp_path / name,
            model=str(tmp_path / "narrow"),
            steps=3,
            precision="bf16",
            inner_iterations=2,
            lora=lora,
        )
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("auto", "float32")]
    AcceleratorState._reset_state()
    assert metrics[0] == metrics[1]
    assert [load(tmp_path / name).config["dtype"] for name in ("auto", "float32")] == ["bfloat16", "float32"]


@pytest.mark.parametrize("stage", [2, 3])
def test_stages_2_and_3_learn_and_resume_exactly(place: Path, tmp_path: Path, stage: int) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int, *_: Any) -> None:
        if step == 13:
            raise Killed

    result = tune(place, tmp_path / "whole", stage)
    with pytest.raises(Killed):
        tune(place, tmp_path / "killed", stage, on_step=kill)
    torch.manual_seed(99)
    tune(place, tmp_path / "killed", stage, resume=True)
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    lines = map(json.loads, (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    heldout = [line["heldout"]["loss"] for line in lines if "heldout" in line]
    assert heldout[-1] < 0.98 * heldout[0], heldout
    base, tuned = load(place / "model").network.state_dict(), load(result.checkpoint).network.state_dict()
    assert {key for key in base if not torch.equal(base[key], tuned[key])} == {k for k in base if "_proj.weight" in k}


def test_activation_checkpointing_changes_nothing_and_every_adapter_learns(place: Path, tmp_path: Path) -> None:
    tune(place, tmp_path / "plain", 2, steps=4)
    result = tune(place, tmp_path / "less", 2, steps=4, activation_checkpointing=True)
    for one, two in zip(steps_of(tmp_path / "plain"), steps_of(tmp_path / "less"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    begun, learned = (
        adapter_state(model)
        for model in (_fresh(place), adapted(place / "model", result.checkpoint))
    )  # fmt: skip
    for key in begun:
        assert not torch.equal(begun[key], learned[key]), key


def _fresh(place: Path, seed: int = 0) -> Model:
    model = load(place / "model", device="cpu")
    add_adapter(model, LoraConfig(rank=2, alpha=8.0), seed)
    return model


def test_the_adapters_start_depends_on_the_seed_alone(place: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = adapter_state(_fresh(place))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, other = adapter_state(_fresh(place)), adapter_state(_fresh(place, seed=5))
    for key, value in one.items():
        assert torch.equal(value, two[key])
        assert torch.equal(value, other[key]) == ("lora_B" in key)
        assert bool(value.any()) == ("lora_A" in key)


def test_only_the_named_layers_are_adapted(place: Path) -> None:
    model = load(place / "model", device="cpu")
    add_adapter(model, LoraConfig(target_modules=("q_proj", "v_proj")), seed=0)
    names = {key.split(".lora_")[0].rsplit(".", 1)[-1] for key in adapter_state(model)}
    assert names == {"q_proj", "v_proj"}
    assert {
        key.split(".lora_")[0].rsplit(".", 1)[-1] for key, p in model.named_parameters() if p.requires_grad
    } == names


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(place: Path, run: dict[str, Any], tmp_path: Path) -> None:
    settings = [
        f"--set={key}={json.dumps(value)}" for key, value in {**GRPO, "inner_iterations": 2, "steps": 3}.items()
    ]
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "dcoder_cli", "grpo"]
    paths = ["--model", place / "model", "--data", place / "data", "--out", tmp_path / "two", "--device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *map(str, paths), *settings],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = steps_of(tmp_path / "two"), steps_of(run["out"])
    assert len(ours) == 3
    for two, one in zip(ours, theirs, strict=False):
        for name in ("reward", "kl", "ratio", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


def test_settings_switch_it_on_and_off() -> None:
    assert build(GrpoConfig, {}).lora is None and build(StageConfig, {}).lora is None
    on = build(GrpoConfig, {"reference_sync": 0}, parse_assignments(["lora.rank=16"]))
    assert on.lora == LoraConfig(rank=16) and build(GrpoConfig, to_dict(on)) == on
    assert build(GrpoConfig, to_dict(on), parse_assignments(["lora=null"])).lora is None
    assert build(StageConfig, parse_assignments(["lora={}"])).lora == LoraConfig()
    assert build(StageConfig, parse_assignments(["lora.target_modules=[q_proj]"])).lora == LoraConfig(target_modules=("q_proj",))  # fmt: skip
    grown = presets.load("gpu-24gb")["grpo"]
    assert (
        build(GrpoConfig, grown, {"lora": {}, "kl_coef": 0}).lora == LoraConfig()
    )  # without a KL term nothing is synced
    with pytest.raises(UserError, match="reference_sync=0"):
        build(GrpoConfig, grown, {"lora": {}})


def test_bad_input_is_one_line(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["--set=steps=1", "--set=prompts_per_step=1", "--set=group_size=2", "--set=rollout.max_new_tokens=4"]
    base = ["grpo", "--data", place / "data", "--out", tmp_path / "run", "--device=cpu", *short]
    tuned = [*base, "--model", place / "model"]
    assert "lora.rank = 0" in refused(*tuned, "--set", "lora.rank=0")
    assert "lora.alpha = -1" in refused(*tuned, "--set", "lora.alpha=-1")
    assert "target_modules is empty" in refused(*tuned, "--set", "lora.target_modules=[]")
    assert "mapping" in refused(*tuned, "--set", "lora=8")
    assert "unknown key 'lora.dropout'" in refused(*tuned, "--set", "lora.dropout=0.1")
    assert "--set reference_sync=0" in refused(*tuned, "--set=lora={}", "--set=kl_coef=0.1", "--set=reference_sync=64")
    line = refused(*tuned, "--set", "lora.target_modules=[q_proj, qproj]")
    assert "'qproj'" in line and "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in line
    assert "run stage 1 without lora first" in refused(*base, "--model", place / "converted", "--set", "lora={}")
    assert "run stage 3 without lora first" in refused(*base, "--model", place / "mid", "--set", "lora={}")
    stage = ["train-stage", "--out", tmp_path / "run", "--device=cpu", "--set=steps=1", "--set=lora={}"]
    pretrain = ["--data", place / "pretrain"]
    assert "lora from stage 2 on" in refused(*stage, "1", "--set=anneal_steps=0", "--model", place / "model", *pretrain)
    assert "stage 3 without lora" in refused(*stage, "3", "--model", place / "mid", "--data", place / "sft")
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'dcoder[lora]'" in refused(*stage, "2", "--model", place / "model", *pretrain)
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_only_as_it_began(place: Path, run: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run["out"], tmp_path / "run", symlinks=True)
    again = ["grpo", "--out", tmp_path / "run", "--resume", "--device=cpu"]
    assert "the run began with" in refused(*again, "--set=lora=null")
    assert "the run began with" in refused(*again, "--set=lora.alpha=9")
    assert "LoRA resumes on top of" in refused(*again, "--model", tmp_path / "gone")
    make_model(tmp_path / "other", tokenizer=make_tokenizer(), context=256, seed=3)
    load(tmp_path / "other").save(tmp_path / "moved", stage="sft")
    assert "is not what this run began with" in refused(*again, "--model", tmp_path / "moved")
    file = tmp_path / "run" / "checkpoints" / "step-6" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    assert "adapter file" in refused(*again) and "to resume from step-4, which is whole" in refused(*again)
    metrics = (run["out"] / "metrics.jsonl").read_text()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics
    assert RunFolder(tmp_path / "run").steps() == [4, 6]


def test_the_adapter_comes_back_on_after_an_error(place: Path) -> None:
    model = adapted(place / "model")
    ids_BL = torch.arange(5, 17)[None]
    with torch.no_grad():
        on = model.logits(ids_BL)
        with pytest.raises(KeyError), adapter_off(model):
            assert not torch.equal(model.logits(ids_BL), on)
            assert all(value.requires_grad == (".lora_" in key) for key, value in model.network.named_parameters())
            raise KeyError
        assert torch.equal(model.logits(ids_BL), on)
    assert all(value.requires_grad == (".lora_" in key) for key, value in model.network.named_parameters())

"""Elementwise and token for token against numbers recorded from the public Dream and LLaDA code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcoder_cli import generate, load
from dcoder_cli.base.errors import UserError
from dcoder_cli.model.backbone import Model

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
SYSTEMS = ("dream", "llada")


def _runs() -> list[tuple[str, dict]]:
    return [(system, run) for system in SYSTEMS for run in json.loads((GOLDEN / f"{system}_runs.json").read_text())]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("system", "rows"), [("dream", "plain"), ("dream", "padded"), ("llada", "plain")])
def test_logits_equal_the_public_code(system: str, rows: str, attention: str) -> None:
    expected = load_file(GOLDEN / f"{system}_expected.safetensors")
    model = load(GOLDEN / system, device="cpu", attention=attention)
    mask_BL = expected.get(f"{rows}.attention_mask")
    with torch.no_grad():
        model.shift = False  # the recorded logits are raw, before the shift
        raw_BLV = model.logits(expected[f"{rows}.input_ids"], mask_BL)
        model.shift = system == "dream"
        ours_BLV = model.logits(expected[f"{rows}.input_ids"], mask_BL)
    real_BL = torch.ones_like(expected[f"{rows}.input_ids"], dtype=torch.bool) if mask_BL is None else mask_BL.bool()
    reference_BLV = expected[f"{rows}.logits"]
    torch.testing.assert_close(raw_BLV[real_BL], reference_BLV[real_BL], rtol=1e-4, atol=1e-4)
    assert torch.isfinite(raw_BLV).all()
    if system == "dream":
        both = real_BL[:, 1:] & real_BL[:, :-1]
        torch.testing.assert_close(ours_BLV[:, 1:][both], reference_BLV[:, :-1][both], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", ["plain", "padded"])
@pytest.mark.parametrize("system", ["a2d-qwen2", "a2d-qwen3", "a2d-llama"])
def test_logits_equal_dllms_code(system: str, rows: str) -> None:
    """No shift: hidden state i predicts token i. What it saved is read back, and saved, as it stands."""
    expected = load_file(GOLDEN / "a2d_expected.safetensors")
    model = load(GOLDEN / system, device="cpu")
    assert model.is_diffusion and not model.shift
    mask_BL = expected.get(f"{rows}.attention_mask")
    with torch.no_grad():
        ours_BLV = model.logits(expected["plain.input_ids"], mask_BL)
    real_BL = torch.ones_like(expected["plain.input_ids"], dtype=torch.bool) if mask_BL is None else mask_BL.bool()
    torch.testing.assert_close(ours_BLV[real_BL], expected[f"{system}.{rows}.logits"][real_BL], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("system", "run"), _runs(), ids=lambda value: value if isinstance(value, str) else value["key"]
)
def test_generations_equal_the_public_samplers(system: str, run: dict) -> None:
    expected = load_file(GOLDEN / f"{system}_expected.safetensors")
    _agree(load(GOLDEN / system, device="cpu"), system, run, expected)


def test_the_generation_config_of_a_folder_changes_nothing_in_compat_dream(tmp_path: Path) -> None:
    """Dream's own loader requires the file, but its sampler takes top-k from config.json (default 50): token for token."""
    folder = tmp_path / "dream"
    shutil.copytree(GOLDEN / "dream", folder)
    expected = load_file(GOLDEN / "dream_expected.safetensors")
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 3, "mask_token_id": 299, "eos_token_id": 297}))
    with_file = load(folder, device="cpu")
    for system, run in _runs():
        if system == "dream":
            _agree(with_file, system, run, expected)
    prompts = [expected["prompt.one.input_ids"][0].tolist()]
    asked: dict[str, Any] = {"max_new_tokens": 32, "steps": 32, "rule": "entropy", "compat": "dream"}
    config = json.loads((folder / "config.json").read_text())
    orders = []
    for in_config, same_as in ((7, 7), (None, 300)):  # null is off, which is all 300 tokens
        (folder / "config.json").write_text(json.dumps({**config, "top_k": in_config}))
        here = generate(load(folder, device="cpu"), prompts, **asked)[0]
        given = generate(with_file, prompts, top_k=same_as, **asked)[0]
        assert (here.tokens, here.reveal_step, here.entropy) == (given.tokens, given.reveal_step, given.entropy)
        orders.append(here.entropy)
    assert orders[0] != orders[1]
    (folder / "config.json").write_text(json.dumps({**config, "top_k": "many"}))
    with pytest.raises(UserError, match="top_k = 'many'"):
        generate(load(folder, device="cpu"), prompts, **asked)


def _agree(model: Model, system: str, run: dict, expected: dict[str, torch.Tensor]) -> None:
    """Tokens and reveal steps of a run equal the recorded ones."""
    prompt_BL = expected[f"prompt.{run['prompt']}.input_ids"]
    mask_BL = expected.get(f"prompt.{run['prompt']}.attention_mask", torch.ones_like(prompt_BL))
    prompts = [row[mask.bool()].tolist() for row, mask in zip(prompt_BL, mask_BL, strict=True)]
    length = run.get("max_new_tokens") or run["gen_length"]
    trajectories = generate(
        model,
        prompts,
        max_new_tokens=length,
        steps=run["steps"],
        rule=run.get("alg") or run["remasking"],
        block_length=run.get("block_length"),
        compat=system,
    )
    sequences_BL = expected[f"{run['key']}.sequences"]
    assert [t.tokens for t in trajectories] == sequences_BL[:, -length:].tolist()
    assert [t.reveal_step for t in trajectories] == expected[f"{run['key']}.reveal_step"].tolist()


def _tied_runs() -> list[dict]:
    return json.loads((GOLDEN / "dream_ties_runs.json").read_text())


def _sharp_dream(folder: Path, scale: float) -> str:
    """The golden Dream checkpoint with its head scaled, so that top-p leaves most places one token."""
    shutil.copytree(GOLDEN / "dream", folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_generations_with_ties_equal_the_public_sampler(tmp_path: Path) -> None:
    """Nearly every step is tied (temperature 0, top-p 0.95): equal only where ties fall as torch.topk lets them fall."""
    expected = load_file(GOLDEN / "dream_ties_expected.safetensors")
    prompts = load_file(GOLDEN / "dream_expected.safetensors")
    runs = _tied_runs()
    assert len({run["head_scale"] for run in runs}) == 1
    model = load(_sharp_dream(tmp_path / "sharp", runs[0]["head_scale"]), device="cpu")
    tied, steps, left = 0, 0, 0
    for run in runs:
        prompt_BL = prompts[f"prompt.{run['prompt']}.input_ids"]
        mask_BL = prompts.get(f"prompt.{run['prompt']}.attention_mask", torch.ones_like(prompt_BL))
        rows = [row[mask.bool()].tolist() for row, mask in zip(prompt_BL, mask_BL, strict=True)]
        options = {"max_new_tokens": run["max_new_tokens"], "steps": run["steps"], "rule": run["alg"]}
        options |= {"top_p": run["top_p"], "batch_size": len(rows)}
        found = generate(model, rows, compat="dream", **options)
        sequences_BL = expected[f"{run['key']}.sequences"][:, -run["max_new_tokens"] :]
        assert [t.tokens for t in found] == sequences_BL.tolist(), run["key"]
        assert [t.reveal_step for t in found] == expected[f"{run['key']}.reveal_step"].tolist(), run["key"]
        others = generate(model, rows, tie_break="left", **{**options, "top_k": 50})
        left += sum(a.reveal_step == b.reveal_step for a, b in zip(found, others, strict=True))
        if run["prompt"] == "one":
            tied += sum(len({s for s, by in zip(t.reveal_step, t.tied, strict=True) if by}) for t in found)
            steps += sum(len(set(t.reveal_step)) for t in found)
    assert left == 0  # the runs do tell tie breaks apart
    assert (tied, steps) == (273, 285)  # as counted on the public code

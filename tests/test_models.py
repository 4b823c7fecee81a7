"""Loading, masks, the shift, special ids and conversion, against plain references and transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dcoder, make_model, make_tokenizer, refused, said
from safetensors.torch import load_file, save_file

from dcoder_cli import load
from dcoder_cli.base.errors import UserError
from dcoder_cli.model.attention import allowed, annealed, positions
from dcoder_cli.model.conversion import convert_checkpoint
from dcoder_cli.model.special_ids import resolve

GOLDEN = Path(__file__).parent / "fixtures" / "golden"


@pytest.fixture(scope="module")
def ar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("ar") / "ar", ar=True)


@pytest.fixture(scope="module")
def converted(ar: Path) -> Path:
    convert_checkpoint(str(ar), ar.parent / "converted")
    return ar.parent / "converted"


def test_converted_with_a_causal_mask_is_transformers_own_qwen2(ar: Path, converted: Path) -> None:
    from transformers import Qwen2ForCausalLM

    reference = Qwen2ForCausalLM.from_pretrained(ar, dtype=torch.float32).eval()
    model = load(converted, device="cpu")
    ids_BL = torch.randint(3, 290, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected_BLV = reference(ids_BL).logits
        ours_BLV = model.logits(ids_BL, causal=True)
        ar_BLV = load(ar, device="cpu").logits(ids_BL)
        full_BLV = model.logits(ids_BL)
    rows = expected_BLV.shape[-1]
    torch.testing.assert_close(ours_BLV[:, 1:, :rows], expected_BLV[:, :-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ar_BLV[:, 1:], expected_BLV[:, :-1], rtol=1e-5, atol=1e-5)
    assert (full_BLV[:, 1:-1, :rows] - expected_BLV[:, :-2]).abs().max() > 1e-4, (
        "full attention must differ from causal"
    )


def test_llama_converts_with_zero_biases(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, rope_theta=5e5, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval()
    reference.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    convert_checkpoint(str(tmp_path / "llama"), tmp_path / "out")
    model = load(tmp_path / "out", device="cpu")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "Dream"
    ids_BL = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected_BLV = reference(ids_BL).logits
        torch.testing.assert_close(
            model.logits(ids_BL, causal=True)[:, 1:, : len(tokenizer)], expected_BLV[:, :-1], rtol=1e-5, atol=1e-5
        )


def test_conversion_records_what_it_did(ar: Path, converted: Path) -> None:
    before, after = load(ar, device="cpu"), load(converted, device="cpu")
    assert after.is_diffusion and after.shift and not before.is_diffusion
    assert after.ids.mask is not None and after.ids.pad not in (after.ids.eos, after.ids.mask)
    assert after.ids.stops == {after.ids.eos, after.ids.pad, after.ids.end_of_turn}
    assert len({after.ids.mask, after.ids.pad, after.ids.bos, after.ids.eos}) == 4
    config = json.loads((converted / "config.json").read_text())
    assert config["dcoder"]["shift"] is True and config["architectures"] == ["DreamModel"]
    assert set(config) >= {
        "mask_token_id",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "rope_theta",
        "num_key_value_heads",
    }
    stored = load_file(converted / "model.safetensors")
    assert "model.layers.0.self_attn.q_proj.bias" in stored and "model.embed_tokens.weight" in stored
    old = before.network.state_dict()["model.embed_tokens.weight"]
    new = after.network.state_dict()["model.embed_tokens.weight"]
    torch.testing.assert_close(new[: old.shape[0]], old, rtol=0, atol=0)
    torch.testing.assert_close(new[after.ids.mask], old.mean(dim=0), rtol=0, atol=5e-3 * float(old.std()))
    assert not torch.equal(new[after.ids.mask], new[after.ids.pad])


def test_a_real_vocabularys_spare_rows_are_used(tmp_path: Path) -> None:
    """Qwen2.5-Coder has more rows than tokens: the new tokens take the next free ids, as in Dream, and nothing grows."""
    tokenizer = make_tokenizer()
    make_model(tmp_path / "ar", ar=True, tokenizer=tokenizer, vocab_size=len(tokenizer) + 64)
    convert_checkpoint(str(tmp_path / "ar"), tmp_path / "out")
    model = load(tmp_path / "out", device="cpu")
    assert model.vocab_size == len(tokenizer) + 64
    assert (model.ids.bos, model.ids.mask, model.ids.pad) == tuple(range(len(tokenizer), len(tokenizer) + 3))


def test_sharded_checkpoints_load(converted: Path, tmp_path: Path) -> None:
    weights = load_file(converted / "model.safetensors")
    keys = sorted(weights)
    tmp_path.joinpath("config.json").write_text((converted / "config.json").read_text())
    placed = {}
    for index, part in enumerate((keys[::2], keys[1::2])):
        name = f"model-0000{index + 1}-of-00002.safetensors"
        save_file({key: weights[key] for key in part}, tmp_path / name)
        placed.update(dict.fromkeys(part, name))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    ids_BL = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            load(tmp_path, device="cpu").logits(ids_BL), load(converted, device="cpu").logits(ids_BL)
        )
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        load(tmp_path)


@pytest.mark.parametrize("system", ["dream", "llada"])
def test_saving_keeps_the_public_layout(system: str, tmp_path: Path) -> None:
    """Same keys, same config keys, same numbers: the system's own code reads what we write."""
    model = load(GOLDEN / system, device="cpu")
    model.save(tmp_path / "out")
    before, after = load_file(GOLDEN / system / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / system, tmp_path / "out"))
    assert {key: new[key] for key in old} == old


def test_left_padding_changes_nothing(converted: Path) -> None:
    for folder in (converted, GOLDEN / "dream", GOLDEN / "llada"):
        model = load(folder, device="cpu")
        ids_BL = torch.randint(3, 290, (1, 12), generator=torch.Generator().manual_seed(1))
        padded_BL = torch.cat([torch.full((1, 5), 7), ids_BL], dim=1)
        mask_BL = torch.tensor([[0] * 5 + [1] * 12])
        with torch.no_grad():
            alone_BLV = model.logits(ids_BL)
            torch.testing.assert_close(model.logits(padded_BL, mask_BL)[:, 5:], alone_BLV, rtol=1e-4, atol=1e-5)
            nothing = model.logits(padded_BL, torch.zeros(1, 17))
        assert torch.isfinite(nothing).all()


def test_packed_documents_do_not_see_each_other(converted: Path) -> None:
    model = load(converted, device="cpu")
    ids_BL = torch.randint(3, 290, (1, 12), generator=torch.Generator().manual_seed(1))
    documents_BL = torch.tensor([[0] * 6 + [1] * 6])
    other_BL = ids_BL.clone()
    other_BL[:, 6:] += 1
    with torch.no_grad():
        first, second = (model.logits(ids, document_ids_BL=documents_BL) for ids in (ids_BL, other_BL))
        open_first, open_second = model.logits(ids_BL), model.logits(other_BL)
    torch.testing.assert_close(first[:, :6], second[:, :6], rtol=0, atol=0)
    assert (open_first[:, :6] - open_second[:, :6]).abs().max() > 1e-5


PATTERNS = ("full", "causal", "annealed", "padded", "documents")


@pytest.mark.parametrize(
    ("implementation", "pattern"),
    [("eager", pattern) for pattern in PATTERNS]
    # flex compiles a kernel for each mask, many seconds apiece on a CPU: test_packed_attention.py has one for all of them
    + [pytest.param("flex", pattern, marks=pytest.mark.slow) for pattern in PATTERNS],
)
def test_attention_implementations_agree(converted: Path, implementation: str, pattern: str) -> None:
    ids_BL = torch.randint(3, 290, (2, 16), generator=torch.Generator().manual_seed(2))
    mask_BL = torch.ones(2, 16)
    mask_BL[0, :5] = 0
    arguments = {
        "full": {},
        "causal": {"causal": True},
        "annealed": {"pattern_LL": annealed(16, 0.3, torch.Generator().manual_seed(0))},
        "padded": {"attention_mask_BL": mask_BL},
        "documents": {"document_ids_BL": torch.tensor([[0] * 8 + [1] * 8] * 2)},
    }[pattern]
    with torch.no_grad():
        expected_BLV = load(converted, device="cpu", attention="sdpa").logits(ids_BL, **arguments)
        ours_BLV = load(converted, device="cpu", attention=implementation).logits(ids_BL, **arguments)
    real_BL = mask_BL.bool() if pattern == "padded" else torch.ones(2, 16, dtype=torch.bool)
    torch.testing.assert_close(ours_BLV[real_BL], expected_BLV[real_BL], rtol=1e-4, atol=1e-5)


def test_annealed_masks_open_with_their_ratio() -> None:
    half_LL = annealed(200, 0.5, torch.Generator().manual_seed(0))
    lower_LL = torch.ones(200, 200, dtype=torch.bool).tril()
    assert half_LL[lower_LL].all()
    share = float(half_LL[~lower_LL].float().mean())
    assert abs(share - 0.5) < 3 * (0.25 / 19900) ** 0.5
    assert torch.equal(annealed(50, 0.0, torch.Generator()), torch.ones(50, 50, dtype=torch.bool).tril())
    assert annealed(50, 1.0, torch.Generator()).all()
    for length in (5, 64, 65, 200):  # drawn in parts, the numbers of one draw: recorded runs resume
        drawn_LL = torch.rand(length, length, generator=torch.Generator().manual_seed(1)) < 0.3
        expected_LL = torch.ones(length, length, dtype=torch.bool).tril() | drawn_LL
        assert torch.equal(annealed(length, 0.3, torch.Generator().manual_seed(1)), expected_LL)


def test_masks_by_hand() -> None:
    mask = allowed(3, torch.device("cpu"), attention_mask_BL=torch.tensor([[0, 1, 1]]))
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, True, True], [False, True, True], [False, True, True]]
    assert positions(torch.tensor([[0, 0, 1, 1, 1]])).tolist() == [[1, 1, 0, 1, 2]]
    assert allowed(3, torch.device("cpu")) is None


def test_special_ids_and_their_conflicts(converted: Path) -> None:
    tokenizer = load(converted, device="cpu").tokenizer
    config = json.loads((converted / "config.json").read_text())
    ids, findings = resolve({**config, "pad_token_id": config["eos_token_id"]}, tokenizer, True, "x")
    assert ids.pad == tokenizer.pad_token_id and config["eos_token_id"] in ids.stops
    assert any(finding.subject == "pad" and str(tokenizer.pad_token_id) in finding.message for finding in findings)
    assert resolve(config, tokenizer, True, "x")[1] == []
    without = {key: value for key, value in config.items() if key != "mask_token_id"}
    with pytest.raises(UserError, match="no mask_token_id"):
        resolve(without, None, True, "x")
    with pytest.raises(UserError, match="outside its vocabulary"):
        resolve({**config, "mask_token_id": 10**6}, None, True, "x")


def test_convert_and_inspect_as_commands(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("def add(a, b):\n    return a + b\n" * 50)
    dcoder(
        "convert",
        "--init",
        "tiny",
        "--ar",
        "--train-tokenizer",
        source,
        "--vocab-size",
        "280",
        "--out",
        tmp_path / "ar",
    )
    dcoder("convert", tmp_path / "ar", "--out", tmp_path / "diffusion")
    shown = json.loads(dcoder("inspect", tmp_path / "diffusion", "--json").stdout)
    assert shown["system"] == "Dream" and shown["tokens"]["mask"] == "<|mask|>" and shown["findings"] == []
    assert shown["parameters"] == sum(
        value.numel() for value in load_file(tmp_path / "diffusion" / "model.safetensors").values()
    )


def test_bad_checkpoints_are_one_line(ar: Path, converted: Path, tmp_path: Path) -> None:
    assert "no hub id" in refused("inspect", tmp_path / "nothing")
    assert "already" in refused("convert", converted, "--out", tmp_path / "x")
    assert "already holds a checkpoint that dcoder wrote" in refused("convert", ar, "--out", converted)
    assert "qwen2.5-coder-7b" in refused("convert", "--init", "qwen2.5-coder-7", "--out", tmp_path / "x")
    broken = tmp_path / "broken"
    broken.mkdir()
    assert "no config.json" in refused("inspect", broken)
    (broken / "config.json").write_text("{")
    assert "is not JSON" in refused("inspect", broken)
    (broken / "config.json").write_text('{"model_type": "gpt2"}')
    assert "'gpt2'" in refused("inspect", broken)
    config = json.loads((converted / "config.json").read_text())
    del config["mask_token_id"]
    (broken / "config.json").write_text(json.dumps(config))
    assert "mask_token_id" in refused("generate", "--model", broken, "x")
    (broken / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "vocab_size"}))
    assert "lacks 'vocab_size'" in refused("generate", "--model", broken, "x")
    (broken / "config.json").write_text((converted / "config.json").read_text())
    assert "model.safetensors" in refused("generate", "--model", broken, "x")
    weights = load_file(converted / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, broken / "model.safetensors")
    assert "model.norm.weight" in refused("generate", "--model", broken, "x")
    assert "flash" in refused(
        "generate", "--model", converted, "--device", "cpu", "--attention", "flash_attention_2", "x"
    )
    assert "float8" in refused("generate", "--model", converted, "--dtype", "float8", "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("vocab_size", "x", "vocab_size = 'x'; it must be a whole number"),
        ("vocab_size", None, "lacks 'vocab_size'"),
        ("hidden_size", -5, "hidden_size = -5"),
        ("num_hidden_layers", 2.5, "num_hidden_layers = 2.5"),
        ("num_attention_heads", 0, "num_attention_heads = 0"),
        ("num_attention_heads", True, "num_attention_heads = True"),
        ("rope_theta", "a", "rope_theta = 'a'; it must be a number above 0"),
        ("tie_word_embeddings", "no", "tie_word_embeddings = 'no'; it must be true or false"),
        ("hidden_act", "nosuch", "describes no network of the Dream layout"),
        ("mask_token_id", "<mask>", "mask_token_id = '<mask>'; it must be a token id"),
        ("eos_token_id", ["x"], r"eos_token_id = \['x'\]; it must be a token id"),
        ("bos_token_id", {}, "bos_token_id = {}"),
        ("pad_token_id", 1.0, "pad_token_id = 1.0"),
        ("model_type", ["Dream"], r"model_type \['Dream'\] of"),
        ("model_type", 5, "model_type 5 of"),
        ("dcoder", 5, "has 'dcoder', which is no section"),
        ("dcoder", ["x"], "has 'dcoder', which is no section"),
    ],
)
def test_a_config_of_other_types_is_one_line(tmp_path: Path, key: str, value: Any, says: str) -> None:
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(tmp_path)) + 330


def test_an_empty_section_is_none(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dcoder": None}))
    assert "dcoder" not in load(folder).config


def test_convert_replaces_what_dcoder_wrote_and_nothing_else(ar: Path, tmp_path: Path) -> None:
    """--force had replaced any folder: a thesis, a home directory."""
    out = tmp_path / "out"
    said("convert", ar, "--out", out)
    said("convert", ar, "--out", out, "--force")
    run = tmp_path / "run" / "checkpoints" / "step-4"  # what a run's --resume needs is no output of convert
    run.parent.mkdir(parents=True)
    shutil.copytree(out, run)
    (tmp_path / "run" / "config.yaml").write_text("stage: mid\n")
    assert "is a run's checkpoint, which its --resume needs" in refused("convert", ar, "--out", run, "--force")
    (out / "training").mkdir()
    (out / "training" / "state.pt").write_bytes(b"")
    assert "is a run's checkpoint" in refused("convert", ar, "--out", out, "--force")
    shutil.rmtree(out / "training")
    deep = tmp_path / "run" / "data" / "model"  # below a folder that has a config.yaml of whatever kind
    said("convert", ar, "--out", deep)
    said("convert", ar, "--out", deep, "--force")
    (out / "checksums.json").rename(out / "thesis.txt")
    for more in ([], ["--dry-run"]):
        line = refused("convert", ar, "--out", out, "--force", *more)
        assert line.endswith("is not empty and does not hold a checkpoint that dcoder wrote; choose another --out")
    assert (out / "thesis.txt").is_file()

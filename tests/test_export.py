"""`dcoder export`: the folder loads as it did, in transformers too; its card says what files say and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, refused
from safetensors.torch import load_file, save_file

from dcoder_cli import load
from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks.publish import publish
from dcoder_cli.model import identity
from dcoder_cli.model.layouts import LAYOUTS

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
SHAPE: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
IDS_BL = torch.randint(3, 290, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("export") / "tiny", context=128, **SHAPE)


def read(folder: Path, name: str = "config.json") -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / name).read_text())
    return value


def changed(model: Path, folder: Path, **config: Any) -> Path:
    """A copy with another config.json, as another system may have made it; None takes a key out."""
    shutil.copytree(model, folder)
    (folder / "checksums.json").unlink(missing_ok=True)
    whole = {**read(folder), **config}
    (folder / "config.json").write_text(json.dumps({key: one for key, one in whole.items() if one is not None}))
    return folder


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load(folder, device="cpu").logits(IDS_BL)


# --- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["dream", "llada"])
def test_the_exported_folder_computes_the_same_bit_for_bit(system: str, tmp_path: Path) -> None:
    publish(str(GOLDEN / system), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(GOLDEN / system))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (GOLDEN / system / "model.safetensors").read_bytes()
    repository, file = {"dream": ("Dream-org/Dream-v0-Instruct-7B", "modeling_dream.DreamModel"),
                        "llada": ("GSAI-ML/LLaDA-8B-Instruct", "modeling_llada.LLaDAModelLM")}[system]  # fmt: skip
    assert read(tmp_path / "out")["auto_map"]["AutoModel"] == f"{repository}--{file}"


def test_what_only_resuming_needs_and_class_references_stay_behind(model: Path, tmp_path: Path) -> None:
    source = changed(model, tmp_path / "source", auto_map={"AutoModel": "own.Class"}, _name_or_path="/home/me/x")
    (source / "training").mkdir()
    (source / "training" / "optimizer.pt").write_bytes(b"x")
    (source / "modeling_own.py").write_text("raise SystemExit")
    facts = publish(str(source), tmp_path / "out")
    kept = {"README.md", "chat_template.jinja", "checksums.json", "config.json", "dcoder_card.json", "generation_config.json",
            "model.safetensors", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    assert set(facts["files"]) == kept == {path.name for path in (tmp_path / "out").iterdir()}
    config = read(tmp_path / "out")
    assert "_name_or_path" not in config and "own.Class" not in json.dumps(config)
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_config_says_what_the_public_code_would_fill_in_otherwise(model: Path, tmp_path: Path) -> None:
    """Its defaults: rope_theta 1e4 or GPT-2's everything, mask 151666, a pad id outside a small vocabulary."""
    gone = dict.fromkeys(
        ("rope_theta", "mask_token_id", "pad_token_id", "num_key_value_heads", "rms_norm_eps", "hidden_act")
    )
    source = changed(
        make_model(tmp_path / "made", context=128, **{**SHAPE, "num_key_value_heads": 4}), tmp_path / "source",
        **{**gone, "num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    )  # fmt: skip
    (source / "generation_config.json").unlink()
    publish(str(source), tmp_path / "out")
    config = read(tmp_path / "out")
    assert config["rope_theta"] == 5000.0 and not {"rope_parameters", "rope_scaling"} & set(config)
    known = load(source, device="cpu")
    assert (config["mask_token_id"], config["pad_token_id"]) == (known.ids.mask, known.ids.pad)
    assert (
        config["rms_norm_eps"] == 1e-6 and config["hidden_act"] == "silu" and config["architectures"] == ["DreamModel"]
    )
    assert read(tmp_path / "out", "generation_config.json")["mask_token_id"] == known.ids.mask
    assert torch.equal(logits(tmp_path / "out"), logits(source))

    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    source = changed(model, tmp_path / "scaled", rope_theta=None, rope_parameters=scaled)
    publish(str(source), tmp_path / "out2")
    config = read(tmp_path / "out2")
    assert config["rope_theta"] == 5000.0 and config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert torch.equal(logits(tmp_path / "out2"), logits(source))

    bare = json.loads((GOLDEN / "llada" / "config.json").read_text())
    few = (
        "d_model",
        "n_heads",
        "n_layers",
        "mlp_hidden_size",
        "vocab_size",
        "mask_token_id",
        "model_type",
        "rope_theta",
    )
    shutil.copytree(GOLDEN / "llada", tmp_path / "llada")
    (tmp_path / "llada" / "config.json").write_text(json.dumps({key: bare[key] for key in few}))
    publish(str(tmp_path / "llada"), tmp_path / "out3")
    config = read(tmp_path / "out3")
    needed = {"block_type": "llama", "rope": True, "layer_norm_type": "rms", "activation_type": "silu", "weight_tying": False,
              "embedding_size": 300, "n_kv_heads": 4, "max_sequence_length": 4096, "pad_token_id": None}  # fmt: skip
    assert {key: config[key] for key in needed} == needed


CODE = """
from transformers import PretrainedConfig, PreTrainedModel
import torch

class DreamConfig(PretrainedConfig):
    model_type = "Dream"
    def __init__(self, rope_theta=1.0, mask_token_id=-1, pad_token_id=-1, vocab_size=1, hidden_size=1, **kwargs):
        self.rope_theta, self.vocab_size, self.hidden_size = rope_theta, vocab_size, hidden_size
        super().__init__(**kwargs)
        self.mask_token_id, self.pad_token_id = mask_token_id, pad_token_id
"""


def test_automodel_finds_the_code_in_the_other_repository(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for Dream's code, where its repository would lie: the config reaches it, and the weights have its names."""
    from transformers import AutoModel, AutoTokenizer, dynamic_module_utils

    publish(str(model), tmp_path / "out")
    place = tmp_path / "Dream-org" / "Dream-v0-Instruct-7B"
    place.mkdir(parents=True)
    (place / "configuration_dream.py").write_text(CODE)
    (place / "modeling_dream.py").write_text(
        "from .configuration_dream import DreamConfig\nfrom transformers import PreTrainedModel\nfrom torch import nn\n"
        "class DreamModel(PreTrainedModel):\n    config_class = DreamConfig\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.model = nn.Module()\n"
        "        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)\n"
        "        self.post_init()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    theirs = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ours = load(model, device="cpu")
    assert type(theirs).__name__ == "DreamModel"
    assert (theirs.config.rope_theta, theirs.config.mask_token_id) == (10000.0, ours.ids.mask)
    assert theirs.config.pad_token_id == ours.ids.pad
    embedding_VD = ours.network.model.embed_tokens.weight
    assert torch.equal(theirs.model.embed_tokens.weight, embedding_VD)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert tokenizer("def add(a, b):").input_ids == ours.tokenizer("def add(a, b):").input_ids
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == ours.tokenizer.apply_chat_template(
        chat, tokenize=False
    )


def test_the_tokenizers_config_is_one_that_transformers_4_reads(model: Path, tmp_path: Path) -> None:
    publish(str(model), tmp_path / "out")
    config = read(tmp_path / "out", "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # 4 has no TokenizersBackend
    assert isinstance(config["chat_template"], str)  # 4.46 reads no chat_template.jinja
    assert "extra_special_tokens" not in config  # 4.47 on wants a mapping
    assert config["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]
    assert not {"backend", "is_local", "name_or_path"} & set(config)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    # a class in the folder's own code, as Dream's, becomes the one that reads tokenizer.json
    source = changed(model, tmp_path / "source")
    own = {
        **read(source, "tokenizer_config.json"),
        "auto_map": {"AutoTokenizer": ["own.DreamTokenizer", None]},
        "tokenizer_class": "DreamTokenizer",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(own))
    publish(str(source), tmp_path / "out2")
    assert read(tmp_path / "out2", "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in read(tmp_path / "out2", "tokenizer_config.json")
    (source / "tokenizer_config.json").write_text("{")
    assert (
        "cannot be read" in refused("export", source, "--out", tmp_path / "out3") and not (tmp_path / "out3").exists()
    )


def sharded(model: Path, folder: Path) -> Path:
    """A copy in two files."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed, keys = {}, sorted(weights)
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: weights[key] for key in part}, folder / name, metadata={"format": "pt"})
        placed.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def test_weights_are_copied_file_by_file_or_cast(model: Path, tmp_path: Path) -> None:
    source = sharded(model, tmp_path / "source")
    publish(str(source), tmp_path / "same")
    for file in (*source.glob("*.safetensors"), source / "model.safetensors.index.json"):
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
    facts = publish(str(source), tmp_path / "cast", "bfloat16")
    assert facts["model"]["cast"] and facts["model"]["dtype"] == "bfloat16" and facts["model"]["stored_as"] == "float32"
    cast = load_file(tmp_path / "cast" / "model.safetensors")
    whole = load_file(model / "model.safetensors")
    assert set(cast) == set(whole)
    assert all(torch.equal(cast[key], value.to(torch.bfloat16)) for key, value in whole.items())
    assert read(tmp_path / "cast")["torch_dtype"] == "bfloat16"
    assert not publish(str(source), tmp_path / "same2", "float32")["model"]["cast"]
    # transformers 4 refuses a file whose header does not name the framework: it is written anew
    save_file(whole, (bare := changed(model, tmp_path / "bare")) / "model.safetensors")
    publish(str(bare), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(model))
    assert b'"format":"pt"' in (tmp_path / "out" / "model.safetensors").read_bytes()[:2000]


def test_what_float16_cannot_hold_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    source = changed(model, tmp_path / "source")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"'model.norm.weight' has numbers beyond float16's 65504; use --dtype bfloat16"
    ):
        publish(str(source), tmp_path / "out", "float16")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("case", ["shift", "heads", "family", "ar"])
def test_where_the_public_code_would_compute_something_else_there_is_no_auto_map(
    case: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "family":
        monkeypatch.setitem(LAYOUTS, "Dream", replace(LAYOUTS["Dream"], name="Own", public=None))
        source, why = model, "the family Own names no public code"
    elif case == "shift":
        source = changed(model, tmp_path / "source", dcoder={"shift": False})
        why = "hidden state i predicts token i in these weights, and the public sampler reads hidden state i-1"
    elif case == "heads":
        source = make_model(tmp_path / "source")  # 5 heads in 32 numbers
        why = "the public code wants heads of hidden_size / heads = 32 / 5 numbers, and these have 6"
    else:
        source = make_model(tmp_path / "source", ar=True)
        why = "transformers' own Qwen2ForCausalLM loads it"
    facts = publish(str(source), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert facts["why_not"] == why and facts["auto_map"] is None and "auto_map" not in read(tmp_path / "out")
    assert "AutoModel.from_pretrained" not in card
    assert torch.equal(logits(tmp_path / "out"), logits(source))
    if case == "ar":
        from transformers import AutoConfig, AutoModelForCausalLM

        assert "AutoModelForCausalLM.from_pretrained" in card and "masked-diffusion" not in card
        assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters["rope_theta"] == 10000.0
        assert read(tmp_path / "out")["rope_theta"] == 10000.0  # where transformers 4 reads it
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            expected_BLV = theirs(IDS_BL).logits
        torch.testing.assert_close(logits(source)[:, 1:], expected_BLV[:, :-1], rtol=1e-5, atol=1e-5)
    else:
        assert why in card and "library_name: dcoder" in card


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "adapter alone"])
def test_a_lora_checkpoint_has_whole_weights_and_its_adapter(merged: bool, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from dcoder_cli.model import storing
    from dcoder_cli.training.config import LoraConfig
    from dcoder_cli.training.lora import adapter_state, add_adapter, merged_weights, write_adapter

    tuned = load(model, device="cpu")
    add_adapter(tuned, LoraConfig(rank=2), 0)
    for key, value in tuned.network.named_parameters():
        if ".lora_B." in key:
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(1))
    source = tmp_path / "source"
    source.mkdir()
    weights = dict(merged_weights(tuned)) if merged else {}
    storing.write_into(source, tuned.stored_config(stage="sft"), weights, tuned.layout, tuned.tokenizer)
    if not merged:
        (source / "model.safetensors").unlink(missing_ok=True)
    write_adapter(tuned, adapter_state(tuned), source)
    facts = publish(str(source), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(source)) and not torch.equal(logits(source), logits(model))
    assert facts["adapter"] and "adapter/adapter_model.safetensors" in facts["files"]
    for name in ("adapter_config.json", "base.json"):
        assert str(model.parent) not in (tmp_path / "out" / "adapter" / name).read_text()
    assert read(tmp_path / "out" / "adapter", "adapter_config.json")["base_model_name_or_path"] == "tiny"
    assert "peft" in (tmp_path / "out" / "README.md").read_text()


def test_weights_are_known_however_they_are_stored(model: Path, tmp_path: Path) -> None:
    known = identity.weights_id(model)
    assert known == identity.weights_id(sharded(model, tmp_path / "sharded")) == load(model, device="cpu").weights_id
    weights = load_file(model / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, key: weights[key] + 1e-6}, changed(model, tmp_path / "step") / "model.safetensors")
    assert identity.weights_id(tmp_path / "step") != known
    publish(str(model), tmp_path / "out")
    publish(str(model), tmp_path / "cast", "bfloat16")
    assert identity.weights_id(tmp_path / "out") == known != identity.weights_id(tmp_path / "cast")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_nothing_of_the_users_is_overwritten(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    for more in ([], ["--force"]):
        assert "is not empty and does not hold an exported model" in refused("export", model, "--out", out, *more)
    assert (out / "mine.txt").read_text() == "keep"
    shutil.rmtree(out)
    publish(str(model), out)
    assert "already holds an exported model" in refused("export", model, "--out", out)
    assert "would take the place of the checkpoint" in refused("export", out, "--out", out, "--force")
    assert publish(str(model), out, "bfloat16", force=True)["model"]["dtype"] == "bfloat16"
    assert read(out)["dtype"] == "bfloat16"


def test_wrong_input_is_one_line_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--license 'MIT'" in refused("export", model, "--out", out, "--license", "MIT")
    assert "dtype 'int8' is unknown" in refused("export", model, "--out", out, "--dtype", "int8")
    assert "no folder here" in refused("export", tmp_path / "none", "--out", out)
    broken = changed(model, tmp_path / "broken", num_hidden_layers=3)
    assert "do not belong together" in refused("export", broken, "--out", out)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    assert "truncated or not safetensors" in refused("export", broken, "--out", out)
    for name, text, why in (
        ("none", None, "cannot be read"), ("text", "x", "is not JSON"), ("list", "[]", "holds a list, not an object"),
        ("other", "{}", "was measured on 'a model it does not name'"),
        ("empty", json.dumps({"weights": identity.weights_id(model), "scores": {}}), "is no results.json of `dcoder eval`"),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "results.json").write_text(text)
        assert why in refused("export", model, "--out", out, "--results", tmp_path / name), name
    (tmp_path / "arness.json").write_text('{"series": [{"model": "x"}]}')
    assert "was measured on 'x'" in refused("export", model, "--out", out, "--arness", tmp_path / "arness.json")
    (tmp_path / "arness.json").write_text("{}")
    assert "has no series" in refused("export", model, "--out", out, "--arness", tmp_path / "arness.json")
    assert not out.exists()


def test_a_full_disk_is_one_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    assert "no space left for the exported weights" in refused("export", model, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_tells_what_it_made(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dcoder_cli.main import main

    def told(*arguments: str | Path) -> Any:
        monkeypatch.setattr(sys, "argv", ["dcoder", "export", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            main()
        return capsys.readouterr()

    seen = told(model, "--out", tmp_path / "a b", "--license", "mit")
    assert seen.out.startswith(f"wrote {tmp_path / 'a b'}: Dream, ")
    assert "AutoModel loads it with the code of Dream-org/Dream-v0-Instruct-7B" in seen.err
    assert f"hf upload OWNER/NAME '{tmp_path / 'a b'}'" in seen.err
    seen = told(model, "--out", tmp_path / "b", "--json")
    assert json.loads(seen.out)["auto_map"] and not seen.err

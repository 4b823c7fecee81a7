"""Checkpoints as they are in the wild: transformers' own logits from them, or one line; never a weight left out in silence."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, refused, said, thinned
from safetensors.torch import load_file, save_file

from dcoder_cli import load
from dcoder_cli.base.errors import UserError
from dcoder_cli.model import export
from dcoder_cli.model.conversion import convert_checkpoint, plan_checkpoint
from dcoder_cli.model.inspection import inspect
from dcoder_cli.training.memory.shape import read_config, shape_of

IDS_BL = torch.arange(3, 23)[None]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def ar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2 with a head of its own and spare rows."""
    shape: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return make_model(tmp_path_factory.mktemp("ar") / "ar", ar=True, vocab_size=320, **shape)


@pytest.fixture(scope="module")
def llama(ar: Path) -> Path:
    """The same as a Llama without biases."""
    folder = copied(ar, ar.parent / "llama", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    stored(folder, lambda weights: {key: value for key, value in weights.items() if "bias" not in key})
    return folder


def copied(source: Path, target: Path, config: dict[str, Any] | None = None, left_out: tuple[str, ...] = ()) -> Path:
    shutil.copytree(source, target)
    (target / "checksums.json").unlink(missing_ok=True)  # of a folder that dcoder wrote, and this one is no more
    values = {**json.loads((source / "config.json").read_text()), **(config or {})}
    (target / "config.json").write_text(json.dumps({key: values[key] for key in values if key not in left_out}))
    return target


def stored(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    (folder / "checksums.json").unlink(missing_ok=True)
    weights = change(load_file(folder / "model.safetensors"))
    whole = {key: value.contiguous().clone() for key, value in weights.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def of_transformers(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDS_BL).logits  # type: ignore[no-any-return]


def check_like_transformers(folder: Path) -> None:
    with torch.no_grad():
        ours_BLV = load(folder, device="cpu").logits(IDS_BL)
    torch.testing.assert_close(ours_BLV[:, 1:], of_transformers(folder)[:, :-1], rtol=1e-5, atol=1e-5)


def of_prefix(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + key: value for key, value in weights.items()}


def of_format(dtype: torch.dtype, part: str = "") -> Callable[[Weights], Weights]:
    return lambda weights: {key: value.to(dtype) if part in key else value for key, value in weights.items()}


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if part not in key}


def one_layer_more(weights: Weights) -> Weights:
    last = {key: value for key, value in weights.items() if ".layers.1." in key}
    return weights | {key.replace(".1.", ".2.", 1): value for key, value in last.items()}


DISAGREE: dict[str, tuple[dict[str, Any], Callable[[Weights], Weights], str]] = {
    "tied, another head": ({"tie_word_embeddings": True}, dict, "says tie_word_embeddings true, but 'lm_head.weight' is stored"),
    "untied, no head": ({}, without("lm_head"), "no head is stored"),
    "one layer more": ({}, one_layer_more, "has the unknown weight 'model.layers.2"),
    "one layer less": ({"num_hidden_layers": 3}, dict, "lacks 'model.layers.2"),
    "a bias more": ({}, lambda weights: weights | {"lm_head.bias": torch.zeros(320)}, "unknown weight 'lm_head.bias'"),
    "no biases": ({}, without("bias"), "fewer biases"),
    "fewer rows": ({"vocab_size": 321}, dict, r"shape \(320, 32\) but the config says \(321, 32\)"),
    "compiled": ({}, of_prefix("_orig_mod."), "begin with '_orig_mod.', which torch.compile put there; save model._orig_mod, or"),
    "of DDP": ({}, of_prefix("module."), "begin with 'module.', which DDP, FSDP or DeepSpeed put there; save model.module, or"),
    "of FSDP": ({}, of_prefix("_fsdp_wrapped_module."), "which FSDP put there"),
    "compiled in DDP": ({}, of_prefix("module._orig_mod."), "begin with 'module._orig_mod.', which DDP"),
    "no head, no prefix": ({}, lambda weights: {key.removeprefix("model."): weights[key] for key in weights}, "lack the prefix 'model.'"),
    "8-bit floats": ({}, of_format(torch.float8_e4m3fn, "mlp"), "is stored as F8_E4M3"),
    "integers": ({}, of_format(torch.int8, "mlp"), "is stored as I8"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes"}}, dict, r"is quantised \(bitsandbytes\)"),
    "GPTQ": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, dict, r"is quantised \(gptq\)"),
    "both sides": ({"is_causal": False}, dict, "sets is_causal = False"),
    "a window": ({"layer_types": ["sliding_attention"] * 2}, dict, "must be 'full_attention'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DISAGREE)
def test_weights_and_config_that_disagree_are_one_line(ar: Path, tmp_path: Path, case: str) -> None:
    config, change, says = DISAGREE[case]
    folder = stored(copied(ar, tmp_path / "m", config), change)
    with pytest.raises(UserError, match=says):
        load(folder, device="cpu")
    with pytest.raises(UserError, match=says):
        export.plan(str(folder))
    with pytest.raises(UserError, match=says):
        plan_checkpoint(str(folder), tmp_path / "out")


ROPE: dict[str, tuple[dict[str, Any], str | None]] = {
    "linear": ({"type": "linear", "factor": 4.0}, None),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, None),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, None),
    "longrope": ({"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}, None),
    "unknown": ({"type": "nosuch", "factor": 4.0}, "by 'nosuch', which transformers"),
    "no factor": ({"type": "linear"}, "factor"),
    "nothing": ({"type": "linear", "factor": 0}, "not finite"),
}


@pytest.mark.parametrize("case", ROPE)
def test_scaled_angles_are_transformers_own_or_one_line(ar: Path, tmp_path: Path, case: str) -> None:
    """Of longrope the length that decides stands outside the section: it was left out, and other factors were taken."""
    scaling, says = ROPE[case]
    folder = copied(ar, tmp_path / "m", {"rope_scaling": scaling, "original_max_position_embeddings": 8})
    if says is None:
        check_like_transformers(folder)
    else:
        with pytest.raises(UserError, match=says):
            load(folder, device="cpu")


def test_what_agrees_loads(ar: Path, llama: Path, tmp_path: Path) -> None:
    check_like_transformers(llama)
    mixed = stored(copied(ar, tmp_path / "mixed"), of_format(torch.bfloat16, "mlp"))
    check_like_transformers(mixed)
    tied = copied(ar, tmp_path / "tied", {"tie_word_embeddings": True})
    stored(tied, lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    check_like_transformers(tied)
    assert inspect(str(tied))["findings"] == []


def parts_of(folder: Path) -> Weights:
    """Two parts and their list in place of the single file."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys, placed = sorted(weights), {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: weights[key] for key in part}, folder / name, metadata={"format": "pt"})
        placed.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return weights


def test_files_of_which_it_is_not_clear_which_are_meant(ar: Path, tmp_path: Path) -> None:
    """transformers reads model.safetensors and ignores a list beside it; we read the list: a line instead."""
    folder = copied(ar, tmp_path / "m")
    weights = parts_of(folder)
    check_like_transformers(folder)
    single = folder / "model.safetensors"
    save_file({key: 2 * value for key, value in weights.items()}, single, metadata={"format": "pt"})
    assert "does not name it" in refused("inspect", folder)
    single.unlink()
    third = folder / "model-00003-of-00003.safetensors"
    save_file({"model.norm.weight": weights["model.norm.weight"]}, third)
    assert "model-00003-of-00003" in refused("inspect", folder)
    third.unlink()
    first = folder / "model-00001-of-00002.safetensors"
    save_file(weights, first)
    assert "is in 'model-00001-of-00002.safetensors' and in" in refused("inspect", folder)
    for value in ({}, [1], {"a": "../x.safetensors"}, {"a": 5}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
        assert "is no list of weights" in refused("inspect", folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
INSTEAD = {
    "pytorch_model.bin": "pickled PyTorch weights",
    "tf_model.h5": "TensorFlow weights",
    "flax_model.msgpack": "Flax weights",
    "m-q4_k_m.gguf": "GGUF weights",
    "onnx/model.onnx": "an exported graph",
    "consolidated.00.pth": "their maker's own names",
    ".cache/huggingface/download/a.incomplete": "was broken off (a.incomplete): download it again",
    "model-00001-of-00002.safetensors": "parts need model.safetensors.index.json",
}


@pytest.mark.parametrize("name", INSTEAD)
def test_a_folder_of_other_weights_is_told_what_it_is(ar: Path, tmp_path: Path, name: str) -> None:
    folder = copied(ar, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert INSTEAD[name] in refused("convert", folder, "--out", tmp_path / "out")
    if name.endswith((".gguf", ".bin")):
        assert INSTEAD[name] in refused("generate", "--model", folder / name, "x")
    (folder / "config.json").unlink()
    assert INSTEAD[name] in refused("inspect", folder)


def test_pointers_and_adapters_are_told_what_they_are(ar: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        folder = copied(ar, tmp_path / name)
        (folder / name).write_text(POINTER)
        line = refused("generate", "--model", folder, "x")
        assert "Git LFS pointer" in line and name in line
    folder = copied(ar, tmp_path / "adapter")
    (folder / "adapter_config.json").write_text("{}")
    assert "merge it into its model" in refused("inspect", folder)
    (folder / "adapter_config.json").unlink()
    (tmp_path / "runs").mkdir()
    folder.rename(tmp_path / "runs" / "step-5")
    assert "such as 'step-5'" in refused("inspect", tmp_path / "runs")
    bert = copied(ar, tmp_path / "bert", {"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    assert "(BertForMaskedLM) is not supported" in refused("inspect", bert)


# ---- every key of a config x every kind of value

VALUES = [None, "abc", -1, 0, 10**12, [], {}, True, 1.5, math.nan]
KEYS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling",
    "rope_parameters", "hidden_act", "initializer_range", "attention_dropout", "tie_word_embeddings", "use_sliding_window",
    "sliding_window", "layer_types", "attention_bias", "bos_token_id", "eos_token_id", "pad_token_id", "architectures", "dcoder",
    "dtype", "torch_dtype", "quantization_config", "is_causal", "partial_rotary_factor", "original_max_position_embeddings",
)  # fmt: skip


@pytest.mark.parametrize(("key", "value"), thinned([(key, value) for key in KEYS for value in VALUES], 17))
def test_a_changed_config_is_transformers_own_or_one_line(ar: Path, tmp_path: Path, key: str, value: Any) -> None:
    """Where ours loads and transformers too, the logits are the same; nothing ends otherwise than in a line."""
    folder = copied(ar, tmp_path / "m", {key: value})
    for read in (inspect, export.plan, lambda name: plan_checkpoint(name, tmp_path / "o")):
        try:
            read(str(folder))
        except UserError as error:
            assert "\n" not in str(error)
    try:
        shape_of(read_config(str(folder)), "m")
        with torch.no_grad():
            ours_BLV = load(folder, device="cpu").logits(IDS_BL)
    except UserError:
        return
    try:
        theirs_BLV = of_transformers(folder)
    except Exception:  # it refuses what has a default here, such as null
        return
    torch.testing.assert_close(ours_BLV[:, 1:], theirs_BLV[:, :-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "head_dim", "hidden_size"])
def test_sizes_that_no_machine_holds_are_refused_before_they_are_begun(ar: Path, tmp_path: Path, key: str) -> None:
    folder = copied(ar, tmp_path / "m", {key: 10**12})
    assert f"{key} = 1000000000000; it must be a whole number from 1 to" in refused("presets", "fit", "--model", folder)


# ---- tokenizers: ids and files


def numbered(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A folder whose tokenizer.json has another model."""
    (folder / "checksums.json").unlink(missing_ok=True)
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    change(whole["model"]["vocab"])
    file.write_text(json.dumps(whole))
    return folder


def with_a_hole(vocabulary: dict[str, int]) -> None:
    """Nothing from 285 to 294: the last tokens' ids are above the number of tokens."""
    vocabulary.update({token: number + 10 for token, number in vocabulary.items() if number >= 285})


@pytest.mark.parametrize("rows", [320, 310])
def test_new_ids_lie_above_all_in_use_where_ids_have_holes(ar: Path, tmp_path: Path, rows: int) -> None:
    folder = numbered(copied(ar, tmp_path / "m", {"vocab_size": rows}), with_a_hole)
    stored(
        folder, lambda weights: {key: value[:rows] if len(value) == 320 else value for key, value in weights.items()}
    )
    before = load(folder, device="cpu")
    convert_checkpoint(str(folder), tmp_path / "out")
    after = load(tmp_path / "out", device="cpu")
    used = set(before.tokenizer.get_vocab().values())
    assert max(used) == 309 and len(used) == 300
    assert (after.ids.bos, after.ids.mask, after.ids.pad) == (310, 311, 312) and after.vocab_size == 320  # of 64
    assert after.tokenizer.convert_ids_to_tokens(311) == "<|mask|>"
    text = "def add(a, b):\n    return a + b\n<|im_start|>"
    assert after.tokenizer(text)["input_ids"] == before.tokenizer(text)["input_ids"]
    old, new = (model.network.model.embed_tokens.weight for model in (before, after))
    assert torch.equal(new[:310], old[:310])


def test_ids_above_65535_are_written_as_they_are_where_ids_have_holes(ar: Path, tmp_path: Path) -> None:
    """300 tokens, whose last ids take more than 16 bits."""
    from dcoder_cli.data.shards import ShardSet
    from dcoder_cli.model.tokenizer import load_tokenizer

    folder = numbered(
        copied(ar, tmp_path / "m"),
        lambda vocabulary: vocabulary.update({token: number + 70_000 for token, number in vocabulary.items() if number >= 100}),
    )  # fmt: skip
    text = "def add(a, b):\n    return a + b\n" * 20
    (tmp_path / "code.txt").write_text(text)
    said("tokenize", "pretrain", tmp_path / "code.txt", "--tokenizer", folder, "--seq-len", "16", "--heldout", "0", "--no-bos",
         "--out", tmp_path / "out")  # fmt: skip
    shards = ShardSet.open(tmp_path / "out", "train")
    ids = load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"]
    assert max(ids) > 70_000 and shards.vocab_size == 70_300
    assert [int(one) for one in shards.rows(range(len(shards)))["tokens"].reshape(-1)[: len(ids)]] == ids


def test_vocabularies_that_no_model_has_are_one_line_and_leave_nothing(ar: Path, tmp_path: Path) -> None:
    (tmp_path / "code.txt").write_text("x = 1\n")
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"question": "q", "answer": "a", "test_cases": ["assert f() == 1"]}) + "\n"
    )
    huge = numbered(copied(ar, tmp_path / "huge"), lambda vocabulary: vocabulary.update({"zz": 4_000_000_000}))
    empty = numbered(copied(ar, tmp_path / "empty"), lambda vocabulary: vocabulary.clear())
    whole = json.loads((empty / "tokenizer.json").read_text())
    whole["model"]["merges"], whole["added_tokens"] = [], []
    (empty / "tokenizer.json").write_text(json.dumps(whole))
    for folder in (huge, empty):
        for kind in ("pretrain", "sft", "rl"):
            out = tmp_path / f"{folder.name}-{kind}"
            source = tmp_path / ("code.txt" if kind == "pretrain" else "rows.jsonl")
            told = refused("tokenize", kind, source, "--tokenizer", folder, "--out", out)
            assert str(folder) in told and "mend" in told and not out.exists()
            assert not list(tmp_path.glob(f"{out.name}*"))


def test_tokens_without_a_row_of_their_own_are_one_line(ar: Path, tmp_path: Path) -> None:
    far = numbered(copied(ar, tmp_path / "far"), lambda vocabulary: vocabulary.update({"zz": 5000}))
    assert "ids up to 5000 but the model only 320 rows" in refused("generate", "--model", far, "x")
    twice = numbered(copied(ar, tmp_path / "twice"), lambda vocabulary: vocabulary.update({"zz": 299}))
    assert "gives the id 299 to" in refused("convert", twice, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ("-1", "outside the vocabulary"),
        ("320", "outside the vocabulary"),
        (str(10**12), "outside the vocabulary"),
        ("310", "no token of the tokenizer"),
        ("0", "is the eos token"),
        ("1", "'<|im_start|>', which the chat template writes"),
        ("2", "is the end of turn token"),
        ("20", "is the ordinary token"),
        ("200", "is the ordinary token"),  # a byte of a longer character
        ("299", "is the ordinary token"),
    ],
)
def test_a_mask_that_means_something_else_is_refused(ar: Path, tmp_path: Path, mask: str, says: str) -> None:
    assert says in refused("convert", ar, "--out", tmp_path / "out", "--mask-id", mask, "--dry-run")


def test_a_mask_without_a_tokenizer_and_one_of_a_config(ar: Path, tmp_path: Path, capsys: Any) -> None:
    bare = copied(ar, tmp_path / "bare")
    for file in bare.glob("token*"):
        file.unlink()
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    assert "is the eos token" in refused("convert", bare, "--out", tmp_path / "no", "--mask-id", "0")
    said("convert", bare, "--out", tmp_path / "out", "--mask-id", "17")
    assert load(tmp_path / "out", device="cpu").ids.mask == 17
    convert_checkpoint(str(ar), tmp_path / "whole")
    ordinary = copied(tmp_path / "whole", tmp_path / "ordinary", {"mask_token_id": 299})
    finding = next(one for one in load(ordinary, device="cpu").findings if "ordinary" in one.message)
    assert (
        finding.message == "the mask id 299 is also the ordinary token ' return'; every one in a text reads as masked"
    )
    capsys.readouterr()
    said("generate", "--model", ordinary, "--max-new-tokens", "2", "--device", "cpu", "x")


CONFIGS: dict[str, Any] = {
    "model_max_length": ["a", [], {}], "eos_token": [5, [], {}, "nosuch"], "pad_token": [5, {}], "mask_token": [5],
    "additional_special_tokens": ["x", 5, [5]], "extra_special_tokens": ["x", 5, {"a": 5}], "added_tokens_decoder": [5, [], {"x": {}}],
    "chat_template": [5, [], [{"name": "a"}], {"default": 5}, "{% if %}", "{{ 1/0 }}", "{{ raise_exception('no') }}"],
    "padding_side": ["up"], "tokenizer_class": [5, "Nosuch"], "clean_up_tokenization_spaces": ["a"], "model_input_names": [5],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), thinned([(key, value) for key, values in CONFIGS.items() for value in values], 6)
)
def test_an_odd_tokenizer_config_is_a_model_or_one_line(ar: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = copied(ar, tmp_path / "m")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    if key == "chat_template":
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    try:
        model = load(folder, device="cpu")
        model.tokenizer("a")
        model.save(tmp_path / "out")
        load(tmp_path / "out", device="cpu")
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("value", ["false", None, 0, []])
def test_a_recorded_shift_that_is_neither_true_nor_false_is_refused(ar: Path, tmp_path: Path, value: Any) -> None:
    """The text "false" counted as true, and null as false: every logit stood at another place."""
    folder = copied(ar, tmp_path / "m", {"dcoder": {"shift": value}})
    for read in (load, inspect, lambda name: plan_checkpoint(str(name), tmp_path / "o")):
        with pytest.raises(UserError, match=r"dcoder\.shift = .*; it must be true or false"):
            read(str(folder))


@pytest.mark.parametrize("is_ar", [True, False])
def test_an_answer_out_of_logits_that_are_no_numbers_is_refused(ar: Path, tmp_path: Path, is_ar: bool) -> None:
    """It was an empty text, or one of the first token, and exit 0."""
    if not is_ar:
        convert_checkpoint(str(ar), tmp_path / "diffusion")
    folder = stored(
        copied(ar if is_ar else tmp_path / "diffusion", tmp_path / "m"),
        lambda weights: weights | {"model.norm.weight": weights["model.norm.weight"] * math.nan},
    )
    line = refused("generate", "--model", folder, "--max-new-tokens", "4", "--device", "cpu", "x")
    assert f"the logits of model {str(folder)!r} are not finite" in line and "float32" in line


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_files_are_one_line(ar: Path, tmp_path: Path, name: str) -> None:
    whole = (ar / name).read_bytes()
    for number, damage in enumerate((b"", b"[]", b"null", whole[: len(whole) // 2], whole.decode().encode("utf-16"))):
        folder = copied(ar, tmp_path / str(number))
        (folder / name).write_bytes(damage)
        with pytest.raises(UserError, match="cannot be read"):
            load(folder, device="cpu")


def test_a_tokenizer_that_cuts_at_random_is_refused(ar: Path, tmp_path: Path) -> None:
    """BPE's dropout is of training: no two runs had the same rows or the same prompt."""
    folder = copied(ar, tmp_path / "m")
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert "tokenizer.json has dropout = 0.1; set it to null" in refused("generate", "--model", folder, "x")


def test_slow_tokenizers_are_told_what_to_do(ar: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "spiece.model", "vocab.txt", "qwen.tiktoken"):
        folder = copied(ar, tmp_path / name)
        (folder / "tokenizer.json").rename(folder / name)
        assert f"it holds {name}, a slow tokenizer's" in refused("generate", "--model", folder, "x")


def test_an_odd_generation_config_is_not_exported(ar: Path, tmp_path: Path) -> None:
    folder = copied(ar, tmp_path / "m")
    for value in ("x", -5, 99999, [0, None], 1.5):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(UserError, match=r"eos_token_id = .* is no id below 320"):
            export.plan(str(folder))


def test_a_tree_that_is_no_model_is_not_searched_through(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.incomplete").write_bytes(b"")
    assert "give a folder in the Hugging Face layout" in refused("generate", "--model", tmp_path, "x")

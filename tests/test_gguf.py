"""GGUF files as `dcoder convert` reads them: transformers' own logits, the tokenizer of the model they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_tokenizer, refused, said

from dcoder_cli import load

gguf = pytest.importorskip("gguf")

TEXTS = (
    "x =    5", "def f(n):\n    return  n + 1234\n", "    12", "it's 3.14159, n<|im_end|>m\n\n\n", "é漢字 ٣٤ ½ x_1\t\t0",
)  # fmt: skip
Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0


def tokenizer_cut_as_smollm(size: int = 320) -> Any:
    """A tokenizer that cuts as SmolLM2's tokenizer.json does: digits one by one, then as GPT-2."""
    from tokenizers import pre_tokenizers

    tokenizer = make_tokenizer(size)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def write(
    file: Path, architecture: str = "llama", pre: str = "smollm", kind: Any = Q8_0, tokenizer: Any = None,
    drop: str = "", extra: dict[str, Any] | None = None, **more: Any,
) -> Any:  # fmt: skip
    """A tiny model of an architecture as llama.cpp's converter writes it; returns the tokenizer."""
    tokenizer = tokenizer or tokenizer_cut_as_smollm()
    torch.manual_seed(0)
    hidden, heads, kv, ffn, layers, rows = 64, 4, 2, 96, 2, len(tokenizer)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_freq_base(5e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    added = {token["content"] for token in parts["added_tokens"]}
    writer.add_token_list(words)
    writer.add_token_types([3 if word in added else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in parts["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    for key, value in (extra or {}).items():
        writer.add_string(key, value)
    shapes = {"token_embd": (rows, hidden)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.attn_q": (hidden, hidden), f"blk.{layer}.attn_k": (hidden // heads * kv, hidden),
            f"blk.{layer}.attn_v": (hidden // heads * kv, hidden), f"blk.{layer}.attn_output": (hidden, hidden),
            f"blk.{layer}.ffn_gate": (ffn, hidden), f"blk.{layer}.ffn_up": (ffn, hidden),
            f"blk.{layer}.ffn_down": (hidden, ffn),
        }  # fmt: skip
    for name, shape in {**shapes, **more}.items():
        weight = (torch.randn(*shape) * 0.2).numpy()
        if name != drop:
            writer.add_tensor(f"{name}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    norms = ["output_norm", *(f"blk.{layer}.{name}_norm" for layer in range(layers) for name in ("attn", "ffn"))]
    for name in norms:
        writer.add_tensor(f"{name}.weight", 1 + torch.randn(hidden).numpy() * 0.1)
    if architecture == "qwen2":
        for layer in range(layers):
            for part in ("q", "k", "v"):
                size = shapes[f"blk.{layer}.attn_{part}"][0]
                writer.add_tensor(f"blk.{layer}.attn_{part}.bias", torch.randn(size).numpy() * 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokenizer


@pytest.mark.parametrize(("architecture", "pre", "kind"), [("llama", "smollm", Q4_1), ("qwen2", "qwen2", Q8_0)])
def test_a_converted_file_computes_as_transformers_does(tmp_path: Path, architecture: str, pre: str, kind: Any) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = write(
        tmp_path / "m.gguf", architecture, pre, kind, tokenizer=None if pre == "smollm" else make_tokenizer(320)
    )
    told = said("convert", tmp_path / "m.gguf", "--out", tmp_path / "out")
    assert f"mask id {len(tokenizer) + 1}" in told
    model = load(tmp_path / "out", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids_BL = torch.arange(5, 45)[None]
    with torch.no_grad():
        expected_BLV = theirs(ids_BL).logits
        found_BLV = model.logits(ids_BL, causal=True)
    torch.testing.assert_close(found_BLV[:, 1:, : len(tokenizer)], expected_BLV[:, :-1], rtol=1e-4, atol=1e-4)
    for text in TEXTS:
        assert model.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"], text  # type: ignore[misc]


def test_rows_are_a_multiple_of_64_and_the_spare_ones_are_never_sampled(tmp_path: Path) -> None:
    from dcoder_cli import generate

    tokenizer = write(tmp_path / "m.gguf")
    said("convert", tmp_path, "--out", tmp_path / "out")  # the folder that holds it
    model = load(tmp_path / "out", device="cpu")
    used = len(tokenizer) + 3
    assert (model.vocab_size, model.ids.tokens) == (-(-used // 64) * 64, used)
    with torch.no_grad():
        model.network.lm_head.weight[used:] *= 1e3  # whatever they would say, one of them would say it loudest
    prompts = ["def f(x):", "a", "    return"]
    for mode, temperature in (("exact", 0.0), ("exact", 1.0), ("fast", 1.0)):
        for one in generate(model, prompts, max_new_tokens=12, temperature=temperature, mode=mode):
            assert max(one.tokens) < used
    free = generate(model, prompts, max_new_tokens=12, compat="dream")  # a public sampler knows no spare rows
    assert any(max(one.tokens) >= used for one in free)


def test_a_plan_reads_no_weight(tmp_path: Path) -> None:
    used = len(write(tmp_path / "m.gguf"))
    told = " ".join(said("convert", tmp_path / "m.gguf", "--out", tmp_path / "out", "--dry-run").split())
    rows = -(-(used + 3) // 64) * 64
    assert f"mask id {used + 1}" in told and f"{rows} rows" in told and not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    def told(name: str, *more: str | Path) -> str:
        line = refused("convert", tmp_path / name, "--out", tmp_path / "out", *more)
        assert not (tmp_path / "out").exists()
        return line

    write(tmp_path / "unknown.gguf", pre="some-new-one")
    assert "cuts text as 'some-new-one'" in told("unknown.gguf") and "--tokenizer" in told("unknown.gguf")
    tokenizer_cut_as_smollm().save_pretrained(tmp_path / "words")
    said("convert", tmp_path / "unknown.gguf", "--tokenizer", tmp_path / "words", "--out", tmp_path / "told")
    write(tmp_path / "more.gguf", **{"blk.0.attn_sinks": (4, 32)})
    assert "holds 21 weights" in told("more.gguf")
    write(tmp_path / "less.gguf", drop="blk.1.ffn_up")
    assert "holds 19 weights" in told("less.gguf")
    write(tmp_path / "scaled.gguf", extra={"llama.rope.scaling.type": "yarn"})
    assert "scales its rotary angles (yarn)" in told("scaled.gguf")
    write(tmp_path / "adapter.gguf", extra={"general.type": "adapter"})
    assert "holds no model but: adapter" in told("adapter.gguf")
    whole = (tmp_path / "unknown.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) - 5000])
    (tmp_path / "short.gguf").write_bytes(whole[:700])
    (tmp_path / "other.gguf").write_bytes(b"PK\3\4" + whole[4:])
    assert "damaged" in told("cut.gguf") and "damaged" in told("short.gguf") and "no GGUF file" in told("other.gguf")
    write(tmp_path / "odd.gguf", architecture="mamba")
    assert "mamba" in told("odd.gguf")
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (two / name).write_bytes(whole)
    assert "2 GGUF files (a.gguf, b.gguf)" in told("two")

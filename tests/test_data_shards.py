"""Shard files, packing and the tokenizer: what training reads."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_shards, make_tokenizer
from safetensors.numpy import load_file, save_file

from dcoder_cli.base.errors import UserError
from dcoder_cli.data import shards as data_shards
from dcoder_cli.data.arrays import token_dtype, write_arrays
from dcoder_cli.data.manifest import part_name
from dcoder_cli.data.packing import pack, unpack
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.model.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "x = 'naïve — 漢字 \U0001f600'\r\n\tif x:\n        pass\n",
    " \n\n 12345",
]


def write_set(folder: Path, rows: list[int], split: str = "train", length: int = 4, first: int = 0) -> Path:
    """A pretrain folder by hand: row r holds the tokens r, r, ... in files of the given row counts."""
    folder.mkdir(parents=True)
    files = []
    for index, count in enumerate(rows):
        tokens = np.repeat(np.arange(first, first + count, dtype=np.uint16)[:, None], length, axis=1)
        name = f"{split}-{index:05d}.safetensors"
        sha = write_arrays(folder / name, {"tokens": tokens, "document_ids": np.zeros_like(tokens)}, {"split": split})
        files.append({"file": name, "split": split, "rows": count, "sha256": sha})
        first += count
    manifest = {
        "format_version": 1,
        "kind": "pretrain",
        "sequence_length": length,
        "tokenizer": {"hash": "h", "vocab_size": 300, "name": "t"},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_rows_are_found_across_files_in_any_order(tmp_path: Path) -> None:
    shards = ShardSet.open(write_set(tmp_path / "d", [3, 1, 2]))
    assert len(shards) == 6 and shards.kind == "pretrain" and shards.vocab_size == 300
    rows = shards.rows([5, 0, 3, 3])
    assert rows["tokens"][:, 0].tolist() == [5, 0, 3, 3]
    assert rows["tokens"].shape == rows["document_ids"].shape == (4, 4)
    assert shards.rows([])["tokens"].shape == (0, 4)
    with pytest.raises(IndexError):
        shards.rows([6])
    again = pickle.loads(pickle.dumps(shards))
    assert again.rows([4])["tokens"][0, 0] == 4
    assert len(pickle.dumps(shards)) < 5000, "the mapped files must not travel with a pickle"
    assert not shards.has_split("heldout")
    with pytest.raises(UserError, match="no heldout rows"):
        ShardSet.open(tmp_path / "d", "heldout")


def test_a_set_of_hundreds_of_files_has_few_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws rows from all over: with every file kept open, 500 of two columns end a process of 1,024 files."""
    made = ShardSet.open(write_set(tmp_path / "d", [1] * 200))
    monkeypatch.setattr(data_shards, "_OPEN", 10)
    used = len(os.listdir("/proc/self/fd"))
    order = np.random.default_rng(0).permutation(200).tolist()
    assert made.rows(order)["tokens"][:, 0].tolist() == order  # in one call, too
    assert len(os.listdir("/proc/self/fd")) <= used + 20
    assert [int(made.rows([row])["tokens"][0, 0]) for row in order] == order


def test_parts_of_several_machines_read_as_one(tmp_path: Path) -> None:
    write_set(tmp_path / "d" / part_name(1, 2), [2])
    with pytest.raises(UserError, match="lacks shard-00002-of-00002"):
        ShardSet.open(tmp_path / "d")
    write_set(tmp_path / "d" / part_name(2, 2), [3], first=2)
    shards = ShardSet.open(tmp_path / "d")
    assert shards.rows(range(5))["tokens"][:, 0].tolist() == [0, 1, 2, 3, 4]
    path = tmp_path / "d" / part_name(2, 2) / "manifest.json"
    path.write_text(path.read_text().replace('"hash": "h"', '"hash": "other"'))
    with pytest.raises(UserError, match="tokenizer differs"):
        ShardSet.open(tmp_path / "d")


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "grown", "garbage", "missing", "rows"])
def test_a_damaged_shard_is_named_at_open(tmp_path: Path, damage: str) -> None:
    folder = write_set(tmp_path / "d", [3, 3])
    file = folder / "train-00001.safetensors"
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "rows":
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"rows": 3', '"rows": 4', 2))
    else:
        changed = {"cut": data[:-3], "header": data[:20], "empty": b"", "grown": data + b"x", "garbage": b"hello" * 99}
        file.write_bytes(changed[damage])
    with pytest.raises(UserError, match=r"train-0000\d\.safetensors"):
        ShardSet.open(folder)


def other_tokens(folder: Path, change: Callable[[Any], Any]) -> Path:
    """A folder whose first file has other tokens, as somebody's own program writes it."""
    file = make_shards(folder, make_tokenizer()) / "train-00000.safetensors"
    arrays = load_file(file)
    save_file({**arrays, "tokens": change(arrays["tokens"])}, file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_rows_of_ids_that_no_token_has_are_named(tmp_path: Path) -> None:
    """They were an IndexError in the middle of a step; on a GPU, an assertion of the device."""
    high = ShardSet.open(other_tokens(tmp_path / "high", lambda tokens: tokens + 40_000))
    with pytest.raises(
        UserError, match=r"train-00000.* has the id 40\d\d\d in row 3 .* a vocabulary of 300; make it again"
    ):
        high.rows([3, 1])
    low = ShardSet.open(other_tokens(tmp_path / "low", lambda tokens: -tokens.astype(np.int64)))
    with pytest.raises(UserError, match="has the id -"):
        low.rows([0])
    with pytest.raises(UserError, match="has tokens of type F32; whole numbers are needed"):
        ShardSet.open(other_tokens(tmp_path / "float", lambda tokens: tokens.astype(np.float32)))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format_version": 1}', '{"format_version": 9, "kind": "sft", "files": []}']
)
def test_a_broken_manifest_is_one_line(tmp_path: Path, text: str) -> None:
    folder = write_set(tmp_path / "d", [1])
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        ShardSet.open(folder)
    with pytest.raises(UserError, match="not a finished output"):
        ShardSet.open(tmp_path)


@pytest.mark.parametrize("length", [1, 3, 8, 64])
@pytest.mark.parametrize("rows_at_once", [1, 2, 1000])
def test_packing_loses_nothing(length: int, rows_at_once: int) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 500, size=size).astype(np.uint16) for size in (1, 7, 8, 30, 2, 63, 64, 65, 1)]
    blocks = list(pack(documents, length, 0, np.uint16, rows_at_once))
    tokens_RL = np.concatenate([block.tokens for block in blocks])
    ids_RL = np.concatenate([block.document_ids for block in blocks])
    assert tokens_RL.shape == ids_RL.shape and tokens_RL.shape[1] == length
    total = sum(len(document) + 1 for document in documents)
    assert tokens_RL.size == total + sum(block.padding for block in blocks) and tokens_RL.size - total < length
    assert [list(document) for document in documents] == list(unpack(tokens_RL, 0))
    ends = (tokens_RL == 0).ravel()
    owner = np.minimum(np.cumsum(ends) - ends, len(documents)).reshape(tokens_RL.shape)  # EOS tokens before this one
    assert (ids_RL == owner - owner[:, :1]).all()


def test_rows_that_begin_with_bos_hold_the_same_documents() -> None:
    documents = [np.arange(1, size, dtype=np.uint16) for size in (2, 8, 31, 65)]
    plain = [block for block in pack(documents, 15, 0, np.uint16, 3)]
    begun = [block for block in pack(documents, 16, 0, np.uint16, 3, bos=999)]
    for without, block in zip(plain, begun, strict=True):
        assert (block.tokens[:, 0] == 999).all() and (block.document_ids[:, 0] == 0).all()
        assert (block.tokens[:, 1:] == without.tokens).all() and block.tokens.dtype == np.uint16
        assert (block.document_ids[:, 1:] == without.document_ids).all() and block.padding == without.padding
    tokens_RL = np.concatenate([block.tokens for block in begun])
    assert list(unpack(tokens_RL, 0, 999)) == [list(document) for document in documents]


def test_small_vocabularies_take_two_bytes() -> None:
    assert token_dtype(65_535) is np.uint16 and token_dtype(65_536) is np.uint32


def test_the_tokenizer_gives_every_text_back_and_is_deterministic(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (0, 0, 300)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer_hash(train_tokenizer(TEXTS * 3, 300)) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(train_tokenizer(TEXTS * 3, 290)) != tokenizer_hash(tokenizer)
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]


def test_added_tokens_and_padding_do_not_change_the_hash(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    before = tokenizer_hash(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|dlm_pad|>", "mask_token": "<|mask|>"})
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=3)
    tokenizer.save_pretrained(tmp_path / "t")
    again = load_tokenizer(tmp_path / "t")
    assert again.pad_token == "<|dlm_pad|>" and len(again) == len(train_tokenizer(TEXTS, 300)) + 2
    assert tokenizer_hash(tokenizer) == tokenizer_hash(again) == before


def test_a_dream_folder_loads_without_running_its_code(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges + "\n")
    (tmp_path / "tokenizer.json").unlink()
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
    }
    config |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenization_dream.py").write_text("raise RuntimeError('must not run')")
    again = load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert again.encode(text, add_special_tokens=False) == ids


def test_a_missing_or_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"neither tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ broken")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="cannot be found"):
        load_tokenizer("no-such-organisation/no-such-tokenizer")
    with pytest.raises(UserError, match="too small"):
        train_tokenizer(TEXTS, 100)

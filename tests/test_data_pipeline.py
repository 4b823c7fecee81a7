"""The whole of `dcoder tokenize`: the same bytes whatever the workers and stops, and what the rows hold."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import make_tokenizer

from dcoder_cli.base.errors import UserError
from dcoder_cli.data import sources, writing
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.packing import unpack
from dcoder_cli.data.pipeline import PretrainSettings, SftSettings, tokenize_pretrain, tokenize_sft
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.data.unit_files import unit_path
from dcoder_cli.model.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer

LINES = 1200
UNITS = 8
UNIT_BYTES = 150_000  # so that the corpus makes several units
LEFT_ALONE = FilterSettings(near_duplicates=0, exact_duplicates=False, code_filters="none")


def source_text(seed: int, lines: int = 30) -> str:
    rng = random.Random(seed)
    names = ["alpha", "beta", "gamma", "delta", "größe"]
    body = (
        f"    {rng.choice(names)}_{rng.randrange(999)} = {rng.choice(names)}({rng.randrange(9999)})\n"
        for _ in range(lines)
    )
    return f"def function_{seed}(x):\n" + "".join(body) + "    return x\n"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([source_text(seed) for seed in range(20)], 400).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over 1 MB of source files, with a copy and a near copy."""
    folder = tmp_path_factory.mktemp("corpus")
    for seed in range(30):
        (folder / f"m{seed:03}.py").write_text(source_text(seed, LINES))
    (folder / "copy.py").write_text(source_text(1, LINES))
    (folder / "m001_close.py").write_text(source_text(1, LINES) + "# the end\n")
    return folder


@pytest.fixture(scope="module")
def once(corpus: Path, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, tokenized undisturbed by one worker."""
    out = tmp_path_factory.mktemp("once") / "data"
    tokenize_pretrain(pretrain_settings(corpus, tokenizer, out))
    return out


def pretrain_settings(corpus: Path, tokenizer: str, out: Path) -> PretrainSettings:
    return PretrainSettings((str(corpus),), str(out), tokenizer, seq_len=128, heldout=0.2, workers=1, quiet=True)


def documents(folder: Path, tokenizer: str, split: str = "train") -> list[str]:
    shards = ShardSet.open(folder, split)
    rows = shards.rows(range(len(shards)))["tokens"]
    loaded = load_tokenizer(tokenizer)
    return [loaded.decode(ids) for ids in unpack(rows, shards.manifest["special_tokens"]["eos"]["id"])]


@pytest.mark.parametrize(
    ("token", "asked", "begins"),
    [("<|beginoftext|>", None, True), ("<|beginoftext|>", False, False), ("<s>", None, False), ("<s>", True, True)],
)
def test_rows_begin_with_dreams_bos(corpus: Path, tmp_path: Path, token: str, asked: bool | None, begins: bool) -> None:
    made = make_tokenizer()
    made.add_special_tokens({"bos_token": token})
    made.save_pretrained(tmp_path / "words")
    settings = pretrain_settings(corpus / "m001.py", str(tmp_path / "words"), tmp_path / "data")
    manifest = tokenize_pretrain(replace(settings, heldout=0.0, bos=asked))
    tokens_RL = ShardSet.open(tmp_path / "data").rows([0])["tokens"]
    assert (tokens_RL[:, 0] == made.bos_token_id).all() == begins == ("bos" in manifest["special_tokens"])


def test_a_bos_that_is_not_there_is_refused(corpus: Path, tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no BOS token"):
        tokenize_pretrain(replace(pretrain_settings(corpus, tokenizer, tmp_path / "data"), bos=True))
    assert not list(tmp_path.iterdir())


def test_decoding_the_rows_gives_the_documents_back(corpus: Path, tokenizer: str, once: Path) -> None:
    train, heldout = documents(once, tokenizer), documents(once, tokenizer, "heldout")
    manifest = json.loads((once / "manifest.json").read_text())
    assert (len(train), len(heldout)) == tuple(manifest["splits"][name]["documents"] for name in ("train", "heldout"))
    originals = {path.read_text() for path in corpus.glob("m???.py")} | {(corpus / "copy.py").read_text()}
    assert len(originals) == 30 and sorted(train + heldout) == sorted(originals)
    assert train != sorted(train), "documents are shuffled"
    assert manifest["tokenizer"]["hash"] == tokenizer_hash(load_tokenizer(tokenizer))
    assert manifest["dropped"]["exact duplicate"]["examples"] == ["m001.py (of copy.py)"]
    near = manifest["dropped"]["near duplicate"]
    assert near["documents"] == 1 and near["examples"][0].startswith("m001_close.py (of copy.py (")
    assert manifest["sources"][0]["documents_read"] == 32 and manifest["sources"][0]["documents_kept"] == 30
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    assert tokens == manifest["sources"][0]["tokens"] + 30  # and an EOS each
    assert str(corpus.parent) not in json.dumps(manifest)


def test_two_workers_and_a_second_run_give_the_same_bytes(
    corpus: Path, tokenizer: str, once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_FILES_UNIT_BYTES", UNIT_BYTES)
    assert len(sources.plan_units(sources.parse_sources([str(corpus)]))[0]) == UNITS
    settings = pretrain_settings(corpus, tokenizer, tmp_path / "two")
    tokenize_pretrain(replace(settings, workers=2))
    assert tree(tmp_path / "two") == tree(once)
    assert [entry.name for entry in tmp_path.iterdir()] == ["two"], "the workspace is gone"
    tokenize_pretrain(replace(settings, out=str(tmp_path / "other"), seed=1))
    assert tree(tmp_path / "other") != tree(once)


RUN = f"""
from dcoder_cli.data import sources
from dcoder_cli.main import main
sources._FILES_UNIT_BYTES = {UNIT_BYTES}
main()
"""


def command(corpus: Path, tokenizer: str, out: Path, workers: int) -> list[str]:
    arguments = ["pretrain", str(corpus), "--out", str(out), "--tokenizer", tokenizer, "--seq-len", "128"]
    return [sys.executable, "-c", RUN, "tokenize", *arguments, "--heldout", "0.2", "--workers", str(workers)]


@pytest.mark.parametrize(("workers", "kill"), [(2, signal.SIGKILL), (2, signal.SIGINT)])
def test_stopped_and_run_again_gives_the_same_bytes(
    corpus: Path, tokenizer: str, once: Path, tmp_path: Path, workers: int, kill: signal.Signals
) -> None:
    out = tmp_path / "data"
    units = tmp_path / ".data.partial" / "units"
    process = subprocess.Popen(command(corpus, tokenizer, out, workers), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(unit_path(units, index).exists() for index in range(workers)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(kill)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (130 if kill == signal.SIGINT else -kill) and not out.exists()
    assert ("run the same command again" in told) == (kill == signal.SIGINT) and "Traceback" not in told
    finished = {path.name: path.stat().st_mtime_ns for path in units.glob("unit-*")}
    assert 1 <= len(finished) < UNITS, "it was stopped midway"
    result = subprocess.run(command(corpus, tokenizer, out, 1), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "going on from" in result.stderr
    assert tree(out) == tree(once)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_workers_leave_with_a_killed_parent(corpus: Path, tokenizer: str, tmp_path: Path) -> None:
    process = subprocess.Popen(command(corpus, tokenizer, tmp_path / "data", 2), stderr=subprocess.DEVNULL)
    children: list[int] = []
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
        listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not listing.exists():
            pytest.skip("this kernel does not list children")
        children = [pid for pid in map(int, listing.read_text().split()) if _is_worker(pid)]
    process.kill()
    process.wait()
    while any(_is_worker(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children and not any(_is_worker(pid) for pid in children)


def _is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_other_settings_do_not_reuse_old_work(corpus: Path, tokenizer: str, once: Path, tmp_path: Path) -> None:
    settings = pretrain_settings(corpus, tokenizer, tmp_path / "data")
    workspace = tmp_path / ".data.partial"
    (workspace / "units").mkdir(parents=True)
    (workspace / "plan.json").write_text("{}")
    unit_path(workspace / "units", 0).write_text("old")
    tokenize_pretrain(settings)
    assert tree(tmp_path / "data") == tree(once)


def test_finished_data_is_not_overwritten_unasked(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("some words here\n" * 9)
    settings = PretrainSettings((str(tmp_path / "s.txt"),), str(tmp_path / "out"), tokenizer, seq_len=8, quiet=True)
    tokenize_pretrain(settings)
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match="--force"):
        tokenize_pretrain(settings)
    tokenize_pretrain(replace(settings, overwrite=True))
    assert tree(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        tokenize_pretrain(replace(settings, out=str(tmp_path / "mine"), overwrite=True))


def test_one_writer_at_a_time(tokenizer: str, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "s.txt").write_text("some words here\n" * 9)
    (tmp_path / ".out.partial").mkdir()
    with open(tmp_path / ".out.partial" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another dcoder tokenize"):
            tokenize_pretrain(PretrainSettings((str(tmp_path / "s.txt"),), str(tmp_path / "out"), tokenizer, seq_len=8))


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_weights_repeat_and_sample_documents(tokenizer: str, tmp_path: Path) -> None:
    ones = write_rows(tmp_path / "ones.jsonl", [f"one {index}" for index in range(200)])
    twos = write_rows(tmp_path / "twos.jsonl", [f"two {index}" for index in range(200)])
    out = tmp_path / "data"
    sources = (f"{ones}@3", f"{twos}@0.5")
    settings = PretrainSettings(sources, str(out), tokenizer, seq_len=16, heldout=0.1, filters=LEFT_ALONE, quiet=True)
    manifest = tokenize_pretrain(settings)
    train, heldout = documents(out, tokenizer), documents(out, tokenizer, "heldout")
    for index in range(200):
        name = f"one {index}"
        assert train.count(name) == (0 if name in heldout else 3) and heldout.count(name) in (0, 1)
        assert train.count(f"two {index}") in (0, 1)
    assert not set(train) & set(heldout)
    twos_kept = sum(text.startswith("two") for text in train)
    assert 65 < twos_kept < 115 and 20 < len(heldout) < 60
    assert [source["weight"] for source in manifest["sources"]] == [3, 0.5]
    first = [train.index(f"one {index}") for index in range(200) if f"one {index}" in train]
    assert len(set(np.diff(sorted(first)))) > 1, "copies are spread over the order"


def test_special_tokens_in_a_document_are_text(tokenizer: str, tmp_path: Path) -> None:
    text = "a <|endoftext|> b <|im_start|>c"
    source = write_rows(tmp_path / "s.jsonl", [text, "other words"])
    out = tmp_path / "out"
    tokenize_pretrain(PretrainSettings((str(source),), str(out), tokenizer, seq_len=8, heldout=0, quiet=True))
    assert sorted(documents(out, tokenizer)) == [text, "other words"]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_files_written_at_once_hold_the_rows_of_one(
    workers: int, bos: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts fall into documents, before their EOS, between them; documents are repeated, and some are longer than a file."""
    made = make_tokenizer()
    if bos:
        made.add_special_tokens({"bos_token": "<|beginoftext|>"})
    made.save_pretrained(tmp_path / "words")
    rng = random.Random(1)
    sizes = [1, 2, 14, 15, 16, 31, 47, 48, 49, 130, *(rng.randrange(1, 40) for _ in range(60))]
    texts = [" ".join(f"w{rng.randrange(200)}" for _ in range(size)) for size in sizes]
    ones, twos = write_rows(tmp_path / "a.jsonl", texts[:40]), write_rows(tmp_path / "b.jsonl", texts[40:])
    settings = PretrainSettings(
        (f"{ones}@2.5", str(twos)), str(tmp_path / "one"), str(tmp_path / "words"), seq_len=16, heldout=0.2, workers=workers,
        filters=LEFT_ALONE, quiet=True,
    )  # fmt: skip
    tokenize_pretrain(settings)
    monkeypatch.setattr(writing, "_TOKENS_PER_FILE", 48)
    tokenize_pretrain(replace(settings, out=str(tmp_path / "many")))
    for split in ("train", "heldout"):
        one, many = (ShardSet.open(tmp_path / name, split) for name in ("one", "many"))
        assert len(one) == len(many) and one.manifest["splits"] == many.manifest["splits"]
        assert one.padding == many.padding and len(many.files) >= len(one) // 3
        for name, column in one.rows(range(len(one))).items():
            assert (column == many.rows(range(len(one)))[name]).all()
    sources = [entry["taught_tokens"] for entry in many.manifest["sources"]]
    assert sum(sources) == many.manifest["splits"]["train"]["tokens"] - bos * many.manifest["splits"]["train"]["rows"]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{index}": index for index in range(65_600)}, unk_token="w1"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w0").save_pretrained(tmp_path / "t")
    source = write_rows(tmp_path / "s.jsonl", ["w65599 w2 w65535"])
    out = tmp_path / "out"
    tokenize_pretrain(PretrainSettings((str(source),), str(out), str(tmp_path / "t"), seq_len=8, heldout=0, quiet=True))
    tokens = ShardSet.open(out).rows([0])["tokens"]
    assert tokens.dtype == np.uint32 and tokens[0].tolist() == [65_599, 2, 65_535, 0, 0, 0, 0, 0]


def test_machines_parts_hold_everything_once(
    corpus: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_FILES_UNIT_BYTES", UNIT_BYTES)
    out = tmp_path / "data"
    for part in ("1/2", "2/2"):
        tokenize_pretrain(replace(pretrain_settings(corpus, tokenizer, out), shard=part, heldout=0, filters=LEFT_ALONE))
    assert sorted(documents(out, tokenizer)) == sorted(path.read_text() for path in corpus.glob("*.py"))
    with pytest.raises(UserError, match="no work"):
        tokenize_pretrain(replace(pretrain_settings(corpus, tokenizer, tmp_path / "x"), shard="99/99"))


def test_a_tokenizer_is_trained_saved_and_deterministic(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "s.jsonl", [source_text(seed) for seed in range(30)])
    trees = []
    for name in ("a", "b"):
        settings = PretrainSettings((str(source),), str(tmp_path / name), train_tokenizer=300, seq_len=64, quiet=True)
        manifest = tokenize_pretrain(settings)
        loaded = load_tokenizer(tmp_path / name / "tokenizer")
        assert manifest["tokenizer"] == {"name": "tokenizer", "hash": tokenizer_hash(loaded), "vocab_size": 300}
        trees.append(tree(tmp_path / name))
    assert trees[0] == trees[1] and "tokenizer/tokenizer.json" in trees[0]


def test_decontamination_finds_a_problem_in_the_corpus(benchmark_files: Path, tokenizer: str, tmp_path: Path) -> None:
    import gzip

    with gzip.open(benchmark_files / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as handle:
        problem = [json.loads(line) for line in handle][5]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "clean.py").write_text(source_text(1))
    (tmp_path / "src" / "dirty.py").write_text(source_text(2) + problem["prompt"] + problem["canonical_solution"])
    filters = FilterSettings(decontaminate=("humaneval", "mbpp"), benchmarks=str(benchmark_files))
    out = tmp_path / "out"
    settings = PretrainSettings((str(tmp_path / "src"),), str(out), tokenizer, seq_len=64, heldout=0, filters=filters)
    manifest = tokenize_pretrain(replace(settings, quiet=True))
    assert manifest["dropped"]["contaminated by humaneval"]["examples"] == ["dirty.py (humaneval: HumanEval/5)"]
    assert documents(out, tokenizer) == [source_text(1)]
    assert str(benchmark_files) not in json.dumps(manifest)


def test_filters_report_through_the_manifest(tokenizer: str, tmp_path: Path) -> None:
    files = {
        "good.py": source_text(1),
        "empty.py": "",
        "long.py": "x = '" + "a" * 2000 + "'\n",
        "broken.py": "def (:\n" + source_text(3),
        "licence.py": "# Copyright 2020, MIT licence\n\n" + source_text(4),
        "latin.py": "# ü\n".encode("latin-1"),
    }
    (tmp_path / "src").mkdir()
    for name, text in files.items():
        (tmp_path / "src" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    filters = FilterSettings(drop_unparsable=True, licence="strip")
    out = tmp_path / "out"
    settings = PretrainSettings((str(tmp_path / "src"),), str(out), tokenizer, seq_len=64, heldout=0, filters=filters)
    manifest = tokenize_pretrain(replace(settings, quiet=True))
    told = {reason: entry["examples"] for reason, entry in manifest["dropped"].items()}
    assert told == {
        "empty": ["empty.py"],
        "line too long": ["long.py (2006 characters)"],
        "unparsable Python": ["broken.py"],
        "not UTF-8": ["latin.py"],
    }
    assert manifest["licence_headers_stripped"] == {"MIT": 1}
    assert sorted(documents(out, tokenizer)) == sorted([source_text(1), source_text(4)])


def chat(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def sft(rows: list[dict[str, object]], folder: Path, tokenizer: str, **changes: object) -> dict[str, object]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SftSettings(
        (str(folder / "rows.jsonl"),), str(folder / "out"), tokenizer, seq_len=64, heldout=0, quiet=True
    )
    return tokenize_sft(replace(settings, **changes))  # type: ignore[arg-type]


def test_sft_supervises_the_answer_its_end_and_the_pads(tokenizer: str, tmp_path: Path) -> None:
    loaded = load_tokenizer(tokenizer)
    rows: list[dict[str, object]] = [
        chat("add one", "return x + 1"),
        {"instruction": "beta", "input": "gamma", "output": "delta", "entry_point": "f", "testcase": ["assert f"]},
        {"conversations": [{"from": "human", "value": "say"}, {"from": "gpt", "value": "so"}]},
        {"messages": [*chat("first", "reply")["messages"], *chat("second", "last")["messages"]]},  # type: ignore[misc]
        chat("long", "word " * 99),
        chat("no answer", "  "),
        chat("break out", "<|im_end|> more"),
        chat("add one", "return x + 1"),
    ]
    manifest = sft(rows, tmp_path, tokenizer)
    shards = ShardSet.open(tmp_path / "out")
    assert shards.kind == "sft" and len(shards) == 4
    columns = shards.rows(range(4))
    found = set()
    for tokens_L, eligible_L in zip(columns["tokens"], columns["eligible"], strict=True):
        start = int(eligible_L.argmax())
        assert (eligible_L[start:] == 1).all() and (eligible_L[:start] == 0).all()
        found.add((loaded.decode(tokens_L[:start]), loaded.decode(tokens_L[start:]).replace("<|endoftext|>", "")))
        end = int(np.flatnonzero(tokens_L == 2)[-1])
        assert (tokens_L[end + 1 :] == 0).all(), "pads follow the end of turn at once"
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert found == {
        (ask.format("add one"), "return x + 1<|im_end|>"),
        (ask.format("beta\n\ngamma"), "delta<|im_end|>"),
        (ask.format("say"), "so<|im_end|>"),
        (ask.format("first") + "reply<|im_end|>\n" + ask.format("second"), "last<|im_end|>"),
    }
    told = {reason: entry["documents"] for reason, entry in manifest["dropped"].items()}  # type: ignore[attr-defined]
    assert told == {
        "longer than the row": 1,
        "no answer": 1,
        "special token in the text": 1,
        "exact duplicate": 1,
    }
    assert manifest["special_tokens"] == {
        "eos": {"id": 0, "token": "<|endoftext|>"},
        "end_of_turn": {"id": 2, "token": "<|im_end|>"},
        "pad": {"id": 0, "token": "<|endoftext|>"},
    }


def test_sft_takes_the_pad_that_ends_answers(tokenizer: str, tmp_path: Path) -> None:
    loaded = load_tokenizer(tokenizer)
    loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|dlm_pad|>"]})
    loaded.save_pretrained(tmp_path / "t")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    manifest = sft([chat("q", "a")], tmp_path / "a", str(tmp_path / "t"))
    assert manifest["special_tokens"]["pad"]["token"] == "<|dlm_pad|>"  # type: ignore[index]
    assert ShardSet.open(tmp_path / "a" / "out").rows([0])["tokens"][0, -1] == len(loaded) - 1
    manifest = sft([chat("q", "a")], tmp_path / "b", str(tmp_path / "t"), pad_token="<|endoftext|>", system="Be kind.")
    assert manifest["special_tokens"]["pad"]["id"] == 0  # type: ignore[index]
    row = ShardSet.open(tmp_path / "b" / "out").rows([0])["tokens"][0]
    assert load_tokenizer(tokenizer).decode(row).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    with pytest.raises(UserError, match="--pad-token '<nope>'"):
        sft([chat("q", "a")], tmp_path / "b", str(tmp_path / "t"), pad_token="<nope>", overwrite=True)


def test_sft_is_the_same_with_two_workers(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "src").mkdir()
    for index in range(2):
        rows = (json.dumps(chat(f"question {index} {n}", f"answer {n}")) for n in range(20))
        (tmp_path / "src" / f"{index}.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(sources, "_FILES_UNIT_BYTES", 1000)  # two units
    for name, workers in (("a", 1), ("b", 2)):
        out = str(tmp_path / name / "out")
        settings = SftSettings((str(tmp_path / "src"),), out, tokenizer, seq_len=64, workers=workers, quiet=True)
        tokenize_sft(settings)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_wrong_settings_are_one_line(tokenizer: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "s.jsonl", ["some text"])
    good = PretrainSettings((str(source),), str(tmp_path / "out"), tokenizer, quiet=True)
    for changes, message in (
        ({"seq_len": 70_000}, "--seq-len 70000 must be from 8 to 65536"),
        ({"seq_len": 1}, "--seq-len 1 "),
        ({"heldout": 1.0}, "--heldout 1.0"),
        ({"shard": "0/2"}, "--shard '0/2'"),
        ({"workers": -1}, "--workers -1"),
        ({"train_tokenizer": 300}, "either --tokenizer"),
        ({"tokenizer": None}, "either --tokenizer"),
        ({"eos_token": "<nope>"}, "--eos-token '<nope>'"),
        ({"tokenizer": str(tmp_path)}, r"neither tokenizer\.json"),
        ({"out": str(source)}, "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            tokenize_pretrain(replace(good, **changes))  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"no document is left.*1 empty"):
        tokenize_pretrain(replace(good, sources=(str(write_rows(tmp_path / "e.jsonl", [" "])),)))
    with pytest.raises(UserError, match=r"instruction/output.*known: text"):
        tokenize_sft(SftSettings((str(source),), str(tmp_path / "sft"), tokenizer, quiet=True))
    with pytest.raises(UserError, match="no chat template"):
        loaded = load_tokenizer(tokenizer)
        loaded.chat_template = None
        loaded.save_pretrained(tmp_path / "plain")
        sft([chat("q", "a")], tmp_path, str(tmp_path / "plain"))
    assert not list(tmp_path.glob(".*")), "nothing half-written"


def on_a_full_disk(call: Callable[[Path], list[str]], place: Path, once: Path) -> None:
    """A command that writes `out` on a file system of 1 MB is one line and leaves nothing half-written; with room it goes on."""
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        out = place / "data"
        result = subprocess.run(call(out), capture_output=True, text=True)
        assert result.returncode == 2, result.stderr
        told = [
            line for line in result.stderr.splitlines() if line
        ]  # on a slow machine with lines of progress before it
        errors = [line for line in told if not line.startswith("tokenizing")]
        assert len(errors) == 1 and "no space left" in errors[0] and errors[0] == told[-1]
        assert not out.exists() and not list(place.rglob("*.tmp")) and not list(place.rglob("manifest.json"))
        subprocess.run(["mount", "-o", "remount,size=200m", place], check=True)
        result = subprocess.run(call(out), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert tree(out) == tree(once)
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_work_goes_on(
    workers: int, corpus: Path, tokenizer: str, once: Path, tmp_path: Path
) -> None:
    on_a_full_disk(lambda out: command(corpus, tokenizer, out, workers), tmp_path / "small", once)

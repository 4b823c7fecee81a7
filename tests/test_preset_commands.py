"""The commands in 8x80gb's header, as they stand: at full size with --dry-run, and for real at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import own_benchmarks
import pytest
from helpers import PYTHON_TEXT, make_model, make_tokenizer
from test_dry_run import CHAT, PROBLEM, sparse_checkpoint

from dcoder_cli.model.convert import diffusion_config
from dcoder_cli.model.sizes import config_of
from dcoder_cli.training.slurm import header_commands

pytestmark = pytest.mark.slow

PRESET = "8x80gb"
GIVEN = {"CODE..": ["code"], "BETTER..": ["code"], "CHATS..": ["chats.jsonl"], "PROBLEMS..": ["problems.jsonl"]}


def _sources(place: Path) -> None:
    (place / "code").mkdir()
    for number in range(40):
        (place / "code" / f"m{number}.py").write_text(
            f"# file {number}\n" + "".join(f"def f{number}_{i}(a):\n    return a + {number * i}\n" for i in range(30))
        )
    rows = [{**CHAT, "instruction": f"Write f{i}(a) that returns a + {i}."} for i in range(40)]
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{**PROBLEM, "id": f"p{i}", "question": f"Write f(a) number {i} that returns a."} for i in range(40)]
    (place / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run(place: Path, words: list[str], more: list[str]) -> str:
    words = [part for word in words for part in GIVEN.get(word, [word])]
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
        more = []
    module = {"dcoder": "dcoder_cli", "accelerate": "accelerate.commands.accelerate_cli"}[words[0]]
    done = subprocess.run(
        [sys.executable, "-m", module, *words[1:], *more], cwd=place, capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stderr[-3000:])
    if target is not None:
        (place / target).write_text(done.stdout)
    return done.stdout


def test_at_full_size_with_dry_run(tmp_path: Path) -> None:
    """7B in the headers of sparse files; data of toy size, rows of 4,096 and 2,048. Eight processes are started, of CPUs."""
    _sources(tmp_path)
    tokenizer = make_tokenizer()
    full = config_of("qwen2.5-coder-7b", None)
    sparse_checkpoint(tmp_path / "Qwen" / "Qwen2.5-Coder-7B", full, tokenizer)
    small = make_model(tmp_path / "small", ar=True, tokenizer=tokenizer)
    from dcoder_cli.model.loading import load

    made = diffusion_config(load(small))
    dream = {**full, **{key: made.config[key] for key in made.config if key.endswith("_token_id") or key == "dcoder"},
             "model_type": "Dream", "architectures": ["DreamModel"]}  # fmt: skip
    made_by = {"convert": ("start", "converted"), "adapt": ("runs/adapt/checkpoints/last", "adapt"),
               "mid": ("runs/mid/checkpoints/last", "mid"), "sft": ("runs/sft/checkpoints/last", "sft"),
               "grpo": ("runs/grpo/checkpoints/last", "grpo")}  # fmt: skip
    told = []
    for words in header_commands(PRESET):
        more = ["--data", str(_humaneval(tmp_path))] if words[1] == "eval" else []
        told.append(_run(tmp_path, words, ["--dry-run", *more]))
        if words[1] == "tokenize":
            _run(tmp_path, words, [])  # the data that later commands read
        for word in {*words} & {*made_by} if words[1] != "tokenize" else ():  # and what it would have left
            name, stage = made_by[word]
            sparse_checkpoint(tmp_path / name, {**dream, "dcoder": {**dream["dcoder"], "stage": stage}}, made.tokenizer)
    assert all("everything is checked" in text for text in told if "distributed_type" not in text)
    stages = [text for text in told if "train-stage" in text or "of grpo" in text]
    assert len(stages) == 4 and all("8, sharing the weights (FSDP2)" in text for text in stages)
    assert not any((tmp_path / "runs" / name / "config.yaml").exists() for name in ("adapt", "mid", "sft", "grpo"))


def test_for_real_at_toy_size(tmp_path: Path) -> None:
    """Two processes instead of eight, a tiny model under the 7B's name, a few short steps; nothing else is changed."""
    _sources(tmp_path)
    (tmp_path / "text.py").write_text("\n".join(PYTHON_TEXT))
    make_model(tmp_path / "Qwen" / "Qwen2.5-Coder-7B", ar=True, tokenizer=make_tokenizer(), context=4096)
    for words in header_commands(PRESET):
        more: list[str] = []
        if words[0] == "accelerate":
            place = words.index("-m")
            words = [*words[:place], "--num_processes", "2", *words[place:]]
            sets = {"steps": "2", "checkpoint_every": "1"}
            if "grpo" in words:
                sets |= {"prompts_per_step": "2", "group_size": "2", "rollout.max_new_tokens": "16", "rollout.steps": "16",
                         "evaluate_prompts": "2"}  # fmt: skip
            else:
                sets |= {"global_batch": "4", "micro_batch": "1", "optimizer.warmup_steps": "1", "evaluate_rows": "2"}
                sets |= {"anneal_steps": "1"} if "adapt" in words else {}
                sets |= {"optimizer.warmup_ratio": "null"} if "sft" in words else {}
            more = ["--device", "cpu", *(part for name, value in sets.items() for part in ("--set", f"{name}={value}"))]
        elif words[1] in ("generate", "eval"):
            more = ["--max-new-tokens", "16", "--steps", "16"]
            more += ["--limit", "2", "--data", str(_humaneval(tmp_path))] if words[1] == "eval" else []
        _run(tmp_path, words, more)
    for name in ("adapt", "mid", "sft", "grpo"):
        starts = json.loads((tmp_path / "runs" / name / "environment.json").read_text())["starts"]
        assert starts[0]["processes"] == 2 and starts[0]["preset"] == PRESET
    assert "scores" in json.loads((tmp_path / "eval/humaneval-grpo/results.json").read_text())


def _humaneval(place: Path) -> Path:
    """Problems of our own in the benchmark's form and number."""
    return own_benchmarks.write(place / "benchmarks") / "humaneval" / "HumanEval.jsonl.gz"

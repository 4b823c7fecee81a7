"""--dry-run: what it says is what then happens, it refuses what the run would refuse, and it writes nothing."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused

from dcoder_cli.base.runs import RunFolder
from dcoder_cli.main import COMMANDS
from dcoder_cli.training.saving import checkpoint_bytes

CHAT = {"instruction": "Write f(a) that returns a.", "output": "```python\ndef f(a):\n    return a\n```"}
PROBLEM = {"id": "p1", "question": "Write f(a) that returns a.", "tests": ["assert f(1) == 1", "assert f(2) == 2"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer)
    make_model(folder / "ar", ar=True, tokenizer=tokenizer)
    make_shards(folder / "data", tokenizer)
    (folder / "prompts.txt").write_text("def f(a):\ndef g(b):\n")
    (folder / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    (folder / "problems.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    (folder / "code").mkdir()
    (folder / "code" / "one.py").write_text("def f(a):\n    return a\n" * 40)
    dcoder("tokenize", "rl", folder / "problems.jsonl", "--tokenizer", folder / "model", "--out", folder / "rl")
    return folder


@pytest.fixture(autouse=True)
def another_start() -> None:
    """Each command is a start of its own: Accelerate remembers the precision of the process's first."""
    _forget()


def _forget() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        found[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
    return found


def printed(*arguments: str) -> str:
    """What a command prints that must succeed, in this process."""
    from dcoder_cli.main import main

    _forget()
    stdout, stderr, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["dcoder", *arguments]
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main()
    except SystemExit as left:
        assert not left.code, stderr.getvalue()
    finally:
        sys.argv = before
    return stdout.getvalue()


def planned(place: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The plan of a command line in `place`, which it must leave as it was."""
    monkeypatch.chdir(place)
    before = tree(place)
    found: dict[str, Any] = json.loads(printed(*shlex.split(line), "--dry-run", "--json"))
    assert tree(place) == before
    return found


TRAIN = "--data data --out run --set steps=3 --set global_batch=8 --set micro_batch=2 --device cpu"
LINES = {
    "quickstart": "quickstart --out q --step-scale 0.01",
    "tokenize pretrain": "tokenize pretrain code --tokenizer model --seq-len 32 --out shards",
    "tokenize sft": "tokenize sft chats.jsonl --tokenizer model --seq-len 96 --out shards",
    "tokenize rl": "tokenize rl problems.jsonl --tokenizer model --out prompts",
    "convert": "convert ar --out start",
    "train-stage": f"train-stage 2 --model model {TRAIN}",
    "grpo": "grpo --preset cpu-tiny --model model --data rl --out run --device cpu --set steps=2 --set prompts_per_step=1",
    "generate": "generate --model model --max-new-tokens 8 --prompts prompts.txt --n 3 --temperature 1",
    "arness": "arness --model model --max-new-tokens 8 --prompts prompts.txt --temperatures 0.2,1 --out order",
    "eval": "eval micro --model model --limit 2 --max-new-tokens 8 --out scores",
    "reproduce": "reproduce --out claims --seeds 2 --step-scale 0.01",
}


@pytest.mark.parametrize("name", LINES)
def test_nothing_is_written_and_the_plan_is_whole(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(place, LINES[name], monkeypatch)
    assert found["dry_run"].startswith(name.split(" ", 1)[0])
    if name != "convert":
        assert found["settings"]
    if name in ("train-stage", "grpo", "generate", "arness", "eval", "convert"):
        assert found["memory"]["bytes"] > 0
    text = printed(*shlex.split(LINES[name]), "--dry-run")
    assert "everything is checked, nothing is written" in text
    assert max(len(line) for line in text.splitlines()) <= 80 + len(str(place))


def test_every_long_command_has_it() -> None:
    short = {"presets", "inspect", "doctor", "plot", "chat", "serve", "export", "bench"}
    assert {name for name in COMMANDS if name not in short} == {name.split(" ")[0] for name in LINES}


def test_a_stage_does_what_its_plan_says(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(place, LINES["train-stage"], monkeypatch)
    done = json.loads(dcoder(*shlex.split(LINES["train-stage"]), "--json", "--out", tmp_path / "run", cwd=place).stdout)
    assert plan["steps"] == {"total": done["steps"], "done": 0, "left": done["steps"]}
    assert plan["tokens"] == {"a_step": 8 * 32, "in_all": done["tokens"]}
    assert plan["batch"] == {"rows": 8, "micro_batch": 2, "accumulated": 4}
    assert plan["data"]["rows"] == 40 and plan["data"]["heldout"] == 8 and plan["data"]["sequence_length"] == 32
    from dcoder_cli.base.config import to_dict
    from dcoder_cli.model.loading import load
    from dcoder_cli.training.record import resolved

    model = load(place / "model")
    assert plan["disk"]["bytes"] == 4 * checkpoint_bytes(model)
    stored = sum(file.stat().st_size for file in RunFolder(tmp_path / "run").checkpoint(3).rglob("*") if file.is_file())
    assert stored < 1.3 * plan["disk"]["bytes"] / 4 + 100_000  # a tiny model's tokenizer and headers beside its weights
    assert plan["settings"] == json.loads(json.dumps(to_dict(resolved(2, plan["settings"]))))
    before = tree(tmp_path)
    going_on = planned(
        place, f"train-stage 2 --out {tmp_path / 'run'} --resume --set steps=5 --device cpu", monkeypatch
    )
    assert tree(tmp_path) == before
    assert going_on["steps"] == {"total": 5, "done": 3, "left": 2}


def test_more_processes_than_are_started(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--nproc 8 in a dry run starts none: what eight would do is counted, and refused where they would refuse it."""
    line = f"train-stage 2 --model model {TRAIN} --preset 8x80gb --nproc 8"
    plan = planned(place, line, monkeypatch)
    assert plan["processes"] == {"count": 8, "spread": "fsdp"} and plan["batch"]["accumulated"] == 1
    assert plan["memory"]["of"].startswith("the preset's card of 80 GB") and plan["memory"]["fits"]
    assert planned(place, line.replace("8x80gb", "cpu-tiny"), monkeypatch)["processes"]["spread"] == "ddp"
    _forget()
    assert "global_batch = 9 must be a multiple of the 8 processes" in refused(
        *shlex.split(line.replace("global_batch=8", "global_batch=9")), "--dry-run"
    )


@pytest.mark.parametrize(
    "line",
    [
        f"train-stage 2 --model missing {TRAIN}",
        f"train-stage 2 --model model {TRAIN.replace('data data', 'data rl')}",
        f"train-stage 0 --model model {TRAIN}",
        f"train-stage 2 --model model {TRAIN} --set lora.rank=2",
        f"train-stage 2 --model model {TRAIN} --set attention=flash_attention_2",
        f"train-stage 2 --model model {TRAIN} --resume",
        "grpo --preset cpu-tiny --model ar --data rl --out run --device cpu",
        "grpo --preset cpu-tiny --model model --data rl --out run --device cpu --set rollout.max_new_tokens=500",
        "generate --model model --max-new-tokens 500 hello",
        "generate --model model --dtype float12 hello",
        "eval micro --model missing",
        "arness --model ar --prompts prompts.txt --sensitivity",
        "convert model --out start",
        "convert ar --out code",
        "tokenize pretrain code --tokenizer model --seq-len 4 --out shards",
        "tokenize sft code --tokenizer model --out shards",
        "tokenize rl problems.jsonl --tokenizer model --out rl",
        "reproduce --out code",
        "quickstart --out code",
    ],
)
def test_it_refuses_what_the_run_refuses(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    told = refused(*shlex.split(line), "--dry-run")
    _forget()
    assert told == refused(*shlex.split(line))


def test_damaged_weights_are_found_by_their_headers(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    model = make_model(tmp_path / "model", tokenizer=make_tokenizer())
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for line in (f"train-stage 2 --model {model} {TRAIN}", f"generate --model {model} hello"):
        assert "truncated" in refused(*shlex.split(line), "--dry-run")
    weights.unlink()
    assert "missing" in refused("eval", "micro", "--model", model, "--dry-run")


def sparse_checkpoint(folder: Path, config: dict[str, Any], tokenizer: Any) -> None:
    """A checkpoint of any size whose weights are zeros that take no disk."""
    import torch

    from dcoder_cli.model.layouts import layout_of
    from dcoder_cli.model.loading import empty_network

    folder.mkdir(parents=True)
    layout = layout_of(config, "sparse")
    network = empty_network(config, layout, "sdpa", torch.device("meta"))
    header, at = {}, 0
    for key, value in network.state_dict().items():
        if not (network.config.tie_word_embeddings and key == "lm_head.weight"):
            end = at + 2 * value.numel()
            header[layout.to_stored(key)] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [at, end]}
            at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(str(folder))


def test_seven_billion_parameters(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is read: a plan of 7B on eight cards in the memory of a laptop, with the numbers of `presets fit`."""
    from dcoder_cli.model.sizes import config_of

    sparse_checkpoint(place / "qwen", config_of("qwen2.5-coder-7b", None), make_tokenizer())
    plan = planned(place, "convert qwen --out start", monkeypatch)
    assert plan["model"]["parameters"] == 7_615_616_512 and plan["disk"]["bytes"] == 4 * 7_615_616_512
    plan = planned(place, "train-stage 0 --preset 8x80gb --nproc 8 --model qwen --data data --out run", monkeypatch)
    assert plan["model"]["trained"] == 7_615_616_512 and plan["processes"] == {"count": 8, "spread": "fsdp"}
    assert (
        plan["disk"]["bytes"] == 4 * 12 * 7_615_616_512
    )  # float32 and Adam's two, two kept, the best, one being written
    fit = json.loads(printed("presets", "fit", "--preset", "8x80gb", "--stage", "0", "--tokens", "32", "--json"))
    assert plan["memory"]["bytes"] == fit["sections"]["stage0"]["bytes"] and plan["memory"]["fits"]

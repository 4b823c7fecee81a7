"""The answer length of a checkpoint: written by training, read by generate, chat and arness, and said when it is missed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import dcoder, make_model, make_shards, make_tokenizer, refused
from parrot import LENGTH, NICE, parrot

from dcoder_cli import load
from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks.protocols import Protocol
from dcoder_cli.data.batches import answer_length
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.decoding.requests import with_length
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model import checkpoint
from dcoder_cli.terminal.chat import Session
from dcoder_cli.terminal.remarks import empty_note

TAUGHT = 40


def with_generation(folder: Path, to: Path, **values: Any) -> Path:
    shutil.copytree(folder, to)
    file = to / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return to


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_generation(parrot(), tmp_path_factory.mktemp("taught") / "model", max_new_tokens=TAUGHT)


def test_it_is_read_written_and_kept(taught: Path, tmp_path: Path) -> None:
    model = load(taught, device="cpu")
    assert model.answer_length == TAUGHT and load(parrot(), device="cpu").answer_length is None
    model.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["max_new_tokens"] == TAUGHT


def test_instruction_rows_teach_their_median_place_and_never_more_than_256(tmp_path: Path) -> None:
    shards = ShardSet.open(make_shards(tmp_path / "sft", make_tokenizer(), "sft"), "train")
    eligible_RL = shards.rows(range(len(shards)))["eligible"]
    assert answer_length(shards) == int(np.median(eligible_RL.sum(axis=1)))

    class Long:
        kind = "sft"

        def __len__(self) -> int:
            return 3

        def rows(self, indices: range) -> dict[str, Any]:
            return {"eligible": np.ones((len(indices), 4000), np.uint8)}

    assert answer_length(Long()) == 256  # type: ignore[arg-type]
    assert answer_length(ShardSet.open(make_shards(tmp_path / "pre", make_tokenizer()), "train")) is None


@pytest.mark.parametrize("value", [0, -3, 2.5, "many", True])
def test_a_number_that_is_none_is_one_line(tmp_path: Path, value: Any) -> None:
    folder = with_generation(parrot(), tmp_path / "broken", max_new_tokens=value)
    told = refused("generate", "--model", folder, "--device", "cpu", "sort")
    assert f"max_new_tokens = {value!r}" in told and "generation_config.json" in told
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config.json' is not JSON"):
        load(folder, device="cpu")


def test_generate_asks_for_what_was_taught(taught: Path) -> None:
    told = dcoder("generate", "--model", taught, "--device", "cpu", "--json", "sort")
    record = json.loads(told.stdout)
    assert len(record["tokens"]) == TAUGHT == record["settings"]["max_new_tokens"]
    told = dcoder("generate", "--model", taught, "--device", "cpu", "--json", "--max-new-tokens", str(LENGTH), "sort")
    assert len(json.loads(told.stdout)["tokens"]) == LENGTH and json.loads(told.stdout)["text"] == NICE


def test_blocks_stay_whole() -> None:
    assert with_length({"block_length": 32}, 40)["max_new_tokens"] == 64
    assert with_length({"block_length": 20}, 40)["max_new_tokens"] == 40
    assert with_length({"max_new_tokens": 7}, 40) == {"max_new_tokens": 7}
    assert with_length({}, None) == {}


def test_chat_starts_with_it_and_half_the_context_remains(taught: Path) -> None:
    model = load(taught, device="cpu")
    assert Session(model, {}).settings.max_new_tokens == TAUGHT
    assert Session(model, {"max_new_tokens": 8}).settings.max_new_tokens == 8
    assert Session(model, {"block_length": 16}).settings.max_new_tokens == 48
    model.answer_length = 100
    assert Session(model, {}).settings.max_new_tokens == model.max_length // 2 == 64


def test_arness_measures_it_where_all_models_agree(taught: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("sort\n")
    common = ["--prompts", tmp_path / "prompts.txt", "--device", "cpu", "--json"]
    told = json.loads(dcoder("arness", "--model", taught, *common).stdout)
    assert told["series"][0]["tokens"] == TAUGHT
    other = with_generation(taught, tmp_path / "other", max_new_tokens=24)
    told = refused("arness", "--model", taught, "--model", other, *common)
    assert "with 512 new ones" in told, "models that disagree are measured at the paper's length"


def test_eval_protocols_say_their_own_length() -> None:
    for name in ("diffucoder", "dream", "llada", "qwen"):
        for instruct in (False, True):
            for kind in ("complete", "whole", "micro", "math", "library-complete", "library-instruct"):
                assert "max_new_tokens" in Protocol(name, instruct).settings(kind)  # type: ignore[arg-type]


def test_an_empty_answer_is_called_so_with_the_length_that_was_trained(taught: Path) -> None:
    model = load(taught, device="cpu")
    end = sorted(model.ids.stops)[0]

    def answer(name: str, text: str, asked: int = 256) -> Trajectory:
        return Trajectory(name, "p", [end], text, [0], [1.0], [0.0], 1, settings={"max_new_tokens": asked})

    assert empty_note(model, [answer("0", "x")]) is None
    alone = empty_note(model, [answer("0", "")])
    assert alone == (
        "the answer is empty: no text before the first end or pad token; "
        "try --max-new-tokens 40 (trained; 256 now) or --min-new-tokens 8"
    )
    blank = empty_note(model, [answer("0", " \n")])
    assert blank is not None and "is empty: nothing but white space before the first end or pad token; try" in blank
    endless = replace(answer("0", " \n"), tokens=[next(token for token in range(99) if token not in model.ids.stops)])
    assert empty_note(model, [endless]) == (
        "the answer is empty: nothing but white space, and no end or pad token; try --max-new-tokens 40 (trained; 256 now)"
    )
    mixed = empty_note(model, [endless, answer("1", "")])
    assert mixed is not None and mixed.startswith("2 of 2 answers are empty (0, 1): nothing but white space; try")
    several = empty_note(model, [answer("a", ""), answer("b", "x"), answer("c", "")])
    assert several is not None and several.startswith("2 of 3 answers are empty (a, c): ")
    talk = empty_note(model, [answer("0", "", asked=40)], in_chat=True)
    assert talk is not None and talk.endswith("try /set max_new_tokens=20 (40 now) or /set min_new_tokens=8")


def test_generate_and_chat_call_an_empty_answer_so(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", context=128)
    model = load(folder, device="cpu")
    with_bias = model.network.lm_head
    with_bias.weight.data.zero_()
    with_bias.weight.data[sorted(model.ids.stops)[0]] = 0
    # All logits equal: argmax is id 0, a stop here, so every answer is empty.
    assert 0 in model.ids.stops
    model.save(folder, stage="sft")
    done = dcoder("generate", "--model", folder, "--device", "cpu", "--max-new-tokens", "16", "hello")
    assert done.stdout == "\n" and "note: the answer is empty: no text before the first end or pad token" in done.stderr
    done = dcoder("generate", "--model", folder, "--device", "cpu", "--max-new-tokens", "16", "--json", "a", "b")
    assert "note: 2 of 2 answers are empty (0, 1)" in done.stderr
    done = dcoder("chat", "--model", folder, "--device", "cpu", "--set", "max_new_tokens=16", input="hello\n")
    assert "note: the answer is empty" in done.stderr and "/set min_new_tokens=8" in done.stderr


def test_a_local_length_is_read_before_the_model_is(taught: Path) -> None:
    assert checkpoint.local_answer_length(str(taught)) == TAUGHT
    assert checkpoint.local_answer_length("owner/name") is None
    told = refused("generate", "--model", taught, "--block-length", "16", "--steps", "4", "sort")
    assert "steps = 4 must be a multiple of the 3 blocks" in told


def test_training_writes_it(tmp_path: Path) -> None:
    from dcoder_cli.training.config import StageConfig
    from dcoder_cli.training.denoise import train

    tokenizer = make_tokenizer()
    model = make_model(tmp_path / "m", context=64, tokenizer=tokenizer)
    config = StageConfig(steps=1, global_batch=2, micro_batch=2, precision="fp32", checkpoint_every=0)
    for stage, kind, expected in ((2, "pretrain", None), (3, "sft", 16)):
        data = make_shards(tmp_path / kind, tokenizer, kind, rows=4)
        result = train(stage, str(model), str(data), str(tmp_path / f"run-{kind}"), config, device="cpu", quiet=True)
        written = json.loads((result.checkpoint / "generation_config.json").read_text())
        assert written.get("max_new_tokens") == expected

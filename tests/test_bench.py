"""`dcoder bench`: every subcommand for real at toy size, what it measures, and that it finds what differs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import documented
import pytest
import torch
from helpers import PYTHON_TEXT, make_model, make_tokenizer, refused

from dcoder_cli.decoding.requests import Request, Settings, encode
from dcoder_cli.decoding.sampler import decode
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import load
from dcoder_cli.timing import generate, grpo, judge, learning, models, plain_batch, plain_rows, race, rate, report
from dcoder_cli.timing import tokenize as tokenizing
from dcoder_cli.timing.memory import PeakMemory
from dcoder_cli.timing.near_ties import Written
from dcoder_cli.training.memory.shape import shape_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bench") / "model", initializer_range=0.3)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    made = load(folder, "cpu", "float32")
    made.network.double()
    return made


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    from dcoder_cli.main import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["dcoder", "bench", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


LINES = {
    "generate": ("--batch", "1,3", "--new-tokens", "32", "--prompt-tokens", "6", "--mode", "exact,fast"),
    "train": ("--batch", "2", "--row-tokens", "16,24"),
    "grpo": ("--batch", "4", "--group", "2", "--new-tokens", "8", "--prompt-tokens", "6"),
    "judge": ("--programs", "6", "--workers", "2"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_bench_runs_and_both_ways_agree(name: str, folder: Path) -> None:
    which = () if name == "judge" else ("--model", folder, "--device", "cpu")
    code, out, err = run(name, *which, *LINES[name], "--repeats", "2", "--json")
    assert code == 0 and not err, err
    documented.check_output(["bench", name], out)
    found = json.loads(out)
    assert found["bench"] == name and found["repeats"] == 2 and found["machine"]["device"] == "cpu"
    assert len(found["cases"]) == {"generate": 4, "train": 2, "grpo": 1, "judge": 1}[name]
    assert all(len(line) <= 80 for line in report.table(found)[1:])
    for case in found["cases"]:
        assert case["agreement"]["agree"] is True, case
        pairs = [
            slow / fast
            for slow, fast in zip(*(case[one]["laps"]["seconds"] for one in ("plain", "dcoder")), strict=True)
        ]
        assert case["times_as_fast"]["least"] == min(pairs) and case["times_as_fast"]["most"] == max(pairs)
        for one in (case["dcoder"], case["plain"]):
            laps = one["laps"]["seconds"]
            assert len(laps) == 2 and one["seconds"]["least"] == min(laps) and one["warm_up_seconds"] > 0
            assert one["per_second"]["most"] == pytest.approx(case["amount"] / min(laps))
            if name == "judge":
                assert one["peak_bytes"] is None and one["cpu_seconds"] is None
                continue
            assert one["peak_bytes"] >= 0 and one["cpu_seconds"]["most"] >= 0 and found["peak_is"]
            share = one["matrix_operations"] / max(laps) / found["matrix_rate"]["median"]
            assert one["matrix_share"]["least"] == pytest.approx(share)


@pytest.mark.parametrize("name", ["train", "grpo", "generate"])
def test_what_is_compared_is_the_way_that_is_timed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook on the head, such as the one that counts logits, sends training and decoding another way."""
    from dcoder_cli.decoding import heads
    from dcoder_cli.diffusion import vocabulary
    from dcoder_cli.model import head

    asked: list[bool] = []

    def spied(network: Any) -> Any:
        found = head.head_matrix(network)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(heads, "head_matrix", spied)
    monkeypatch.setattr(vocabulary, "head_matrix", spied)
    watched: list[list[bool]] = []
    enter, leave = race.PeakMemory.__enter__, race.PeakMemory.__exit__
    monkeypatch.setattr(race.PeakMemory, "__enter__", lambda self: (asked.clear(), enter(self))[1])
    monkeypatch.setattr(race.PeakMemory, "__exit__", lambda self, *e: (watched.append(list(asked)), leave(self, *e))[1])
    code, _, err = run(name, "--model", folder, "--device", "cpu", *LINES[name], "--repeats", "1", "--json")
    assert code == 0, err
    assert any(watched) and all(all(one) for one in watched)


def test_tokenize_runs_and_shows_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PYTHON_TEXT * 20))
    make_tokenizer().save_pretrained(tmp_path / "t")
    code, out, err = run(
        "tokenize", tmp_path / "a.jsonl", "--tokenizer", tmp_path / "t", "--repeats", "1", "--megabytes", "0.02"
    )
    assert code == 0 and "agree: all" in out, err
    lines = out.splitlines()
    assert all(len(line) <= 80 for line in lines[1:])
    assert any(line.split()[:3] == ["MB", "a", "second"] for line in lines)
    assert "megabytes 0.02" in out and "bench tokenize" in err


def test_a_size_of_random_weights_decodes() -> None:
    """tiny is the default; its rows are as long as asked in both modes, and what they hold differs."""
    model = models.choose(None, None).load("cpu", None, 0)
    ids = generate.prompts(model, 2, 8, 0)
    assert [len(one) for one in ids] == [8, 4]
    (one, other) = decode(model, ids, Settings(max_new_tokens=16))
    assert len(set(one.tokens)) > 4 and one.tokens != other.tokens
    assert model.vocab_size == 1536 and not set(ids[0]) & {model.ids.mask, *model.ids.stops}


SETTINGS: list[dict[str, Any]] = [
    {}, {"rule": "margin", "steps": 5}, {"temperature": 0.8}, {"temperature": 1.2, "top_p": 0.6}, {"rule": "confidence", "temperature": 0.5},
    {"rule": "random", "temperature": 0.7}, {"rule": "left-to-right"},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_plain_batch_gives_the_engines_tokens(settings: dict[str, Any], model: Model) -> None:
    """In float64, where no two choices are so close that other padding decides."""
    asked = Settings(max_new_tokens=12, **settings)
    requests = encode(model, [[5, 6, 7], [9], list(range(20, 28))], asked, None, None)
    ours = decode(model, [one.prefix for one in requests], asked, batch_size=3)
    plain = plain_batch.decode(model, requests, asked)
    assert [(one.tokens, one.reveal_step) for one in ours] == [(one.tokens, one.reveal_step) for one in plain]


# ---- what differs is found


def _pair(model: Model, **settings: Any) -> tuple[list[Request], Settings, list[Written]]:
    asked = Settings(max_new_tokens=32, **settings)
    requests = encode(model, [[5, 6, 7], [9, 10]], asked, None, None)
    found = decode(model, [one.prefix for one in requests], asked)
    return requests, asked, [Written(one.tokens, one.reveal_step) for one in found]


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.9}, {"mode": "fast", "early_stop": False, "threshold": 0.3}], ids=str
)
def test_a_wrong_token_and_a_wrong_step_are_found(settings: dict[str, Any], model: Model) -> None:
    requests, asked, rows = _pair(model, **settings)
    assert generate.agree(model, requests, asked, rows, rows).agree is True
    first, last = rows[0].reveal_step.index(0), rows[0].reveal_step.index(max(rows[0].reveal_step))
    tokens = [*rows[0].tokens]
    tokens[last] = (tokens[last] + 1) % 200  # nothing follows that it could throw off
    wrong_token = Written(tokens, rows[0].reveal_step)
    steps = [*rows[0].reveal_step]
    steps[first], steps[last] = steps[last], steps[first]
    for wrong in (wrong_token, Written(rows[0].tokens, steps), Written(rows[0].tokens, [-1] * 32)):
        for pair in (([wrong, rows[1]], rows), (rows, [wrong, rows[1]])):
            found = generate.agree(model, requests, asked, *pair)
            assert found.agree is False and "DISAGREE" in found.words, found


def test_what_rounding_alone_decides_is_no_difference(folder: Path) -> None:
    """Followed in bfloat16, the float32 model's answer is off by little at each step, but in another course."""
    fine, coarse = load(folder, "cpu", "float32"), load(folder, "cpu", "bfloat16")
    requests, asked, rows = _pair(fine)
    *_, rounded = _pair(coarse)
    assert rounded != rows
    found = generate.agree(coarse, requests, asked, rows, rounded)
    assert found.agree is True and "up to rounding" in found.words
    assert 0 < found.numbers["largest_gap"] <= generate.TOLERANCE[torch.bfloat16]
    assert found.numbers["equal_tokens"] < found.numbers["tokens"]


def test_a_course_is_followed_to_its_end(model: Model) -> None:
    requests, asked, rows = _pair(model)
    row = plain_rows.decode(model, requests[0], asked, follow=rows[0])
    assert row.gaps == [0.0] * 32 and row.columns()["tokens"] == rows[0].tokens
    lost = Written(rows[0].tokens, [step if step != 7 else -1 for step in rows[0].reveal_step])
    gaps = plain_rows.decode(model, requests[0], asked, follow=lost).gaps
    assert gaps == [0.0] * 7 + [math.inf]


def test_a_wrong_plain_token_makes_exit_code_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = plain_batch.decode

    def wrong(*arguments: Any) -> list[Written]:
        found = real(*arguments)
        return [dataclasses.replace(one, tokens=[7, *one.tokens[1:]]) for one in found]

    monkeypatch.setattr(plain_batch, "decode", wrong)
    code, out, err = run(
        "generate",
        "--model",
        folder,
        "--batch",
        "1",
        "--new-tokens",
        "8",
        "--mode",
        "exact",
        "--repeats",
        "1",
        "--device",
        "cpu",
    )
    assert code == 1 and "DISAGREE" in out
    assert err.splitlines()[-1].startswith("error: dcoder and the plain reference disagree in 1 of 1 cases (batch 1,")


@pytest.mark.parametrize("what", ["token", "loss", "norm", "gradient", "missing"])
def test_other_losses_and_gradients_are_found(what: str) -> None:
    one = learning.Found(torch.tensor([1.0, 2.0]), 1.5, 3.0, {"a": torch.tensor([3.0, -4.0]), "b": torch.ones(2)})
    assert learning.agree(one, one, torch.float32, "losses").agree is True
    changed = {
        "token": dataclasses.replace(one, tokens=torch.tensor([1.0, 2.01])),
        "loss": dataclasses.replace(one, loss=1.51),
        "norm": dataclasses.replace(one, norm=3.1),
        "gradient": dataclasses.replace(one, gradients={**one.gradients, "a": torch.tensor([3.0, -4.1])}),
        "missing": dataclasses.replace(one, gradients={"a": one.gradients["a"]}),
    }[what]
    assert learning.agree(changed, one, torch.float32, "losses").agree is False


def test_other_ids_and_verdicts_are_found() -> None:
    assert tokenizing.agree([[1, 2], [3]], [[3], [1, 2]]).agree is True
    assert tokenizing.agree([[1, 2], [3]], [[3], [1, 4]]).agree is False
    assert tokenizing.agree([[1, 2]], [[3], [1, 2]]).agree is False
    assert judge.agree([True, False], [True, False]).agree is True
    assert judge.agree([True, True], [True, False]).agree is False


def test_one_program_in_four_is_another_tasks() -> None:
    from dcoder_cli.data import micro

    tasks = micro.generate("train", 8)
    programs = judge.programs_of(tasks)
    assert [one == task.solution for one, task in zip(programs, tasks, strict=True)].count(False) == 2
    assert all(f"def {task.entry_point}(" in one for one, task in zip(programs, tasks, strict=True))


# ---- what is measured


def test_runs_are_taken_in_turn_and_warm_ups_apart() -> None:
    order: list[str] = []
    works = [race.Work(lambda n=name: order.append(n), lambda n=name: order.append(f"{n} watched")) for name in "ab"]  # type: ignore[misc]
    ours, plain = race.race((works[0], works[1]), 2, CPU, lambda _: None)
    assert order == ["a", "a watched", "b", "b watched", "a", "b", "a", "b"]
    assert len(ours.wall) == len(plain.wall) == 2 and race.spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "least": 1.0,
        "most": 3.0,
    }


def test_a_plain_way_without_room_is_told_in_words() -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")

    fine = race.Work(lambda: 1, lambda: 1)
    ours, plain = race.race((fine, race.Work(full, full)), 2, CPU, lambda _: None)
    assert plain.trouble == "out of memory" and len(ours.wall) == 2 and not plain.wall
    case = report.case({"batch": 1}, "tokens", 8, ours, plain, report.NOTHING)
    lines = report.table(report.document("train", {"model": "x"}, CPU, None, 2, [case]))
    assert case["times_as_fast"] is None and any(line.endswith("out of memory") for line in lines)
    assert lines[-1].startswith("nothing to compare with")
    with pytest.raises(race.WorkFailed, match="out of memory; ask for smaller"):
        race.race((race.Work(full, full), fine), 2, CPU, lambda _: None)
    with pytest.raises(ZeroDivisionError):
        race.race((fine, race.Work(lambda: 1 / 0, lambda: 1)), 2, CPU, lambda _: None)


def test_the_peak_of_memory_is_that_of_what_was_held() -> None:
    with PeakMemory(CPU) as peak:
        held = torch.ones(40 * 2**20, dtype=torch.uint8)
        torch.ones(len(held), dtype=torch.uint8)
    assert peak.bytes is not None and 70 * 2**20 < peak.bytes < 130 * 2**20


def test_matrix_operations_are_counted(model: Model, folder: Path) -> None:
    """By hand for the tiny model: 2 layers of width 32, 5 heads of 32 / 5 columns are not whole, so by the shape's numbers."""
    shape = shape_of(json.loads((folder / "config.json").read_text()), "x")
    with rate.counting(model) as seen:
        model.logits(torch.ones(3, 10, dtype=torch.int64))
    assert dataclasses.astuple(seen) == (1, 30, 300, 30)
    by_hand = 2 * 30 * shape.layers * shape.matrices + 4 * 300 * shape.layers * shape.queries + 2 * 30 * shape.table
    assert seen.operations(shape) == by_hand
    asked = Settings(max_new_tokens=32, mode="fast", cache="dual", commit="schedule", steps=32, early_stop=False)
    with rate.counting(model) as seen:
        decode(model, [list(range(5, 13))], asked)
    # 8 + 32 tokens: the first step reads the whole row, 31 the block and the column before it, all attending to 40.
    assert (seen.forwards, seen.columns, seen.pairs) == (32, 40 + 31 * 33, 40 * (40 + 31 * 33))
    assert seen.logits == sum(range(1, 33))


def test_a_number_is_short() -> None:
    assert [report._number(one, 3) for one in (0.01234, 12.34, 1234.5, 123456.0, 1.2e8)] == [
        "0.0123",
        "12.3",
        "1,234",
        "123k",
        "120M",
    ]


def test_the_plain_estimate_masks_the_prompt_too(model: Model) -> None:
    """d1 masks some of it; and completions of other lengths are padded on both sides."""
    from dcoder_cli.diffusion.coupled import MaskSettings
    from dcoder_cli.diffusion.estimators import make_passes
    from dcoder_cli.diffusion.randomness import generator
    from dcoder_cli.timing import plain_training
    from dcoder_cli.training.grpo.estimate import Completion, EntryLogProbs, log_probabilities, plan_rows

    completions = [Completion((5, 6, 7, 8), (9, 10, 11), 2), Completion((5,), (12, 13, 14, 15, 16), 5)]
    for name in ("coupled", "d1"):
        passes = [
            make_passes(name, len(one.tokens), len(one.prompt), generator(1, "t", place), MaskSettings(prompt_mask=0.5))
            for place, one in enumerate(completions)
        ]
        plan = plan_rows(completions, passes, int(model.ids.mask or 0), 0)
        with torch.no_grad():
            ours_BN = log_probabilities(EntryLogProbs(model), plan, CPU)
            plain_BN = plain_training.estimate(model, completions, passes)
        assert torch.allclose(ours_BN, plain_BN, atol=1e-9)


# ---- wrong input


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("generate --shape 9b", "--shape '9b' is unknown; did you mean"),
        ("generate --shape 7b --new-tokens 40000", "32 prompt and 40000 new tokens make rows of 40032 tokens, and the context of 'qwen2.5-coder-7b' is 32768"),
        ("train --row-tokens 600", "--row-tokens 600 make rows of 600 tokens, and the context of 'tiny' is 512"),
        ("grpo --batch 6", "--batch 6 is no multiple of --group 4"),
        ("generate --batch 2,x", "--batch '2,x' must be whole numbers of at least 1, such as"),
        ("train --row-tokens 1", "--row-tokens '1' must be whole numbers of at least 2"),
        ("generate --mode exact,quick", "--mode 'quick' is unknown"),
        ("generate --new-tokens 8 --steps 9 --mode exact", "steps = 9 must lie between 1 and the 8 new tokens"),
        ("train --repeats 0", "--repeats 0 must be at least 1"),
        ("train --dtype float16", "--dtype float16 is none that training computes in; use float32 or bfloat16"),
        ("tokenize nowhere", "source 'nowhere' does not exist"),
        ("tokenize --megabytes 0", "--megabytes 0.0 must be above 0"),
        ("judge --programs 0", "--programs 0 must be at least 1"),
        ("judge --repeats 0", "--repeats 0 must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(line: str, words: str) -> None:
    assert refused("bench", *line.split()).startswith(f"error: {words}")


def test_a_model_and_a_size_are_not_both_measured(folder: Path, tmp_path: Path) -> None:
    told = refused("bench", "train", "--model", folder, "--shape", "tiny")
    assert told.startswith(f"error: --shape tiny has no effect: --model {folder} is what is measured")
    ar = make_model(tmp_path / "ar", ar=True)
    assert "is an AR model, and a bench measures denoising" in refused("bench", "generate", "--model", ar)


def test_a_seed_draws_other_work() -> None:
    """And the same seed the same: of prompts, completions and weights."""
    model = models.choose(None, "tiny").load("cpu", None, 3)
    again = models.choose(None, "tiny").load("cpu", None, 3)
    other = models.choose(None, "tiny").load("cpu", None, 4)
    weights = [one.network.model.layers[0].mlp.up_proj.weight for one in (model, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert generate.prompts(model, 2, 8, 0) == generate.prompts(model, 2, 8, 0) != generate.prompts(model, 2, 8, 1)
    stepper = SimpleNamespace(model=model, device=CPU)
    made: Sequence[Any] = [grpo._batch(stepper, grpo.GrpoBench(seed=seed), 4, 8) for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert made[0].completions == made[1].completions != made[2].completions

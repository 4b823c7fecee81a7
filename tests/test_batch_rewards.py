"""A reward that scores all texts of a step at once: declared by its parameters or an attribute, asked once, or one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from grpo_runs import make_place

from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.rewards import Reward, Rewarder, is_batch, probe

MINE = """
import numpy, torch

calls = []

def vowels(prompts, texts):
    calls.append([(prompt["task_id"], text) for prompt, text in zip(prompts, texts, strict=True)])
    return [sum(c in "aeiou" for c in text) / 8 for text in texts]

def one(prompt, text):
    return sum(c in "aeiou" for c in text) / 8

def declared(records, answers):
    return (float(len(answer)) for answer in answers)
declared.batch = True

def single(prompts, texts):
    return len(texts)
single.batch = False

class Model:
    batch = True
    def __call__(self, a, b):
        return torch.tensor([float(len(text)) for text in b])

model = Model()

def array(prompts, texts):
    return numpy.array([len(text) for text in texts], dtype=numpy.float32)

def short(prompts, texts):
    return [1.0] * (len(texts) - 1)

def number(prompts, texts):
    return 0.5

def nothing(prompts, texts):
    return None

def text(prompts, texts):
    return "1" * len(texts)

def mapping(prompts, texts):
    return {index: 1.0 for index in range(len(texts))}

def words(prompts, texts):
    return ["1.0"] * len(texts)

def nan(prompts, texts):
    return [float("nan")] * len(texts)

def rows(prompts, texts):
    return torch.zeros(len(texts), 2)

def raises(prompts, texts):
    raise ValueError("two\\nlines")

def later(prompts, texts):
    return [1.0] * 2
"""
PROMPT = {"task_id": "lesson/7", "messages": []}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("batch"))
    (folder / "batch_rewards.py").write_text(MINE)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    sys.modules.pop("reward", None)


def test_which_functions_are_batch_functions(place: Path) -> None:
    import batch_rewards as mine  # type: ignore[import-not-found]

    assert [is_batch(f) for f in (mine.vowels, mine.declared, mine.model)] == [True] * 3
    assert [is_batch(f) for f in (mine.one, mine.single, max)] == [False] * 3


@pytest.mark.parametrize("name", ["declared", "model", "array"])
def test_lists_arrays_tensors_and_generators_are_taken(name: str) -> None:
    name = f"batch_rewards:{name}"
    rewarder = Rewarder({name: 2.0, "format": 0.5}, None)
    probe(rewarder, PROMPT)
    rewards = rewarder.results([rewarder.submit(PROMPT, text) for text in ("a", "bcd")])
    assert rewards == [Reward(2.0 * n, {name: float(n), "format": 0.0}, "unjudged") for n in (1, 3)]
    assert list(rewards[0].parts) == [name, "format"] and type(rewards[0].parts[name]) is float
    assert rewarder.result(rewarder.submit(PROMPT, "four")).total == 8.0, "one alone is a batch of one"


NUMBERS = "it must return 2 finite numbers, one a text in their order"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", f"returned 1 values; {NUMBERS}"),
        ("number", f"returned 0.5; {NUMBERS}"),
        ("nothing", f"returned None; {NUMBERS}"),
        ("text", f"returned '11'; {NUMBERS}"),
        ("mapping", f"returned {{0: 1.0, 1: 1.0}}; {NUMBERS}"),
        ("words", "for prompt 'lesson/7' returned '1.0'; it must return a finite number"),
        ("nan", "for prompt 'lesson/7' returned nan; it must return a finite number"),
        ("rows", "for prompt 'lesson/7' returned tensor([0., 0.]); it must return a finite number"),
        ("raises", "raised ValueError: two lines"),
    ],
)
def test_a_broken_one_is_told_before_and_during_the_run(name: str, message: str) -> None:
    start = f"reward 'batch_rewards:{name}', asked about 2 texts at once, "
    rewarder = Rewarder({"format": 1.0, f"batch_rewards:{name}": 1.0}, None)
    with pytest.raises(UserError) as before:
        probe(rewarder, PROMPT)
    pending = [rewarder.submit(PROMPT, text) for text in ("a", "b")]
    with pytest.raises(WorkFailed) as during:
        rewarder.results(pending)
    assert str(before.value).startswith(start + message) and "tried on the texts ''" in str(before.value)
    assert str(during.value) == start + message + "; mend it and go on with --resume"
    assert "\n" not in str(before.value) + str(during.value)


def test_what_the_probe_cannot_know_ends_the_run() -> None:
    rewarder = Rewarder({"batch_rewards:later": 1.0}, None)
    probe(rewarder, PROMPT)
    with pytest.raises(WorkFailed, match="asked about 3 texts at once, returned 2 values"):
        rewarder.results([rewarder.submit(PROMPT, text) for text in ("a", "b", "c")])


def test_a_run_asks_once_a_step_and_is_the_run_of_the_function_of_one_completion(place: Path, tmp_path: Path) -> None:
    import batch_rewards as mine

    from dcoder_cli.training.grpo.train import train

    def run(name: str) -> list[dict[str, Any]]:
        config = build(
            GrpoConfig,
            {
                "steps": 2, "prompts_per_step": 2, "group_size": 4, "micro_batch": 4, "precision": "fp32", "evaluate_every": 0,
                "rewards": {f"batch_rewards:{name}": 1.0}, "rollout": {"max_new_tokens": 6}, "inner_iterations": 1,
                "optimizer": {"learning_rate": 3e-3, "warmup_steps": 0},
            },
        )  # fmt: skip
        out = tmp_path / name
        train(str(place / "model"), str(place / "data"), str(out), config, device="cpu", quiet=True)
        return [json.loads(line.replace(name, "own")) for line in (out / "metrics.jsonl").read_text().splitlines()]

    mine.calls.clear()
    assert run("vowels") == run("one")
    tried, before, *steps, after = mine.calls
    assert len(tried) == 2 and [len(before), len(after)] == [2, 2], "held-out prompts, before and after"
    assert len(steps) == 2
    for call in steps:
        assert len(set(call)) == len(call) and 4 < len(call) <= 8, "what a prompt got twice stands there once"
        assert len({task for task, _ in call}) == 2

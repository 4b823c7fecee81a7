"""Prompts with tests: AceCode-87K's fields, the hard subset, completion-style prompts, and reading them back."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dcoder_cli.commands.tokenize import app
from typer.testing import CliRunner

from dcoder_cli.base.errors import UserError
from dcoder_cli.data.problems import completion_prompt, entry_point_of, hard_subset, read_problem
from dcoder_cli.data.rl import RlSettings, load_prompts, tokenize_rl
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.model.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["Write a function that adds numbers.\n"] * 3, 300).save_pretrained(folder)
    return str(folder)


def ace(number: int, rates: list[float], question: str | None = None, completion: str = "") -> dict[str, Any]:
    """A row as AceCode-87K has it; half of the inferences by each model, and some by a third that must not count."""
    models = ["qwen_coder_2.5", "llama3_instruct"]
    inferences = [
        {"model_name": models[index % 2], "completion_id": index, "completion": completion, "pass_rate": rate}
        for index, rate in enumerate(rates)
    ]
    inferences += [{"model_name": "another", "completion_id": 0, "completion": "", "pass_rate": 0.0}] * 3
    return {
        "id": f"q{number}",
        "source": "evol",
        "question": question or f"Write a function f{number} that adds {number}.",
        "test_cases": [f"assert f{number}(1) == {number + 1}", f"assert f{number}(2) == {number + 2}"],
        "inferences": inferences,
        "context_messages": None,
    }


def make(rows: list[dict[str, Any]], folder: Path, tokenizer: str, **changes: Any) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = RlSettings(
        (str(folder / "rows.jsonl"),), str(folder / "out"), tokenizer, max_prompt_tokens=500, quiet=True
    )
    return tokenize_rl(replace(settings, **changes))


def test_the_hard_subset_by_hand() -> None:
    rates = [[0, 1], [0, 0], [1, 1], [0.5, 0.5], [0, 0.6], [0.9, 1], [0.8, 1], [0, 0.2], [1, 0.9], [0.7, 0.7]]
    # means: .5 0 1 .5 .3 .95 .9 .1 .95 .7 -> the 20% quantile is .1 + .8 * (.3 - .1) = .26: problems 1 and 7
    # spreads: .5 0 0 0 .3 .05 .1 .1 .05 0 -> the 60% quantile is .05 + .4 * 0 = .05: problems 0 4 5 6 7 8
    assert np.flatnonzero(hard_subset(rates, 0.2, 0.4)).tolist() == [7]
    assert hard_subset(rates, 1.0, 1.0).all()


def test_both_wordings_of_hard_by_hand(tokenizer: str, tmp_path: Path) -> None:
    """Ten questions with four inferences each. Means 1/4 (five of them) and 3/4: the 20th percentile is 1/4, so the first
    five may stay. Their spreads are 0, 0, 1/16, 1/8, 3/16; those of the rest 0, 0, 0, 1/64, 1/32. All ten sorted:
    0 0 0 0 0 1/64 1/32 1/16 1/8 3/16. The 40th percentile (place 3.6) is 0: all five stay. The 60th (place 5.4) lies
    between 1/64 and 1/32: the three of 1/16 and more stay."""
    spreads = [0.0, 0.0, 1 / 16, 1 / 8, 3 / 16]
    rates = [[0.25 + s, 0.25 - s, 0.25 + s, 0.25 - s] for s in spreads]
    rates += [[0.75 + s, 0.75 - s, 0.75 + s, 0.75 - s] for s in (0.0, 0.0, 0.0, 1 / 64, 1 / 32)]
    rows = [ace(number, own) for number, own in enumerate(rates)]
    kept = {}
    for hard in ("released", "paper", "all"):
        (tmp_path / hard).mkdir()
        manifest = make(rows, tmp_path / hard, tokenizer, hard=hard, complete=False)
        kept[hard] = manifest["splits"]["train"]["rows"]
    assert kept == {"released": 5, "paper": 3, "all": 10}
    assert RlSettings((), "", "").hard == "released"


def test_hard_on_the_command_line_cuts_by_spread_in_both_wordings(tokenizer: str, tmp_path: Path) -> None:
    """Ten questions q0 to q9 with two inferences each, m + s and m - s. Their spreads s are 0 to 9 sixty-fourths. The 40th
    percentile lies at place 3.6, so 4 and more stay (released, the top 60%); the 60th at 5.4, so 6 and more (paper, the top
    40%). The mean is 1/4 for q1, q3, q5, q7 and 3/4 for the rest; its 20th percentile, place 1.8, is 1/4. Low and wide:
    q5 and q7 (released), q7 (paper). With another share of the spread, 0.8: the 20th percentile, place 1.8, leaves q3 too."""
    means = [0.25 if number in (1, 3, 5, 7) else 0.75 for number in range(10)]
    rows = [ace(number, [mean + number / 64, mean - number / 64]) for number, mean in enumerate(means)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, options, kept in (
        ("default", [], ["q5", "q7"]),
        ("released", ["--hard", "released"], ["q5", "q7"]),
        ("paper", ["--hard", "paper"], ["q7"]),
        ("wider", ["--hard", "paper", "--hard-spread", "0.8"], ["q3", "q5", "q7"]),
        ("all", ["--hard", "all"], [f"q{number}" for number in range(10)]),
    ):
        out = tmp_path / name
        common = ["rl", str(tmp_path / "rows.jsonl"), "--tokenizer", tokenizer, "--out", str(out), "--heldout", "0"]
        result = CliRunner().invoke(app, [*common, "--max-prompt-tokens", "500", "--no-complete", "--json", *options])
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert [prompt["task_id"] for prompt in load_prompts(out)] == kept, name
        assert told["dropped"].get("not hard", {"documents": 0})["documents"] == 10 - len(kept), name


def test_the_system_message_stands_in_the_prompts_and_counts(tokenizer: str, tmp_path: Path) -> None:
    """Both styles get it and a row's own stays; a rollout is asked with it."""
    from types import SimpleNamespace

    from dcoder_cli.model.tokenizer import load_tokenizer
    from dcoder_cli.training.grpo.rollouts import encode_prompts

    own = {
        "messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "u"}],
        "tests": ["assert f(1)"],
    }
    rows = [ace(1, [1.0, 0.5], completion="def f1(x):\n    return x"), own]
    for name, system in (("with", "Be brief."), ("without", None)):
        (tmp_path / name).mkdir()
        make(rows, tmp_path / name, tokenizer, hard="all", system=system)
    prompts, plain = (load_prompts(tmp_path / name / "out") for name in ("with", "without"))
    led = [[turn["content"] for turn in row["messages"] if turn["role"] == "system"] for row in prompts]
    assert led == [["Be brief."], ["Be brief."], ["Own."]]
    assert [len(row["messages"]) for row in plain] == [1, 1, 2]
    model = SimpleNamespace(tokenizer=load_tokenizer(tokenizer), name="m", max_length=4096)
    asked = encode_prompts(model, prompts, 1)  # type: ignore[arg-type]
    assert "Be brief." in model.tokenizer.decode(asked[0])
    with pytest.raises(UserError, match="prompt too long"):
        make(rows[:1], tmp_path / "with", tokenizer, hard="all", system="Be brief. " * 200, overwrite=True)


def test_acecode_rows_become_hard_prompts(tokenizer: str, tmp_path: Path) -> None:
    easy = [ace(number, [1.0, 1.0, 0.9, 1.0]) for number in range(12)]
    never = [ace(number, [0.0, 0.0, 0.0, 0.0]) for number in range(12, 14)]
    solution = "Here:\n```python\nfrom typing import List\n\ndef f14(x: int, *, y=2) -> List[int]:\n    return x\n```"
    hard = ace(14, [0.0, 0.5, 0.0, 0.25], completion=solution)
    spoken = ace(15, [0.0, 0.5, 0.0, 0.25], question="You are given x. Add 15.", completion=solution)
    manifest = make([*easy, *never, hard, spoken], tmp_path, tokenizer)
    prompts = load_prompts(tmp_path / "out")
    assert [prompt["task_id"] for prompt in prompts] == ["q14", "q14/complete", "q15"]
    instruct, complete, _ = prompts
    assert instruct == {
        "task_id": "q14",
        "style": "instruct",
        "messages": [{"role": "user", "content": "Write a function f14 that adds 14."}],
        "tests": {"shown": [], "hidden": ["assert f14(1) == 15", "assert f14(2) == 16"]},
        "entry_point": "f14",
        "source": "evol",
    }
    assert complete["messages"][0]["content"] == (
        "Please complete the following problem:\n```\nfrom typing import List\n\n\n"
        'def f14(x: int, *, y=2) -> List[int]:\n    """\n    Write a function f14 that adds 14.\n    """\n```\n'
    )
    assert {**complete, "messages": 0, "style": 0, "task_id": 0} == {
        **instruct,
        "messages": 0,
        "style": 0,
        "task_id": 0,
    }
    assert manifest["dropped"]["not hard"]["documents"] == 14 and manifest["questions_read"] == 16
    assert manifest["splits"]["train"] == {"rows": 3, "documents": 2}
    with pytest.raises(UserError, match="dcoder grpo"):
        ShardSet.open(tmp_path / "out")


def test_all_keeps_easy_ones_and_no_complete_the_plain_form(tokenizer: str, tmp_path: Path) -> None:
    rows = [ace(number, [1.0, 0.5], completion=f"def f{number}(x):\n    return x") for number in range(5)]
    make(rows, tmp_path, tokenizer, hard="all", complete=False)
    assert [prompt["task_id"] for prompt in load_prompts(tmp_path / "out")] == [f"q{number}" for number in range(5)]


def test_other_rows_and_what_is_dropped(tokenizer: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "task_id": "own",
            "prompt": "Add.",
            "tests": {"shown": ["assert a(1)"], "hidden": ["assert a(2)"]},
            "entry_point": "a",
        },
        {
            "task_id": 2,
            "text": "Share.",
            "test_list": ["assert set(sim((1,), (2,))) == set()"],
            "code": "def sim(a, b): pass",
        },
        {
            "id": "chat",
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "tests": ["assert c(1)"],
        },
        {"id": "none", "question": "No tests.", "test_cases": []},
        {"id": "blank", "question": " ", "test_cases": ["assert b(1)"]},
        {"id": "again", "question": "Add.", "test_cases": ["assert b(1)"]},
        {"id": "long", "question": "word " * 400, "test_cases": ["assert b(1)"]},
    ]
    manifest = make(rows, tmp_path, tokenizer)
    prompts = {prompt["task_id"]: prompt for prompt in load_prompts(tmp_path / "out")}
    assert list(prompts) == ["own", "2", "2/complete", "chat"]
    assert prompts["own"]["tests"] == {"shown": ["assert a(1)"], "hidden": ["assert a(2)"]}
    assert prompts["2"]["entry_point"] == "sim" and prompts["chat"]["entry_point"] == "c"
    assert [turn["role"] for turn in prompts["chat"]["messages"]] == ["system", "user"]
    told = {reason: entry["documents"] for reason, entry in manifest["dropped"].items()}
    assert told == {
        "no tests, and no answer that is a number": 1,
        "empty": 1,
        "exact duplicate": 1,
        "prompt too long": 1,
    }


def test_held_out_questions_and_the_same_bytes_twice(tokenizer: str, tmp_path: Path) -> None:
    rows = [ace(number, [1.0, 0.0], completion=f"def f{number}(x):\n    return x") for number in range(60)]
    trees = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make(rows, tmp_path / name, tokenizer, heldout=0.3)
        trees.append({path.name: path.read_bytes() for path in (tmp_path / name / "out").iterdir()})
    assert trees[0] == trees[1] and set(trees[0]) == {"prompts.jsonl", "heldout-prompts.jsonl", "manifest.json"}
    train, heldout = (
        {prompt["task_id"].split("/")[0] for prompt in load_prompts(tmp_path / "a" / "out", split)}
        for split in ("train", "heldout")
    )
    assert not train & heldout and len(train | heldout) == 60 and 8 < len(heldout) < 30


def test_decontamination_of_questions(benchmark_files: Path, tokenizer: str, tmp_path: Path) -> None:
    from dcoder_cli.data.filters import FilterSettings

    with gzip.open(benchmark_files / "mbpp" / "mbpp.jsonl.gz", "rt", encoding="utf-8") as handle:
        copied = ace(1, [1.0], question=json.loads(next(handle))["text"])
    filters = FilterSettings(near_duplicates=0.0, decontaminate=("mbpp",), benchmarks=str(benchmark_files))
    manifest = make([copied, ace(2, [1.0])], tmp_path, tokenizer, filters=filters)
    assert manifest["dropped"]["contaminated by mbpp"]["documents"] == 1


def test_a_benchmarks_training_split_may_be_trained_on(benchmark_files: Path, tokenizer: str, tmp_path: Path) -> None:
    from dcoder_cli.data.filters import FilterSettings

    rows = []
    for name in ("train", "test"):
        with gzip.open(benchmark_files / "gsm8k" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as handle:
            rows.append({"id": name, **json.loads(next(handle))})
    filters = FilterSettings(near_duplicates=0.0, decontaminate=("gsm8k",), benchmarks=str(benchmark_files))
    manifest = make(rows, tmp_path, tokenizer, filters=filters, max_prompt_tokens=1000)
    assert manifest["dropped"]["contaminated by gsm8k"]["documents"] == 1
    assert [prompt["task_id"] for prompt in load_prompts(tmp_path / "out")] == ["train"]


def test_entry_points_and_signatures() -> None:
    assert entry_point_of(["assert len(set(find(x))) == 3"]) == "find"
    assert entry_point_of(["not python (", "assert sorted([1]) == [1]"]) is None
    code = 'import os\nx = 1\ndef g(a):\n    "old"\n    return a\n'
    assert (
        completion_prompt('Say """hi"""', code, "g")
        == "import os\n\n\ndef g(a):\n    \"\"\"\n    Say '''hi'''\n    \"\"\""
    )
    assert completion_prompt("q", code, "h") is None and completion_prompt("q", "def (", "g") is None


def test_wrong_rows_and_damaged_prompts_are_named(tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"r:1 has no tests.*known: question"):
        read_problem({"question": "q"}, "r:1", "s")
    with pytest.raises(UserError, match=r"r:1 has no messages.*known: tests"):
        read_problem({"tests": ["x"]}, "r:1", "s")
    with pytest.raises(UserError, match="must be a list"):
        read_problem({"question": "q", "tests": "assert 1"}, "r:1", "s")
    with pytest.raises(UserError, match="no prompt is left"):
        make([{"question": "q", "tests": []}], tmp_path, tokenizer)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    for changes in (
        {"hard_mean": 0.0},
        {"hard": "both"},
        {"hard": "all", "hard_mean": 0.2},
        {"heldout": 1.0},
        {"max_prompt_tokens": 0},
    ):
        with pytest.raises(UserError):
            make([ace(1, [1.0])], tmp_path, tokenizer, **changes)
    make([ace(1, [1.0])], tmp_path, tokenizer)
    with pytest.raises(UserError, match="no heldout prompts"):
        load_prompts(tmp_path / "out", "heldout")
    (tmp_path / "out" / "prompts.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="damaged or was changed"):
        load_prompts(tmp_path / "out")

"""Credit above what a constant answer collects: the values read from tests, the prompts' baseline, and the reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import dcoder, make_tokenizer, refused

from dcoder_cli.base.errors import UserError
from dcoder_cli.data.constants import above_baseline, constant_share, expected
from dcoder_cli.data.rl import load_prompts
from dcoder_cli.execution.judge import Judge
from dcoder_cli.training.grpo.rewards import Rewarder, check_prompts


@pytest.mark.parametrize(
    ("test", "values"),
    [
        ("assert f(1) == 2", [2]),
        ("assert 2 == f(1)", [2]),
        ("assert f([1], 'a') == [-1, {'b': None}], 'a message'", [[-1, {"b": None}]]),
        ("assert f(1) is None", [None]),
        ("assert f(1)", [True]),
        ("assert not f(1)", [False]),
        ("assert (f(1), f(2)) == (True, False)", [True, False]),
        ("assert [f(1), f(2)] == [3, 3]", [3, 3]),
        ("  assert f(1) == 2\n", [2]),
        ("assert (f(1), f(2)) == (1, 2, 3)", None),
        ("assert (f(1), f(2)) == 3", None),
        ("assert f(1) == g(2)", None),
        ("assert f(1) == f(2)", None),
        ("assert g(1) == 2", None),
        ("assert abs(f(1) - 2) < 0.1", None),
        ("assert f(1) != 2", None),
        ("assert 1 == f(1) == 1", None),
        ("x = f(1)\nassert x == 2", None),
        ("assert f(", None),
    ],
)
def test_what_a_test_expects(test: str, values: list[Any] | None) -> None:
    assert expected(test, "f") == values


def test_the_best_constant_by_hand() -> None:
    tests = [f"assert f({n}) == {value}" for n, value in enumerate(("True", "False", "False", "0", "'no'", "[1]"))]
    assert constant_share(tests, "f") == 3 / 6  # False and 0 are equal
    assert constant_share([*tests, "assert abs(f(2)) < 1", "assert (f(3), f(4)) == (0, 0)"], "f") == 4 / 8
    assert constant_share(["assert (f(3), f(4)) == (0, 1)"] * 4, "f") == 0.0
    assert constant_share(tests, None) == constant_share([], "f") == 0.0
    assert [above_baseline(share, 0.6) for share in (0.0, 0.6, 0.8, 1.0)] == pytest.approx([0, 0, 0.5, 1])
    assert above_baseline(0.3, 0.0) == 0.3


ROWS = [  # the best constant passes 3 of 4, 1 of 4, all, and none is known
    {"id": "positive", "question": "Is x positive?", "test_cases": [f"assert f({x}) == {x > 0}" for x in (1, 2, 3, -1)]},
    {"id": "next", "question": "What follows x?", "test_cases": [f"assert f({x}) == {x + 1}" for x in (1, 2, 3, 4)]},
    {"id": "seven", "question": "Give 7.", "test_cases": ["assert f(1) == 7", "assert f(2) == 7"]},
    {"id": "close", "question": "Half of x?", "test_cases": ["assert abs(f(2) - 1) < 0.1"]},
]  # fmt: skip


def test_tokenize_writes_the_baseline_and_says_how_far_a_constant_gets(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = ["tokenize", "rl", tmp_path / "rows.jsonl", "--tokenizer", tmp_path / "tokenizer"]
    for name, options in (("plain", []), ("above", ["--baseline", "constant"])):
        run = dcoder(*common, "--out", tmp_path / name, *options)
        assert run.returncode == 0, run.stderr
    assert "the best constant answer passes 33% of a question's hidden tests" in " ".join(run.stdout.split())
    plain, above = (load_prompts(tmp_path / name) for name in ("plain", "above"))
    assert len(plain) == 4 and not any("baseline" in row for row in plain)
    assert {row["task_id"]: row["baseline"] for row in above} == {"positive": 0.75, "next": 0.25, "close": 0.0}
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("plain", "above")]
    assert manifests[0]["constant_answers"] == {"questions": 4, "mean_share": 0.5, "half_or_more": 2}
    assert manifests[1]["dropped"] == {"a constant answer passes every test": {"documents": 1, "examples": ["seven"]}}
    assert manifests[1]["settings"]["baseline"] == "constant"
    assert "--baseline 'best' is unknown; use none or constant" in refused(
        *common, "--out", tmp_path / "no", "--baseline", "best"
    )


def test_only_what_is_above_the_baseline_earns() -> None:
    """Of the tests of "positive" the guess passes 3 of 4: 0.75 without a baseline, nothing with it; a right answer earns all."""
    prompt = {"task_id": "positive", "entry_point": "f", "tests": {"hidden": ROWS[0]["test_cases"]}}
    guess, right = (f"```python\ndef f(x):\n    return {value}\n```" for value in ("True", "x > 0"))
    with Judge() as judge:
        rewarder = Rewarder({"code": 2.0}, judge)

        def earned(prompt: dict[str, Any], text: str) -> float:
            return rewarder.result(rewarder.submit(prompt, text)).total

        assert [earned(prompt, text) for text in (guess, right)] == pytest.approx([1.5, 2.0])
        assert [earned({**prompt, "baseline": 0.75}, text) for text in (guess, right)] == pytest.approx([0.0, 2.0])
        assert [earned({**prompt, "baseline": 0.5}, text) for text in (guess, right)] == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("baseline", [1.0, -0.1, "high", None])
def test_a_broken_baseline_is_refused(baseline: Any) -> None:
    prompt = {"task_id": "p", "entry_point": "f", "tests": {"hidden": ["assert f(1) == 2"]}, "baseline": baseline}
    with pytest.raises(UserError, match=r"prompt 'p' has the baseline .* from 0 to below 1"):
        check_prompts([prompt], {"code": 1.0})


def test_numbers_say_nothing_of_constants_and_refuse_what_is_of_tests(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "How many?", "answer": "3"}) + "\n")
    common = ["tokenize", "rl", tmp_path / "rows.jsonl", "--tokenizer", tmp_path / "tokenizer", "--no-complete"]
    run = dcoder(*common, "--out", tmp_path / "plain")
    assert run.returncode == 0 and "constant answer" not in " ".join(run.stdout.split()), run.stderr
    assert "--baseline constant changes nothing: no row has tests; leave it out" in refused(
        *common, "--out", tmp_path / "above", "--baseline", "constant"
    )
    assert not (tmp_path / "above").exists()


@pytest.mark.parametrize(
    "options", [["--hard", "paper"], ["--hard", "released"], ["--hard-mean", "0.5"], ["--hard-spread", "0.5"]]
)
def test_a_choice_of_the_hard_ones_needs_pass_rates(tmp_path: Path, options: list[str]) -> None:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    other = {"inferences": [{"model_name": "another", "pass_rate": 0.5}]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, **other}) + "\n" for row in ROWS))
    common = ["tokenize", "rl", tmp_path / "rows.jsonl", "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "o"]
    message = f"{' '.join(options)} changes nothing: no row has inferences of qwen_coder_2.5 or llama3_instruct"
    assert message in refused(*common, *options)
    rated = {"inferences": [{"model_name": "llama3_instruct", "pass_rate": 0.5}]}
    with open(tmp_path / "rows.jsonl", "a") as rows:
        rows.write(json.dumps({"question": "Double x.", "test_cases": ["assert d(1) == 2"], **rated}) + "\n")
    assert dcoder(*common, *options).returncode == 0

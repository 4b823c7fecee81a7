"""Numbers to find: how they are read, prompts made of them, and what they earn."""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from helpers import dcoder, make_model, make_tokenizer, refused

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks.gsm8k import flexible_answer, strict_answer
from dcoder_cli.data.answers import final_number, last_number, written
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.problems import read_problem
from dcoder_cli.data.rl import RlSettings, load_prompts, tokenize_rl
from dcoder_cli.training.grpo.rewards import Reward, Rewarder, check_prompts, math_reward

# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7", "7"),
        ("The answer is 1,234.", "1234"),
        ("1,234.0", "1234"),
        ("It costs $1,000,000", "1000000"),
        ("**$42.50**", "42.5"),
        (r"\boxed{-5}", "-5"),
        ("he lost -$5", "-5"),
        ("he lost $-5", "-5"),
        ("he lost −5", "-5"),
        ("3-4", "4"),
        ("3 - 4", "4"),
        ("$10-$6", "6"),
        ("(3)-4", "4"),
        ("COVID-19", "19"),
        ("it is --5", "5"),
        ("so ...42", "42"),
        ("is .5", "0.5"),
        ("50%", "50"),
        ("1e20", "1e20"),
        ("42\n#### 43\n", "43"),
        ("it is 78.5, with \u03c0 as a word", "78.5"),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)
    assert math_reward(text, number) == 1.0
    assert math_reward(text, f"{Decimal(number) + 1:f}") == 0.0


WRITTEN = {  # as it is written: the number, and whether a reference may be written so
    r"9{,}500": ("9500", True),
    r"9,\!500": ("9500", True),
    r"9\,500": ("9500", True),
    r"9{\,}500": ("9500", True),
    r"9\ 500": ("9500", True),
    r"9~500": ("9500", True),
    r"9\thinspace500": ("9500", True),
    "9&nbsp;500": ("9500", True),
    "9\u2009500": ("9500", True),
    "9\u00a0500": ("9500", True),
    "9\u202f500": ("9500", True),
    "9 500": ("9500", False),  # in a reference it may be a list
    "-3 500": ("-3500", False),
    "9'500": ("9500", True),
    "9\u2019500.50": ("9500.5", True),
    "9_500": ("9500", True),
    "9.500,00": ("9500", True),
    "R$ 1.234.567,89": ("1234567.89", False),
    "9 500,50": ("9500.5", False),
    "9,500.50": ("9500.5", True),
    "9.500.000": ("9500000", True),
    "9.500": ("9.5", True),
    "42,50": ("42.5", False),
    "0,500": ("0.5", False),
    "12,34,567": ("1234567", True),
    "1,00,000": ("100000", True),
    r"\$9{,}500": ("9500", True),
    r"-\$9{,}500": ("-9500", True),
    r"$9\,500$": ("9500", True),
    "\uff19\uff0c\uff15\uff10\uff10": ("9500", True),
    "\u0663\u066c\u0665\u0660\u0660": ("3500", True),
    "1e3": ("1000", True),
    "1.5E-3": ("0.0015", True),
    "10^3": ("1000", True),
    r"10^{-3}": ("0.001", True),
    "10\u00b3": ("1000", True),
    r"2.5 \times 10^{3}": ("2500", True),
    "2 \u00d7 10**3": ("2000", True),
    "2^{10}": ("1024", True),
    "1/2": ("0.5", True),
    "3 1/2": ("3.5", True),
    "3\u00bd": ("3.5", True),
    "-\u00bd": ("-0.5", True),
    r"\frac{1}{2}": ("0.5", True),
    r"-\dfrac12": ("-0.5", True),
    r"3\tfrac{1}{2}": ("3.5", True),
    r"\frac{9{,}500}{2}": ("4750", True),
    r"\boxed{\dfrac{3}{8}}": ("0.375", True),
    r"\boxed{9{,}500} in 3 steps": ("9500", True),
    r"\boxed{x = \boxed{7}}": ("7", True),
    r"\boxed{5}, since the answer to \boxed{} was asked for in 2 lines": ("2", False),
    r"50\%": ("50", True),
    r"5\text{ cm}^2": ("5", True),
    "25 cm^2": ("25", False),
    "25 m\u00b2": ("25", False),
    r"90^\circ": ("90", True),
    "90\u00b0": ("90", True),
    "25 cm2": ("25", False),
    "-€5": ("-5", True),
    "\u2212£9,500": ("-9500", True),
    "₹1,00,000": ("100000", True),
    "9.500,00 €": ("9500", True),
    "\u20135": ("-5", True),  # an en dash, and a hyphen that does not break
    "\u20115": ("-5", True),
    "pages 3\u20135": ("5", False),
    "\u200e-5": ("-5", True),
    "9\u200b500": ("9500", True),
    "9\u2060500": ("9500", True),
    "1\u2018234": ("1234", True),
    r"9\mathpunct{,}500": ("9500", True),
    r"9\text{,}500": ("9500", True),
    r"\boxed{{3\over 4}}": ("0.75", False),
    "1/-2": ("-0.5", True),
    "1.5 x 10^3": ("1500", True),
    "+5": ("5", True),
    "5 apples": ("5", False),
    "5 million": ("5", False),
    "5 at 12:30": ("5", False),
    "42 (Python 3.11.4)": ("42", False),
    "42 on 12/25/2024": ("42", False),
    "1,2,3": ("3", False),
    "1.5,2.5": ("2.5", False),
    "7, 500": ("500", False),
    "1234 500": ("500", False),
    "12 5000": ("5000", False),
    "7 12 500": ("12500", False),
    "9\n500": ("500", False),
    "9\\\\ 500": ("500", False),  # a line break of LaTeX's
    "5'10": ("10", False),
    "_42_": ("42", False),
    "5 of x_1": ("5", False),
    "10 - $6": ("6", False),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_number_however_it_is_written(text: str) -> None:
    """The table in data/answers.py's docstring, and the answers that are no number at all in a reference."""
    number, reference = WRITTEN[text]
    for around in ("{}", "So it is {}", "5 + 7 is {}\n", "The answer is {}."):
        assert last_number(around.format(text)) == Decimal(number)
    assert math_reward(text, number) == 1.0 and math_reward(text, f"{Decimal(number) + 1:f}") == 0.0
    read = final_number(f"It is 5 + 7.\n#### {text}")
    assert read == (Decimal(number) if reference else None)
    if read is not None:
        assert final_number(written(read)) == read  # what `tokenize rl` writes


def test_a_fraction_without_end_is_itself_and_no_decimal_near_it() -> None:
    assert math_reward(r"\frac{2}{6}", "1/3") == math_reward("1/3", r"\boxed{\frac13}") == 1.0
    assert math_reward("0.3333333333333333", "1/3") == math_reward("1/0", "1/3") == math_reward("1/0", "0") == 0.0


@pytest.mark.parametrize(
    "shape",
    ["1", "1,", "1,000", "1 000", "1'", "1.", "1:", "1/", "1e", "1^", "^{", r"\frac{1", r"1\frac{", r"\boxed{", "\\", "-",
     "$", "1*10^", r"\text{", "~1", "x_", "\u00bd", "The answer is 1", r"\sqrt{", r"\sqrt[", r"\frac{{", "1\u221a", r"\frac{x}{", "1*"],
)  # fmt: skip
def test_numbers_are_read_in_linear_time(shape: str) -> None:
    """131,072 characters of what a pattern could begin at again and again: about a tenth of a second each."""
    text = shape * ((1 << 17) // len(shape)) + "x"

    def seconds() -> float:
        began = time.process_time()
        last_number(text), final_number(text), strict_answer(text), flexible_answer(text)
        return time.process_time() - began

    assert seconds() < 5


@pytest.mark.parametrize(
    "text",
    ["", "none", "...", "-", "$", "forty-two", "__import__('os').getpid()", "inf", "nan", "1.2.3", "12:30", "x_1",
     r"2\sqrt{3}", r"\sqrt 3", r"5 \sqrt[3]{7}", "2\u221a3", r"2\pi", "x = 3, so 2\u03c0", r"\pi/2", r"2 \cdot \pi", r"\frac{\pi}{2}",
     r"\frac{\sqrt{3}}{2}", r"\dfrac{x}{2}", r"\frac{3}{x+1}", r"\boxed{2\sqrt{3}}", r"3\frac{\pi}{2}"],
)  # fmt: skip
def test_a_text_without_a_number_earns_nothing(text: str) -> None:
    assert last_number(text) is None
    assert final_number(text) is None
    assert math_reward(text, "0") == math_reward(text, "nan") == math_reward(text, "inf") == 0.0


def test_numbers_beyond_float_and_int_are_compared_by_their_digits() -> None:
    """float() would make each infinite and so equal; int() refuses more than 4,300 digits."""
    long = "9" * 100_000
    assert math_reward(f"it is {long}", long) == 1.0
    assert math_reward(f"it is {long}0", long) == math_reward(f"it is {long[:-1]}8", long) == 0.0
    assert math_reward("9007199254740993", "9007199254740992") == 0.0  # one float
    assert math_reward("0.1", "0.1000000000000000055511151231257827") == 0.0


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("Half of 48 is <<48/2=24>>24.\n48+24 = 72.\n#### 72", "72"),
        ("#### 1,234,567", "1234567"),
        ("#### -$3.50", "-3.50"),
        ("42", "42"),
        (" $42. ", "42"),
        ("1,234.0", "1234.0"),
        ("50%", "50"),
    ],
)
def test_the_final_number_of_a_reference_answer(answer: str, number: str) -> None:
    assert final_number(answer) == Decimal(number)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "3-4",
        "1/2/3",
        "3,4",
        "x^2",
        "3:45",
        "5 hours",
        r"\frac{\pi}{2}",
        "2 and 3",
        "#### none",
        "True",
        "1/0",
        "1.2.3",
    ],
)
def test_what_is_more_than_a_number_is_no_answer(answer: str) -> None:
    assert final_number(answer) is None
    assert math_reward(answer, answer) == 0.0


def test_every_answer_of_gsm8k_is_read_as_the_benchmark_reads_it(benchmark_files: Path) -> None:
    count = 0
    for name in ("train", "test"):
        with gzip.open(benchmark_files / "gsm8k" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as handle:
            for answer in (json.loads(line)["answer"] for line in handle):
                assert final_number(answer) == last_number(answer) == flexible_answer(answer), answer
                count += 1
    assert count in (7473 + 1319, 40 + 1319)  # as published; our own


# --- prompts with a number to find -----------------------------------------------------------------------------------


def worked(question: str, final: str = "72", **more: Any) -> dict[str, Any]:
    """A row as GSM8K has it."""
    return {
        "question": question,
        "answer": f"Half of 48 is <<48/2=24>>24.\nThat is chain of thought.\n#### {final}",
    } | more


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards") / "model"
    return make_model(folder, tokenizer=make_tokenizer(), context=512)


def make(rows: list[dict[str, Any]], folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = RlSettings((str(folder / "rows.jsonl"),), str(folder / "out"), str(model), max_prompt_tokens=300)
    return tokenize_rl(replace(settings, quiet=True, **changes))


def test_rows_with_an_answer_become_math_prompts(model: Path, tmp_path: Path) -> None:
    tested = {"question": "Write f.", "answer": "#### 1", "test_cases": ["assert f(1) == 1"], "task_id": "tested"}
    rows = [
        worked("How many clips?", "1,234", id="clips", source="gsm8k"),
        {"task_id": "plain", "prompt": "How many?", "answer": -7, "solution": "def f(x):\n    return x", "tests": []},
        tested,
        worked("How many clips?", "5", id="again"),
        worked("word " * 400, id="long"),
        worked("Between what?", "3-4", id="range"),
        {"id": "neither", "question": "What?", "tests": []},
    ]
    manifest = make(rows, tmp_path, model)
    clips, plain, code = load_prompts(tmp_path / "out")
    assert clips == {
        "task_id": "clips",
        "style": "math",
        "messages": [{"role": "user", "content": "How many clips?"}],
        "answer": "1234",
        "source": "gsm8k",
    }
    assert plain == {
        "task_id": "plain",
        "style": "math",
        "messages": [{"role": "user", "content": "How many?"}],
        "answer": "-7",
        "source": plain["source"],
    }
    assert code["style"] == "instruct" and "answer" not in code and code["tests"]["hidden"] == ["assert f(1) == 1"]
    assert "chain of thought" not in (tmp_path / "out" / "prompts.jsonl").read_text()
    assert {reason: entry["documents"] for reason, entry in manifest["dropped"].items()} == {
        "exact duplicate": 1,
        "prompt too long": 1,
        "no tests, and no answer that is a number": 2,
    }
    assert manifest["questions_read"] == 7 and manifest["splits"]["train"] == {"rows": 3, "documents": 3}


def test_math_prompts_are_held_out_and_decontaminated(model: Path, tmp_path: Path) -> None:
    text = "Natalia sold clips to forty eight of her friends in April and then half as many in May."
    (tmp_path / "benchmarks" / "gsm8k").mkdir(parents=True)
    (tmp_path / "benchmarks" / "gsm8k" / "test.jsonl").write_text(json.dumps(worked(text)) + "\n")
    filters = FilterSettings(
        near_duplicates=0.0, decontaminate=("gsm8k",), benchmarks=str(tmp_path / "benchmarks"), code_filters="none"
    )
    rows = [worked(text), *(worked(f"What is {number} and 1?", str(number + 1)) for number in range(40))]
    manifest = make(rows, tmp_path, model, filters=filters, heldout=0.3)
    assert manifest["dropped"]["contaminated by gsm8k"]["documents"] == 1
    train, heldout = (load_prompts(tmp_path / "out", split) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 40 and 4 < len(heldout) < 24
    assert {split: entry["rows"] for split, entry in manifest["splits"].items()} == {
        "train": len(train),
        "heldout": len(heldout),
    }
    check_prompts([*train, *heldout], {"math": 1.0})


def test_a_row_with_neither_tests_nor_answer_is_refused_by_both_names() -> None:
    for row in ({"question": "q"}, {"question": "q", "answer": None, "tests": {"shown": ["assert 1"]}}):
        with pytest.raises(UserError, match=r"r:1 has no tests, .*test_cases.* no answer .*known: question"):
            read_problem(row, "r:1", "s")


def test_stage_4_runs_on_gsm8k_from_its_file(model: Path, benchmark_files: Path, tmp_path: Path) -> None:
    with gzip.open(benchmark_files / "gsm8k" / "train.jsonl.gz", "rb") as handle:
        rows = b"".join(handle.readline() for _ in range(40))
    with gzip.open(tmp_path / "train.jsonl.gz", "wb") as handle:
        handle.write(rows)
    data = tmp_path / "data"
    tokenize_rl(
        RlSettings((str(tmp_path / "train.jsonl.gz"),), str(data), str(model), max_prompt_tokens=300, quiet=True)
    )
    prompts = load_prompts(data)
    assert len(prompts) > 20 and prompts[0]["answer"] == str(final_number(json.loads(rows.splitlines()[0])["answer"]))
    common = ["grpo", "--model", model, "--data", data, "--device", "cpu"]
    common += ["--set=steps=1", "--set=prompts_per_step=2", "--set=group_size=2", "--set=rollout.max_new_tokens=8"]
    common += ["--set=samples_every=1"]
    assert "--reward math=1" in refused(*common, "--out", tmp_path / "no")  # the preset's rewards want code
    dcoder(*common, "--out", tmp_path / "run", "--reward", "math=1")
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["reward"] == metrics["reward_math"] == metrics["passed"] == 0.0
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples" / "step-1.jsonl").read_text().splitlines()]
    assert [sample["status"] for sample in samples] == ["failed"] * 4


def test_what_a_number_earns_and_whether_it_passed() -> None:
    rewarder = Rewarder({"math": 2.0, "format": 0.5}, None)
    prompt = {"task_id": "p", "answer": "1234"}
    assert rewarder.result(rewarder.submit(prompt, "It is $1,234.")) == Reward(
        2.0, {"math": 1.0, "format": 0.0}, "passed"
    )
    assert rewarder.result(rewarder.submit(prompt, "1234 or 5")) == Reward(0.0, {"math": 0.0, "format": 0.0}, "failed")
    assert Rewarder({"format": 1.0}, None).submit({}, "```python\nx = 1\n```").parts == {"format": 1.0}
    assert rewarder.result(Rewarder({"format": 1.0}, None).submit({}, "")).status == "unjudged"


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        ({"answer": "3-4"}, {"math": 1.0}, "'p' has no numeric answer"),
        ({"answer": None}, {"math": 1.0}, "'p' has no numeric answer"),
        ({"tests": None}, {"code": 1.0}, "'p' has no entry_point or no hidden tests.* --reward math=1"),
        ({"tests": {"shown": ["assert f(1)"]}}, {"code": 1.0}, "'p' has no entry_point or no hidden tests"),
        ({"entry_point": None}, {"code": 1.0}, "'p' has no entry_point or no hidden tests"),
        ({"entry_point": "f.g"}, {"code": 1.0}, "'p' names 'f.g' as its function"),
        ({"tests": {"hidden": ["assert f(1) ="]}}, {"code": 1.0}, "'p' has tests that do not parse"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_refused_at_the_start(
    change: dict[str, Any], weights: dict[str, float], message: str
) -> None:
    prompt = {"task_id": "p", "answer": "7", "entry_point": "f", "tests": {"hidden": ["assert f(1) == 1"]}}
    check_prompts([prompt], {"code": 1.0, "math": 1.0, "format": 1.0})
    with pytest.raises(UserError, match=message):
        check_prompts([prompt, prompt | change], weights)
    check_prompts([prompt | change], {"format": 1.0})

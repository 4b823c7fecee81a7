"""What a completion earns: numbers, functions of the user's own, and nothing for any cheat."""

from __future__ import annotations

import gzip
import json
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import attacks
import pytest
from helpers import dcoder, make_model, make_tokenizer, refused

from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.data.answers import final_number, last_number
from dcoder_cli.data.filters import FilterSettings
from dcoder_cli.data.problems import read_problem
from dcoder_cli.data.rl import RlSettings, load_prompts, tokenize_rl
from dcoder_cli.execution import sandbox
from dcoder_cli.execution.judge import Judge
from dcoder_cli.training.rewards import Reward, Rewarder, check_prompts, math_reward, probe

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
        ("1e400", "400"),
        ("42\n#### 43\n", "43"),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)
    assert math_reward(text, number) == 1.0
    assert math_reward(text, f"{Decimal(number) + 1:f}") == 0.0


@pytest.mark.parametrize("text", ["", "none", "...", "-", "$", "forty-two", "__import__('os').getpid()", "inf", "nan"])
def test_a_text_without_a_number_earns_nothing(text: str) -> None:
    assert last_number(text) is None
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
    "answer", ["", "3-4", "1/2", "3,4", "x^2", "3:45", "5 hours", r"\frac{1}{2}", "2 and 3", "#### none", "True", "1e5"]
)
def test_what_is_more_than_a_number_is_no_answer(answer: str) -> None:
    assert final_number(answer) is None
    assert math_reward(answer, answer) == 0.0


def test_every_answer_of_gsm8k_is_read_as_the_benchmark_reads_it(benchmarks: Path) -> None:
    from dcoder_cli.benchmarks.gsm8k import flexible_answer

    count = 0
    for name in ("train", "test"):
        with gzip.open(benchmarks / "gsm8k" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as handle:
            for answer in (json.loads(line)["answer"] for line in handle):
                assert final_number(answer) == last_number(answer) == flexible_answer(answer), answer
                count += 1
    assert count == 7473 + 1319


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


def test_stage_4_runs_on_gsm8k_from_its_file(model: Path, benchmarks: Path, tmp_path: Path) -> None:
    with gzip.open(benchmarks / "gsm8k" / "train.jsonl.gz", "rb") as handle:
        rows = b"".join(handle.readline() for _ in range(40))
    with gzip.open(tmp_path / "train.jsonl.gz", "wb") as handle:
        handle.write(rows)
    data = tmp_path / "data"
    tokenize_rl(
        RlSettings((str(tmp_path / "train.jsonl.gz"),), str(data), str(model), max_prompt_tokens=300, quiet=True)
    )
    prompts = load_prompts(data)
    assert len(prompts) > 20 and prompts[0]["answer"] == "72"
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


# --- functions of the user's own -------------------------------------------------------------------------------------

MINE = """
import sys
import numpy
import torch

def extra(prompt, text, *, extra=1): return extra
def optional(prompt, text, more=None): return 2
def both(*everything, **named): return len(everything)
class Callable:
    def __call__(self, prompt, text): return 4
instance = Callable()
def numpy_scalar(prompt, text): return numpy.float32(0.5)
def numpy_integer(prompt, text): return numpy.int64(3)
def torch_scalar(prompt, text): return torch.tensor(0.25)
def true(prompt, text): return True
def numpy_true(prompt, text): return numpy.bool_(True)

def raises(prompt, text): return 1 / 0
def raises_on_no_text(prompt, text): return {"": {}}.get(text, [0])[0]
def raises_on_code(prompt, text): return 0 if not text else prompt["missing"]
def raises_on_others(prompt, text): return 0 if "pass" in text or not text else 1 / 0
def lines(prompt, text): raise ValueError("two\\nlines")
def leaves(prompt, text): sys.exit(0)
def nan(prompt, text): return float("nan")
def infinite(prompt, text): return float("inf")
def nothing(prompt, text): pass
def words(prompt, text): return "1.0"
def several(prompt, text): return torch.zeros(2)
def huge(prompt, text): return 10**400
def long(prompt, text): return "x" * 100_000

def one(prompt): return 0
def three(prompt, text, more): return 0
def named(prompt, text, *, more): return 0
number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `mine_rewards` in the current folder, and ones that do not load."""
    (tmp_path / "mine_rewards.py").write_text(MINE)
    for name, code in (("syntax", "def f(:\n"), ("zero", "1 / 0\n"), ("leave", "import sys\nsys.exit(0)\n")):
        (tmp_path / f"mine_{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    import sys

    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


PROMPT = {"task_id": "lesson/7", "messages": []}


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("extra", 1.0),
        ("optional", 2.0),
        ("both", 2.0),
        ("instance", 4.0),
        ("numpy_scalar", 0.5),
        ("numpy_integer", 3.0),
        ("torch_scalar", 0.25),
        ("true", 1.0),
        ("numpy_true", 1.0),
    ],
)
def test_functions_and_numbers_of_many_kinds_are_taken(mine: None, function: str, value: float) -> None:
    name = f"mine_rewards:{function}"
    rewarder = Rewarder({name: 2.0}, None)
    probe(rewarder, PROMPT)
    reward = rewarder.result(rewarder.submit(PROMPT, "text"))
    assert reward == Reward(2 * value, {name: value}, "unjudged")
    assert type(reward.total) is float and type(reward.parts[name]) is float


def test_a_builtin_without_a_signature_is_taken() -> None:
    with pytest.raises(UserError, match=r"'builtins:max'.*'lesson/7'.*TypeError"):
        probe(Rewarder({"builtins:max": 1.0}, None), PROMPT)


WRONG = [
    ("raises", "raised ZeroDivisionError: division by zero"),
    ("lines", "raised ValueError: two lines"),
    ("leaves", "raised SystemExit: 0"),
    ("nan", "returned nan; it must return a finite number"),
    ("infinite", "returned inf; it must return a finite number"),
    ("nothing", "returned None; it must return a finite number"),
    ("words", "returned '1.0'; it must return a finite number"),
    ("several", r"returned tensor\(\[0., 0.\]\); it must return a finite number"),
    ("huge", "returned 1000.*; it must return a finite number"),
    ("long", r"returned 'xxxx.*\.\.\..*; it must return a finite number"),
]


@pytest.mark.parametrize(("function", "what"), WRONG)
def test_a_function_that_breaks_is_told_before_and_during_the_run(mine: None, function: str, what: str) -> None:
    name = f"mine_rewards:{function}"
    rewarder = Rewarder({"format": 1.0, name: 1.0}, None)
    with pytest.raises(UserError, match=f"'{name}'.*'lesson/7'.* {what}") as before:
        probe(rewarder, PROMPT)
    with pytest.raises(WorkFailed, match=f"'{name}'.*'lesson/7'.* {what}; mend it and go on with --resume$") as during:
        rewarder.submit(PROMPT, "text")
    for told in (str(before.value), str(during.value)):
        assert "\n" not in told and len(told) < 300


@pytest.mark.parametrize("function", ["raises_on_no_text", "raises_on_code"])
def test_the_probe_tries_no_text_and_code(mine: None, function: str) -> None:
    with pytest.raises(UserError, match="raised KeyError"):
        probe(Rewarder({"format": 1.0, "mine_rewards:true": 1.0, f"mine_rewards:{function}": 1.0}, None), PROMPT)


def test_what_the_probe_cannot_know_ends_the_run(mine: None) -> None:
    rewarder = Rewarder({"mine_rewards:raises_on_others": 1.0}, None)
    probe(rewarder, PROMPT)
    with pytest.raises(WorkFailed, match="raised ZeroDivisionError"):
        rewarder.submit(PROMPT, "others")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_rewards:one", "too many positional arguments"),
        ("mine_rewards:three", "missing a required argument: 'more'"),
        ("mine_rewards:named", "missing a required.* argument: 'more'"),
        ("mine_rewards:number", "not a function but 3"),
        ("mine_rewards:absent", "AttributeError: .*'absent'"),
        ("mine_rewards:", "AttributeError"),
        ("nowhere_at_all:f", "ModuleNotFoundError"),
        (":f", "ValueError"),
        ("mine_syntax:f", r"SyntaxError: .*mine_syntax.py, line 1"),
        ("mine_zero:f", "ZeroDivisionError: division by zero"),
        ("mine_leave:f", "SystemExit: 0"),
    ],
)
def test_a_function_that_cannot_be_had_is_told_in_one_line(mine: None, name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"'{name}'.*{message}") as told:
        Rewarder({name: 1.0}, None)
    assert "\n" not in str(told.value)


def test_weights(tmp_path: Path) -> None:
    from dcoder_cli.commands.grpo import _weight

    assert _weight("my.module:function") == ("my.module:function", 1.0)
    assert _weight("my.module:function=0.5") == ("my.module:function", 0.5)
    assert _weight("code=2") == ("code", 2.0) and _weight("format=-1e-3") == ("format", -1e-3)
    for wrong in ("code", "code=", "=2", "code=x", "code=nan", "code=inf", "m:f=", "m:f=-inf", "m:f=1=2x", ""):
        assert "NAME=WEIGHT" in refused("grpo", "--out", tmp_path / "run", "--reward", wrong), wrong
    with pytest.raises(UserError, match="'format' has the weight nan"):  # from a YAML file
        Rewarder({"format": float("nan")}, None)


# --- cheats ----------------------------------------------------------------------------------------------------------

SHOWN = {1: 2, 5: 6, 100: 101}
TASK = {
    "task_id": "cheated",
    "entry_point": "f",
    "tests": {
        "shown": [f"assert f({x}) == {y}" for x, y in SHOWN.items()],
        "hidden": [f"assert f({x}) == {x + 1}" for x in (3, 10, -7, 41)],
    },
}
HONEST = "def f(x):\n    return x + 1\n"
WRONG_CODE = "def f(x):\n    return 0\n"


@pytest.fixture(scope="module")
def judged() -> Iterator[Rewarder]:
    if all(sandbox.tier_trouble(tier) for tier in ("A", "B")):
        pytest.skip("no sandbox holds here")
    with Judge(workers=1) as judge:
        yield Rewarder({"code": 2.0, "format": 0.5}, judge)


def fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```\n"


def earned(judged: Rewarder, text: str) -> float:
    return judged.result(judged.submit(TASK, text)).parts["code"]


def test_honest_code_earns_what_it_passes(judged: Rewarder) -> None:
    assert judged.result(judged.submit(TASK, f"Here it is:\n{fenced(HONEST)}")) == Reward(
        2.5, {"code": 1.0, "format": 1.0}, "passed"
    )
    assert earned(judged, fenced("def f(x):\n    return x + 1 if x != 3 else 0")) == 0.75


@pytest.mark.parametrize("name", attacks.CHEATS)
def test_a_cheat_earns_nothing(judged: Rewarder, name: str) -> None:
    """As it is, and under an `if`, which keeps all of it: alone, what `f` does not use is left out of the solution."""
    source = attacks.source(attacks.CHEATS[name]).strip()
    whole = judged.result(judged.submit(TASK, fenced("if True:\n" + textwrap.indent(source, "    "))))
    assert whole.parts == {"code": 0.0, "format": 1.0} and whole.total == 0.5, whole
    alone = judged.result(judged.submit(TASK, fenced(source)))
    if name == "replace the socket":  # left out with the rest, which leaves an honest `f`
        assert alone.parts["code"] == 1.0
    else:
        assert alone.parts == {"code": 0.0, "format": 1.0} and alone.total == 0.5, alone


@pytest.mark.parametrize(
    ("text", "share"),
    [
        # The first fenced Python block is scored, whatever stands around it.
        (fenced(WRONG_CODE) + fenced(HONEST), 0.0),
        (fenced(HONEST) + fenced(WRONG_CODE), 1.0),
        ("```\n" + HONEST + "```\n" + fenced(WRONG_CODE), 0.0),
        ("```text\n" + HONEST + "```\n" + fenced(WRONG_CODE), 0.0),
        (fenced(WRONG_CODE) + HONEST, 0.0),
        (HONEST + fenced(WRONG_CODE), 0.0),
        (fenced(WRONG_CODE) + "All tests passed.\n4 passed\n", 0.0),
        (fenced(HONEST) + WRONG_CODE, 1.0),
        (fenced("x = 1") + fenced(HONEST), 0.0),
        # The gate: no closed Python fence that parses, no reward.
        (HONEST, 0.0),
        ("```\n" + HONEST + "```\n", 0.0),
        ("```python\n" + HONEST, 0.0),
        (fenced(HONEST + "def g(:\n")[:-1], 0.0),
        (fenced("def g(:\n") + fenced(HONEST), 0.0),
        ("", 0.0),
        # Parses, but is not the function asked for.
        (fenced(HONEST.replace("f(", "g(")), 0.0),
        (fenced("def g():\n    def f(x):\n        return x + 1\n"), 0.0),
        (fenced("# def f(x): return x + 1"), 0.0),
        (fenced("def f(x):\n    return str(x + 1)"), 0.0),
        (fenced("\n".join(TASK["tests"]["hidden"])), 0.0),  # type: ignore[index]
    ],
)
def test_text_around_the_code_earns_nothing(judged: Rewarder, text: str, share: float) -> None:
    assert earned(judged, text) == share


def test_the_tests_that_are_shown_do_not_score(judged: Rewarder) -> None:
    chain = "".join(f"    if x == {x}:\n        return {y}\n" for x, y in SHOWN.items())
    assert earned(judged, fenced(f"def f(x):\n{chain}")) == 0.0
    assert earned(judged, fenced(f"def f(x):\n    return {SHOWN}.get(x, 2)")) == 0.0
    assert earned(judged, fenced(f"def f(x):\n{chain}    return x + 1")) == 1.0

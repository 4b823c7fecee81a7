"""What a completion earns: functions of the user's own, and nothing for any cheat."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attacks
import pytest
from helpers import refused

from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.execution import sandbox
from dcoder_cli.execution.judge import Judge
from dcoder_cli.training.grpo.rewards import Reward, Rewarder, probe

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


# --- strict and lenient ----------------------------------------------------------------------------------------------

CODE = fenced(HONEST)
BROKEN = "def f(x)\n    return x + 1\n"


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),  # (code, format) before weighting
    [
        (CODE, (1.0, 1.0), (1.0, 1.0)),
        (CODE.rstrip("\n"), (1.0, 1.0), (1.0, 1.0)),  # the end of turn stands where the newline would
        (CODE + " \n\t\n", (1.0, 1.0), (1.0, 1.0)),
        ("Here is the code:\n" + CODE, (1.0, 1.0), (1.0, 1.0)),
        (CODE + "It adds one.", (0.0, 0.0), (1.0, 1.0)),
        (CODE.rstrip("\n") + " It adds one.", (0.0, 0.0), (0.0, 0.0)),  # that line closes no fence
        (CODE + CODE, (0.0, 0.0), (1.0, 1.0)),
        (CODE + "Or:\n```\nf(1)\n```", (0.0, 0.0), (1.0, 1.0)),
        ("Not ```this```:\n" + CODE, (0.0, 0.0), (1.0, 1.0)),
        ("~~~\nx = 1\n~~~\n" + CODE, (0.0, 0.0), (1.0, 1.0)),
        (HONEST, (0.0, 0.0), (0.0, 0.0)),
        ("", (0.0, 0.0), (0.0, 0.0)),
        (fenced(BROKEN), (0.0, 0.5), (0.0, 0.5)),
        (fenced(BROKEN) + "It adds one.", (0.0, 0.0), (0.0, 0.5)),
        (f"```\n{HONEST}```\n", (0.0, 0.0), (0.0, 0.0)),
        (f"```py\n{HONEST}```\n", (0.0, 0.0), (1.0, 1.0)),
        (f"```Python\n{HONEST}```\n", (0.0, 0.0), (1.0, 1.0)),
        (f"```python title=x\n{HONEST}```\n", (0.0, 0.0), (1.0, 1.0)),
        (f"````python\n{HONEST}````\n", (0.0, 0.0), (1.0, 1.0)),
        (f"~~~python\n{HONEST}~~~\n", (0.0, 0.0), (1.0, 1.0)),
        (f"```python\n{HONEST}", (0.0, 0.0), (0.0, 0.0)),
        (f"```python\n{HONEST}    ```\n", (1.0, 1.0), (1.0, 1.0)),
        ("```python\n```\n", (0.0, 0.0), (0.0, 0.0)),
        (fenced("pass"), (0.0, 1.0), (0.0, 1.0)),  # nothing is asked of code that parses
    ],
)
def test_what_each_format_earns(
    judged: Rewarder, text: str, strict: tuple[float, float], lenient: tuple[float, float]
) -> None:
    for rewarder, (code, form) in (
        (Rewarder(judged.weights, judged.judge, strict=True), strict),
        (judged, lenient),
    ):
        reward = rewarder.result(rewarder.submit(TASK, text))
        assert reward.parts == {"code": code, "format": form}
        assert reward.total == 2.0 * code + 0.5 * form


def test_a_run_scores_by_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting reaches the rewards of a run, and of the variance lab."""
    from grpo_runs import make_place

    from dcoder_cli.base.config import build
    from dcoder_cli.training.grpo import train as grpo_train
    from dcoder_cli.training.grpo import variance
    from dcoder_cli.training.grpo.config import GrpoConfig

    class Made(Exception):
        pass

    seen: list[bool] = []

    class Recording(Rewarder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(self.strict)
            raise Made

    make_place(tmp_path)
    monkeypatch.setattr(grpo_train, "Rewarder", Recording)
    monkeypatch.setattr(variance, "Rewarder", Recording)
    for name, strict in (("strict", True), ("lenient", False)):
        config = build(GrpoConfig, {"format": name, "rewards": {"format": 1.0}, "rollout": {"max_new_tokens": 4}})
        with pytest.raises(Made):
            grpo_train.train(str(tmp_path / "model"), str(tmp_path / "data"), str(tmp_path / name), config)
        with pytest.raises(Made):
            variance.measure(str(tmp_path / "model"), str(tmp_path / "data"), config)
        assert seen == [strict, strict]
        seen.clear()
    assert GrpoConfig().format == "strict"
    with pytest.raises(UserError, match="format"):
        build(GrpoConfig, {"format": "loose"})

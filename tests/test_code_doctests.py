"""Questions with tests from code: doctests become asserts, and only references that earn them stay."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import make_tokenizer, refused, said

from dcoder_cli.base import jsonl
from dcoder_cli.data import code_doctests
from dcoder_cli.data.records import Record
from dcoder_cli.data.rl import load_prompts
from dcoder_cli.data.sources import parse_sources, plan_units

GOOD = '''
from collections import Counter

ORDER = str.lower


def _plain(word):
    return "".join(letter for letter in word if letter.isalpha())


def common(text, most=2):
    """Return the words of a text that occur most often, in the order of their frequency.

    Words are compared without their punctuation:

    >>> common("a b a")
    ['a', 'b']
    >>> text = "c, c! d"
    >>> text += " e"
    >>> common(text,
    ...        most=1)
    ['c']
    >>> len(common("a b c", 3)) > 2
    True
    >>> common("")
    []
    >>> sorted(common("y x"))
    ['x', 'y']

    The end.
    """
    words = [_plain(ORDER(word)) for word in text.split()]
    return [word for word, _ in Counter(words).most_common(most)]
'''


def function(
    examples: str,
    body: str = "    found = [a * 2 for _ in range(1)]\n    return found[0] + 0\n",
    head: str = "twice(a)",
) -> str:
    lines = "".join(f"    {line}\n" for line in examples.splitlines())
    return (
        f'def {head}:\n    """Return the double of a number, whatever kind of number it is.\n\n{lines}    """\n{body}'
    )


TWO = ">>> twice(1)\n2\n>>> twice(4)\n8"
# By file: what its one function is dropped for.
DROPPED = {
    "none.py": (function(""), "no doctest"),
    "method.py": ("class Box:\n" + "".join(f"    {line}\n" for line in function(TWO, head="twice(self, a)").splitlines()), "method"),
    "raises.py": (function(">>> twice(None)\nTraceback (most recent call last):\nTypeError: no"), "expects an exception"),
    "prints.py": (function(">>> print(twice(2))\n4"), "prints"),
    "object.py": (function(">>> twice(2)\n<four at 0x1>\n>>> twice(1)\n..."), "expects no plain value"),
    "nothing.py": (function(">>> twice(2)"), "doctest without a result"),
    "other.py": (function(">>> 1 + 1\n2"), "doctest without a call of the function"),
    "broken.py": (function(">>> twice(2)\n4\n  >>> twice(3)\n6"), "doctest of no known form"),
    "once.py": (function(">>> twice(2)\n4"), "one result for all tests"),
    "same.py": (function(">>> twice(2)\n4\n>>> twice(2.0)\n4"), "one result for all tests"),
    "package.py": ("from .numbers import double\n\n\n" + function(TWO, "    found = [double(a)]\n    return found[0] + 0 * a\n"), "needs the rest of its package"),
    "wrong.py": (function(TWO, "    found = [a * 3 for _ in range(1)]\n    return found[0] + 0\n"), "fails its own tests"),
    "slow.py": ("import time\n\n\n" + function(TWO, "    time.sleep(60 + a)\n    return [a * 2 for _ in range(1)][0]\n"), "too slow"),
    "module.py": (function(TWO, "    import quuxlib\n    found = quuxlib.double(a)\n    return found + 0 * a + 0\n"), "needs a module that the sandbox lacks"),
    "loose.py": (function(">>> twice(1)\n1\n>>> twice(0)\n0"  , "    found = [a * 1 for _ in range(1)]\n    return found[0] + 0\n"), "a trivial answer passes its tests"),
    "order.py": (
        function(
            ">>> twice('abcdefghijklmnop')[0] in 'abcdefgh'\nTrue\n>>> twice('')\n[]",
            "    found = list({letter for letter in a})\n    return found + [letter for letter in found if letter == '?']\n",
        ),
        "",
    ),
}  # fmt: skip


def records(path: Path) -> list[Record]:
    units, _ = plan_units(parse_sources([str(path)]))
    return [record for unit in units for piece in unit.pieces for record in code_doctests.questions(piece)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(400).save_pretrained(folder)
    return str(folder)


def test_doctests_become_asserts_and_the_reference_has_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    (plain, good) = records(tmp_path / "good.py")
    assert plain.problem == "no doctest" and isinstance(good.value, dict)
    tests = good.value["tests"]
    assert tests["shown"] == ["assert common('a b a') == ['a', 'b']"]
    assert tests["hidden"] == [
        "text = 'c, c! d'\ntext += ' e'\nassert common(text, most=1) == ['c']",
        "assert (len(common('a b c', 3)) > 2) == True",
        "assert common('') == []",
        "assert sorted(common('y x')) == ['x', 'y']",
    ]
    space: dict[str, Any] = {}
    exec(good.value["solution"], space)
    for test in (*tests["shown"], *tests["hidden"]):
        exec(test, space)
    assert [type(one).__name__ for one in ast.parse(good.value["solution"]).body] == [
        "ImportFrom", "Assign", "FunctionDef", "FunctionDef",
    ]  # fmt: skip
    question = good.value["question"]
    assert question.startswith(
        "Write a Python function `common` that takes `text` and `most` (by default 2). Return the words"
    )
    assert ">>>" not in question and "punctuation.\n" in question and tests["shown"][0] in question
    assert not any(test in question for test in tests["hidden"])


def test_only_references_that_earn_their_tests_stay(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "good.py").write_text(GOOD)
    for name, (code, _) in DROPPED.items():
        (tmp_path / "code" / name).write_text(code)
    options = ["--tokenizer", tokenizer, "--max-prompt-tokens", "900", "--no-complete", "--no-exact-duplicates"]
    command = ["tokenize", "rl", "--from-code", tmp_path / "code", *options]
    manifest = json.loads(said(*command, "--out", tmp_path / "out", "--json"))
    told: dict[str, set[str]] = {}
    for name, (_, reason) in DROPPED.items():
        told.setdefault(reason, set()).add(name)
    dropped = manifest["dropped"]
    del told[""]  # its order is another one in each interpreter: it may pass twice, and never stays for good reason
    for name in (*DROPPED, "good.py"):
        reason = next((reason for reason, names in told.items() if name in names), None)
        examples = [one for one in dropped.get(reason, {"examples": []})["examples"] if one.startswith(f"{name}:")]
        assert reason is None or examples, (name, reason, dropped)
    prompts = load_prompts(tmp_path / "out")
    assert "good.py:11 common" in {prompt["task_id"] for prompt in prompts} <= {"good.py:11 common", "order.py:1 twice"}
    common = next(prompt for prompt in prompts if "common" in prompt["task_id"])
    assert len(common["tests"]["hidden"]) == 4 and common["entry_point"] == "common" and common["source"] == "code"
    assert manifest["questions_read"] == len(DROPPED) + 2 and manifest["settings"]["from_code"]


def test_a_reference_that_depends_on_chance_is_dropped() -> None:
    from dcoder_cli.execution.trials import Trial, why_not

    chance = "import os\n\n\ndef f(a):\n    seen = os.path.exists('/proc/self') and hash('some text')\n    return seen if a else a\n"
    cases = [
        Trial("chance", "f", ["assert f(0) == 0", f"assert f(1) % 2 ** 20 == {hash('some text') % 2**20}"], chance),
        Trial("sure", "f", ["assert f(0) == 0", "assert f(1) == 2"], "def f(a):\n    return 2 * a\n"),
        Trial("first", "f", ["assert f(0) == 0", "assert f(1) == 1"], "def f(a):\n    return a\n"),
    ]
    done: list[int] = []
    assert why_not(cases, done=lambda: done.append(1)) == [
        "fails its own tests",
        None,
        "a trivial answer passes its tests",
    ]
    assert len(done) == 3


def test_passing_once_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    from dcoder_cli.execution import trials

    rounds = iter(range(99))

    class Fickle(trials.Judge):
        def __init__(self, unsafe: bool = False) -> None:
            super().__init__(workers=1, unsafe=unsafe)
            self.second = bool(next(rounds))

        def stream(self, pairs: Any) -> Any:  # the second interpreter has another seed of hashes
            yield from super().stream([(problem, text.replace("SEED", str(self.second))) for problem, text in pairs])

    monkeypatch.setattr(trials, "Judge", Fickle)
    case = trials.Trial(
        "set", "f", ["assert f(0) == 1", "assert f(1) == 2"], "def f(a):\n    return a + 1 if not SEED else None\n"
    )
    assert trials.why_not([case]) == ["passes its tests only sometimes"]


def test_a_benchmarks_solution_is_found_and_dropped(benchmark_files: Path, tmp_path: Path, tokenizer: str) -> None:
    file = next((benchmark_files / "humaneval").glob("*.jsonl*"))
    row = next(line.value for line in jsonl.lines(file))
    name, body = row["entry_point"], "".join(f"{line}\n" for line in row["canonical_solution"].splitlines())
    head = next(line for line in row["prompt"].splitlines() if line.startswith(f"def {name}"))
    others = (
        '"""Say what some numbers of ours have in common.\n\n    >>> {0}([])\n    0\n    >>> {0}([1])\n    1\n    """\n'
    )
    (tmp_path / "theirs.py").write_text("from typing import List\n\n\n" + head + "\n    " + others.format(name) + body)
    (tmp_path / "good.py").write_text(GOOD)
    more = ["--decontaminate", "humaneval", "--benchmarks", benchmark_files, "--decontaminate-ngram", "8"]
    command = ["tokenize", "rl", "--from-code", tmp_path, "--tokenizer", tokenizer, "--max-prompt-tokens", "900", *more]
    manifest = json.loads(said(*command, "--out", tmp_path / "out", "--json"))
    assert manifest["dropped"]["contaminated by humaneval"]["documents"] == 1, "by its code alone"


def test_what_has_no_effect_is_refused(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "one.py").write_text(GOOD)
    common = ["tokenize", "rl", tmp_path / "one.py", "--tokenizer", tokenizer, "--out", tmp_path / "out"]
    assert "--from-code" in refused(*common) and "has no effect" in refused(*common, "--unsafe-exec")
    assert "--hard-mean 0.5 has no effect" in refused(*common, "--from-code", "--hard-mean", "0.5")
    assert not (tmp_path / "out").exists()

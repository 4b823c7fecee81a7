"""CRUXEval (Gu et al. 2024): what a short function gives for an input (O), and an input for which it gives this (I).

Prompts, stops, what is cut out of an answer and what counts as right are those of github.com/facebookresearch/cruxeval,
whose published scores are pass@1 of ten samples at temperature 0.2 and pass@5 of ten at 0.8.
"""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.benchmarks import data
from dcoder_cli.benchmarks.benchmark import Benchmark, ByTests, Item, Loaded, OwnPrompt, Suite, Told, passed

if TYPE_CHECKING:
    from dcoder_cli.execution.judge import Judge
    from dcoder_cli.execution.problem import Problem

SOURCE = data.BenchmarkSource(
    "cruxeval", "cruxeval/cruxeval.jsonl", 800, "cruxeval-org/cruxeval", None, ("test",), ("code", "input", "output", "id")
)  # fmt: skip
STOPS = ("[/ANSWER]",)
SECONDS = 3.0  # their evaluator
# 0.2 and 0.95: their arguments. An answer's tokens: what they give to models behind an API; the longest has 156 characters.
_SETTINGS = {"temperature": 0.2, "top_p": 0.95}
_BY_SUBSET = {"direct": {"max_new_tokens": 100}, "cot": {"max_new_tokens": 1000}}
_SYSTEM = "You are an expert at Python programming, code execution, test case generation, and fuzzing."
_ANSWER = "dcoder_answer"

_OUTPUT_DIRECT = """You are given a Python function and an assertion containing an input to the function. Complete the assertion with a literal (no unsimplified expressions, no function calls) containing the output when executing the provided code on the given input, even if the function is incorrect or incomplete. Do NOT output any extra information. Provide the full assertion with the correct output in [ANSWER] and [/ANSWER] tags, following the examples.

[PYTHON]
def f(n):
    return n
assert f(17) == ??
[/PYTHON]
[ANSWER]
assert f(17) == 17
[/ANSWER]

[PYTHON]
def f(s):
    return s + "a"
assert f("x9j") == ??
[/PYTHON]
[ANSWER]
assert f("x9j") == "x9ja"
[/ANSWER]

"""
_OUTPUT_COT = """You are given a Python function and an assertion containing an input to the function. Complete the assertion with a literal (no unsimplified expressions, no function calls) containing the output when executing the provided code on the given input, even if the function is incorrect or incomplete. Do NOT output any extra information. Execute the program step by step before arriving at an answer, and provide the full assertion with the correct output in [ANSWER] and [/ANSWER] tags, following the examples.

[PYTHON]
def f(s):
    s = s + s
    return "b" + s + "a"
assert f("hi") == ??
[/PYTHON]
[THOUGHT]
Let's execute the code step by step:

1. The function f is defined, which takes a single argument s.
2. The function is called with the argument "hi", so within the function, s is initially "hi".
3. Inside the function, s is concatenated with itself, so s becomes "hihi".
4. The function then returns a new string that starts with "b", followed by the value of s (which is now "hihi"), and ends with "a".
5. The return value of the function is therefore "bhihia".
[/THOUGHT]
[ANSWER]
assert f("hi") == "bhihia"
[/ANSWER]

"""
_INPUT_DIRECT = """You will be given a function f and an output in the form f(??) == output. Find any input such that executing f on the input leads to the given output. There may be multiple answers, but you should only output one. In [ANSWER] and [/ANSWER] tags, complete the assertion with one such input that will produce the output when executing the function.

[PYTHON]
def f(my_list):
    count = 0
    for i in my_list:
        if len(i) % 2 == 0:
            count += 1
    return count
assert f(??) == 3
[/PYTHON]
[ANSWER]
assert f(["mq", "px", "zy"]) == 3
[/ANSWER]

[PYTHON]
def f(s1, s2):
    return s1 + s2
assert f(??) == "banana"
[/PYTHON]
[ANSWER]
assert f("ba", "nana") == "banana"
[/ANSWER]

"""
_INPUT_COT = """You will be given a function f and an output in the form f(??) == output. Your task is to find any input such that executing f on the input leads to the given output. There may be multiple answers, but only output one. First, think step by step. You MUST surround the answer with [ANSWER] and [/ANSWER] tags. Express your answer as a passing assertion containing the input and the given output.

[PYTHON]
def f(x):
    return x + 1
assert f(??) == 17
[/PYTHON]
[THOUGHT]
To find an input such that executing f on the input leads to the given output, we can work backwards from the given assertion. We know that f(??) == 17.\x20

Since the function f(x) returns x + 1, for f(??) to be equal to 17, the value of ?? should be 16.\x20
[/THOUGHT]
[ANSWER]
assert f(16) == 17
[/ANSWER]

"""


@dataclass(frozen=True)
class Execution:
    """One function with an input and its output, all three as source code."""

    task_id: str
    code: str
    input: str
    output: str


def load(file: str | Path | None = None) -> tuple[tuple[Execution, ...], data.BenchmarkRows]:
    """The 800 functions, and where they came from. Raises UserError as `data.find` does."""
    rows = data.find(SOURCE, file)
    found = tuple(Execution(row["id"], row["code"], row["input"], row["output"]) for row in rows.rows)
    for one in found:
        texts = (one.task_id, one.code, one.input, one.output)
        if not all(isinstance(text, str) for text in texts) or _value(one.output) is None:
            raise UserError(
                f"cruxeval from {rows.origin}: {one.task_id!r} has no output that is a value; fetch the file again"
            )
    if len({one.task_id for one in found}) != len(found):
        raise UserError(f"cruxeval from {rows.origin} has ids twice; fetch the file again")
    return found, rows


def prompt(one: Execution, inputs: bool, cot: bool) -> str:
    """The prompt of CRUXEval-I (`inputs`) or -O, with chain of thought or without."""
    lead = (_INPUT_COT if cot else _INPUT_DIRECT) if inputs else (_OUTPUT_COT if cot else _OUTPUT_DIRECT)
    asked = f"assert f(??) == {one.output}" if inputs else f"assert f({one.input}) == ??"
    return f"{lead}[PYTHON]\n{one.code}\n{asked}\n[/PYTHON]\n[{'THOUGHT' if cot else 'ANSWER'}]\n"


def answer(text: str, chat: bool, inputs: bool, cot: bool) -> str:
    """What is judged of an answer: a call of f (`inputs`), or a value.

    As their inference cuts it, and their script for models behind an API, which differ where a chain of thought leads to no
    [ANSWER]: there a chat's last line is taken. What stands between the first two == is the output, also where it is within
    a string, as published; no output of the 800 has one.
    """
    if cot and "[ANSWER]" in text:
        text = text.split("[ANSWER]")[1].strip()
    elif cot and chat:
        return text.split("\n")[-1].strip()
    if "==" in text:
        text = text.split("==")[0 if inputs else 1].strip()
    if inputs and "assert f" in text:
        text = "f" + text.split("assert f")[1].strip()
    return text.strip()


def program(item: Item, solution: str, inputs: bool) -> str:
    """Code with a function that gives the value which is compared with the output.

    Their evaluator runs `assert OUTPUT == ANSWER` below the code, whatever the answer is. Ours takes one value, of I a call
    of f on what needs no reflection, and computes O's without f, so that no other way of writing the answer is right. All
    16,000 verdicts that they published for Code Llama 7B are the same.
    """
    one: Execution = item.source
    value = _value(solution)
    if value is None:
        # where that is a syntax error it is one here too
        return f"raise ValueError('the answer is no single value')\nassert None == {solution}"
    wrong = _no_input(value, one.code) if inputs else ""
    if inputs and not wrong:
        return f"{one.code}\ndef {_ANSWER}():\n    return {ast.unparse(value)}\n"
    result = f"raise ValueError({wrong!r})" if wrong else f"return {ast.unparse(value)}"
    return f"def {_ANSWER}():\n    {result}\n"


def _value(text: str) -> ast.expr | None:
    """What stands on the right of `assert _ == TEXT`, where that is all; None for whatever else, or no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            body = ast.parse(f"assert _ == {text}").body
            match body:
                case [ast.Assert(test=ast.Compare(left=ast.Name(), ops=[ast.Eq()], comparators=[value]))]:
                    ast.unparse(value)
                    return value
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            pass
    return None


# What an input is written with. None of these, nor an attribute without underscores, alters f or makes an object of a new class.
_HARMLESS = {
    "abs", "all", "any", "bool", "bytearray", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "filter", "float",
    "frozenset", "hash", "hex", "int", "iter", "len", "list", "map", "max", "min", "next", "oct", "ord", "pow", "print",
    "range", "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "tuple", "zip",
}  # fmt: skip
_HARMFUL = set(dir(builtins)) - _HARMLESS - {"None", "True", "False", "Ellipsis", "NotImplemented"}


def _no_input(value: ast.expr, code: str) -> str:
    """Why this is no call of f on an input; "" where it is one."""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "f"):
        return "the answer is no call of f"
    for node in ast.walk(value):
        if isinstance(node, ast.Name) and node.id in _HARMFUL and not node.id.endswith(("Error", "Exception")):
            return f"the input uses {node.id}"
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            return f"the input uses {node.attr}"
    return ""


def _loads(inputs: bool) -> Callable[[str, str | Path | None], Loaded]:
    def load_(subset: str, file: str | Path | None) -> Loaded:
        found, rows = load(file)
        cot = subset == "cot"
        return Loaded(tuple(_item(one, inputs, cot) for one in found), "CRUXEval", rows.origin, rows.sha256)

    return load_


def _item(one: Execution, inputs: bool, cot: bool) -> Item:
    text = prompt(one, inputs, cot)
    chat = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": text})
    own = OwnPrompt(chat, text, STOPS, STOPS, answer=lambda said, by_chat: answer(said, by_chat, inputs, cot))
    reference = f"f({one.input})" if inputs else one.output
    return Item(one.task_id, "own", text, "", one, reference=reference, own=own)


def _problems(suite: Suite, judge: Judge, told: Told | None) -> Mapping[str, Problem]:
    from dcoder_cli.execution.problem import Problem

    def problem(one: Execution) -> Problem:
        return Problem(one.task_id, _ANSWER, tests=(f"assert {one.output} == {_ANSWER}()",), seconds=SECONDS)

    return {item.task_id: problem(item.source) for item in suite.items}


def _benchmark(letter: str, summary: str, inputs: bool) -> Benchmark:
    name = f"cruxeval-{letter}"
    shared: dict[str, Any] = {"settings": _SETTINGS, "subset_settings": _BY_SUBSET, "sources": (SOURCE,)}
    by = ByTests(_problems, lambda item, solution: program(item, solution, inputs))
    return Benchmark(name, summary, _loads(inputs), by, {name: passed}, subsets=tuple(_BY_SUBSET), **shared)


BENCHMARKS = (
    _benchmark("i", "CRUXEval-I: an input for which a function gives this; subsets direct, cot.", True),
    _benchmark("o", "CRUXEval-O: what a function gives for this input; subsets direct, cot.", False),
)

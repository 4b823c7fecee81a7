"""Problems with tests or with a number as answer: reading their rows, how hard they are, and their prompts.

AceCode-87K (TIGER-Lab, arXiv 2502.01718) rows: `id`, `source`, `question`, `test_cases` (assert statements), and
`inferences`, a list of {model_name, completion_id, completion, pass_rate}. GSM8K (OpenAI, arXiv 2110.14168) rows:
`question`, and `answer`, worked out and ending in "#### 42".
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.base.errors import UserError
from dcoder_cli.data.answers import final_number
from dcoder_cli.data.formats import Message, messages_of

HARD_MODELS = ("qwen_coder_2.5", "llama3_instruct")  # DiffuCoder A.4, by their names in AceCode-87K
_QUESTIONS = ("question", "prompt", "instruction", "text")
_TESTS = ("test_cases", "test_list", "tests_hidden", "testcase")


@dataclass(frozen=True)
class Problem:
    """One question with its tests, or else the number that answers it, and how the known models did on it."""

    task_id: str
    messages: list[Message]
    question: str
    shown: list[str]
    hidden: list[str]
    answer: str | None
    entry_point: str | None
    source: str
    reference: str | None
    pass_rates: list[float]


def read_problem(row: dict[str, Any], where: str, source: str) -> Problem:
    """A row as a problem. The question: `messages`, or one of question, prompt, instruction, text. The tests: `tests`
    (a list, or {shown, hidden}) or one of test_cases, test_list, testcase; a row without tests needs `answer`, of which
    only the final number is kept (none where it is not one). Raises UserError without question, or tests and answer.
    """
    known = f"known: {', '.join(map(str, row))}"
    shown: list[str] = [str(test) for test in row.get("tests_shown") or ()]
    tests = row.get("tests")
    if isinstance(tests, dict):
        shown = [str(test) for test in tests.get("shown") or ()]
        tests = tests.get("hidden")
    if tests is None:
        column = next((name for name in _TESTS if row.get(name) is not None), None)
        if column is None and row.get("answer") is None:
            raise UserError(
                f"{where} has no tests, {', '.join(_TESTS)}, and no answer (42, or #### 42 at its end); {known}"
            )
        tests = [] if column is None else row[column]
    if not isinstance(tests, (list, tuple)):
        raise UserError(f"{where}: the tests must be a list of assert statements, not {type(tests).__name__}")
    hidden = [str(test) for test in tests]
    number = final_number(str(row["answer"])) if not hidden and row.get("answer") is not None else None
    if row.get("messages"):
        messages = [turn for turn in messages_of(row, where) if turn["role"] != "assistant"]
        question = messages[-1]["content"] if messages else ""
    else:
        column = next((name for name in _QUESTIONS if isinstance(row.get(name), str)), None)
        if column is None:
            raise UserError(f"{where} has no messages, {', '.join(_QUESTIONS)}; {known}")
        question = row[column]
        messages = [{"role": "user", "content": question}]
    inferences = [entry for entry in row.get("inferences") or () if entry.get("pass_rate") is not None]
    best = max(inferences, key=lambda entry: entry["pass_rate"], default=None)
    reference = row.get("solution") or row.get("canonical_solution") or row.get("code")
    if reference is None and best is not None and best["pass_rate"] > 0:
        reference = best["completion"]
    return Problem(
        task_id=str(row.get("task_id") or row.get("id") or where),
        messages=messages,
        question=question,
        shown=shown,
        hidden=hidden,
        answer=None if number is None else f"{number:f}",
        entry_point=row.get("entry_point") or entry_point_of(hidden),
        source=str(row.get("source") or source),
        reference=str(reference) if reference is not None else None,
        pass_rates=[float(entry["pass_rate"]) for entry in inferences if entry.get("model_name") in HARD_MODELS],
    )


def entry_point_of(tests: Sequence[str]) -> str | None:
    """The function that a list of assert statements calls: the first name called that is no builtin."""
    for test in tests:
        try:
            tree = ast.parse(test.strip())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not hasattr(builtins, node.func.id):
                return node.func.id
    return None


def hard_subset(pass_rates: Sequence[Sequence[float]], mean_share: float, spread_share: float) -> npt.NDArray[np.bool_]:
    """Which problems are hard, given the pass rates of each one's inferences [problems] of any number each.

    Hard: mean at or below the `mean_share` quantile of all means, and standard deviation at or above the
    1 - `spread_share` quantile of all deviations (DiffuCoder A.4; the quantiles are over the problems given).
    """
    means = np.array([np.mean(rates) for rates in pass_rates])
    spreads = np.array([np.std(rates) for rates in pass_rates])
    low = means <= np.quantile(means, mean_share)
    wide = spreads >= np.quantile(spreads, 1 - spread_share)
    return np.asarray(low & wide)


def completion_prompt(question: str, reference: str, entry_point: str | None) -> str | None:
    """The signature of the reference solution with the question as its docstring; None where there is no such function.

    `reference` is code, or an answer with a fenced block of it. The imports before the function stay.
    """
    fenced = re.search(r"```(?:python|py)?[ \t]*\n(.*?)```", reference, re.DOTALL)
    try:
        tree = ast.parse(fenced[1] if fenced else reference)
    except (SyntaxError, ValueError, RecursionError):
        return None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    chosen = next((node for node in functions if node.name == entry_point), None)
    if chosen is None:
        return None
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    result = f" -> {ast.unparse(chosen.returns)}" if chosen.returns is not None else ""
    lines = question.strip().replace('"""', "'''").splitlines()
    docstring = "\n".join(f"    {line}".rstrip() for line in ['"""', *lines, '"""'])
    header = "\n".join(imports) + "\n\n\n" if imports else ""
    return f"{header}def {chosen.name}({ast.unparse(chosen.args)}){result}:\n{docstring}"

"""Problems with tests or with a number as answer: reading their rows, how hard they are, and their prompts.

AceCode-87K (TIGER-Lab, arXiv 2502.01718) rows: `id`, `source`, `question`, `test_cases` (assert statements), and
`inferences`, a list of {model_name, completion_id, completion, pass_rate}. GSM8K (OpenAI, arXiv 2110.14168) rows:
`question`, and `answer`, worked out and ending in "#### 42".
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.data.answers import final_number, written
from dcoder_cli.data.dropped import BadRow
from dcoder_cli.data.formats import Message, messages_of

IDLE = "tests that check nothing"
HARD_MODELS = ("qwen_coder_2.5", "llama3_instruct")  # DiffuCoder A.4, by their names in AceCode-87K
_QUESTIONS = ("question", "prompt", "instruction", "text")
_DOES = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)  # expressions that do more than have a value
_TESTS = ("test_cases", "test_list", "tests_hidden", "testcase")


@dataclass(frozen=True)
class RlProblem:
    """One question with its tests, or else the number that answers it, and how the known models did on it."""

    task_id: str
    messages: list[Message]
    question: str
    shown: list[str]
    hidden: list[str]
    idle: list[str]  # hidden tests that were left out, since they check nothing
    prelude: str  # imports of the tests
    setup: str  # code that runs before them and may use the solution's names (MBPP's test_setup_code)
    answer: str | None
    entry_point: str | None
    source: str
    reference: str | None
    pass_rates: list[float]


def read_problem(row: dict[str, Any], where: str, source: str) -> RlProblem:
    """A row as a problem. The question: `messages`, or one of question, prompt, instruction, text. The tests: `tests`
    (a list, or {shown, hidden}) or one of test_cases, test_list, testcase; a row without tests needs `answer`, of which
    only the final number is kept (none where it is not one). MBPP's `test_imports` and `test_setup_code` go with the tests.

    Raises:
        BadRow: no question, no tests and no answer, or one of these of another form.
    """
    known = f"known: {', '.join(map(str, row))}"
    shown = _texts(row.get("tests_shown"), "tests_shown", where)
    tests = row.get("tests")
    prelude = _code(row.get("test_imports"), "test_imports", where)
    setup = _code(row.get("test_setup_code"), "test_setup_code", where)
    if isinstance(tests, dict):
        shown = _texts(tests.get("shown"), "tests: shown", where)
        prelude = _code(tests.get("prelude"), "tests: prelude", where) or prelude
        setup = _code(tests.get("setup"), "tests: setup", where) or setup
        tests = tests.get("hidden")
    if tests is None:
        column = next((name for name in _TESTS if row.get(name) is not None), None)
        if column is None and row.get("answer") is None:
            raise BadRow(
                f"{where} has no tests, {', '.join(_TESTS)}, and no answer (42, or #### 42 at its end); {known}",
                "no tests and no answer",
            )
        tests = [] if column is None else row[column]
    given = _texts(tests, "the tests", where)
    idle = [test for test in given if _checks_nothing(test)]
    hidden = [test for test in given if test not in idle]
    number = final_number(str(row["answer"])) if not hidden and row.get("answer") is not None else None
    if row.get("messages"):
        messages = [turn for turn in messages_of(row, where) if turn["role"] != "assistant"]
        question = messages[-1]["content"] if messages else ""
    else:
        column = next((name for name in _QUESTIONS if isinstance(row.get(name), str)), None)
        if column is None:
            raise BadRow(f"{where} has no messages, {', '.join(_QUESTIONS)}; {known}", "no question")
        question = row[column]
        messages = [{"role": "user", "content": question}]
    inferences = _inferences(row.get("inferences"), where)
    best = max(inferences, key=lambda entry: entry["pass_rate"], default=None)
    reference = row.get("solution") or row.get("canonical_solution") or row.get("code")
    if reference is None and best is not None and best["pass_rate"] > 0:
        reference = best.get("completion")
    return RlProblem(
        task_id=_given(row, ("task_id", "id"), where),
        messages=messages,
        question=question,
        shown=shown,
        hidden=hidden,
        idle=idle,
        prelude=prelude,
        setup=setup,
        answer=None if number is None else written(number),
        entry_point=str(row.get("entry_point") or "") or entry_point_of(hidden, prelude, str(reference or "")),
        source=_given(row, ("source",), source),
        reference=str(reference) if reference is not None else None,
        pass_rates=[float(entry["pass_rate"]) for entry in inferences if entry.get("model_name") in HARD_MODELS],
    )


def _given(row: dict[str, Any], columns: Sequence[str], otherwise: str) -> str:
    """The first of these columns that a row has, as text: 0 is a name, null and the empty text are none."""
    return str(next((row[name] for name in columns if row.get(name) is not None and row[name] != ""), otherwise))


def _texts(value: Any, column: str, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        kind = type(value).__name__ if not isinstance(value, (list, tuple)) else "a list with other things"
        raise BadRow(f"{where}: {column} must be a list of statements as text, not {kind}", "tests of another form")
    return list(value)


def _code(value: Any, column: str, where: str) -> str:
    """Code beside the tests: a text, or a list of its lines."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n")
    return "\n".join(_texts(value, column, where)).replace("\r\n", "\n")


def _inferences(value: Any, where: str) -> list[dict[str, Any]]:
    """Those with a pass rate; null and NaN, as tables have it, are none."""
    entries = value or []
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, dict) for entry in entries):
        raise BadRow(f"{where}: 'inferences' must be a list of objects", "inferences of another form")
    known = [
        entry for entry in entries if entry.get("pass_rate") is not None and entry["pass_rate"] == entry["pass_rate"]
    ]
    if not all(type(entry["pass_rate"]) in (int, float) and 0 <= entry["pass_rate"] <= 1 for entry in known):
        raise BadRow(f"{where}: 'pass_rate' in 'inferences' must be a share from 0 to 1", "inferences of another form")
    return known


def why_unusable(problem: RlProblem) -> str | None:
    """Why no completion of a problem could ever be judged, for counting; None where one can.

    Code that does not compile, a function without a name, or one that no test calls: then nothing passes, or everything.
    """
    if not problem.question.strip():
        return "empty"
    if problem.answer is not None:
        return None
    if not problem.hidden:
        return IDLE if problem.idle else "no tests, and no answer that is a number"
    code = [*problem.hidden, problem.setup, problem.prelude]
    trees = [_parsed(text) for text in code]
    if any(tree is None for tree in trees):
        return "tests that do not parse"
    if not all(map(_compiles, code)):
        return "tests that do not compile"
    if not problem.entry_point or not problem.entry_point.isidentifier():
        return "tests that call no function"
    ran = _names_ran([tree for tree in trees if tree is not None])
    return None if problem.entry_point in ran else "tests that do not call the function"


def _checks_nothing(test: str) -> bool:
    """Whether a test passes whatever the solution returns: it is empty, or has a comparison where an assert was forgotten.

    Sure cases only. A call, a definition or an assignment may be needed by the tests after it.
    """
    tree = _parsed(test)
    return tree is not None and all(map(_idle, tree.body))


def _idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if not isinstance(statement, (ast.Expr, ast.Assert)) or any(isinstance(n, _DOES) for n in ast.walk(statement)):
        return False
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, (ast.Compare, ast.Constant, ast.Name))
    if isinstance(asked := statement.test, ast.Tuple):  # the message in brackets with what is asked: always true
        return any(not isinstance(one, ast.Starred) for one in asked.elts)
    return isinstance(asked, ast.Constant) and bool(asked.value)


def _names_ran(trees: Sequence[ast.Module]) -> set[str]:
    """The names used by what runs: not by a function or class that only stands there, such as HumanEval's `check`
    without its call, or a unittest."""
    definitions: dict[str, list[ast.stmt]] = {}
    waiting: list[ast.stmt] = []
    for statement in (one for tree in trees for one in tree.body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            definitions.setdefault(statement.name, []).append(statement)
        else:
            waiting.append(statement)
    ran: set[str] = set()
    while waiting:
        names = {node.id for node in ast.walk(waiting.pop()) if isinstance(node, ast.Name)} - ran
        ran |= names
        waiting += [one for name in names for one in definitions.get(name, ())]
    return ran


def _parsed(code: str) -> ast.Module | None:
    """The syntax of some code; None where it has none."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _compiles(code: str) -> bool:
    """Whether execution can compile it, which says so too late; a `return`, `await` or `break` of no function parses."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(code, "<test>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def entry_point_of(tests: Sequence[str], prelude: str = "", reference: str = "") -> str | None:
    """The function that a list of assert statements calls: the first name called that is no builtin, not imported and no
    function or parameter of the tests' own; else the first that the reference defines, under a builtin's name too."""
    imports = _parsed(prelude)
    known = {
        (alias.asname or alias.name).partition(".")[0]
        for node in (ast.walk(imports) if imports is not None else ())
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    } | set(dir(builtins))
    trees = [tree for test in tests if (tree := _parsed(test.strip())) is not None]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
    called = [
        node.func.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    solution = _parsed(reference)
    defined = {node.name for node in solution.body if isinstance(node, ast.FunctionDef)} if solution is not None else ()
    fitting = [name for name in called if name not in known] or [name for name in called if name in defined]
    return fitting[0] if fitting else None


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

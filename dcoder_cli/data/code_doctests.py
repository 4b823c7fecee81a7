"""Questions with tests from code: a function whose docstring shows calls with their results.

A call with a plain value becomes an assert statement. What stands before it in the docstring and binds a name that it uses
goes with it. The question says what the docstring says besides; of three calls and more it shows the first.
"""

from __future__ import annotations

import ast
import doctest
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dcoder_cli.data import docstrings
from dcoder_cli.data.code_files import CodeFile, code_files, parse
from dcoder_cli.data.code_functions import TOO_DEEP, CodeFunction, functions, text_of
from dcoder_cli.data.code_names import Bindings, Function, Unmet, bindings, needs
from dcoder_cli.data.code_pairs import arguments_in_words
from dcoder_cli.data.dropped import Dropped
from dcoder_cli.data.problems import RlProblem
from dcoder_cli.data.records import Record
from dcoder_cli.data.sources import Piece

_SHOWS_FROM = 3  # calls, of which the first is told (ours): it fixes the form of arguments and result
_LONGEST_REFERENCE = 200  # lines (ours)
# For problems, in order, why their tests cannot be used, or None; what runs references is above this package.
TrialRunner = Callable[[Sequence[RlProblem]], list[str | None]]
_SETUP = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.FunctionDef)


def questions(piece: Piece) -> Iterator[Record]:
    """The functions of a piece as rows of `problems.read_problem`, with `solution`; and what is left out.

    Raises:
        UserError: the piece is damaged.
    """
    for file in code_files(piece):
        if isinstance(file, Record):
            yield file
            continue
        bound = bindings(file.tree)
        for found in functions(file, _has_doctest):
            name = f"{found.where} {found.name}"
            try:
                yield Record(name, {"id": name, **_question(file, bound, found)})
            except (Unmet, RecursionError) as problem:
                yield Record(name, found.text, str(problem) if isinstance(problem, Unmet) else TOO_DEEP)


def _has_doctest(node: Function) -> bool:
    return ">>>" in (ast.get_docstring(node, clean=False) or "")


def _question(file: CodeFile, bound: Bindings, found: CodeFunction) -> dict[str, Any]:
    docstring = ast.get_docstring(found.node, clean=False)
    if docstring is None or not _has_doctest(found.node):
        raise Unmet("no doctest")
    if found.method:
        raise Unmet("method")
    if found.problem is not None:
        raise Unmet(found.problem)
    text = docstrings.cleaned(docstring)
    try:
        examples = doctest.DocTestParser().get_examples(text)
        prose = docstrings.without_examples(text)
    except ValueError:
        raise Unmet("doctest of no known form") from None
    if (why := docstrings.why_not(prose, found.name, 0)) is not None:
        raise Unmet(why)
    tests = _tests(examples, found.name)
    shown = list(tests)[:1] if len(tests) >= _SHOWS_FROM else []
    hidden = [test for test in tests if test not in shown]
    if len({tests[test] for test in hidden}) < 2:
        raise Unmet("one result for all tests")
    asked = f"Write a Python function `{found.name}`{arguments_in_words(found.node, False)}. {docstrings.description(prose)}"
    if shown:
        asked += "\n\nFor example:\n\n```python\n" + shown[0] + "\n```"
    return {
        "question": asked, "tests": {"shown": shown, "hidden": hidden}, "solution": _reference(file, bound, found),
        "entry_point": found.name,
    }  # fmt: skip


def _tests(examples: list[doctest.Example], name: str) -> dict[str, str]:
    """Assert statements of the examples that call `name`, each with what it needs, none twice, and the result that it expects.

    Raises:
        Unmet: there are none; the reason is that of the first example that is none.
    """
    tests: dict[str, str] = {}
    setup: list[tuple[ast.stmt, str]] = []
    problems: list[str] = []
    for example in examples:
        tree = parse(example.source)
        if tree is None:
            problems.append("doctest of no known form")
            continue
        if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
            setup += [
                (one, ast.unparse(one)) for one in tree.body if isinstance(one, _SETUP) and not _imports(one, name)
            ]
            continue
        asked = tree.body[0].value
        calls = any(
            isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == name
            for one in ast.walk(asked)
        )
        problem = _why_no_test(example, asked, calls)
        if problem is not None:
            problems.append(problem)
            continue
        expected = parse(example.want.strip())
        assert expected is not None and isinstance(expected.body[0], ast.Expr)
        wanted = expected.body[0].value
        holds = ast.Assert(ast.Compare(asked, [ast.Eq()], [wanted]))
        test = "\n".join([*_needed(setup, asked), ast.unparse(holds)])
        tests.setdefault(test, ast.unparse(wanted))
    if not tests:
        raise Unmet(problems[0] if problems else "doctest without a call of the function")
    return tests


def _why_no_test(example: doctest.Example, asked: ast.expr, calls: bool) -> str | None:
    if example.exc_msg is not None:
        return "expects an exception"
    if not calls:
        return "doctest without a call of the function"
    if isinstance(asked, ast.Call) and isinstance(asked.func, ast.Name) and asked.func.id == "print":
        return "prints"
    if not example.want.strip():
        return "doctest without a result"
    try:
        with warnings.catch_warnings(action="ignore"):
            value = ast.literal_eval(example.want.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return "expects no plain value"
    return "expects no plain value" if "Ellipsis" in repr(value) else None


def _imports(statement: ast.stmt, name: str) -> bool:
    return isinstance(statement, ast.ImportFrom) and any(alias.name == name for alias in statement.names)


def _needed(setup: list[tuple[ast.stmt, str]], asked: ast.expr) -> list[str]:
    """The statements before that bind what `asked` uses, directly or not, in order."""
    names = {one.id for one in ast.walk(asked) if isinstance(one, ast.Name)}
    needed: list[str] = []
    for statement, text in reversed(setup):
        binds = {one.id for one in ast.walk(statement) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        binds |= {(one.asname or one.name).partition(".")[0] for one in getattr(statement, "names", [])}
        binds |= {statement.name} if isinstance(statement, ast.FunctionDef) else set()
        if binds & names:
            names |= {one.id for one in ast.walk(statement) if isinstance(one, ast.Name)}
            needed.append(text)
    return needed[::-1]


def _reference(file: CodeFile, bound: Bindings, found: CodeFunction) -> str:
    """The function with all of its file that it needs. Raises Unmet where something cannot go with it, or it is too much."""
    required = needs(found.text, file, bound, deep=True)
    around = [one for one in (*required.constants, *required.definitions) if one is not found.node]
    parts = [
        "\n".join(required.imports),
        *(text_of(file, one) for one in sorted(around, key=lambda one: one.lineno)),
        found.text,
    ]
    program = "\n\n\n".join(part for part in parts if part) + "\n"
    if program.count("\n") > _LONGEST_REFERENCE:
        raise Unmet("needs much else of its file")
    return program


def tried(problems: list[RlProblem], trial: TrialRunner, dropped: Dropped) -> list[RlProblem]:
    """Those whose reference passes their tests, and trivial answers do not."""
    reasons = trial(problems)
    for problem, reason in zip(problems, reasons, strict=True):
        if reason is not None:
            dropped.add(reason, problem.task_id)
    return [problem for problem, reason in zip(problems, reasons, strict=True) if reason is None]

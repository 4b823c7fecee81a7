"""What an answer that returns one constant can collect: the share of a question's hidden tests that it passes.

Partial credit pays for guessing where tests expect few different values: the best constant passes half or more of the
hidden tests of a yes-or-no question. Nothing is run here: the values are read from the tests.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any


def constant_share(tests: Sequence[str], entry_point: str | None) -> float:
    """The share of the tests that the best single constant passes; tests of other forms than `expected` reads count as failed."""
    read = [values for test in tests if (values := expected(test, entry_point)) is not None]
    alike = [values[0] for values in read if all(bool(value == values[0]) for value in values)]
    return max((sum(bool(value == other) for other in alike) for value in alike), default=0) / max(1, len(tests))


def expected(test: str, entry_point: str | None) -> list[Any] | None:
    """The values that an assert statement expects of the function, one for each call; None where it is of another form.

    Read are `assert f(..) == literal`, the same the other way round or with `is`, `assert f(..)`, `assert not f(..)`, and
    tuples or lists of calls against a literal of as many values.
    """
    try:
        tree = ast.parse(test.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Assert):
        return None
    asked = tree.body[0].test
    if _is_call(asked, entry_point):
        return [True]
    if isinstance(asked, ast.UnaryOp) and isinstance(asked.op, ast.Not) and _is_call(asked.operand, entry_point):
        return [False]
    if not isinstance(asked, ast.Compare) or len(asked.ops) != 1 or not isinstance(asked.ops[0], (ast.Eq, ast.Is)):
        return None
    sides = (asked.left, asked.comparators[0])
    for calls, literal in (sides, sides[::-1]):
        if _is_call(calls, entry_point):
            return None if (value := _value(literal)) is None else value
        if (
            isinstance(calls, (ast.Tuple, ast.List))
            and calls.elts
            and all(_is_call(one, entry_point) for one in calls.elts)
        ):
            value = _value(literal)
            if value is None or not isinstance(value[0], (tuple, list)) or len(value[0]) != len(calls.elts):
                return None
            return list(value[0])
    return None


def _is_call(node: ast.expr, entry_point: str | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == entry_point


def _value(node: ast.expr) -> list[Any] | None:
    """The literal's value, in a list of one; None where it is no literal."""
    try:
        return [ast.literal_eval(node)]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def above_baseline(share: float, baseline: float) -> float:
    """The credit of a share of passed tests above what a constant collects: 0 up to `baseline` (below 1), 1 for all."""
    return max(0.0, (share - baseline) / (1.0 - baseline))

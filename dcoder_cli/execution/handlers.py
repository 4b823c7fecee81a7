"""A candidate's exceptions in test code: they may do what a handler written there does with them, and nothing else.

Test code meets a candidate's exception as itself, so that `except ValueError` and `assertRaises` work. But Python swallows
some kinds without a handler: StopIteration ends what iterates, IndexError a sequence, AttributeError is False for
`hasattr`, KeyError a default of a mapping's `get`, a bare `except` of some library anything. So each one is written down
where it is raised, and struck out where an `except` or `with` of the test's own stopped it; a test with one left over
has failed, whatever it thought. What comes back late, dead or as no value at all is never struck out.

This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any

_CAUGHT, _WITHIN = "__dcoder_caught__", "__dcoder_within__"  # what marked code calls


class Ledger:
    """The exceptions that a candidate raised into test code and no handler of the test's has stopped."""

    def __init__(self) -> None:
        self._loose: list[BaseException] = []
        self._final: list[BaseException] = []

    def clear(self) -> None:
        """Begin a test."""
        self._loose, self._final = [], []

    def raised(self, problem: BaseException, final: bool = False) -> BaseException:
        """Write down `problem`, which the caller raises. `final`: no handler makes it good."""
        (self._final if final else self._loose).append(problem)
        return problem

    def caught(self, problem: BaseException | None) -> list[BaseException]:
        """Strike out `problem` and what it came from; those struck out."""
        known = {id(one) for one in _origins(problem)}
        struck = [one for one in self._loose if id(one) in known]
        self._loose = [one for one in self._loose if id(one) not in known]
        return struck

    def left(self) -> BaseException | None:
        """One that is left over, a final one first."""
        return next(iter(self._final + self._loose), None)

    def names(self) -> dict[str, Any]:
        """What marked code needs in its namespace."""
        return {_CAUGHT: lambda: _Caught(self), _WITHIN: lambda manager: Within(self, manager)}


class _Caught:
    """Around the body of an `except`: the exception being handled is caught, unless the body raises it again."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._struck: list[BaseException] = []

    def __enter__(self) -> None:
        self._struck = self._ledger.caught(sys.exc_info()[1])

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        again = {id(one) for one in _members(problem)}
        for one in self._struck:
            if id(one) in again:
                self._ledger.raised(one)


class Within:
    """A context manager as it is, whose swallowing an exception counts as catching it."""

    def __init__(self, ledger: Ledger, manager: Any) -> None:
        self._ledger, self._manager = ledger, manager
        self._enter, self._exit = type(manager).__enter__, type(manager).__exit__

    def __enter__(self) -> Any:
        return self._enter(self._manager)

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> bool:
        swallowed = bool(self._exit(self._manager, kind, problem, trace))
        if swallowed:
            self._ledger.caught(problem)
        return swallowed


def compiled(code: str, name: str, marked: bool) -> CodeType:
    """Test code, compiled; `marked` tells its handlers to the ledger (not needed for code that has none)."""
    if not marked:
        return compile(code, name, "exec", dont_inherit=True)
    import ast  # not at the top: only tests with handlers pay for it

    def call(function: str, arguments: list[ast.expr], place: ast.AST) -> ast.Call:
        return ast.copy_location(ast.Call(ast.Name(function, ast.Load()), arguments, []), place)

    tree = ast.parse(code, name)
    for node in ast.walk(tree):  # never the new nodes: a node's children are listed before it comes
        if isinstance(node, ast.ExceptHandler):
            inside = ast.With([ast.withitem(call(_CAUGHT, [], node))], node.body)
            node.body = [ast.copy_location(inside, node)]
        elif isinstance(node, ast.With):
            for item in node.items:
                item.context_expr = call(_WITHIN, [item.context_expr], item.context_expr)
    return compile(ast.fix_missing_locations(tree), name, "exec", dont_inherit=True)


def watch_unittest(ledger: Ledger) -> None:
    """`assertRaises(kind, function, ...)` catches inside unittest; make it a `with` that the ledger sees."""
    from unittest import TestCase

    for name, before in (("assertRaises", 1), ("assertRaisesRegex", 2)):
        setattr(TestCase, name, _watched(getattr(TestCase, name), before, ledger))


def _watched(method: Any, before: int, ledger: Ledger) -> Any:
    def checked(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if len(arguments) <= before:
            return method(self, *arguments, **keywords)
        with Within(ledger, method(self, *arguments[:before])):
            arguments[before](*arguments[before + 1 :], **keywords)
        return None

    return checked


def _members(problem: BaseException | None) -> Iterator[BaseException]:
    """An exception, and if it is a group all that is in it."""
    if problem is not None:
        yield problem
        if isinstance(problem, BaseExceptionGroup):
            for inner in problem.exceptions:
                yield from _members(inner)


def _origins(problem: BaseException | None) -> list[BaseException]:
    """An exception and what it was raised from or instead of: a generator makes RuntimeError of StopIteration."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [problem]
    while waiting:
        one = waiting.pop()
        if one is not None and not any(one is known for known in found):
            found.append(one)
            waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return found

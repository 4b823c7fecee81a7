"""What test code can do, read off its syntax: catch an exception, and leave something behind for the next job.

A process can be used again after test code that reaches nothing outlasting its namespace. Code reaches what it names:
here only its own names, the candidate's, builtin functions and types that hold no state, `math`, and methods of builtin
values. It stores into no attribute and names no underscore, so there is no way from these to a module, a frame or the
builtins themselves. All other test code gets a process of its own; being wrong in that direction costs 4 ms.
"""

from __future__ import annotations

import ast
import builtins
import math
import typing
from collections.abc import Iterable
from typing import Any

_NODES = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If, ast.Assert, ast.Raise,
    ast.Try, ast.ExceptHandler, ast.Pass, ast.Break, ast.Continue, ast.Delete, ast.FunctionDef, ast.arguments, ast.arg,
    ast.Return, ast.Global, ast.Nonlocal, ast.Lambda, ast.Import, ast.ImportFrom, ast.alias, ast.ListComp, ast.SetComp,
    ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Compare,
    ast.Call, ast.keyword, ast.NamedExpr, ast.Constant, ast.JoinedStr, ast.FormattedValue, ast.Attribute, ast.Subscript,
    ast.Slice, ast.Starred, ast.Name, ast.List, ast.Tuple, ast.Set, ast.Dict,
    ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_STATELESS: tuple[Any, ...] = (
    abs, all, any, ascii, bin, bool, bytearray, bytes, callable, chr, complex, dict, divmod, enumerate, filter, float,
    format, frozenset, hash, hex, id, int, isinstance, issubclass, iter, len, list, map, max, min, next, object, oct, ord,
    pow, range, repr, reversed, round, set, slice, sorted, str, sum, tuple, type, zip,
)  # fmt: skip
_VALUES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range)
_BUILTINS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
_BUILTINS |= {function.__name__ for function in _STATELESS}
_ATTRIBUTES = {name for kind in (*_VALUES, math) for name in dir(kind) if not name.startswith("_")}


def catches(trees: Iterable[ast.Module]) -> bool:
    """Whether there is an `except` or a `with` anywhere."""
    kinds = (ast.ExceptHandler, ast.With)
    return any(isinstance(node, kinds) for tree in trees for node in ast.walk(tree))


def leaves_nothing(trees: Iterable[ast.Module]) -> bool:
    """Whether running this in a namespace of its own can change nothing beyond that namespace. False where in doubt."""
    return all(_harmless(node) for tree in trees for node in ast.walk(tree))


def _harmless(node: ast.AST) -> bool:
    if not isinstance(node, _NODES):
        return False
    if isinstance(node, ast.Name):  # a builtin that the code also binds is still the builtin before that
        return not node.id.startswith("__") and (node.id in _BUILTINS or not hasattr(builtins, node.id))
    if isinstance(node, ast.Attribute):
        return isinstance(node.ctx, ast.Load) and node.attr in _ATTRIBUTES
    if isinstance(node, ast.FunctionDef):
        return not node.decorator_list
    if isinstance(node, ast.Import):
        return all(alias.name == "math" for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        names = [alias.name for alias in node.names]
        if node.module == "math":
            return "*" not in names
        return node.module == "typing" and set(names) <= set(typing.__all__)  # what annotations are made of
    return True

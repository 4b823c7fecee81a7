"""What the names of a function stand for in its file: imports and constants that can go with it, and what must be told.

CodeFunction by `ast` and `symtable`, which compile and run nothing.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

from dcoder_cli.data.code_files import CodeFile

Function = ast.FunctionDef | ast.AsyncFunctionDef
OWN_PACKAGE, NOWHERE, STATE = "needs the rest of its package", "uses names of nowhere", "needs the state of its module"
MUCH = "needs much else of its file"
# Ours: longer constants are tables; and a hostile file must not be read again for each of its functions.
_MOST_CONSTANT, _MOST_CONSTANT_CHARACTERS, _MOST_DEFINITION, _MOST_BESIDE = 4, 600, 200, 20
_KNOWN = frozenset(dir(builtins)) | {"__name__", "__class__"}


class Unmet(Exception):
    """Why a function cannot stand without its file: the reason that is counted."""


@dataclass
class Bindings:
    """What the top level of a file binds: by name the import, the constant's statement, the function or class."""

    imports: dict[str, tuple[ast.Import | ast.ImportFrom, ast.alias]] = field(default_factory=dict)
    constants: dict[str, ast.Assign | ast.AnnAssign] = field(default_factory=dict)
    definitions: dict[str, Function | ast.ClassDef] = field(default_factory=dict)
    changing: set[str] = field(default_factory=set)  # bound twice, in a loop, or by unpacking


@dataclass
class Required:
    """What code uses besides builtins: lines of imports, constants (statements), functions and classes of its file."""

    imports: list[str]
    constants: list[ast.stmt]
    definitions: list[Function | ast.ClassDef]


def bindings(tree: ast.Module) -> Bindings:
    """The names of a file's top level; of alternatives (`try`, `if`) imports count as their first."""
    found = Bindings()
    for statement, plain in _statements(tree.body, True):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                found.imports.setdefault(alias.asname or alias.name.partition(".")[0], (statement, alias))
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.definitions.setdefault(statement.name, statement)
        else:
            names = [
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            ]
            one = plain and isinstance(statement, (ast.Assign, ast.AnnAssign)) and len(names) == 1
            for name in names:
                if one and name not in found.constants and getattr(statement, "value", None) is not None:
                    assert isinstance(statement, (ast.Assign, ast.AnnAssign))
                    found.constants[name] = statement
                else:
                    found.changing.add(name)
    return found


def _statements(body: list[ast.stmt], plain: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """The statements of the top level, those within `if`, `try` and `with` too; whether each always runs, once."""
    waiting = [(statement, plain) for statement in reversed(body)]
    while waiting:
        statement, plain = waiting.pop()
        if isinstance(statement, (ast.If, ast.Try, ast.With)):
            inner = [*statement.body, *getattr(statement, "orelse", [])]
            for handler in getattr(statement, "handlers", []):
                inner += handler.body
            waiting += [(one, False) for one in reversed([*inner, *getattr(statement, "finalbody", [])])]
        else:
            yield statement, plain


def free_names(code: str) -> set[str]:
    """The names that code takes from around it, builtins included.

    Raises:
        Unmet: the compiler does not take it, or it changes names around it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            top = symtable.symtable(code, "<code>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Unmet("unparsable Python") from None
    names: set[str] = set()
    waiting = [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        for symbol in table.get_symbols():
            if table is top:
                names |= {symbol.get_name()} if symbol.is_referenced() and not symbol.is_assigned() else set()
            elif symbol.is_declared_global() and symbol.is_assigned():
                raise Unmet(STATE)
            elif symbol.is_global() and symbol.is_referenced():
                names.add(symbol.get_name())
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}
    return names - own


def needs(code: str, file: CodeFile, found: Bindings, deep: bool = False) -> Required:
    """What `code` needs of its file, in the file's order; of what a constant needs too. `deep`: also of what its definitions need.

    Raises:
        Unmet: something cannot go with it.
    """
    package = file.name.partition("/")[0] if "/" in file.name else ""
    imports: dict[str, tuple[ast.Import | ast.ImportFrom, ast.alias]] = {}
    constants: dict[int, ast.stmt] = {}
    definitions: dict[int, Function | ast.ClassDef] = {}
    waiting, seen = sorted(free_names(code)), set(_KNOWN)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in found.changing:
            raise Unmet(STATE)
        if name in found.imports:
            _check_import(*found.imports[name], package)
            imports[name] = found.imports[name]
        elif name in found.constants:
            statement = found.constants[name]
            last = statement.end_lineno or statement.lineno
            written = file.lines[statement.lineno - 1 : last]
            if len(written) > _MOST_CONSTANT or sum(map(len, written)) > _MOST_CONSTANT_CHARACTERS:
                raise Unmet("needs a long table")
            constants[statement.lineno] = statement
            waiting += sorted(free_names(ast.unparse(statement)))
        elif name in found.definitions:
            one = found.definitions[name]
            definitions[one.lineno] = one
            if deep and (one.end_lineno or 0) - one.lineno > _MOST_DEFINITION:
                raise Unmet(MUCH)
            if deep:
                waiting += sorted(free_names(ast.unparse(one)))
        else:
            raise Unmet(NOWHERE)
        if len(constants) + len(definitions) > _MOST_BESIDE:
            raise Unmet(MUCH)
    return Required(
        _lines_of(imports), [constants[at] for at in sorted(constants)], [definitions[at] for at in sorted(definitions)]
    )


def _check_import(statement: ast.Import | ast.ImportFrom, alias: ast.alias, package: str) -> None:
    path = alias.name if isinstance(statement, ast.Import) else f"{statement.module or ''}.{alias.name}"
    parts = path.split(".")
    if isinstance(statement, ast.ImportFrom) and (statement.level or alias.name == "*" or parts[0] == package):
        raise Unmet(OWN_PACKAGE)
    if parts[0] != "__future__" and any(
        part.startswith("_") or part in ("vendor", "compat", "extern") for part in parts
    ):
        raise Unmet(OWN_PACKAGE)


def _lines_of(imports: dict[str, tuple[ast.Import | ast.ImportFrom, ast.alias]]) -> list[str]:
    """Import statements of the names that are used, in the file's order."""
    lines: dict[tuple[int, str], list[str]] = {}
    for statement, alias in imports.values():
        written = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        if isinstance(statement, ast.Import):
            lines[statement.lineno, f"import {written}"] = []
        else:
            lines.setdefault((statement.lineno, f"from {statement.module} import"), []).append(written)
    return [f"{start} {', '.join(sorted(names))}" if names else start for (_, start), names in sorted(lines.items())]

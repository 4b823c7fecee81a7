"""The functions and methods of a file: their text as it stands, what must be there for them, and why some are left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from dcoder_cli.data.code_files import CodeFile, parse
from dcoder_cli.data.code_names import MUCH, OWN_PACKAGE, Bindings, Function, Unmet, bindings, needs
from dcoder_cli.data.docstrings import summary

TOO_DEEP = "nested too deeply"
_FEWEST_NODES = 10  # of syntax in a body (ours): `return self.size` has 3, a call that hands everything on about 8
_MOST_LINES = 60  # of a function without its docstring (ours): HumanEval's longest answer has 30
_MOST_TOLD = 160  # characters of a docstring beside (ours)
_MOST_HELPERS, _MOST_CONTEXT = 3, 40  # functions, and lines, that a request tells (ours)
_FENCE = re.compile(r"^[ \t]*(```|~~~)", re.MULTILINE)
_SPECIAL = re.compile(r"__\w+__$")


@dataclass(frozen=True)
class CodeFunction:
    """A function that can stand without its file, or `problem`, the reason why it is left out.

    Attributes:
        text: the function at the left margin, decorators included.
        header: the part of `text` before its docstring (or body): decorators and signature.
        before: what goes with it: imports and constants; `constants`: whether there are any of these.
        context: code that a request has to tell: functions it calls; for a method, its class.
        within: the line that begins its class, for a method; `method`: whether it is one.
    """

    name: str
    where: str
    node: Function
    text: str
    header: str = ""
    before: str = ""
    constants: bool = False
    context: str = ""
    within: str = ""
    problem: str | None = None
    method: bool = False

    @property
    def program(self) -> str:
        """The function with what goes with it."""
        return f"{self.before}\n\n\n{self.text}" if self.before else self.text


def functions(file: CodeFile, wanted: Callable[[Function], bool] = lambda _: True) -> Iterator[CodeFunction]:
    """All functions of a file's top level and methods of its classes, in order; not those within functions.

    `wanted`: which of them are looked at any further than for their text.
    """
    bound = bindings(file.tree)
    members: dict[ast.ClassDef | None, _Members] = {None: _Members({}, {}, set())}
    for node, owner in _walk(file.tree.body):
        where = f"{file.name}:{node.lineno}"
        text = text_of(file, node)
        found = CodeFunction(node.name, where, node, text, method=owner is not None)
        if not wanted(node):
            yield found
            continue
        try:
            _check(node, text)
            if owner is not None and owner not in members:
                members[owner] = _members(owner)
            yield _whole(file, found, owner, members[owner], bound)
        except (Unmet, RecursionError) as problem:
            yield replace(found, problem=str(problem) if isinstance(problem, Unmet) else TOO_DEEP)


def _walk(body: list[ast.stmt]) -> Iterator[tuple[Function, ast.ClassDef | None]]:
    waiting: list[tuple[ast.stmt, ast.ClassDef | None]] = [(statement, None) for statement in reversed(body)]
    while waiting:
        node, owner = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node, owner
        elif isinstance(node, ast.ClassDef):
            waiting += [(one, node) for one in reversed(node.body)]
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            parts = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            parts += [one for handler in getattr(node, "handlers", []) for one in handler.body]
            waiting += [(one, owner) for one in reversed(parts)]


def first_line(node: Function | ast.ClassDef) -> int:
    """The number of the line with which a definition begins, its decorators included."""
    return min([node.lineno, *(one.lineno for one in node.decorator_list)])


def text_of(file: CodeFile, node: ast.stmt) -> str:
    """The lines of a statement, at the left margin."""
    first = first_line(node) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else node.lineno
    lines = file.lines[first - 1 : node.end_lineno]
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return "\n".join(line.removeprefix(indent) for line in lines)


def body_of(node: Function) -> list[ast.stmt]:
    """The statements of a function without its docstring."""
    return node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body


def _check(node: Function, text: str) -> None:
    """Raises Unmet for what is never taken."""
    body = body_of(node)
    decorators = [ast.unparse(one) for one in node.decorator_list]
    if any(one.rpartition(".")[2] == "overload" for one in decorators):
        raise Unmet("overload")
    if any(one.endswith((".setter", ".deleter", ".getter", ".register")) for one in decorators):
        raise Unmet("half of a property or dispatch")
    if any(one.rpartition(".")[2].startswith("abstract") for one in decorators) or _trivial(body):
        raise Unmet("trivial body")
    if _SPECIAL.match(node.name):
        raise Unmet("special method")
    if node.name.startswith(("test_", "test", "setUp", "tearDown")) or node.name == "main":
        raise Unmet("test or main program")
    if any(isinstance(one, ast.ImportFrom) and one.level for one in ast.walk(node)):
        raise Unmet(OWN_PACKAGE)
    first = body[0].lineno
    if body[0].lineno == node.lineno or (node.end_lineno or 0) - first >= _MOST_LINES:
        raise Unmet("one line" if body[0].lineno == node.lineno else "function too long")
    if _FENCE.search(text):
        raise Unmet("fence in the code")
    again = parse(text)
    if again is None or not same(again.body[0], node):
        raise Unmet("string that changes with its indentation")


def _trivial(body: list[ast.stmt]) -> bool:
    """Whether nothing is computed: no body, only an exception, a constant, or a call that hands everything on."""
    if not body or (len(body) == 1 and isinstance(body[0], (ast.Raise, ast.Pass))):
        return True
    counted = (ast.expr, ast.stmt, ast.comprehension)
    return sum(isinstance(one, counted) for statement in body for one in ast.walk(statement)) < _FEWEST_NODES


def same(one: ast.AST, other: Function) -> bool:
    """Whether two functions are the same but for their docstrings' white space."""
    if not isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    try:
        return [ast.dump(part) for part in body_of(one)] == [ast.dump(part) for part in body_of(other)]
    except RecursionError:
        return False


def _whole(
    file: CodeFile, found: CodeFunction, owner: ast.ClassDef | None, members: _Members, bound: Bindings
) -> CodeFunction:
    """`found` with header, and what must be there. Raises Unmet where that is too much."""
    node = found.node
    shift = node.lineno - first_line(node)
    start = node.body[0].lineno - first_line(node)
    header = "\n".join(found.text.split("\n")[: max(start, shift + 1)])
    required = needs(found.text, file, bound)
    decorators = {one.id for part in node.decorator_list for one in ast.walk(part) if isinstance(one, ast.Name)}
    if any(helper.name in decorators for helper in required.definitions):
        raise Unmet("decorator of its own file")
    before = _before(file, required.imports, required.constants)
    context: list[str] = []
    for helper in required.definitions:
        if helper is not owner and not (
            isinstance(helper, ast.ClassDef) and owner is not None and helper.name == owner.name
        ):
            context.append(_stub(file, helper))
    if len(context) > _MOST_HELPERS:
        raise Unmet(MUCH)
    within = ""
    if owner is not None:
        within = file.lines[owner.lineno - 1].strip()
        if not within.endswith(":"):
            raise Unmet("class of another layout")
        context.append(_class(file, owner, members, node))
    told = "\n\n\n".join(context)
    if told.count("\n") >= _MOST_CONTEXT or _FENCE.search(told + before):
        raise Unmet(MUCH)
    constants = bool(required.constants)
    return replace(found, header=header, before=before, constants=constants, context=told, within=within)


def _before(file: CodeFile, imports: list[str], constants: list[ast.stmt]) -> str:
    parts = ["\n".join(imports), "\n".join(text_of(file, one) for one in constants)]
    return "\n\n".join(part for part in parts if part)


def _stub(file: CodeFile, node: Function | ast.ClassDef) -> str:
    """A function or class as a request tells it: its first line (or signature), and the first line of its docstring."""
    start = node.body[0].lineno
    first = node.lineno if isinstance(node, ast.ClassDef) else first_line(node)
    lines = file.lines[first - 1 : max(start - 1, node.lineno)]
    indent = len(lines[0]) - len(lines[0].lstrip())
    lines = [line[indent:] for line in lines]
    told = _told(node)
    while len(lines) > 1 and not lines[-1].strip():
        lines.pop()
    if not lines[-1].rstrip().endswith(":"):
        raise Unmet(MUCH)
    return "\n".join([*lines, f'    """{told}"""' if told else "    ..."])


def _told(node: Function | ast.ClassDef) -> str:
    """What a docstring says first: a paragraph, or a sentence of a long one; "" for nothing, or what could not be quoted."""
    told = summary(ast.get_docstring(node) or "")
    if len(told) > _MOST_TOLD:
        told = told.partition(". ")[0].rstrip(".") + "."
    return "" if '"""' in told or "\\" in told or told.endswith('"') or len(told) > 2 * _MOST_TOLD else told


class _Members(NamedTuple):
    """What a class shows: its methods and its attributes by name, and what the method that makes it sets."""

    methods: dict[str, Function]
    attributes: dict[str, ast.stmt]
    made: set[str]


def _members(owner: ast.ClassDef) -> _Members:
    found = _Members({}, {}, set())
    for one in owner.body:
        if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.methods.setdefault(one.name, one)
        elif isinstance(one, (ast.Assign, ast.AnnAssign)):
            for target in one.targets if isinstance(one, ast.Assign) else [one.target]:
                if isinstance(target, ast.Name):
                    found.attributes[target.id] = one
    maker = found.methods.get("__init__")
    if maker is not None and maker.args.args:
        found.made.update(_attributes(maker, maker.args.args[0].arg))
    return found


def _class(file: CodeFile, owner: ast.ClassDef, members: _Members, method: Function) -> str:
    """A class as far as a method uses it: its head, attributes, the method that makes it, and signatures of others.

    Raises:
        Unmet: the method uses what is not there, or the class makes itself at length.
    """
    names = [one.arg for one in (*method.args.posonlyargs, *method.args.args)]
    is_static = any(ast.unparse(one) == "staticmethod" for one in method.decorator_list)
    used = set() if is_static or not names else _attributes(method, names[0])
    if any(isinstance(one, ast.Name) and one.id == "super" for one in ast.walk(method)):
        raise Unmet("needs what its class inherits")
    methods, attributes, made = members
    used -= {method.name}
    maker = methods.get("__init__")
    if used - set(methods) - set(attributes) - made - {"__class__", "__dict__", "__name__"}:
        raise Unmet("needs what its class inherits")
    parts = [file.lines[owner.lineno - 1].strip()]
    if docstring := _told(owner):
        parts.append(f'    """{docstring}"""')
    fields = {one.lineno: one for name, one in attributes.items() if name in used}
    parts += ["\n" + "\n".join(_shown(file, fields[at], 4) for at in sorted(fields))] if fields else []
    if maker is not None and used & made:
        parts.append("\n" + _shown(file, maker, 20))
    for name in sorted(used & set(methods), key=lambda name: methods[name].lineno):
        stub = _stub(file, methods[name]).split("\n")
        parts.append("\n" + "\n".join(f"    {line}" if line else "" for line in stub))
    return "\n".join(parts if len(parts) > 1 else [*parts, "    ..."])


def _shown(file: CodeFile, node: ast.stmt, most: int) -> str:
    if (node.end_lineno or 0) - node.lineno >= most:
        raise Unmet(MUCH)
    return "\n".join(f"    {line}" if line else "" for line in text_of(file, node).split("\n"))


def _attributes(function: Function, owner: str) -> set[str]:
    return {
        one.attr
        for one in ast.walk(function)
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == owner
    }

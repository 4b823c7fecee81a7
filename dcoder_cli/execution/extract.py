"""Getting the program out of a model's text, with `ast` alone: nothing is executed.

One pass finds where top-level statements begin; each is parsed by itself, so a broken line costs its own statement and
no more. The time is linear in the text up to a constant factor (a budget of parsed characters enforces it).
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

MAX_TEXT = 1 << 18  # characters looked at; the longest answers of the protocols are far below a tenth of it
# Possessive throughout: nothing that one part gives back could be taken by the next, and giving back costs quadratic time.
_FENCE = re.compile(r"^[ \t]*+(```++|~~~++)[ \t]*+([A-Za-z0-9_+.-]*+)[^\n`]*+$", re.MULTILINE)
_PYTHON = {"python", "py", "python3", "py3"}
_BUDGET = 4  # characters parsed for each character of text, at most: each statement once, and repairs
_CONTINUES = re.compile(r"(else|elif|except|finally)\b|[)\]}]")
_BEGINS = re.compile(r"(def|class|import|from|async def|if __name__)\s|@\w")
_CUTS = 8  # how often a broken statement is cut before the error and tried again


def extract_solution(text: str, entry_point: str, prefill: str = "", also: Iterable[str] = ()) -> str:
    """The source that defines `entry_point` in a model's answer, with the imports and helpers it reaches.

    Looks at the first fenced Python block (of `prefill + text`), else the first fence, else everything; where the first
    fence closes code that no fence opened, as a base model ends what its prompt began, at what stands before; where the
    block is the indented rest of a function that stands before, at both; a block that is indented as a whole, as within a
    list, is moved to the margin. Code at the top
    level that the function does not need (examples, prints, tests) is left out. Where nothing defines `entry_point`,
    what parses is returned; where nothing parses, the block as it is, for the judge to report.

    Args:
        entry_point: a function or class name; empty for a program, which is returned whole if it parses.
        prefill: what the answer was made to begin with, e.g. "Here is the code:\\n```python\\n".
        also: further names that the tests use, such as a class of the solution's own; kept where they are defined.
    """
    begun = _FENCE.match(text.lstrip())  # the model opened a fence of its own beside the prefilled one
    block = _block((text if begun else prefill + text)[:MAX_TEXT], entry_point)
    tree = _parsed(block)
    if not entry_point and tree is not None:
        return block
    parts = _parts(block) if tree is None else [_Part(block, tree)]
    statements = [statement for part in parts for statement in _statements(part)]
    if not statements:
        return block
    if not entry_point or not any(entry_point in statement.binds for statement in statements):
        return "\n".join(part.text.strip("\n") for part in parts) + "\n"
    return "\n".join(statement.text for statement in _reached(statements, [entry_point, *also])) + "\n"


def fence_format(text: str, prefill: str = "", strict: bool = False) -> str:
    """How well formed an answer is: `parses` (a closed Python fence with code that parses), `syntax-error`, or `none`.

    For the format reward (DiffuCoder section 5: 1.0, 0.5 and 0). Any code that parses will do, `pass` too.

    Args:
        prefill: what the answer was made to begin with.
        strict: as DiffuCoder's released code has it, the answer must hold exactly one fence, opened with "```python" in
            lower case and the end of the line, and nothing may follow it; else it is `none`. Prose before it is free.
            The released code asks for exactly one newline after the fence. Here any white space will do, or none: a
            completion ends with its end of turn. Not strict: the first Python fence counts, whatever stands around it.
    """
    text = (prefill + text)[:MAX_TEXT]
    if strict and not _one_fence(text):
        return "none"
    for language, body, closed in _blocks(text):
        if language in _PYTHON:
            if not closed or not body.strip():
                return "none"
            return "parses" if _parsed(body) is not None else "syntax-error"
    return "none"


def code_block(text: str, entry_point: str) -> str:
    """The fenced code that `extract_solution` looks at, as it stands; the whole text where nothing is fenced."""
    return _block(text[:MAX_TEXT], entry_point)


def truncate_at_stops(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`, which is left out."""
    places = [place for place in (text.find(stop) for stop in stops if stop) if place >= 0]
    return text[: min(places)] if places else text


# --- fences ----------------------------------------------------------------------------------------------------------


def _block(text: str, entry_point: str) -> str:
    first: str | None = None
    before = _closed_only(text, entry_point)
    if before is not None:
        return before
    for language, body, _ in _blocks(text):
        if language in _PYTHON:
            first = body
            break
        if first is None and not language:
            first = body
    if first is None:
        return text
    return _joined(text, first, entry_point) or _flush(first, entry_point)


def _flush(body: str, entry_point: str) -> str:
    """A block moved to the left margin, where only there it is a program: a fence within a list stands further in."""
    if not body.lstrip("\n").startswith((" ", "\t")):
        return body
    moved = textwrap.dedent(body)
    return moved if (defines(moved, entry_point) if entry_point else _parsed(moved) is not None) else body


def _joined(text: str, body: str, entry_point: str) -> str | None:
    """What stands before the first fence with `body`, where that is the indented rest of the function begun there."""
    mark = _FENCE.search(text)
    if mark is None or not entry_point or not body.lstrip("\n").startswith((" ", "\t")):
        return None
    whole = text[: mark.start()] + body
    return whole if defines(whole, entry_point) else None


def _closed_only(text: str, entry_point: str) -> str | None:
    """What stands before the first fence where that fence closes it; None where it opens a block.

    It closes where it names no language, the text before defines `entry_point` with a body, and what would be its block
    either has no end or does not define it.
    """
    mark = _FENCE.search(text)
    if mark is None or mark.group(2) or not entry_point:
        return None
    before = text[: mark.start()]
    if not defines(before, entry_point):
        return None
    _, body, closed = next(_blocks(text))
    return None if closed and defines(body, entry_point) else before


def defines(code: str, entry_point: str) -> bool:
    """Whether a statement of `code` binds `entry_point` to more than a signature with a docstring and imports."""
    tree = _parsed(code)
    for part in _parts(code) if tree is None else [_Part(code, tree)]:
        for node in part.tree.body:
            if entry_point in _names(node)[0]:
                body = getattr(node, "body", None)
                if body is None or not all(_is_stub(one) for one in body):
                    return True
    return False


def _is_stub(node: ast.stmt) -> bool:
    """Whether a statement is one of a function still to be written: a docstring, `...`, or an import (HumanEval/115)."""
    return isinstance(node, (ast.Import, ast.ImportFrom)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _one_fence(text: str) -> bool:
    """Whether three backticks occur just twice: to open the only block, a Python one, and to close it at the very end."""
    if text.count("```") != 2 or "````" in text or "```python\n" not in text or not text.rstrip().endswith("```"):
        return False
    blocks = list(_blocks(text))
    return len(blocks) == 1 and blocks[0][2]


def _blocks(text: str) -> Iterator[tuple[str, str, bool]]:
    """Fenced blocks as (language in lower case, body, whether it is closed)."""
    opened: tuple[str, str, int] | None = None
    for match in _FENCE.finditer(text):
        mark, language = match.group(1), match.group(2).lower()
        if opened is None:
            opened = mark, language, min(match.end() + 1, len(text))
        elif mark.startswith(opened[0]) and not language:
            yield opened[1], text[opened[2] : match.start()], True
            opened = None
    if opened is not None:
        yield opened[1], text[opened[2] :], False


# --- statements ------------------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """A piece of text that parses."""

    text: str
    tree: ast.Module


@dataclass
class _Statement:
    """A top-level statement: its text, the names it binds or changes, and those it uses."""

    text: str
    binds: set[str]
    uses: set[str]
    is_import: bool  # or a setting of the interpreter: kept whether or not it is reached
    is_definition: bool
    is_main: bool = field(default=False)


def _parsed(text: str) -> ast.Module | None:
    """The tree, or None: too deep, too nested, null bytes and whatever else the parser refuses included."""
    return _parsed_or_line(text)[0]


def _parsed_or_line(text: str) -> tuple[ast.Module | None, int]:
    """The tree, or else the line (from 1) at which the parser stopped; 0 where it does not say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text), 0
        except SyntaxError as error:
            return None, error.lineno or 0
        except (ValueError, RecursionError, MemoryError, OverflowError):
            return None, 0


def _parts(text: str) -> list[_Part]:
    """What parses of a text that does not parse as a whole, statement by statement."""
    budget = _BUDGET * len(text) + 1000
    parts: list[_Part] = []
    for chunk in _chunks(text):
        for _ in range(_CUTS):
            budget -= len(chunk)
            if budget < 0:
                return parts
            tree, stopped = _parsed_or_line(chunk)
            if tree is not None:
                if tree.body:
                    parts.append(_Part(chunk, tree))
                break
            lines = chunk.splitlines(keepends=True)
            # an error at the end of a cut-off statement is reported where it began or after its last line
            keep = min(stopped - 1 if 1 < stopped <= len(lines) else len(lines) - 1, len(lines) - 1)
            while keep > 0 and not lines[keep - 1].strip():
                keep -= 1
            if keep <= 0:
                break
            chunk = "".join(lines[:keep])
    return parts


def _chunks(text: str) -> Iterator[str]:
    """Pieces that each begin with a top-level statement, decorators with what they decorate, `else` with its `if`."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    begins: list[int] = []
    decorated = False
    for number, fresh in enumerate(_fresh_lines(lines)):
        line = lines[number]
        if not fresh or not line or line[0] in " \t#" or _CONTINUES.match(line):
            continue
        if not decorated:
            begins.append(number)
        decorated = line.startswith("@")
    begins.append(len(lines))
    for begin, end in itertools.pairwise(begins):
        yield "\n".join(lines[begin:end]) + "\n"


def _fresh_lines(lines: Sequence[str]) -> list[bool]:
    """For each line whether it begins outside strings and brackets. Prose is forgiven: a line that looks like the
    beginning of a definition at the left margin closes brackets, and a string that never ends is taken as none."""
    fresh: list[bool] = []
    depth, quote, opened, forgiven = 0, "", 0, False
    number = 0
    while number < len(lines):
        line = lines[number]
        if not quote and depth and _BEGINS.match(line):
            depth = 0
        fresh.append(not quote and depth == 0)
        place, end, slash = 0, -2, -2  # what was found and is still ahead is not looked for again
        closed: dict[str, list[int]] = {}
        while place < len(line):
            if quote:
                end = line.find(quote, place) if end != -1 and end < place else end
                slash = line.find("\\", place) if slash != -1 and slash < place else slash
                if 0 <= slash < end or (slash >= 0 and end < 0):
                    place = slash + 2
                    continue
                if end < 0:
                    break
                place = end + len(quote)
                quote, end = "", -2
                continue
            match = _TOKEN.search(line, place)
            if match is None:
                break
            token, place = match.group(), match.end()
            if token in ('"""', "'''"):
                quote, opened, end = token, number, -2
            elif token in _STRING_ENDS:
                place = _end_of_string(line, token, place, closed)
            elif token in "([{":
                depth += 1
            elif token in ")]}":
                depth = max(0, depth - 1)
            elif token == "#":
                break
        number += 1
        if number == len(lines) and quote and not forgiven:
            number, forgiven = opened + 1, True
            del fresh[number:]
            depth, quote = 0, ""
    return fresh


_TOKEN = re.compile(r'"""|\'\'\'|["\'\[\](){}#]')
_STRING_ENDS = {mark: re.compile(rf"(?:[^{mark}\\\n]|\\.)*+{mark}") for mark in "\"'"}


def _end_of_string(line: str, mark: str, place: int, closed: dict[str, list[int]]) -> int:
    """Where a string ends whose opening `mark` stands before `place`; `place` where it is none, for it does not end.

    After one that does not end, `closed` has the end for each place of the line, so that many of them cost no more than one.
    """
    if mark not in closed:
        found = _STRING_ENDS[mark].match(line, place)
        if found is not None:
            return found.end()
        ends = [0] * (len(line) + 2)
        for at in range(len(line) - 1, -1, -1):
            one = line[at]
            ends[at] = at + 1 if one == mark else ends[at + 2] if one == "\\" else ends[at + 1]
        closed[mark] = ends
    return closed[mark][place] or place


def _statements(part: _Part) -> Iterator[_Statement]:
    """The top-level statements; those that share a line are one, or each would have the text of all."""
    lines = part.text.split("\n")
    groups: list[tuple[int, int, list[ast.stmt]]] = []
    for node in part.tree.body:
        first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))])
        last = node.end_lineno or first
        if groups and first <= groups[-1][1]:
            begun, ended, nodes = groups[-1]
            nodes.append(node)
            groups[-1] = begun, max(ended, last), nodes
        else:
            groups.append((first, last, [node]))
    for first, last, nodes in groups:
        found = [_names(node) for node in nodes]
        uses = set().union(*(used for _, used in found))
        yield _Statement(
            text="\n".join(lines[first - 1 : last]),
            binds=set().union(*(bound for bound, _ in found)),
            uses=uses,
            is_import=any(isinstance(node, (ast.Import, ast.ImportFrom)) or _is_setting(node) for node in nodes),
            is_definition=isinstance(nodes[0], (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)),
            is_main=len(nodes) == 1 and isinstance(nodes[0], ast.If) and "__name__" in uses,
        )


def _is_setting(node: ast.stmt) -> bool:
    called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr in ("setrecursionlimit", "set_int_max_str_digits")


def _names(node: ast.stmt) -> tuple[set[str], set[str]]:
    """Names that a top-level statement binds or changes, and names it uses anywhere inside."""
    uses = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}, uses
    binds: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            binds.add(inner.name)
        elif isinstance(inner, (ast.Import, ast.ImportFrom)):
            binds |= {(alias.asname or alias.name).partition(".")[0] for alias in inner.names}
        elif isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load):
            binds.add(inner.id)
        elif isinstance(inner, (ast.Attribute, ast.Subscript)) and not isinstance(inner.ctx, ast.Load):
            binds |= {name for name in [_root(inner)] if name}
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        changed = _root(node.value.func)  # memo.append(...), sys.setrecursionlimit(...), random.seed(...)
        if changed and isinstance(node.value.func, ast.Attribute):
            binds.add(changed)
    return binds, uses


def _root(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _reached(statements: list[_Statement], names: list[str]) -> list[_Statement]:
    """The statements that bind one of `names` or anything it uses, directly or not, and all imports; in order."""
    by_name: dict[str, list[int]] = {}
    for place, statement in enumerate(statements):
        if not statement.is_main:
            for name in statement.binds:
                by_name.setdefault(name, []).append(place)
    wanted, done = list(names), set(names)
    kept = {place for place, statement in enumerate(statements) if statement.is_import}
    while wanted:
        for place in by_name.get(wanted.pop(), []):
            if place not in kept or statements[place].is_import:
                kept.add(place)
                for name in (statements[place].uses | statements[place].binds) - done:
                    done.add(name)
                    wanted.append(name)
    return [statements[place] for place in sorted(kept)]

"""Instruction data from code: a documented function becomes a request and its answer, and some become a text with a gap.

The request is worded from the docstring and the signature, in one of several ways that the function's own text chooses, so
that a run is the same for any number of workers. The answer is the function as its file has it, behind the imports and
constants that it uses, in one fenced block: what the protocols of `eval` read.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from dcoder_cli.data import docstrings
from dcoder_cli.data.code_files import code_files
from dcoder_cli.data.code_functions import TOO_DEEP, CodeFunction, body_of, functions
from dcoder_cli.data.code_surprises import too_many
from dcoder_cli.data.holes import cut, remade
from dcoder_cli.data.records import Record, TextMapping, first_record
from dcoder_cli.data.sources import Piece, Source, Unit

# DiffuCoder B.2's question, as `eval` and stage 4 ask it; half of the requests are of this form.
_COMPLETE = "Please complete the following problem:\n```\n{code}\n```\n"
_WITH_CODE = (
    _COMPLETE,
    _COMPLETE,
    "Complete this Python function.\n\n```python\n{code}\n```",
    "Write the body of this Python function:\n\n```python\n{code}\n```",
)
_WITH_SIGNATURE = (
    "Write a Python function with this signature:\n\n```python\n{header}\n```\n\n{doc}",
    "{doc}\n\nImplement it in Python as:\n\n```python\n{header}\n```",
)
_WITH_WORDS = (
    "Write a Python function `{name}`{arguments}. {doc}",
    "I need a Python function called `{name}`{arguments}.\n\n{doc}",
)
_WITH_VERB = (
    "Write a python function to {verb}. Call it `{name}`{given}.",
    "Write a Python function `{name}`{arguments}, to {verb}.",
)
CODE_GAPS = 0.5  # share of functions that become a gap too (ours): a gap for every two requests
_IN_CLASS = "Here is a part of a class:\n\n```python\n{context}\n```\n\n"
_BESIDE = "These are there already:\n\n```python\n{context}\n```\n\n"


def check_tables(sources: Sequence[Source], units: Sequence[Unit]) -> None:
    """Read the first row of each source that is a table, so that a wrong column shows at once. Raises UserError."""
    for number, _ in enumerate(sources):
        first = next(unit for unit in units if unit.source == number)
        record = first_record(first.pieces) if first.pieces[0].form != "text" else None
        if record is not None and isinstance(record.value, dict):
            TextMapping().text(record.value, record.name)


def rows(piece: Piece, gaps: float) -> Iterator[Record]:
    """The functions of a piece as rows of chats and of gaps, each with `code`, by which duplicates are told; and what is left out.

    Args:
        gaps: the share of the functions that also become a gap.

    Raises:
        UserError: the piece is damaged.
    """
    for file in code_files(piece):
        if isinstance(file, Record):
            yield file
            continue
        for found in functions(file):
            try:
                yield from list(_rows_of(found, gaps))
            except RecursionError:  # `ast` walks some of it by recursion
                yield Record(f"{found.where} {found.name}", found.text, TOO_DEEP)


def _rows_of(found: CodeFunction, gaps: float) -> Iterator[Record]:
    docstring = ast.get_docstring(found.node, clean=False)
    name = f"{found.where} {found.name}"
    problem = found.problem or (
        docstrings.why_not(docstring, found.name, _code_lines(found)) if docstring is not None else "no docstring"
    )
    if problem is not None:
        yield Record(name, found.text, problem)
        return
    assert docstring is not None
    digest = int.from_bytes(hashlib.blake2b(found.text.encode("utf-8", "replace"), digest_size=16).digest(), "little")
    asked = request(found, docstring, digest)
    if asked is None:
        yield Record(name, found.text, "docstring beside its signature")
        return
    answer = found.text if found.within else found.program
    if too_many(found.node, found.program, asked):
        yield Record(name, found.text, "request that does not tell enough")
        return
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"```python\n{answer}\n```"}]
    yield Record(name, {"messages": turns, "code": found.text})
    digest >>= 64
    if (digest % 2**20) / 2**20 < gaps:
        gap = cut(found, digest >> 20)
        if gap is not None and remade(gap, found):
            yield Record(f"{name} (gap)", {**gap._asdict(), "code": found.text})


def _code_lines(found: CodeFunction) -> int:
    body = body_of(found.node)
    return (found.node.end_lineno or 0) - body[0].lineno + 1


def request(found: CodeFunction, docstring: str, digest: int) -> str | None:
    """What is asked for; None where the docstring does not stand between signature and body."""
    node = found.node
    header = found.header
    if not header.rstrip().endswith(":"):
        return None
    told = found.within or not found.constants  # constants are told by code alone
    ways: list[str] = [*_WITH_CODE, *(_WITH_SIGNATURE if told else ())]
    plain = told and isinstance(node, ast.FunctionDef) and not node.decorator_list  # words would leave out what it is
    ways += _WITH_WORDS if plain else ()
    text = docstrings.cleaned(docstring)
    verb = (
        docstrings.imperative(docstrings.plain(docstrings.summary(text))) if text == docstrings.summary(text) else None
    )
    if verb is not None and plain and not found.within:
        ways = [*ways, *_WITH_VERB]
    way = ways[digest % len(ways)]
    form = way.replace("Python function", "method") if found.within else way
    doc = docstrings.description(text)
    if way in _WITH_CODE:
        length = (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
        rest = found.text.split("\n")[header.count("\n") + 1 :][:length]
        code = "\n".join([header, *rest])
        if found.before and not found.within:
            code = f"{found.before}\n\n\n{code}"
        asked = form.format_map({"code": code})
    else:
        words = arguments_in_words(node, bool(found.within))
        parts = {
            "header": header.rstrip(),
            "name": node.name,
            "doc": doc if doc.endswith((".", ":", "!", "?", "`")) or "\n" in doc else f"{doc}.",
        }
        asked = form.format_map(
            {**parts, "arguments": words, "given": words.replace(" that takes", "; it takes"), "verb": verb or ""}
        )
    if found.context:
        context = found.context
        if found.within and found.before:
            context = f"{found.before}\n\n\n{context}"
        asked = (_IN_CLASS if found.within else _BESIDE).format_map({"context": context}) + asked
    return asked


def arguments_in_words(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> str:
    """The parameters in words: " that takes `a` and `b` (by default 1)"."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[Any] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    if bound and not any(ast.unparse(one) == "staticmethod" for one in node.decorator_list):
        positional, defaults = positional[1:], defaults[1:]
    told = [
        f"`{one.arg}`" + (f" (by default {ast.unparse(value)})" if value is not None else "")
        for one, value in zip([*positional, *arguments.kwonlyargs], [*defaults, *arguments.kw_defaults], strict=False)
    ]
    told += [f"`*{arguments.vararg.arg}`"] if arguments.vararg else []
    told += [f"`**{arguments.kwarg.arg}`"] if arguments.kwarg else []
    if not told:
        return ""
    return f" that takes {', '.join(told[:-1])}{' and ' if len(told) > 1 else ''}{told[-1]}"

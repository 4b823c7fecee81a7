"""Python files as text and syntax, or why one is left out: nothing is executed, and what no parser takes is a reason.

A file is read by the encoding that it declares (PEP 263), as Python would. Left out as a whole are what is not Python, tests,
generated files and files over a megabyte, which hold tables.
"""

from __future__ import annotations

import ast
import codecs
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from dcoder_cli.base import jsonl
from dcoder_cli.data.dropped import BadRow
from dcoder_cli.data.records import Record, TextMapping, read_records
from dcoder_cli.data.sources import COMPRESSIONS, Piece

_LONGEST = 2**20  # characters (ours): above, files are tables, and to parse one takes a gigabyte
_HEAD = 2000  # characters in which a generated file says so
_GENERATED = re.compile(
    r"\b(auto[- ]?generated|generated (by|from|with|using|automatically|at)|do not (edit|modify)|code generator)\b",
    re.IGNORECASE,
)
_TEST_FILE = re.compile(r"(test_.*|.*_tests?|tests?|conftest)\.py$")
_TEST_FOLDERS = {"test", "tests", "testing", "idle_test"}
# Text codecs that are no encodings of files, or take quadratic time.
_NO_FILES = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7", "utf-7"}


@dataclass(frozen=True)
class CodeFile:
    """A file that parses. `lines` are those of the syntax tree's numbers, without their ends."""

    name: str
    lines: list[str]
    tree: ast.Module


def code_files(piece: Piece) -> Iterator[CodeFile | Record]:
    """The Python of a piece: files, or rows with a column of code; a Record where it cannot be used, with the reason.

    Raises:
        UserError: the piece is damaged.
    """
    if piece.form == "text":
        yield _read(piece)
        return
    for record in read_records(piece):
        if record.problem is not None or isinstance(record.value, str):
            yield record
            continue
        try:
            text = TextMapping().text(record.value, record.name)
        except BadRow as bad:
            yield Record(record.name, record.value, bad.reason)
            continue
        path = record.value.get("path")
        yield parsed(record.name, text, path if isinstance(path, str) else "")


def _read(piece: Piece) -> CodeFile | Record:
    name = piece.name.lower()
    if not next((name.removesuffix(end) for end in COMPRESSIONS if name.endswith(end)), name).endswith(".py"):
        return Record(piece.name, "", "not Python")
    if piece.end > 4 * _LONGEST or len(data := jsonl.read(piece.path)) > 4 * _LONGEST:
        return Record(piece.name, "", "file too large")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if encoding.replace("-", "_") in _NO_FILES or codecs.lookup(encoding).name.replace("-", "_") in _NO_FILES:
            return Record(piece.name, "", "unknown encoding")
        text = data.decode(encoding)
    except (SyntaxError, LookupError, UnicodeError, ValueError):
        return Record(piece.name, data.decode("latin-1"), "unknown encoding")
    return parsed(piece.name, text, piece.name)


def parsed(name: str, text: str, path: str) -> CodeFile | Record:
    """A file of this text; `path`: where it stands within its project, "" for unknown."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        return Record(name, text, "empty")
    if len(text) > _LONGEST:
        return Record(name, text, "file too large")
    where = PurePosixPath(path.lower())
    if _TEST_FILE.match(where.name) or _TEST_FOLDERS & set(where.parts[:-1]):
        return Record(name, text, "test file")
    if _GENERATED.search(text[:_HEAD]):
        return Record(name, text, "generated file")
    tree = parse(text)
    return Record(name, text, "unparsable Python") if tree is None else CodeFile(name, text.split("\n"), tree)


def parse(text: str) -> ast.Module | None:
    """The syntax of `text`; None where this interpreter finds none: null bytes and nesting too deep for it included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None

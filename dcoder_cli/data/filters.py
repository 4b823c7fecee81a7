"""Filters that look at one document: what they drop, and why.

The line and alphanumeric limits are those of Codex (arXiv 2107.03374, section 3.1) in the form The Stack and StarCoder
use them (arXiv 2305.06161, section 3): lines up to 1000 characters, 100 on average, a quarter letters and digits.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError


@dataclass(frozen=True)
class FilterSettings:
    """Which filters run. `licence` is keep, strip, drop, or drop:NAME,NAME (names as `licence_header` gives them)."""

    exact_duplicates: bool = True
    near_duplicates: float = 0.7  # StarCoder 3; 0 turns it off
    max_line_length: int = 1000  # Codex 3.1
    mean_line_length: float = 100.0  # Codex 3.1
    min_alphanumeric: float = 0.25  # StarCoder 3
    max_document_bytes: int = 8 * 2**20  # OpenCoder 2.1 leaves out files over 8 MB
    # auto: the three limits above for source files, not for rows of tables (which may be prose)
    code_filters: Literal["auto", "all", "none"] = "auto"
    drop_unparsable: bool = False
    licence: str = "keep"
    decontaminate: tuple[str, ...] = ()
    decontaminate_ngram: int = 10  # OpenCoder 4
    benchmarks: str | None = None

    def check(self) -> None:
        """Raises UserError for a value that makes no sense."""
        if not 0 <= self.near_duplicates <= 1:
            raise UserError(f"--near-duplicates {self.near_duplicates} must be a similarity from 0 (off) to 1")
        if not re.fullmatch(r"keep|strip|drop|drop:[\w.,+-]+", self.licence):
            raise UserError(f"--licence {self.licence!r} must be keep, strip, drop or drop:NAME,NAME")
        for name in filter(None, self.licence.partition(":")[2].split(",")):
            if name not in LICENCES:
                raise UserError(
                    f"--licence {self.licence!r}: {name!r} is no licence known here{nearest(name, LICENCES, True)}"
                )
        if self.code_filters not in ("auto", "all", "none"):
            raise UserError(f"--code-filters {self.code_filters!r} must be auto, all or none")
        if self.decontaminate_ngram < 2:
            raise UserError(f"--decontaminate-ngram {self.decontaminate_ngram} must be at least 2")


class FilterVerdict(NamedTuple):
    """The text to keep, or the reason to drop it with a detail for the report."""

    text: str
    reason: str | None = None
    detail: str = ""
    stripped: str | None = None  # the licence whose header was taken off


def judge_document(text: str, settings: FilterSettings, is_source: bool, maybe_python: bool) -> FilterVerdict:
    """Run every filter but duplicates and decontamination.

    Args:
        is_source: the text is a source file, so `code_filters=auto` applies.
        maybe_python: `drop_unparsable` applies (a .py file, or a row of a table).
    """
    if not text.strip():
        return FilterVerdict(text, "empty")
    if len(text) > settings.max_document_bytes:
        return FilterVerdict(text, "too large", f"{len(text)} characters")
    if "\0" in text:
        return FilterVerdict(text, "binary")
    stripped = None
    if settings.licence != "keep":
        header = licence_header(text)
        if header is not None:
            action, _, names = settings.licence.partition(":")
            if action == "drop" and (not names or header.licence in names.split(",")):
                return FilterVerdict(text, f"licence header {header.licence}")
            if action == "strip":
                text, stripped = header.rest, header.licence
                if not text.strip():
                    return FilterVerdict(text, "empty", "after its licence header")
    if settings.code_filters == "all" or (settings.code_filters == "auto" and is_source):
        problem = _shape_problem(text, settings)
        if problem is not None:
            return FilterVerdict(text, *problem)
    if settings.drop_unparsable and maybe_python and not parses(text):
        return FilterVerdict(text, "unparsable Python")
    return FilterVerdict(text, None, "", stripped)


def _shape_problem(text: str, settings: FilterSettings) -> tuple[str, str] | None:
    lines = text.splitlines()
    longest = max(map(len, lines))
    if longest > settings.max_line_length:
        return "line too long", f"{longest} characters"
    mean = sum(map(len, lines)) / len(lines)
    if mean > settings.mean_line_length:
        return "lines too long on average", f"{mean:.0f} characters"
    share = alphanumeric_share(text)
    if share < settings.min_alphanumeric:
        return "too few letters and digits", f"{share:.2f}"
    return None


_LETTERS_AND_DIGITS = bytes(byte < 128 and chr(byte).isalnum() for byte in range(256))
_ASCII = re.compile(r"[\x00-\x7f]+")


def alphanumeric_share(text: str) -> float:
    """The share of characters that are letters or digits."""
    found = text.encode("utf-8", "surrogatepass").translate(_LETTERS_AND_DIGITS).count(1)
    if text.isascii():
        return 1 - (len(text) - found) / len(text)
    return (found + sum(map(str.isalnum, _ASCII.sub("", text)))) / len(text)


def parses(text: str) -> bool:
    """Whether `text` is Python that this interpreter can parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


class LicenceHeader(NamedTuple):
    """The licence a leading comment names, and the text without that comment."""

    licence: str
    rest: str


_LICENCE_WORDS = re.compile(r"copyright|licen[cs]e|spdx-|all rights reserved|\(c\) *(19|20)\d\d", re.IGNORECASE)
_LICENCES = (
    ("AGPL", r"affero general public|\bAGPL"),
    ("LGPL", r"lesser general public|\bLGPL"),
    ("GPL", r"gnu general public|\bGPL"),
    ("MPL", r"mozilla public|\bMPL"),
    ("Apache", r"apache license|apache-2"),
    ("MIT", r"\bMIT\b|permission is hereby granted, free of charge"),
    ("BSD", r"\bBSD\b|redistribution and use in source and binary forms"),
    ("PSF", r"\bPSF\b|python software foundation|licensed to psf"),
)
LICENCES = (*(name for name, _ in _LICENCES), "other")
_COMMENT_LINE = re.compile(r"\s*(#|//|--|;|%)")
_FIXED_LINE = re.compile(r"#!|#.*coding[:=]|<\?php")


def licence_header(text: str) -> LicenceHeader | None:
    """The comment block about copyright or licence among the comments a file begins with, or None.

    Understands line comments (#, //, --, ;, %) and /* */ blocks. A shebang or coding line stays in the rest. A licence
    that no pattern knows is called `other`.
    """
    lines = text.splitlines(keepends=True)
    kept: list[str] = []
    licences: list[str] = []
    place = 0
    while place < len(lines):
        if _FIXED_LINE.match(lines[place]) and place < 2:
            kept.append(lines[place])
            place += 1
            continue
        if not lines[place].strip():
            kept.append(lines[place])
            place += 1
            continue
        end = _block_end(lines, place)
        if end == place:
            break
        block = "".join(lines[place:end])
        if _LICENCE_WORDS.search(block):
            licences.append(_licence_name(block))
        else:
            kept.extend(lines[place:end])
        place = end
    if not licences:
        return None
    named = [licence for licence in licences if licence != "other"]
    return LicenceHeader((named or licences)[0], "".join([*kept, *lines[place:]]).lstrip("\r\n"))


def _block_end(lines: list[str], start: int) -> int:
    """The line after the comment block that begins at `start`; `start` itself where none does."""
    if lines[start].lstrip().startswith("/*"):
        for index in range(start, len(lines)):
            if "*/" in lines[index]:
                return index + 1
        return start
    index = start
    while index < len(lines) and _COMMENT_LINE.match(lines[index]):
        index += 1
    return index


def _licence_name(block: str) -> str:
    folded = re.sub(r"[\s#*/;%-]+", " ", block)
    for name, pattern in _LICENCES:
        if re.search(pattern, folded, re.IGNORECASE):
            return name
    return "other"

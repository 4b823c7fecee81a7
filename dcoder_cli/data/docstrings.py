"""Docstrings: whether one describes a function well enough to ask for it, and what of it a request says."""

from __future__ import annotations

import doctest
import inspect
import re

_FEWEST_WORDS, _MOST_LINES = 5, 40  # ours, from reading: below, a name says as much; above, a manual
_LINES_A_WORD = 1  # of code that a word of the docstring can stand for (ours, from reading)
_SECTION = re.compile(
    r"^\s*(:\w[^:\n]*:|@\w+|(args?|arguments|param(eter)?s|returns?|yields?|raises|examples?|notes?|see also|references|"
    r"usage|attributes|warns|warnings?|other parameters|keyword args|keyword arguments|todo|inputs?|outputs?|shapes?)\s*:+\s*$"
    r"|>>>|\.\. |-{3,}\s*$|={3,}\s*$)",
    re.IGNORECASE | re.MULTILINE,
)
_UNDERLINED = re.compile(r"^[^\n]*\n\s*[-=~]{3,}\s*$", re.MULTILINE)
_ELSEWHERE = re.compile(
    r"\b(see (also|the|base|parent|docs?|documentation|:|`|\w+\.)|same as|like `?\w+`?\(?\)? but|overrid|overload|wrap(s|per)\b|alias|docstring|"
    r"base class|super ?class|parent class|inherit|subclass|monkey|stub|dummy|placeholder|as (described|defined|above)|"
    r"this (class|module|test|hook|mixin|decorator is)|equivalent to the|implements? (the )?(:|`)|above|below|callback for|"
    r"part of|https?://|workaround|optional|call (this|prior|before|after)|prior to|internal|helper|convenience|shortcut|private|used by|called (by|when|from|on|if|after|before)|not part of|PEP \d)",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(r"\b(deprecat|todo|fixme|xxx|not (yet )?implemented|unimplemented|hack|legacy|obsolete|do not use|useless|kept for|backwards? compat|copyright|licen[sc]e)", re.IGNORECASE)  # fmt: skip
_TEMPLATE = re.compile(r"%\(\w+\)s|\$\{|\{\{|%s|\{\w*\}")
_ROLE = re.compile(r":(?:\w+:)?[\w-]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`")
_WORD = re.compile(r"[^\W\d_]+")


def cleaned(docstring: str) -> str:
    """Without its indentation, and without a quote that a fourth one left at its beginning."""
    return inspect.cleandoc(docstring.lstrip('"'))


def summary(text: str) -> str:
    """The first paragraph of a cleaned docstring, up to a section or an example, on one line."""
    first = re.split(r"\n\s*\n", text, maxsplit=1)[0]
    found = _SECTION.search(first)
    return " ".join(first[: found.start() if found else None].split())


def description(text: str) -> str:
    """What a cleaned docstring says in prose: all of a short one, else what stands before its sections. Roles of Sphinx are read."""
    if text.count("\n") >= 12:
        found, underlined = _SECTION.search(text), _UNDERLINED.search(text)
        ends = [one.start() for one in (found, underlined) if one is not None]
        text = text[: min(ends, default=None)]
    return plain(text).strip()


def plain(text: str) -> str:
    """Without the markup that only Sphinx reads."""
    return _ROLE.sub(lambda found: f"`{found[1]}`", text).replace("``", "`")


def without_examples(text: str) -> str:
    """A cleaned docstring without its doctests and the headings that announce them.

    Raises:
        ValueError: a doctest that no parser takes.
    """
    parts = doctest.DocTestParser().parse(text)
    prose = ""
    for part in parts:
        if isinstance(part, str):
            prose += part
        elif prose.rstrip().endswith(":"):  # announced what is gone
            prose = prose.rstrip()[:-1] + ".\n\n"
    prose = re.sub(
        r"(?im)^\s*((doc)?tests?|examples?|usage|for example|e\.g\.)\s*:*\s*\n(\s*[-=~]{3,}\s*\n)?", "\n", prose + "\n"
    )
    return re.sub(r"\n\s*\n(\s*\n)+", "\n\n", prose).strip()


def why_not(docstring: str, name: str, lines: int) -> str | None:
    """Why a docstring does not describe the function `name` of so many lines well enough, in few words; None where it does."""
    text = cleaned(docstring)
    if not text:
        return "no docstring"
    if text.count("\n") >= _MOST_LINES:
        return "docstring too long"
    if _UNFINISHED.search(text):
        return "docstring of unfinished or old code"
    short = summary(text)
    if _TEMPLATE.search(short):
        return "docstring is a template"
    if _ELSEWHERE.search(short):
        return "docstring refers to something else"
    told = {word.lower() for word in _WORD.findall(short)}
    named = {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
    if len(_WORD.findall(short)) < _FEWEST_WORDS or len(told - named - _SMALL) < 2:
        return "docstring says too little"
    if lines > _LINES_A_WORD * len(_WORD.findall(text)):
        return "docstring says too little"
    letters = sum(char.isascii() for char in short)
    if letters < 0.9 * len(short):
        return "docstring is not in English"
    if not short[0].isalpha() and short[0] not in "`*'\"":
        return "docstring says too little"
    return None


_SMALL = {"a", "an", "the", "of", "to", "for", "in", "on", "and", "or", "is", "this", "that", "with", "it", "function", "method",
          "returns", "return", "get", "gets", "set", "sets", "from", "by", "as", "given", "value", "object", "be"}  # fmt: skip

_VERBS = frozenset(
    re.findall(
        r"\w+",
        """
return compute calculate check test create make build find get convert parse read write yield generate apply split
join remove add insert replace extract determine count sort merge normalize format print load save open encode decode
validate verify evaluate iterate construct transform map filter select search match compare estimate sample draw plot
update delete strip escape quote unescape expand flatten fill round clip combine concatenate copy detect list look
group reduce resolve reverse rotate scale shift sum take translate truncate wrap unpack pack partition perform produce
raise render retrieve run simplify solve store swap
""",
    )
)


def imperative(short: str) -> str | None:
    """A summary as what goes on after "Write a function to", where it begins with a verb: "Returns the sum." -> "return the sum"."""
    first, _, rest = short.partition(" ")
    verb = first.lower()
    known = next(
        (
            one
            for one in (verb, verb.removesuffix("s"), verb.removesuffix("es"), re.sub("ies$", "y", verb))
            if one in _VERBS
        ),
        None,
    )
    if known is None or not first.isalpha() or not rest:
        return None
    return f"{known} {rest.rstrip('.')}" if "." not in rest.rstrip(".") else None

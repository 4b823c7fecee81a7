"""Python files of our own from which instruction data is made in tests: what is kept, and one function for each reason to drop."""

from __future__ import annotations

KEPT = '''"""A module with what functions may need."""

import functools
import os.path as paths
import re
from collections import Counter, OrderedDict
try:
    import json
except ImportError:
    json = None

WORD = re.compile(r"[a-z]+")
_SEEN = {}


def widest(lines):
    """Return the longest of some lines of text, the first of them where several are as long."""
    best = ""
    for line in lines:
        if len(line) > len(best):
            best = line
    return best


def tally(text, most=3):
    """Count the words of a text and return the most common ones with their counts.

    >>> tally("a b a")
    [('a', 2), ('b', 1)]
    >>> tally("b")
    [('b', 1)]
    >>> tally("")
    []
    """
    found = Counter(WORD.findall(text.lower()))
    return found.most_common(most)


class Shelf:
    """Books by their titles."""

    LIMIT = 3

    def __init__(self, books):
        self.books = dict(books)

    def _clean(self, title):
        return title.strip().lower()

    @property
    def titles(self):
        """The titles of all books that stand on the shelf, cleaned and sorted by the alphabet."""
        found = [self._clean(title) for title in self.books]
        return sorted(found)[: self.LIMIT]

    async def lend(self, title, to):
        """Take a book from the shelf and write down in its place who has it now."""
        key = self._clean(title)
        if key not in self.books:
            raise KeyError(title)
        book, self.books[key] = self.books[key], to
        return book

    @staticmethod
    @functools.cache
    def weight(pages: int, /, *, paper: float = 1.5) -> float:
        """Estimate how heavy a book of so many pages is on the given paper.

            A line that stands further in.
        """
        sheets = (pages + 1) // 2
        return sheets * paper if sheets > 0 else paper / 2
'''
NAMES = ("widest", "tally", "titles", "lend", "weight")

_ASKED = '"""Return the sum of all numbers in the list that are larger than the limit."""'
_BODY = "    total = 0\n    for number in numbers:\n        if number > limit:\n            total += number\n    return total\n"


def function(head: str = "def more(numbers, limit):", asked: str = _ASKED, body: str = _BODY) -> str:
    """A good function, or with another part a bad one."""
    return f"{head}\n    {asked}\n{body}" if asked else f"{head}\n{body}"


def within(code: str) -> str:
    """A function as a method."""
    return "class Box(Base):\n" + "".join(f"    {line}\n" for line in code.splitlines())


# What a file with one function is dropped for.
DROPPED = {
    "no docstring": function(asked=""),
    "docstring says too little": function(asked='"""Sum of numbers."""'),
    "docstring refers to something else": function(asked='"""See the base class for what this does with numbers."""'),
    "docstring of unfinished or old code": function(asked='"""Return the sum of all large numbers. Deprecated since 3.1."""'),
    "docstring is a template": function(asked='"""Return the %(what)s of all numbers above the limit."""'),
    "docstring is not in English": function(asked='"""Возвращает сумму всех чисел списка больше предела."""'),
    "docstring too long": function(asked='"""Return the sum of the large numbers.' + "\n    more" * 40 + '\n    """'),
    "trivial body": function(body="    raise NotImplementedError\n"),
    "special method": function("def __add__(numbers, limit):"),
    "overload": "from typing import overload\n\n\n@overload\n" + function(),
    "half of a property or dispatch": within("@more.setter\n" + function()),
    "test or main program": function("def test_more(numbers, limit):"),
    "one line": "def more(a): 'Return a number that is twice as large.'; b = a * 2 + 1; c = b - 1; return c + 0 * b + a * 0\n",
    "function too long": function(body="".join(f"    numbers[{at}] += limit\n" for at in range(70))),
    "fence in the code": function(asked='"""Return the sum of all numbers above the limit.\n\n    ```\n    more([1])\n    ```\n    """'),
    "needs the rest of its package": "from . import limit\n\n\n" + function("def more(numbers):"),
    "uses names of nowhere": function("def more(numbers):"),
    "needs the state of its module": "limit = 0\nlimit += 1\n\n\n" + function("def more(numbers):"),
    "needs a long table": "limit = (\n" + "    1,\n" * 9 + ")\n\n\n" + function("def more(numbers):"),
    "needs what its class inherits": within(function("def more(self, numbers):", body=_BODY.replace("limit", "self.limit"))),
    "needs much else of its file": "\n".join(f"def h{at}():\n    return {at}\n" for at in range(9))
    + function("def more(numbers):", body=_BODY.replace("limit", "h0() + h1() + h2() + h3()")),
    "decorator of its own file": "def kept(one):\n    return one\n\n\n@kept\n" + function(),
    "request that does not tell enough": function(body=_BODY.replace("number > limit", "number.quux_level > limit")),
    "string that changes with its indentation": within(function(body=_BODY + '    return """\n        inner\n        """\n')),
    "class of another layout": within(function()).replace("(Base)", "(\n    Base)"),
}  # fmt: skip


# Files as bytes, and what they are dropped for as a whole.
FILES: dict[str, tuple[bytes, str]] = {
    "broken.py": (b"def f(:\n", "unparsable Python"),
    "nul.py": (b"x = 1\0\n", "unparsable Python"),
    "utf16.py": ("x = 1\n".encode("utf-16"), "unknown encoding"),
    "wrong.py": (b"# coding: utf-8\nx = '\xff'\n", "unknown encoding"),
    "unknown.py": (b"# coding: klingon\nx = 1\n", "unknown encoding"),
    "rot.py": (b"# coding: rot13\nk = 1\n", "unknown encoding"),
    "slow.py": (b"# coding: punycode\n" + b"x" * 99, "unknown encoding"),
    "deep.py": (b"x = " + b"(" * 5000 + b")" * 5000, "unparsable Python"),
    "sum.py": (b"x = " + b"1+" * 200_000 + b"1\n", "unparsable Python"),
    "large.py": (b"x = [\n" + b"    1000000,\n" * 900_000 + b"]\n", "file too large"),
    "made.py": (b'"""Automatically generated, do not edit."""\n' + function().encode(), "generated file"),
    "blank.py": (b" \n\n", "empty"),
    "test_it.py": (function().encode(), "test file"),
    "page.js": (b"let x = 1\n", "not Python"),
}

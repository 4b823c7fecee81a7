"""Gaps in code: where a function gets its hole, and how much room a hole has in a row.

Holes are HumanEval-Infilling's (Bavarian et al. 2022): a line of the body, some whole lines, or a span that begins and ends anywhere.
A model that infills is told a length, not the text's own: `eval` tries INFILL_LENGTHS. So a hole is followed by its end
and pads up to the next of those lengths, as an answer is in a chat; longer ones go on in steps of the last.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dcoder_cli.data.code_files import parse
from dcoder_cli.data.code_functions import CodeFunction, body_of, first_line, same

INFILL_LENGTHS = (8, 16, 32, 64)  # ours: the gap's tokens are not told, the likeliest of these lengths is taken
# Values of `eligible` in rows: the answer (of a gap: in it), and behind a text with a gap, where there is nothing and nothing
# looks; 0 is what was given.
TAUGHT, ABSENT = 1, 2
_MOST_LINES = 12  # of a hole (ours): 95% of the benchmark's have no more


class Gap(NamedTuple):
    """A text with a gap: what stands before, in and after it."""

    prefix: str
    hole: str
    suffix: str


def room(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The places that holes of these lengths take in their rows."""
    last = INFILL_LENGTHS[-1]
    steps = np.array(INFILL_LENGTHS)
    small = steps[np.minimum(np.searchsorted(steps, lengths), len(steps) - 1)]
    return np.where(lengths <= last, small, -(-lengths // last) * last)


def cut(found: CodeFunction, digest: int) -> Gap | None:
    """A function with a hole in its body, chosen by `digest`; None where it has too few lines for one.

    The function stands as its file has it, after what goes with it; a method behind the line of its class.
    """
    lines = found.text.split("\n")
    at = first_line(found.node)
    first = body_of(found.node)[0].lineno - at
    body = range(first, len(lines))
    full = [line for line in body if lines[line].strip()]
    if len(full) < 3:
        return None
    head = f"{found.before}\n\n\n" if found.before else ""
    if found.within:
        head, lines = f"{head}{found.within}\n", [f"    {line}" if line else "" for line in lines]
    kind, digest = digest % 3, digest // 3
    begin = full[digest % len(full)]
    digest //= len(full)
    if kind == 0:
        end = begin
    elif kind == 1:
        later = [line for line in full if begin <= line < begin + _MOST_LINES]
        end = later[digest % len(later)]
    else:
        return _span(head, lines, begin, [line for line in full if begin <= line < begin + _MOST_LINES], digest)
    before, hole, after = lines[:begin], lines[begin : end + 1], lines[end + 1 :]
    return Gap(head + _ended(before), _ended(hole), _ended(after))


def _ended(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _span(head: str, lines: list[str], begin: int, later: list[int], digest: int) -> Gap | None:
    """A hole from within one line to within another (or the same)."""
    end = later[digest % min(3, len(later))]  # the benchmark's spans are short
    digest //= 3
    indent = len(lines[begin]) - len(lines[begin].lstrip())
    width = len(lines[begin]) - indent
    start = indent + digest % width
    digest //= width
    first = start + 1 if begin == end else len(lines[end]) - len(lines[end].lstrip()) + 1
    stop = first + digest % max(1, len(lines[end]) - first + 1)
    hole = (
        lines[begin][start:stop]
        if begin == end
        else "\n".join([lines[begin][start:], *lines[begin + 1 : end], lines[end][:stop]])
    )
    if not hole.strip():
        return None
    prefix = head + _ended(lines[:begin]) + lines[begin][:start]
    return Gap(prefix, hole, lines[end][stop:] + "\n" + _ended(lines[end + 1 :]))


def remade(gap: Gap, found: CodeFunction) -> bool:
    """Whether the parts make the function again, its class's indentation included."""
    tree = parse("".join(gap))
    if tree is None:
        return False
    last = tree.body[-1]
    node = last.body[-1] if found.within and isinstance(last, ast.ClassDef) else last
    return same(node, found.node)

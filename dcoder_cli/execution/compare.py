"""When an answer counts as right: equality, closeness of floats, and the named oracles of the benchmarks.

Runs on the trusted side, on values decoded from exact builtin types: `==` here never calls the candidate's code.
The rules follow the published EvalPlus protocol, so that verdicts agree with its evaluator.
This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, DecimalException
from typing import Any

from dcoder_cli.execution import codec

RELATIVE = 1e-7  # EvalPlus: numpy.testing.assert_allclose's default
FLOAT_TOLERANCE = 1e-6  # EvalPlus: once floats are expected and the task names no tolerance of its own

Oracle = Callable[[list[Any], Any, Any, float], bool | None]


class Comparison:
    """Compares one group of answers in order. The tolerance, once floats were expected, stays for the rest."""

    def __init__(self, oracle: str, tolerance: float) -> None:
        self._oracle = ORACLES[oracle]
        self._tolerance = tolerance

    @property
    def text_suffices(self) -> bool:
        """Whether an answer with the very same encoding as the expected one is right without looking further."""
        return self._oracle is not _polynomial_root

    def expects(self, expected: Any) -> None:
        """Take note of an expected value: floats switch the tolerance on."""
        if self._tolerance == 0 and _is_floats(expected):
            self._tolerance = FLOAT_TOLERANCE

    def expects_text(self, encoded: bytes) -> None:
        """`expects` for an encoded value: decodes it only where its first number is a float."""
        first = encoded[:100].removeprefix(b'{"t":').lstrip(b"[").partition(b",")[0]
        if self._tolerance == 0 and any(mark in first for mark in (b".", b"e", b"I", b"N")):
            self.expects(codec.loads(encoded))

    def right(self, arguments: list[Any], answer: Any, expected: Any) -> bool:
        """Whether `answer` is right for `arguments`. Errors in comparing count as wrong."""
        try:
            verdict = self._oracle(arguments, answer, expected, self._tolerance)
            if self._oracle in _FINAL:
                return bool(verdict)
            exact = bool(answer == expected) if verdict is None else verdict
            self.expects(expected)
            if exact or self._tolerance == 0:
                return exact
            return type(answer) is type(expected) and _close(answer, expected, self._tolerance)
        except Exception:
            return False


def same_output(written: str, expected: str) -> bool:
    """Whether a program's output is right: line by line, blanks at line ends and blank lines at the end apart."""
    return _lines(written) == _lines(expected)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def same_numbers(written: str, expected: str) -> bool:
    """`same_output` with blanks before lines apart too, and lines that hold equal numbers: "1.50 2" is "1.5 2.0".

    Numbers are compared as decimals, exactly: this is LiveCodeBench's rule, which knows no closeness.
    """
    one, other = ([line.strip() for line in text.strip().split("\n")] for text in (written, expected))
    return len(one) == len(other) and all(map(_same_line, one, other))


def _same_line(line: str, expected: str) -> bool:
    if line == expected:
        return True
    try:
        return [Decimal(word) for word in line.split()] == [Decimal(word) for word in expected.split()]
    except (DecimalException, ValueError):
        return False


OUTPUTS: dict[str, Callable[[str, str], bool]] = {"lines": same_output, "numbers": same_numbers}


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(answer: Any, expected: Any, tolerance: float) -> bool:
    """Elementwise |answer - expected| <= tolerance + RELATIVE |expected| over numbers in equal shapes; NaN is unequal."""
    if isinstance(expected, (list, tuple)):
        if not isinstance(answer, (list, tuple)) or len(answer) != len(expected):
            return False
        return all(_close(one, other, tolerance) for one, other in zip(answer, expected, strict=True))
    if not isinstance(answer, (int, float, complex)) or not isinstance(expected, (int, float, complex)):
        return False
    if answer == expected:
        return True
    difference = abs(answer - expected)
    return math.isfinite(difference) and bool(difference <= tolerance + RELATIVE * abs(expected))


# --- oracles: True or False decides, None leaves it to `==`; closeness is tried after False -------------------------


def _equal(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    return None


def _exactly(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    return bool(answer == expected)


def _same_set(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    return set(answer) == set(expected)


def _not_none(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    """The reference's answer counts as a truth: something or None. A bool is taken as such."""
    something = expected if isinstance(expected, bool) else expected is not None
    return (answer if isinstance(answer, bool) else answer is not None) == something


def _anything(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    return True


def _or_zero(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    return bool(answer == expected or answer == 0)


def _pyramid_surface(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    """Mbpp/581 with the height taken as that of the pyramid, not of its sides."""
    if answer == expected:
        return True
    base, height = arguments
    surface = round(base * base + 2 * base * math.hypot(base / 2, height))
    return bool(abs(answer - surface) <= tolerance)


def _digit_distance(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    """Mbpp/558 with the shorter number filled up with zeros."""
    if answer == expected:
        return True
    one, other = map(str, arguments)
    width = max(len(one), len(other))
    pairs = zip(one.zfill(width), other.zfill(width), strict=True)
    return bool(answer == sum(abs(int(left) - int(right)) for left, right in pairs))


def _polynomial_root(arguments: list[Any], answer: Any, expected: Any, tolerance: float) -> bool | None:
    """HumanEval/32: the answer is a root of the polynomial, whichever."""
    value = sum(coefficient * math.pow(answer, power) for power, coefficient in enumerate(arguments[0]))
    return bool(abs(value) <= tolerance)


_FINAL = (_polynomial_root, _exactly)  # what these say stands: closeness is not tried

ORACLES: dict[str, Oracle] = {
    "equal": _equal,
    "exact": _exactly,
    "same-set": _same_set,
    "not-none": _not_none,
    "anything": _anything,
    "or-zero": _or_zero,
    "pyramid-surface": _pyramid_surface,
    "digit-distance": _digit_distance,
    "polynomial-root": _polynomial_root,
}

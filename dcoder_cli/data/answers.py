"""Numbers in answers, as GSM8K reads them: the last one of a text, and the one a reference answer comes to.

Nothing is evaluated, and nothing is rounded: a number is a Decimal of all its digits, so that none is too long to compare.
"""

from __future__ import annotations

import re
from decimal import Decimal

# A minus is a sign only where nothing it could be subtracted from stands before it: "3-4" ends in 4, "-$4" is -4.
# A full stop begins a fraction only after a space or a bracket: "so...42" ends in 42, "is .5" in 0.5.
_NUMBER = re.compile(r"(?P<sign>(?<![\w)\]}-])[-−])?\$?(?P<digits>\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)")
_GROUPED = re.compile(r"(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d+)?")
_DRESS = re.compile(r"[\s$%.]*")


def last_number(text: str) -> Decimal | None:
    """The last number of a text (GSM8K's flexible match), commas left out of it; None where there is none."""
    last = None
    for found in _NUMBER.finditer(text):
        last = found
    return None if last is None else _decimal(last)


def final_number(answer: str) -> Decimal | None:
    """The number a reference answer comes to: what stands after its last "####", or all of it; None where that is more
    than a number. A list, a range, a fraction or a formula would otherwise teach one of its digits.
    """
    final = answer.rpartition("####")[2].strip()
    found = _NUMBER.match(final)
    if found is None or not _GROUPED.fullmatch(found["digits"]) or not _DRESS.fullmatch(final, found.end()):
        return None
    return _decimal(found)


def _decimal(found: re.Match[str]) -> Decimal:
    number = Decimal(found["digits"].replace(",", ""))
    return number.copy_negate() if found["sign"] else number

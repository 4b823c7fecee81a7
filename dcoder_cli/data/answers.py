r"""Numbers in answers: the one a text ends in, which the reward `math` reads, and the one a reference answer comes to.

Nothing is evaluated, and nothing is rounded: a number is a Decimal of all its digits, or a Fraction, so that none is too
long to compare. The time is linear in the text. How a number may be written, and what was decided where one could doubt:

    thousands   9,500  9{,}500  9,\!500  9\,500  9\ 500  9~500  9'500  9_500, a thin or hard space; 12,34,567 (India); 9.500.000;
                a plain space too, 9 500, where groups of three follow 1 to 3 digits (in a reference it may be a list: refused)
    decimals    9,500.50   9.500,00   42,50; a lone point is a decimal point (9.500 is 9.5), a lone comma before three digits
                groups them (9,500), and before another number of digits is a decimal comma (in a reference: refused)
    lists       1,2,3 and "3-5" end in their last number; 12:30, 1.2.3 and 12/25/2024 are times, versions and dates: no numbers
    fractions   1/2   3 1/2   ½   \frac{1}{2}   \dfrac12   3\frac{1}{2}
    powers      1e3   10^3   10^{-3}   10³   2 \times 10^{3}   2 x 10^3   2^10; an exponent or index of anything else (cm^2,
                m², cm2, x_1) is none
    dress       $9,500   \$9,500   €9,500   5 €   50%   50\%   \text{units}   90^\circ are their number; full-width digits are
                digits; characters without a width are nothing
    symbols     2\sqrt{3}, √2, 2\pi, \pi/2, \frac{\pi}{2}, \frac{x}{2} are numbers that no digits write: none, and neither is what
                stands before them; a lone π is a word
    minus       -5, −5, –5, -\$5, -€5; a sign only where nothing it could be subtracted from stands before it: "3-4" ends in 4
    \boxed{}    the last box that holds a number says the answer, whatever follows it

Words are no numbers: not "twelve", and "5 million" is 5. Nor are inf and nan.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

Number = Decimal | Fraction

_PARTS = 40  # digits of a numerator or denominator; of a longer one no fraction is made
_MOST_POWER = (
    400  # the largest exponent of a base other than 10, and _MOST_TEN of 10: a number that can be written down
)
_MOST_TEN = 9999

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−－﹣‐‑‒–", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u2066\u2067\u2068\u2069\ufeff", None),
        **dict.fromkeys(
            "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", "\u00a0"
        ),
        "，": ",",
        "．": ".",
        "＄": "$",
        "％": "%",
        "／": "/",
        "：": ":",
        "⁄": "/",
        "∕": "/",
        **dict.fromkeys("’‘′´＇", "'"),
        "٬": ",",
        "٫": ".",
        "×": "*",
        "·": "*",
        "⋅": "*",
    }
)
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5", "⅙": "1/6",
    "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_SPLIT = re.compile(f"(?P<after>(?<=\\d))?[{''.join(_VULGAR)}]")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
# What LaTeX and HTML write for a separator or a sign. A line break, "\\", is taken first, so that its second stroke begins nothing.
_TYPESET = re.compile(
    r"(?P<line>\\\\)|(?P<comma>(?:\\(?:mathord|mathpunct|mathrm|text))?\{,\})"
    r"|(?P<nothing>\\!|\{\}|\\left(?![a-z])|\\right(?![a-z]))|\\(?P<sign>[$%])"
    r"|(?P<times>\\times(?![a-z])|\\cdot(?![a-z]))|(?P<over>\\over(?![a-z]))"
    r"|(?P<space>\{\\[,;: ]\}|\\[,;:> ]|\\thinspace(?![a-z])|~|&(?:nbsp|thinsp|#160|#8239);)"
)
_REPLACED = {"line": "\n", "comma": ",", "nothing": "", "times": "*", "over": "/", "space": "\u00a0"}

# Digits with single separators between them; `_last_of` says what number that is. Possessive: no run is read twice.
_RUN = r"\d++(?:[.,'_\u00a0 ]\d++)*+|(?<![\w.])\.\d++"
_PART = r"-?\d++(?:[.,\u00a0]\d++)*+"
_CURRENCY = "$€£¥₹₩₽₺₪₫₱₴₦฿¢"
_RAISE = r"[ ]?(?:\^|\*\*)[ ]?"
_BRACED = r"\{(?:[^{}\n]|\{[^{}\n]{0,64}\}){0,64}\}"
_TOKEN = re.compile(
    rf"""
    (?P<symbol> (?:\d[\d.,]*+[ ]?\*?[ ]?)?+ (?:
          \\sqrt(?![A-Za-z])[ ]?(?:\[[^\]\n]{{0,16}}\])?(?:{_BRACED}|\d)?+ | √[ ]?(?:\d++|{_BRACED})?+
        | \\pi(?![A-Za-z]) | π
        | \\[dtc]?frac[ ]?(?!\{{[ ]?{_PART}[ ]?\}}[ ]?\{{[ ]?{_PART}[ ]?\}}){_BRACED}[ ]?{_BRACED} ) (?:[ ]?/[ ]?\d++)?+ )
    | (?P<skip> \^[ ]?(?:\{{[^{{}}\n]{{0,64}}\}}|[-+]?\d++) | (?<=[A-Za-z)}}\]])_(?:\{{[^{{}}\n]{{0,64}}\}}|\d++)
        | (?<![A-Za-z])(?:[cdkmµ]?m|ft|yd|mi)[23](?!\w) )
    | (?P<sign>(?<![\w)\]}}-])-)?+ [{_CURRENCY}]?+ (?:
        (?:(?P<whole>\d++)[ ]?)?+ \\[dtc]?frac[ ]?
            (?:\{{[ ]?(?P<upper>{_PART})[ ]?\}}|(?P<up>\d)) [ ]? (?:\{{[ ]?(?P<lower>{_PART})[ ]?\}}|(?P<low>\d))
        | (?P<run>{_RUN})
          (?: (?P<exponent>[eE][+-]?\d++(?!\w))
            | (?P<colons>(?::\d++)++)
            | {_RAISE}(?:\{{[ ]?(?P<power>-?\d++)[ ]?\}}|(?P<bare>-?\d++))
            | [ ]?[*x][ ]?10{_RAISE}(?:\{{[ ]?(?P<ten>-?\d++)[ ]?\}}|(?P<tens>-?\d++))
            | (?P<over>(?:[ ]?/[ ]?-?\d++(?:[.,]\d++)*+)++) )?+
      )
    """,
    re.VERBOSE,
)
_DRESS = re.compile(
    rf"(?:[\s{_CURRENCY}%.*}}°]|"
    r"\\[)\]]|\^[ ]?(?:\\circ|\{[ ]?\\circ[ ]?\})|\\(?:text|mathrm|textbf)[ ]?\{[^{}]{0,64}\}(?:\^\{?\d\}?)?)*+"
)
_OPENING = re.compile(r"(?:[\s*]|\+(?=\d)|\\[(\[]|\$(?=[^$]*\$\s*$))*+")


def last_number(text: str) -> Number | None:
    """The number a text ends in: the last in its last `\\boxed{}`, else in all of it; None where there is none."""
    box = _boxed(text)
    found = None if box is None else _last(_plain(box))
    return _last(_plain(text)) if found is None else found


def final_number(answer: str) -> Number | None:
    """The number a reference answer comes to: what stands after its last "####", or all of it; None where that is more
    than a number. A list, a range, a unit in words or a formula would otherwise teach one of its digits.
    """
    final = answer.rpartition("####")[2].strip()
    box = _boxed(final)
    if box is not None and final.startswith(("\\boxed", "$\\boxed", "\\fbox")):
        final = box
    final = _plain(final).strip()
    opening = _OPENING.match(final)
    found = _TOKEN.match(final, opening.end() if opening else 0)
    if found is None or found["skip"] or found["symbol"] or _DRESS.fullmatch(final, found.end()) is None:
        return None
    number, whole = _value(found)
    run = found["run"] or ""
    decimal_comma = run.count(",") == 1 and "." not in run and number is not None and abs(number) != _grouped(run)
    listed = " " in run and not (found["over"] and run.count(" ") == 1)
    return number if whole and not decimal_comma and not listed else None


def written(number: Number) -> str:
    """A number so that `final_number` reads it again: all its digits, or numerator/denominator."""
    return f"{number:f}" if isinstance(number, Decimal) else str(number)


def _grouped(run: str) -> Decimal | None:
    return Decimal(run.replace(",", "")) if run.replace(",", "").isdecimal() else None


def _boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{}` of a text, to its closing brace; None where there is no box."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    opened = text.find("{", start)
    if opened < 0 or text[start:opened].strip() not in ("\\boxed", "\\fbox"):
        return None
    depth = 0
    for brace in re.finditer(r"[{}]", text[opened:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[opened + 1 : opened + brace.start()]
    return text[opened + 1 :]


def _plain(text: str) -> str:
    """A text with one character for each that means the same, and without LaTeX's spacing."""
    text = _RAISED.sub(lambda found: f"^{{{found.group().translate(_LOWERED)}}}", text)
    text = _SPLIT.sub(lambda found: (" " if found["after"] is not None else "") + _VULGAR[found.group()], text)
    text = _TYPESET.sub(lambda found: found["sign"] or _REPLACED[found.lastgroup or ""], text)
    return text.translate(_CHARACTERS)


def _last(text: str) -> Number | None:
    """The last number of a plain text. Tokens are remembered and valued from the end, until one has a value."""
    for found in reversed([match for match in _TOKEN.finditer(text) if not match["skip"]]):
        if found["symbol"]:
            if found["symbol"] in ("π", "\\pi"):  # a word of the text
                continue
            return None
        number, _ = _value(found)
        if number is not None:
            return number
    return None


def _value(found: re.Match[str]) -> tuple[Number | None, bool]:
    """A token's number, or None; and whether it is all of the token rather than the last of several."""
    negative = bool(found["sign"])
    if found["run"] is None:
        upper, lower = _signed(found["upper"] or found["up"]), _signed(found["lower"] or found["low"])
        return _with_sign(_fraction(found["whole"], upper, lower), negative), True
    if found["colons"]:
        return None, False
    last, before = _last_of(found["run"])
    if last is None:
        return None, False
    number: Number | None = last
    if found["over"]:
        parts = found["over"].split("/")[1:]
        lower = _signed(parts[0].strip())
        if len(parts) > 1 or lower is None:
            return None, False
        proper = before is not None and last < lower
        whole = before if proper else None
        number = _fraction(whole, last, lower)
        before = None if proper and before is not None and before.isdecimal() else before
    elif found["exponent"] or found["ten"] or found["tens"]:
        number = _shifted(last, found["exponent"][1:] if found["exponent"] else found["ten"] or found["tens"])
    elif found["power"] or found["bare"]:
        number = _raised(last, found["power"] or found["bare"])
    return _with_sign(number, negative and before is None), before is None


def _with_sign(number: Number | None, negative: bool) -> Number | None:
    if number is None or not negative:
        return number
    return number.copy_negate() if isinstance(number, Decimal) else -number


def _signed(text: str) -> Decimal | None:
    number, before = _last_of(text.removeprefix("-"))
    if number is None or before is not None:
        return None
    return number.copy_negate() if text.startswith("-") else number


def _fraction(whole: str | None, upper: Decimal | None, lower: Decimal | None) -> Fraction | None:
    """`whole upper/lower`; None where a part is missing, 0 below, or longer than anyone writes one."""
    if upper is None or lower is None or not lower:
        return None
    if any(len(part) > _PARTS for part in (f"{upper:f}", f"{lower:f}", whole or "")):
        return None
    fraction = Fraction(upper) / Fraction(lower)
    if whole is None:
        return fraction
    return Fraction(whole) + fraction if whole.isdecimal() else None


def _shifted(number: Decimal, power: str) -> Decimal | None:
    """`number` times 10 to a power that can still be written out."""
    if len(power) > 6 or abs(int(power)) > _MOST_TEN:
        return None
    sign, digits, place = number.as_tuple()
    assert isinstance(place, int)
    return Decimal((sign, digits, place + int(power)))


def _raised(number: Decimal, power: str) -> Decimal | None:
    """10 to a power, or a small whole number to a small one: a way to write a number, no arithmetic to be done."""
    if number == 10:
        return _shifted(Decimal(1), power)
    if len(power) > 3 or number >= 10_000 or not 0 <= int(power) <= _MOST_POWER or number != int(number):
        return None
    return Decimal(int(number) ** int(power))


_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})*,\d{3}|[1-9]\d{0,2}(?:'\d{3})+|[1-9]\d{0,2}(?:_\d{3})+")
_SPACED = re.compile(r"\d{3}(?:[.,]\d+)?")


def _last_of(run: str) -> tuple[Decimal | None, str | None]:
    """The last number of digits with separators, and the token before it where it is not all of the run."""
    tokens = run.replace("\u00a0", " ").split(" ")
    first = len(tokens) - 1
    if first and _SPACED.fullmatch(tokens[-1]) and not re.fullmatch(r"\d{3},\d{3}", tokens[-1]):
        place = first - 1
        while place > 0 and len(tokens[place]) == 3 and tokens[place].isdecimal():
            place -= 1
        if len(tokens[place]) <= 3 and tokens[place].isdecimal() and not _is_zero(tokens[place][0]):
            first = place
    if first == len(tokens) - 1:
        number, alone = _of_token(tokens[-1])
        before = tokens[-2] if len(tokens) > 1 else (None if alone else "")
        return number, before
    joined = Decimal("".join(tokens[first:]).replace(",", "."))
    return joined, tokens[first - 1] if first else None


def _of_token(token: str) -> tuple[Decimal | None, bool]:
    """The number of digits with separators other than spaces, and whether it is all of them; None for a version."""
    marks = {mark for mark in ".,'_" if mark in token}
    if not marks or (marks == {"."} and token.count(".") == 1):
        return Decimal(token), True
    if len(marks) == 1:
        (mark,) = marks
        parts = token.split(mark)
        if mark == ".":
            grouped = len(parts[0]) <= 3 and not _is_zero(parts[0][0]) and all(len(part) == 3 for part in parts[1:])
            return (Decimal("".join(parts)), True) if parts[0] and grouped else (None, False)
        if _THOUSANDS.fullmatch(token) and not (mark == "," and len(parts) == 2 and _is_zero(parts[0][0])):
            return Decimal("".join(parts)), True
        if mark == "," and len(parts) == 2:
            return Decimal(".".join(parts)), True
        return Decimal(parts[-1]), False
    last = max(".,", key=token.rfind)
    front, _, back = token.rpartition(last)
    if token.count(last) == 1 and len(marks) == 2:
        group = front.replace(".", ",")
        if _THOUSANDS.fullmatch(group):
            return Decimal(f"{re.sub('[^0-9]', '', _ascii(front))}.{back}"), True
    if "," in marks:
        return _of_token(token.rpartition(",")[2])[0], False
    return None, False


def _is_zero(digit: str) -> bool:
    return int(digit) == 0


def _ascii(digits: str) -> str:
    """Decimal digits of any script as 0 to 9."""
    return "".join(str(int(one)) if one.isdecimal() else one for one in digits)

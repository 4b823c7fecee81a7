"""What the micro tasks ask for: operations with their code and wordings, and how each family puts them together.

A draw is code over the placeholder arguments `x` and `y` plus words about `{x}` and `{y}`; `micro.py` gives it names,
tests and a split. All constants are ours: small enough for a model of a few million parameters to copy, many enough
that a table of answers does not help.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Operation:
    """One operation: code and words over `{x}`, `{y}` and the constants `{c}`, `{d}`.

    Attributes:
        code: a Python expression.
        nouns: names for its value ("{x} plus {c}").
        orders: the same as an order about `{x}` ("add {c} to {x}"); empty where it cannot be one of several steps.
        low, high: range of the integer constant `{c}`.
        binds: how tightly the code's outermost operator binds: "sum", "term" or "atom"; decides about parentheses.
    """

    code: str
    nouns: tuple[str, ...]
    orders: tuple[str, ...] = ()
    low: int = 2
    high: int = 99
    binds: str = "atom"


@dataclass(frozen=True)
class Draw:
    """A task before it has names.

    Attributes:
        kind: of its arguments.
        body: lines of the function.
        words: what it computes; `steps`: whether as orders ("add 3 to x").
        made_of: codes of the operations that it puts together, where there are several.
    """

    kind: str
    body: tuple[str, ...]
    words: str
    steps: bool = False
    made_of: tuple[str, ...] = ()


NUMBER = (
    Operation(
        "{x} + {c}",
        ("{x} plus {c}", "the sum of {x} and {c}", "{x} increased by {c}", "{c} more than {x}"),
        ("add {c} to {x}", "increase {x} by {c}"),
        binds="sum",
    ),
    Operation(
        "{x} - {c}",
        ("{x} minus {c}", "{x} decreased by {c}", "{c} less than {x}"),
        ("subtract {c} from {x}", "decrease {x} by {c}"),
        binds="sum",
    ),
    Operation("{c} - {x}", ("{c} minus {x}", "what is left of {c} after taking away {x}"), binds="sum"),
    Operation(
        "{x} * {c}",
        ("{x} times {c}", "the product of {x} and {c}", "{x} multiplied by {c}"),
        ("multiply {x} by {c}", "scale {x} by {c}"),
        high=49,
        binds="term",
    ),
    Operation(
        "{x} // {c}",
        ("{x} floor-divided by {c}", "{x} divided by {c} and rounded down"),
        ("floor-divide {x} by {c}", "divide {x} by {c} and round down"),
        high=49,
        binds="term",
    ),
    Operation(
        "{x} % {c}",
        ("{x} modulo {c}", "the remainder of {x} divided by {c}"),
        ("take {x} modulo {c}", "take the remainder of {x} divided by {c}"),
        high=49,
        binds="term",
    ),
    Operation(
        "max({x}, {c})",
        ("the larger of {x} and {c}", "the maximum of {x} and {c}"),
        ("take the larger of {x} and {c}", "take the maximum of {x} and {c}"),
    ),
    Operation(
        "min({x}, {c})",
        ("the smaller of {x} and {c}", "the minimum of {x} and {c}"),
        ("take the smaller of {x} and {c}", "take the minimum of {x} and {c}"),
    ),
    Operation("abs({x} - {c})", ("the distance between {x} and {c}", "the absolute difference of {x} and {c}")),
)

QUESTION = (
    Operation("{x} > {c}", ("{x} is greater than {c}", "{x} is more than {c}", "{x} exceeds {c}")),
    Operation("{x} < {c}", ("{x} is less than {c}", "{x} is below {c}", "{x} is smaller than {c}")),
    Operation("{x} == {c}", ("{x} equals {c}", "{x} is equal to {c}")),
    Operation("{x} % {c} == 0", ("{x} is divisible by {c}", "{x} is a multiple of {c}"), high=29),
)

PAIR = (
    Operation("{x} + {y} + {c}", ("the sum of {x}, {y} and {c}", "{x} plus {y} plus {c}")),
    Operation("{x} + {y} - {c}", ("the sum of {x} and {y} minus {c}", "{c} less than the sum of {x} and {y}")),
    Operation("{x} - {y} + {c}", ("{x} minus {y} plus {c}", "{c} more than the difference {x} minus {y}")),
    Operation("{x} * {y} + {c}", ("the product of {x} and {y} plus {c}", "{c} more than {x} times {y}")),
    Operation("{x} * {y} - {c}", ("the product of {x} and {y} minus {c}", "{c} less than {x} times {y}")),
    Operation("{x} + {y} * {c}", ("{x} plus {c} times {y}", "the sum of {x} and {c} times {y}")),
    Operation("{x} - {y} * {c}", ("{x} minus {c} times {y}", "{x} decreased by {c} times {y}")),
    Operation("({x} + {y}) * {c}", ("{c} times the sum of {x} and {y}", "the sum of {x} and {y}, multiplied by {c}")),
    Operation("({x} - {y}) * {c}", ("{c} times the difference {x} minus {y}", "{x} minus {y}, all multiplied by {c}")),
    Operation("({x} + {y}) % {c}", ("the sum of {x} and {y} modulo {c}", "{x} plus {y}, all modulo {c}"), high=49),
    Operation(
        "max({x}, {y}) + {c}", ("the larger of {x} and {y} plus {c}", "{c} more than the maximum of {x} and {y}")
    ),
    Operation(
        "min({x}, {y}) - {c}", ("the smaller of {x} and {y} minus {c}", "{c} less than the minimum of {x} and {y}")
    ),
    Operation(
        "{x} + {y} > {c}", ("whether the sum of {x} and {y} is greater than {c}", "whether {x} plus {y} exceeds {c}")
    ),
    Operation("{x} - {y} < {c}", ("whether {x} minus {y} is less than {c}", "whether {x} minus {y} is below {c}")),
)

# `{c}` is a small count, `{w}` a short string, `{a}` and `{b}` single letters.
TEXT = (
    Operation('{x} + "{w}"', ('{x} with "{w}" at the end', '{x} followed by "{w}"'), ('append "{w}" to {x}',)),
    Operation('"{w}" + {x}', ('{x} with "{w}" in front', '"{w}" followed by {x}'), ('put "{w}" in front of {x}',)),
    Operation(
        "{x}.upper() * {c}",
        ("{x} in capitals repeated {c} times", "{c} copies of {x} in capitals"),
        ("put {x} in capitals and repeat it {c} times",),
        high=29,
    ),
    Operation("{x}[{c}:]", ("{x} without its first {c} characters",), ("drop the first {c} characters of {x}",), 1, 15),
    Operation("{x}[:{c}]", ("the first {c} characters of {x}",), ("keep the first {c} characters of {x}",), 1, 15),
    Operation("{x}[-{c}:]", ("the last {c} characters of {x}",), ("keep the last {c} characters of {x}",), 1, 15),
    Operation(
        '{x}.replace("{a}", "{b}")',
        ('{x} with every "{a}" replaced by "{b}"', '{x} with "{b}" in place of each "{a}"'),
        ('replace every "{a}" in {x} by "{b}"',),
    ),
    Operation(
        '{x}.count("{a}") + {c}', ('the number of "{a}" in {x} plus {c}', '{c} more than the count of "{a}" in {x}')
    ),
    Operation('{x}.startswith("{w}")', ('whether {x} starts with "{w}"', 'True exactly when {x} begins with "{w}"')),
    Operation('{x}.endswith("{w}")', ('whether {x} ends with "{w}"', 'True exactly when {x} has "{w}" at its end')),
    Operation('"{w}" in {x}', ('whether {x} contains "{w}"', 'True exactly when "{w}" occurs in {x}')),
    Operation("len({x}) - {c}", ("the length of {x} minus {c}", "{c} less than the length of {x}")),
    Operation("{c} - len({x})", ("{c} minus the length of {x}", "{c} decreased by the length of {x}")),
)

LIST = (
    Operation(
        "[n + {c} for n in {x}]", ("a list with {c} added to each number of {x}",), ("add {c} to each number of {x}",)
    ),
    Operation(
        "[n * {c} for n in {x}]",
        ("a list of the numbers of {x} times {c}",),
        ("multiply each number of {x} by {c}",),
        high=49,
    ),
    Operation(
        "[n for n in {x} if n > {c}]",
        ("the numbers of {x} greater than {c}", "a list of the numbers of {x} above {c}"),
        ("keep the numbers of {x} greater than {c}",),
    ),
    Operation(
        "[n for n in {x} if n < {c}]",
        ("the numbers of {x} less than {c}", "a list of the numbers of {x} below {c}"),
        ("keep the numbers of {x} less than {c}",),
    ),
    Operation("{x} + [{c}]", ("{x} with {c} at the end", "the list {x} followed by {c}"), ("append {c} to {x}",)),
    Operation("[{c}] + {x}", ("{x} with {c} in front", "{c} followed by the list {x}"), ("put {c} in front of {x}",)),
    Operation("sum({x}) + {c}", ("the sum of the numbers of {x} plus {c}", "{c} more than the sum of {x}")),
    Operation("sum({x}) * {c}", ("the sum of the numbers of {x} times {c}", "{c} times the sum of {x}")),
    Operation("len({x}) + {c}", ("the length of {x} plus {c}", "{c} more than the number of elements of {x}")),
    Operation("{x}.count({c})", ("how often {c} occurs in {x}", "the count of {c} in {x}")),
    Operation("{c} in {x}", ("whether {x} contains {c}", "True exactly when {c} is in {x}")),
    Operation(
        "sum({x}) > {c}",
        ("whether the sum of {x} is greater than {c}", "True exactly when the numbers of {x} add up to more than {c}"),
    ),
    Operation("max({x}) - {c}", ("the largest number of {x} minus {c}", "{c} less than the maximum of {x}")),
    Operation("min({x}) + {c}", ("the smallest number of {x} plus {c}", "{c} more than the minimum of {x}")),
)

WORDS = """
    ab ad al an ar as at be by co da de di do ed el em en er ex go ha he hi id in ion ing is it ka la le li lo ma
    me mi mo my na ne no nu of on or os ot ox pa pe pi po qua ra re ri ro sa se si so sta str ta te the ti to tra
    tri tu un up us ve vi we
""".split()  # noqa: SIM905
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _filled(operation: Operation, random: Random, text: str) -> tuple[str, str]:
    """The operation's code and `text` with the same fresh constants; `{x}` and `{y}` stay."""
    a, b = random.sample(LETTERS, 2)
    word, number = random.choice(WORDS), random.randint(operation.low, operation.high)
    constants = {"c": number, "w": word, "a": a, "b": b, "x": "{x}", "y": "{y}"}
    return operation.code.format(**constants), text.format(**constants)


def value_draw(operations: tuple[Operation, ...], kind: str, random: Random) -> Draw:
    """One of the operations on the arguments."""
    operation = random.choice(operations)
    code, words = _filled(operation, random, random.choice(operation.nouns))
    return Draw(kind, (f"return {code}",), words)


def _condition(random: Random, operations: tuple[Operation, ...] = QUESTION) -> tuple[Operation, str, str]:
    operation = random.choice(operations)
    return operation, *_filled(operation, random, random.choice(operation.nouns))


def _constant(random: Random) -> Draw:
    if random.random() < 0.3:
        _, code, words = _condition(random)
        return Draw("number", (f"return {code}",), random.choice(("whether ", "True exactly when ")) + words)
    return value_draw(NUMBER, "number", random)


def _branch(random: Random) -> Draw:
    question, code, condition = _condition(random, tuple(one for one in QUESTION if not one.code.endswith("== {c}")))
    first, second = random.sample(NUMBER[:6], 2)
    (yes, yes_words), (no, no_words) = (
        _filled(operation, random, random.choice(operation.nouns)) for operation in (first, second)
    )
    template = random.choice(
        (
            "{yes} if {condition}, otherwise {no}",
            "{yes} when {condition} and {no} otherwise",
            "{yes} if {condition}, else {no}",
        )
    )
    words = template.replace("{condition}", condition).replace("{yes}", yes_words).replace("{no}", no_words)
    body = (f"if {code}:", f"    return {yes}", f"return {no}")
    return Draw("number", body, words, made_of=(question.code, first.code, second.code))


def _compose(random: Random) -> Draw:
    kind, operations = random.choice((("number", NUMBER), ("number", NUMBER), ("text", TEXT), ("list", LIST)))
    first, second = random.sample([operation for operation in operations if operation.orders], 2)
    inner, inner_words = _filled(first, random, random.choice(first.orders))
    outer, outer_words = _filled(second, random, random.choice(second.orders))
    wraps = (
        kind == "text" and not inner.endswith((")", "]")) and outer.startswith("{x}") and not outer.startswith("{x} +")
    )
    if wraps or (first.binds == "sum" and second.binds == "term"):
        inner = f"({inner})"
    joint = random.choice(("the result", "that"))
    words = random.choice(("first {}, then {}", "{} and then {}")).format(
        inner_words, outer_words.replace("{x}", joint)
    )
    body = (f"return {outer.replace('{x}', inner)}",)
    return Draw(kind, body, words, steps=True, made_of=(first.code, second.code))


# family -> level, how to draw one, whether the names are simple, copied (two words and one), or either
FAMILIES: dict[str, tuple[int, Callable[[Random], Draw], str]] = {
    "constant": (1, _constant, "simple"),
    "pair": (2, lambda random: value_draw(PAIR, "pair", random), "simple"),
    "names": (2, _constant, "copied"),
    "text": (3, lambda random: value_draw(TEXT, "text", random), "either"),
    "list": (3, lambda random: value_draw(LIST, "list", random), "either"),
    "branch": (4, _branch, "either"),
    "compose": (5, _compose, "either"),
}

"""The kinds of micro tasks that no training task is of: what the second held-out set, `micro-kinds`, is made of.

A kind is which operations a function puts together. Reserved here are combinations only: each operation in them stands
in training in other company, and so does each piece of their wordings ("{c} less than" and "the maximum of" do, "{c}
less than the maximum of" two numbers does not). A model that has learnt what the words mean can write them; one that
has learnt each question's form by heart cannot. All chosen by hand, ours.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from dcoder_cli.data.micro_families import FAMILIES, LIST, NUMBER, QUESTION, TEXT, Draw, Operation, value_draw

# Steps one after the other, in either order, and branches: a condition with two results, in either order. About one
# combination in six. None of them occurs in the first held-out set (a test says so), so its kinds are all in training.
_RESERVED_CODES = (
    ("{x} - {c}", "max({x}, {c})"),
    ("{x} * {c}", "{x} % {c}"),
    ("{x} % {c}", "min({x}, {c})"),
    ("max({x}, {c})", "min({x}, {c})"),
    ('{x} + "{w}"', "{x}[-{c}:]"),
    ('"{w}" + {x}', "{x}[-{c}:]"),
    ("{x}[{c}:]", '{x}.replace("{a}", "{b}")'),
    ("{x}[:{c}]", '{x}.replace("{a}", "{b}")'),
    ("[n + {c} for n in {x}]", "[{c}] + {x}"),
    ("[n * {c} for n in {x}]", "{x} + [{c}]"),
    ("[n for n in {x} if n > {c}]", "[n for n in {x} if n < {c}]"),
    ("{x} > {c}", "{x} + {c}", "{x} * {c}"),
    ("{x} > {c}", "{x} - {c}", "{x} // {c}"),
    ("{x} > {c}", "{c} - {x}", "{x} // {c}"),
    ("{x} < {c}", "{x} - {c}", "{c} - {x}"),
    ("{x} < {c}", "{x} * {c}", "{x} // {c}"),
    ("{x} % {c} == 0", "{x} + {c}", "{x} * {c}"),
    ("{x} % {c} == 0", "{x} * {c}", "{x} % {c}"),
    ("{x} % {c} == 0", "{x} - {c}", "{c} - {x}"),
)
RESERVED = frozenset(frozenset(codes) for codes in _RESERVED_CODES)
assert frozenset[str]().union(*RESERVED) <= {operation.code for operation in (*NUMBER, *QUESTION, *TEXT, *LIST)}

PAIR_KINDS = (
    Operation("{x} - {y} - {c}", ("{x} minus {y} minus {c}", "{c} less than the difference {x} minus {y}")),
    Operation("({x} - {y}) % {c}", ("the difference {x} minus {y} modulo {c}", "{x} minus {y}, all modulo {c}"), high=49),
    Operation("max({x}, {y}) - {c}", ("the larger of {x} and {y} minus {c}", "{c} less than the maximum of {x} and {y}")),
    Operation("min({x}, {y}) + {c}", ("the smaller of {x} and {y} plus {c}", "{c} more than the minimum of {x} and {y}")),
    Operation("max({x}, {y}) * {c}", ("the maximum of {x} and {y}, multiplied by {c}", "{c} times the larger of {x} and {y}")),
    Operation("{x} * {y} > {c}", ("whether the product of {x} and {y} is greater than {c}", "whether {x} times {y} exceeds {c}")),
    Operation("{x} + {y} < {c}", ("whether the sum of {x} and {y} is less than {c}", "whether {x} plus {y} is below {c}")),
    Operation("{x} - {y} > {c}", ("whether {x} minus {y} is greater than {c}", "whether {x} minus {y} exceeds {c}")),
)  # fmt: skip

TEXT_KINDS = (
    Operation('{x}.count("{a}") - {c}', ('the number of "{a}" in {x} minus {c}', '{c} less than the count of "{a}" in {x}')),
    Operation('{x}.count("{a}") * {c}', ('the number of "{a}" in {x} times {c}', '{c} times the count of "{a}" in {x}')),
    Operation('{c} - {x}.count("{a}")', ('{c} minus the number of "{a}" in {x}', '{c} decreased by the count of "{a}" in {x}')),
    Operation('{x}.upper() + "{w}"', ('{x} in capitals with "{w}" at the end', '{x} in capitals followed by "{w}"')),
    Operation('"{w}" + {x}.upper()', ('{x} in capitals with "{w}" in front', '"{w}" followed by {x} in capitals')),
    Operation("{x}[:{c}].upper()", ("the first {c} characters of {x} in capitals",), (), 1, 15),
    Operation("len({x}) > {c}", ("whether the length of {x} is greater than {c}", "True exactly when the length of {x} exceeds {c}"), high=15),
    Operation("len({x}) * {c}", ("the length of {x} times {c}", "{c} times the length of {x}")),
)  # fmt: skip

LIST_KINDS = (
    Operation("sum({x}) - {c}", ("the sum of the numbers of {x} minus {c}", "{c} less than the sum of {x}")),
    Operation("max({x}) + {c}", ("the largest number of {x} plus {c}", "{c} more than the maximum of {x}")),
    Operation("max({x}) * {c}", ("the largest number of {x} times {c}", "{c} times the maximum of {x}")),
    Operation("min({x}) - {c}", ("the smallest number of {x} minus {c}", "{c} less than the minimum of {x}")),
    Operation("sum({x}) % {c}", ("the sum of the numbers of {x} modulo {c}", "the remainder of the sum of {x} divided by {c}"), high=49),
    Operation("[n - {c} for n in {x}]", ("a list of the numbers of {x} minus {c}",)),
    Operation("[n % {c} for n in {x}]", ("a list of the numbers of {x} modulo {c}",), high=49),
    Operation("sum({x}) < {c}", ("whether the sum of {x} is less than {c}", "True exactly when the numbers of {x} add up to less than {c}")),
    Operation("max({x}) > {c}", ("whether the largest number of {x} is greater than {c}", "True exactly when the maximum of {x} is greater than {c}")),
)  # fmt: skip


def is_reserved(draw: Draw) -> bool:
    """Whether a drawn task puts operations together that training leaves out."""
    return frozenset(draw.made_of) in RESERVED


def _reserved(family: str) -> Callable[[Random], Draw]:
    draw_one = FAMILIES[family][1]

    def draw_reserved(random: Random) -> Draw:
        while True:
            draw = draw_one(random)
            if is_reserved(draw):
                return draw

    return draw_reserved


# As micro_families.FAMILIES: family -> level, how to draw one, the style of its names.
KIND_FAMILIES: dict[str, tuple[int, Callable[[Random], Draw], str]] = {
    "pair": (2, lambda random: value_draw(PAIR_KINDS, "pair", random), "simple"),
    "text": (3, lambda random: value_draw(TEXT_KINDS, "text", random), "either"),
    "list": (3, lambda random: value_draw(LIST_KINDS, "list", random), "either"),
    "branch": (4, _reserved("branch"), "either"),
    "compose": (5, _reserved("compose"), "either"),
}

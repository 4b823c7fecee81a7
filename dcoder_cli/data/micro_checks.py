"""What a micro task's function computes: its canonical form, and tests that wrong solutions fail."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, product
from random import Random
from typing import Any

from dcoder_cli.data.micro_families import LETTERS, WORDS

LAZY_SHARE = 0.25  # of a task's hidden tests, what one constant or an argument given back may pass at most; ours
TESTS = 6  # hidden tests a task has before those added to catch wrong solutions; ours


@lru_cache
def _probes(kind: str) -> tuple[tuple[tuple[Any, ...], ...], tuple[tuple[Any, ...], ...]]:
    """Fixed inputs, one tuple of arguments each: everyday ones to test with, and more to tell close functions apart."""
    random = Random(f"dcoder micro probes {kind}")

    def wide() -> int:
        return random.randint(-20, 120)

    if kind == "number":
        return tuple((value,) for value in range(-12, 112)), tuple((value,) for value in range(112, 2500, 97))
    if kind == "pair":
        sums = tuple((left, total - left) for total in range(104) for left in (wide(),))
        gaps = tuple((left, left - gap) for gap in range(104) for left in (wide(),))
        return tuple((wide(), wide()) for _ in range(24)), sums + gaps + tuple(product((-7, 0, 5), repeat=2))
    if kind == "text":
        usual = tuple("".join(random.choices(LETTERS, k=random.randint(3, 14))) for _ in range(32))
        ends = chain.from_iterable((word + "zq", "zq" + word, "z" + word + "q") for word in WORDS)
        return tuple((text,) for text in usual), tuple(
            (text,) for text in chain(("", LETTERS, LETTERS[::-1] * 2), ends)
        )
    lists = tuple(([wide() for _ in range(random.randint(1, 6))],) for _ in range(32))
    ones = tuple(([value],) for value in range(104))
    return lists, ones + tuple(([part, total - part],) for total in range(104) for part in (random.randint(-9, 60),))


@lru_cache(maxsize=4)
def _function(source: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {}
    exec(compile(source, "<micro>", "exec"), namespace)  # our own generated source
    function: Callable[..., Any] = namespace["f"]
    return function


def fingerprint_of(source: str, kind: str) -> str:
    """Hash of the values of the function `f` in `source` on the fixed inputs: the same for any wording or names."""
    function = _function(source)
    outputs = [function(*given) for given in chain.from_iterable(_probes(kind))]
    return hashlib.sha256(f"{kind}:{outputs!r}".encode()).hexdigest()


_OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub, ast.Mult), ast.Sub: (ast.Add,), ast.Mult: (ast.Add, ast.FloorDiv), ast.Mod: (ast.FloorDiv,),
    ast.FloorDiv: (ast.Mod, ast.Mult), ast.Gt: (ast.GtE, ast.Lt), ast.Lt: (ast.LtE, ast.Gt), ast.Eq: (ast.NotEq,),
}  # fmt: skip
_CALLS = {"max": "min", "min": "max", "sum": "len", "len": "max", "abs": "int"}
_METHODS = {"startswith": "endswith", "endswith": "startswith"}


def _wrong_solutions(source: str) -> Iterator[Callable[..., Any]]:
    """The function with one thing wrong: a constant, an operator, a called function, or the arguments exchanged."""
    for place, node in enumerate(ast.walk(ast.parse(source))):
        for change in _changes(node):
            tree = ast.parse(source)
            for index, target in enumerate(ast.walk(tree)):
                if index == place:
                    change(target)
                    break
            namespace: dict[str, Any] = {}
            exec(compile(tree, "<micro>", "exec"), namespace)
            yield namespace["f"]


def _changes(node: ast.AST) -> Iterator[Callable[[Any], None]]:
    def put(name: str, value: object) -> Callable[[Any], None]:
        return lambda target: setattr(target, name, value)

    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield from (put("value", value) for value in (node.value - 1, node.value + 1, 2 * node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield put("value", node.value + "e")
        yield put("value", node.value[:-1] + ("a" if node.value[-1:] != "a" else "b"))
    elif isinstance(node, ast.BinOp):
        yield from (put("op", other()) for other in _OPERATORS.get(type(node.op), ()))
        if isinstance(node.op, ast.Sub):
            yield lambda target: target.__dict__.update(left=target.right, right=target.left)
    elif isinstance(node, ast.Compare):
        yield from (put("ops", [other()]) for other in _OPERATORS.get(type(node.ops[0]), ()))
    elif isinstance(node, ast.Name) and node.id in _CALLS:
        yield put("id", _CALLS[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in _METHODS:
        yield put("attr", _METHODS[node.attr])


def _outcome(function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    try:
        return function(*given)
    except (ArithmeticError, TypeError, ValueError, IndexError, MemoryError) as error:
        return type(error)


def test_inputs(source: str, kind: str, random: Random) -> list[tuple[Any, ...]] | None:
    """Inputs that tell the function from all its wrong solutions, and last one more to show in the question.

    None where the probes cannot tell it from one of them: then a part of the function has no effect.
    """
    usual, more = _probes(kind)
    function = _function(source)
    *chosen, spare = random.sample(usual, TESTS + 1)
    expected = [function(*given) for given in chosen]
    constants = [lambda *_, value=value: value for value in expected[:1]]
    for wrong in chain(constants, _wrong_solutions(source)):
        if all(_same(wrong, given, value) for given, value in zip(chosen, expected, strict=True)):
            others = (given for given in chain(usual, more) if given != spare)
            found = next((given for given in others if not _same(wrong, given, function(*given))), None)
            if found is None:
                return None
            chosen.append(found)
            expected.append(function(*found))
    return [*chosen, spare]


def _same(function: Callable[..., Any], given: tuple[Any, ...], expected: Any) -> bool:
    try:
        value = function(*given)
    except (ArithmeticError, TypeError, ValueError):
        return False
    return type(value) is type(expected) and bool(value == expected)


Asked = tuple[tuple[Any, ...], Any]  # the arguments of a call and the value expected


def assertion(entry_point: str, *asked: Asked) -> str:
    """The assert statement that the function named `entry_point` gives all the values expected."""
    calls = [f"{entry_point}({', '.join(map(repr, given))})" for given, _ in asked]
    values = [repr(value) for _, value in asked]
    if len(asked) == 1:
        return f"assert {calls[0]} == {values[0]}"
    return f"assert ({', '.join(calls)}) == ({', '.join(values)})"


def shown_test(source: str, entry_point: str, given: tuple[Any, ...]) -> str:
    """The test that the function `f` in `source`, under another name, gives its true value for the arguments."""
    return assertion(entry_point, (given, _function(source)(*given)))


def _constant(answer: Any) -> Callable[[Asked], bool]:
    """Whether that value, given whatever was asked, is right."""
    return lambda asked: bool(asked[1] == answer)


def _argument(place: int) -> Callable[[Asked], bool]:
    """Whether the argument at that place, given back, is right."""
    return lambda asked: bool(asked[1] == asked[0][place])


def hidden_tests(source: str, kind: str, entry_point: str, inputs: Sequence[tuple[Any, ...]]) -> list[str]:
    """A test for each input, such that no lazy answer passes more than LAZY_SHARE of them.

    Lazy answers are every constant, and each argument given back. A test that a too successful one passes asks for the
    value at a second input too, where that answer is wrong: `assert (f(3), f(90)) == (False, True)`.
    """
    function = _function(source)
    groups: list[list[Asked]] = [[(given, function(*given))] for given in inputs]
    values: list[Any] = []
    for ((_, value),) in groups:
        if value not in values:
            values.append(value)
    for lazy in (*map(_constant, values), *map(_argument, range(len(inputs[0])))):
        passed = [group for group in groups if all(map(lazy, group))]
        if len(passed) <= LAZY_SHARE * len(groups):
            continue
        # The choice has its own draws, from the function alone: questions stay as they are whatever the tests need.
        random = Random(f"dcoder micro second inputs {source}")
        usual, more = ([one for one in _answers(source, kind, place) if not lazy(one)] for place in (0, 1))
        if usual or more:
            for group in passed:
                group.append(random.choice(usual or more))
    return [assertion(entry_point, *group) for group in groups]


@lru_cache(maxsize=4)
def _answers(source: str, kind: str, place: int) -> list[Asked]:
    """The function's values on the everyday probes (place 0) or on the others (1)."""
    function = _function(source)
    return [(given, function(*given)) for given in _probes(kind)[place]]

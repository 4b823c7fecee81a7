"""What a micro task's function computes: its canonical form, and tests that wrong solutions fail."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain, product
from random import Random
from typing import Any

from dcoder_cli.data.micro_families import LETTERS, WORDS

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


def assertion(source: str, entry_point: str, given: tuple[Any, ...]) -> str:
    """The assert statement that the function, under the name `entry_point`, gives its true value for `given`."""
    return f"assert {entry_point}({', '.join(map(repr, given))}) == {_function(source)(*given)!r}"

"""What EvalPlus does besides comparing with `==`: which oracle a task has, and the types that JSON lost in MBPP+.

Facts of the published datasets, by task; the comparisons themselves are in execution/compare.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_SETS = (2, 7, 111, 140, 232, 249, 579, 769)
_BY_FUNCTION = {
    "check_str": "not-none",
    "text_match_three": "not-none",
    "text_starta_endb": "not-none",
    "are_equivalent": "anything",
    "sum_div": "or-zero",
    "surface_Area": "pyramid-surface",
    "digit_distance_nums": "digit-distance",
}


def oracle(task_id: str, entry_point: str) -> str:
    """The name, in `compare.ORACLES`, of how a HumanEval+ or MBPP+ task's answers are compared."""
    if task_id == "HumanEval/32":
        return "polynomial-root"
    if not task_id.startswith("Mbpp/"):
        return "equal"
    if _number(task_id) in _SETS:
        return "same-set"
    return _BY_FUNCTION.get(entry_point, "equal")


def repair(task_id: str, inputs: Any) -> list[list[Any]]:
    """MBPP+'s lists of arguments with tuples, sets and complex numbers where the task wants them."""
    rows = list(inputs) if isinstance(inputs, list) else []  # Mbpp/793 has {} for no plus inputs
    mend = _REPAIRS.get(_number(task_id)) if task_id.startswith("Mbpp/") else None
    return [list(row) if mend is None else list(mend(row)) for row in rows]


def _number(task_id: str) -> int:
    return int(task_id.rpartition("/")[2])


def _deep(value: Any) -> Any:
    return tuple(_deep(item) for item in value) if isinstance(value, list) else value


def _tuples(items: Any) -> list[Any]:
    return [tuple(item) for item in items]


def _each_a_tuple(row: list[Any]) -> list[Any]:
    return _tuples(row)


def _each_a_list_of_tuples(row: list[Any]) -> list[Any]:
    return [_tuples(argument) for argument in row]


def _each_a_tuple_of_tuples(row: list[Any]) -> list[Any]:
    return [tuple(_tuples(argument)) for argument in row]


def _first_a_list_of_tuples(row: list[Any]) -> list[Any]:
    return [_tuples(row[0]), row[1]]


def _first_a_tuple(row: list[Any]) -> list[Any]:
    return [tuple(row[0]), *row[1:]]


def _second_a_tuple(row: list[Any]) -> list[Any]:
    return [row[0], tuple(row[1])]


_ALIKE: tuple[tuple[Callable[[list[Any]], list[Any]], tuple[int, ...]], ...] = (
    (_each_a_tuple, (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740,
                     744, 809)),
    (_each_a_list_of_tuples, (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    (_each_a_tuple_of_tuples, (259, 401, 445)),
    (_first_a_list_of_tuples, (75, 413, 444, 753)),
    (_first_a_tuple, (250, 307, 405, 446, 617, 720, 763, 808)),
    (_second_a_tuple, (106, 750)),
    (_deep, (580, 615, 791)),
)  # fmt: skip
_REPAIRS: dict[int, Callable[[list[Any]], Any]] = {
    **{number: mend for mend, numbers in _ALIKE for number in numbers},
    115: lambda row: [[set(item) if isinstance(item, list) and item else {} for item in row[0]]],
    124: lambda row: [float(row[0]), complex(row[1])],
    252: lambda row: [complex(row[0])],
    278: lambda row: [tuple(tuple(item) if isinstance(item, list) else item for item in row[0])],
    722: lambda row: [{key: tuple(value) for key, value in row[0].items()}, *row[1:]],
}

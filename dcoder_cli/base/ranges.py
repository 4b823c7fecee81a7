"""Which numbers a setting may have: a `Range` in the annotation of a configuration's field, checked wherever it is filled.

    learning_rate: Annotated[float, Range(above=0, most=100)] = 2e-5

`config.build` checks what comes from presets, files and --set; `check`, in a configuration's __post_init__, what Python code
gives. Every numeric field of every configuration has one, if only to say why it has no bounds (a test asks). NaN is refused
by all of them, infinity unless it has a meaning, and a whole number beyond 2**31 - 1 unless the range allows for it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

import typer  # at run time too: it reads the annotations of a callback

from dcoder_cli.base.errors import UserError

_MOST_INT = 2**31 - 1
MOST_LISTED = 64  # temperatures, lengths, batch sizes of one call; ours
_SHOWN = 60  # characters of a value in an error


@dataclass(frozen=True)
class Range:
    """The numbers allowed.

    Attributes:
        least, most: the ends that are allowed; `above`, `below`: those that are not.
        also: what else may be given or done, for the end of the error: ", or null for ...".
        infinite: whether infinity has a meaning here.
        free: why a number without bounds has none.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    also: str = ""
    infinite: bool = False
    free: str = ""

    def holds(self, value: float) -> bool:
        """Whether the number lies in the range."""
        if value != value or (
            not self.infinite and isinstance(value, float) and math.isinf(value)
        ):  # an int may be too large to ask
            return False
        most = _MOST_INT if self.most is None and isinstance(value, int) else self.most
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (most is None or value <= most)
            and (self.below is None or value < self.below)
        )

    def check(self, name: str, value: Any) -> None:
        """Raises UserError for a number outside the range; what is no number is left to others."""
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not self.holds(value):
            between = " " if name.startswith("--") else " = "
            raise UserError(f"{name}{between}{shown(value)} must {self._told(value)}{self.also}")

    def _told(self, value: float) -> str:
        def shown_bound(bound: float) -> str:
            return str(bound) if isinstance(bound, int) else f"{bound:.15g}"

        low = self.least if self.least is not None else self.above
        high = self.most if self.most is not None else self.below
        if low is not None and high is not None:
            if self.least is None and self.most is not None:
                return f"be above {shown_bound(low)} and at most {shown_bound(high)}"
            if self.least is not None and self.most is None:
                return f"be at least {shown_bound(low)} and below {shown_bound(high)}"
            return f"lie between {shown_bound(low)} and {shown_bound(high)}" + (
                ", ends excluded" if self.most is None else ""
            )
        if high is not None:
            return f"be at most {shown_bound(high)}" if self.most is not None else f"be below {shown_bound(high)}"
        if isinstance(value, int) and value > _MOST_INT:
            return f"be at most {_MOST_INT}"
        if self.above is not None:
            return f"be above {low:g}, and finite"
        if low is None or not math.isfinite(value):
            return "be a finite number" + ("" if low is None else f", at least {low:g}")
        return "be 0 or more" if low == 0 else f"be at least {low:g}"


Count = Annotated[int, Range(1)]
CountOrNone = Annotated[int, Range(0)]
Rows = Annotated[int, Range(1, 2**20)]  # held at once
Share = Annotated[float, Range(0, 1)]
Between = Annotated[float, Range(above=0, below=1)]
Scale = Annotated[float, Range(above=0, most=1e6)]
Seed = Annotated[int, Range(0, 2**63 - 1)]  # NumPy takes no negative ones


def shown(value: Any) -> str:
    """A value as an error shows it: short, and whole numbers that Python refuses to print included."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of more than 4,300 digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check(config: Any, prefix: str = "") -> None:
    """Raises UserError for the first field of a configuration whose number is out of its range; `prefix` names its section."""
    for name, hint in _hints(type(config)).items():  # type: ignore[arg-type]
        _check(hint, getattr(config, name), prefix + name)


def check_number(name: str, value: float | None, kind: Any) -> None:
    """The same for one number, such as an option's: `kind` is its annotation, Count or Seed. None is left alone."""
    _check(kind, value, name)


def few(option: str, values: Sequence[Any]) -> None:
    """Raises UserError where an option that takes several values got more than MOST_LISTED: each is work of its own."""
    if len(values) > MOST_LISTED:
        raise UserError(f"{option} has {len(values):,} values; give at most {MOST_LISTED}")


def within(
    least: float | None = None, most: float | None = None, above: float | None = None, below: float | None = None
) -> Callable[[typer.Context, typer.CallbackParam, Any], Any]:
    """A callback for `typer.Option`: its number, or each of them, must lie in the `Range` of these ends."""
    bound = Range(least, most, above, below)

    def check_option(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
        for one in value if isinstance(value, (list, tuple)) else (value,):
            bound.check(max(parameter.opts, key=len), one)
        return value

    return check_option


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def _check(hint: Any, value: Any, name: str) -> None:
    options = get_args(hint)
    if get_origin(hint) is Annotated:
        for bound in options[1:]:
            if isinstance(bound, Range):
                bound.check(name, value)
        _check(options[0], value, name)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            inner = options[place] if place < len(options) and options[place] is not Ellipsis else options[:1]
            for one in inner if isinstance(inner, tuple) else (inner,):
                _check(one, item, name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            for one in options[1:]:
                _check(one, item, f"{name}.{key}")
    else:
        for one in options:  # of a union
            if one is not type(None) and value is not None:
                _check(one, value, name)

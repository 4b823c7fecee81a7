"""The range of a number on the command line, told with its option: refused before anything is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import typer

from dcoder_cli.base.errors import UserError


def within(
    least: float = -math.inf, most: float = math.inf, above: float = -math.inf, below: float = math.inf
) -> Callable[[typer.Context, typer.CallbackParam, Any], Any]:
    """A callback for `typer.Option`: its number, or each of them, must lie in this range, and is finite.

    Args:
        least, most: it may be these.
        above, below: it may not.
    """

    def told(bound: float) -> str:
        return str(bound) if isinstance(bound, int) else f"{bound:g}"

    bounds = [
        (f"at least {told(least)}", least),
        (f"above {told(above)}", above),
        (f"at most {told(most)}", most),
        (f"below {told(below)}", below),
    ]
    words = " and ".join(text for text, bound in bounds if math.isfinite(bound)) or "a finite number"

    def check(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
        for one in value if isinstance(value, (list, tuple)) else () if value is None else (value,):
            if not (least <= one <= most and above < one < below):  # neither for NaN, nor for the infinities
                name = max(parameter.opts, key=len)
                raise UserError(f"{name} {one} must be {words}")
        return value

    return check

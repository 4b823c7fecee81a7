"""Functions of the user's own, named "module:function" on the command line."""

from __future__ import annotations

import importlib
import inspect
import reprlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import UserError, one_line


def import_function(what: str, name: str, arguments: Sequence[str]) -> Callable[..., Any]:
    """The function named "module:function", found from the current folder too.

    Args:
        what: it is, for the messages: "reward", "estimator".
        arguments: what it is called with, by position.

    Raises:
        UserError: it cannot be imported, is no function, or does not take those arguments.
    """
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # anything can happen in a module that is not ours
        raise UserError(f"{what} {name!r} cannot be imported: {told(error)}; write it as module:function") from error
    if not callable(function):
        raise UserError(f"{what} {name!r} is not a function but {short(function)}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return function  # type: ignore[no-any-return]
    try:
        signature.bind(*[None] * len(arguments))
    except TypeError as error:
        raise UserError(f"{what} {name!r} must be a function of ({', '.join(arguments)}): {error}") from None
    return function  # type: ignore[no-any-return]


def told(error: BaseException) -> str:
    """An error of the user's code on one line."""
    return f"{type(error).__name__}: {one_line(error)}"


def short(value: Any) -> str:
    """A value on one line, long ones cut."""
    return one_line(reprlib.repr(value))

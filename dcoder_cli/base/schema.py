"""Files that we wrote and read back: what each kind must hold, which version it has, and the one check of both.

    @dataclass(frozen=True)
    class Note:
        name: str                                    # must be there
        steps: Annotated[int, Least(1)]
        tags: dict[str, float] = field(...)          # may be left out
    NOTE = Format("note", Note, "make it again with: dcoder x", version=1)

    NOTE.read(path)            a Note, checked
    NOTE.document(path)        the same check; the object as it stands, with keys that this version does not know
    NOTE.rows(path)            one of each line of a .jsonl file
    NOTE.check(value, where)   of a value that is read already: YAML, a tensor file's

Types are JSON's and strict: "3" is no number, true is none, 3 is a float. Keys beyond the fields are left to later versions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError

T = TypeVar("T")
MOST_FLOAT = 2**1023  # whole numbers of JSON have no bounds; from here on none is a float


@dataclass(frozen=True)
class Least:
    """The smallest number that a field may hold: `Annotated[int, Least(1)]`."""

    value: float


@dataclass(frozen=True)
class Format(Generic[T]):
    """A kind of file.

    Attributes:
        what: what the user knows it as, the beginning of a message ("manifest").
        fields: a frozen dataclass; a field without a default must be there, one with one may be left out or be null where
            its type says so.
        remedy: what to do where it is damaged, the end of a message ("make the data again").
        version: the newest that is read; None where files of this kind tell none.
        key: where a file tells it.
        first: the version of a file that tells none; None where each must tell it.
    """

    what: str
    fields: type[T]
    remedy: str
    version: int | None = None
    key: str = "format_version"
    first: int | None = None

    def read(self, path: str | Path) -> T:
        """The file's value. Raises UserError where it cannot be read, is of a newer version, or a field is wrong."""
        return self._typed(self.document(path))

    def document(self, path: str | Path) -> dict[str, Any]:
        """As `read`, as the plain object. Raises UserError as `read`."""
        where = f"{self.what} {str(path)!r}"
        try:
            value = jsonl.document(path, self.what)
        except UserError as error:
            raise UserError(f"{error}; {self.remedy}") from None
        self.check(value, where)
        return value

    def rows(self, path: str | Path, torn: bool = False, halves: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line numbers and objects of a .jsonl file, each checked; `torn`, `halves`: see `jsonl.lines`. Raises UserError."""
        for number, value in jsonl.objects(path, self.what, torn, halves):
            self.check(value, f"{self.what} {str(path)!r} line {number}")
            yield number, value

    def check(self, value: Any, where: str) -> T:
        """A value that is read already; `where`: file (and line), the beginning of a message. Raises UserError."""
        if not isinstance(value, Mapping):
            raise UserError(f"{where} holds {_told(value)}, not an object; {self.remedy}")
        if self.version is not None:
            self._check_version(value.get(self.key, self.first), where)
        try:
            _check(self.fields, value, "")
        except _Wrong as error:
            raise UserError(f"{where} {error}; {self.remedy}") from None
        return self._typed(value)

    def _check_version(self, found: Any, where: str) -> None:
        assert self.version is not None
        if found is None:
            raise UserError(f"{where} has no {self.key}; {self.remedy}")
        if type(found) is not int or found < 1:
            raise UserError(f"{where} has {self.key} = {_told(found)}, which must be a whole number; {self.remedy}")
        if found > self.version:
            raise UserError(
                f"{where} was written by a newer dcoder (format {found}; this one reads {self.version}); update dcoder"
            )

    def _typed(self, value: Mapping[str, Any]) -> T:
        made: T = _made(self.fields, value)
        return made


class _Wrong(Exception):
    """What is wrong with a value: the middle of a message."""


_hints: Callable[[Any], dict[str, Any]] = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))


def _check(hint: Any, value: Any, name: str) -> None:
    """Raises _Wrong where `value` is not of a type; `name`: dotted, for the message."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if origin is Annotated:
        _check(options[0], value, name)
        for bound in options[1:]:
            if value is not None and isinstance(bound, Least) and value < bound.value:
                raise _Wrong(f"has {name} = {_told(value)}, which must be at least {bound.value:g}")
    elif origin in (Union, types.UnionType):
        _check_any(options, value, name)
    elif origin is Literal:
        if not any(value == one and type(value) is type(one) for one in options):
            raise _Wrong(f"has {name} = {_told(value)}, which must be one of {', '.join(map(str, options))}")
    elif dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _Wrong(f"has {name} = {_told(value)}, which must be an object")
        for field in dataclasses.fields(hint):
            inner = f"{name}.{field.name}" if name else field.name
            if field.name in value:
                _check(_hints(hint)[field.name], value[field.name], inner)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise _Wrong(f"has no {inner}")
    elif origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise _Wrong(f"has {name} = {_told(value)}, which must be a list")
        several = origin is tuple and options[-1] is not Ellipsis
        if several and len(value) != len(options):
            raise _Wrong(f"has {name} = {_told(value)}, which must have {len(options)} entries")
        for number, one in enumerate(value):
            _check(options[number] if several else options[0], one, f"{name}[{number}]")
    elif origin is dict:
        if not isinstance(value, Mapping):
            raise _Wrong(f"has {name} = {_told(value)}, which must be an object")
        for key, one in value.items():
            _check(options[1], one, f"{name}.{key}")
    else:
        _check_scalar(hint, value, name)


def _check_any(options: tuple[Any, ...], value: Any, name: str) -> None:
    if value is None and type(None) in options:
        return
    wrong: list[_Wrong] = []
    for option in options:
        if option is not type(None):
            try:
                return _check(option, value, name)
            except _Wrong as error:
                wrong.append(error)
    raise wrong[0]


def _check_scalar(hint: Any, value: Any, name: str) -> None:
    if hint is float:
        good = (type(value) is int and abs(value) < MOST_FLOAT) or (isinstance(value, float) and not math.isnan(value))
    else:
        good = isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
        good = good and (hint is not int or abs(value) < MOST_FLOAT)
    if not good:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "an object"}
        kind = kinds.get(hint) or ("a list" if hint is list else f"a {hint.__name__}")
        raise _Wrong(f"has {name} = {_told(value)}, which must be {kind}")


def _made(hint: Any, value: Any) -> Any:
    """A checked value as its type: objects become dataclasses, lists tuples where the type says so."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _made(options[0], value)
    if origin in (Union, types.UnionType):
        for option in options if value is not None else ():
            try:
                _check(option, value, "")
            except (_Wrong, TypeError):
                continue
            return _made(option, value)
        return value
    if dataclasses.is_dataclass(hint):
        known = {field.name: _hints(hint)[field.name] for field in dataclasses.fields(hint)}
        return hint(**{key: _made(known[key], one) for key, one in value.items() if key in known})  # type: ignore[operator]
    if origin in (list, tuple):
        several = origin is tuple and options[-1] is not Ellipsis
        return origin(_made(options[number] if several else options[0], one) for number, one in enumerate(value))
    if origin is dict:
        return {key: _made(options[1], one) for key, one in value.items()}
    return value


def _told(value: Any) -> str:
    """A value in a message: short, on a line."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(value) if isinstance(value, (bytes, str, int)) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."

"""Configuration: frozen dataclasses filled from layers of mappings, later layers winning.

The order is dataclass defaults < preset < --config FILE < --set a.b=c. Keys are checked
against the dataclass: an unknown one is an error that names the nearest known key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.jsonl import refuse_endless
from dcoder_cli.base.ranges import Range, shown

T = TypeVar("T")


_PLAIN = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
}


class _Loader(yaml.SafeLoader):
    """YAML's plain values, without two traps: a key twice, whose first value would be forgotten, and numbers of YAML 1.1 that
    say another one than they show: 010 (8), 1:30 (90). Those are text here, which a number's field refuses by name.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, _PLAIN.get(tag, pattern)) for tag, pattern in patterns]
    for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError if it is missing, broken, nested too deeply or not a mapping."""
    try:
        with open(path, "rb") as handle:
            refuse_endless(handle)
            value = yaml.load(handle.read().decode("utf-8-sig"), _Loader)
    except OSError as error:
        raise UserError(f"config file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"config file {str(path)!r} is not UTF-8 ({error.reason} at byte {error.start}); convert the file"
        ) from None
    except RecursionError:
        raise UserError(f"config file {str(path)!r} is nested too deeply to be read; write it flatter") from None
    except (yaml.YAMLError, ValueError, OverflowError, AttributeError) as error:  # a date or a number that is none
        raise UserError(f"config file {str(path)!r} is not valid YAML: {one_line(error)}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"config file {str(path)!r} must hold a mapping of keys, not {type(value).__name__}")
    return value


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "c=x"]` as `{"a": {"b": 1}, "c": "x"}`; values are read as YAML."""
    layer: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise UserError(
                f"--set {assignment!r} has no '='; write it as key=value, for example optimizer.learning_rate=1e-4"
            )
        try:
            value = yaml.load(text, _Loader) if text.strip() else ""
        except (yaml.YAMLError, ValueError, OverflowError, AttributeError, RecursionError):
            value = text
        *parents, last = key.strip().split(".")
        place = layer
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UserError(f"--set {assignment!r} conflicts with an earlier --set of {parent!r}")
            place = inner
        place[last] = value
    return layer


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; later ones win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = merged.get(key)
            merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def build(cls: type[T], *layers: Mapping[str, Any], where: str = "configuration") -> T:
    """An instance of the dataclass `cls` from merged `layers`.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type, or a number out of its range.
    """
    return _build(cls, merge(*layers), prefix="", where=where)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain nested dictionaries (tuples become lists), fit for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    result = plain(dataclasses.asdict(config))
    assert isinstance(result, dict)
    return result


def known_keys(cls: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass, nested ones included."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        inner = _dataclass_of(hints[field.name])
        if inner is None:
            yield name
        else:
            yield from known_keys(inner, name + ".")


def nearest(name: str, known: Sequence[str], listed: bool = False) -> str:
    """`; did you mean 'x'?` or the list of what exists, for the end of an error message. `listed`: the list in any case."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    tail = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    if tail or close:
        return f"; did you mean {(tail or close)[0]!r}?" + (f" (known: {', '.join(known)})" if listed else "")
    return f"; known: {', '.join(known)}"


def _dataclass_of(hint: Any) -> Any | None:
    for candidate in (hint, *get_args(hint)):
        if dataclasses.is_dataclass(candidate) and isinstance(candidate, type):
            return candidate
    return None


def _build(cls: type[T], values: Mapping[str, Any], prefix: str, where: str) -> T:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            own = [prefix + known for known in known_keys(cls)]
            name = prefix + str(key)
            while isinstance(value, Mapping) and value:  # a wrong section: name one of its keys in full
                inner = next(iter(value))
                name, value = f"{name}.{inner}", value[inner]
            raise UserError(f"unknown key {name!r} in {where}{nearest(name, own)}")
        arguments[key] = _coerce(hints[key], value, prefix + key, where)
    try:
        return cls(**arguments)
    except TypeError as error:
        raise UserError(f"{where}: {one_line(error)}") from None


def _coerce(hint: Any, value: Any, name: str, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number = _coerce(options[0], value, name, where)
        for bound in options[1:]:
            if isinstance(bound, Range):
                bound.check(name, number)
        return number
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        errors: list[UserError] = []
        for option in options:
            if option is type(None):
                continue
            try:
                return _coerce(option, value, name, where)
            except UserError as error:
                errors.append(error)
        raise errors[0]
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return value
        if not isinstance(value, Mapping):
            raise UserError(f"{name} = {shown(value)} in {where} must be a mapping of keys")
        return _build(hint, value, name + ".", where)  # type: ignore[arg-type]
    if origin is Literal:
        for option in options:
            if value == option and isinstance(value, bool) == isinstance(option, bool):
                return option
        text = "" if value is None else str(value)
        raise UserError(
            f"{name} = {shown(value)} in {where} must be one of {', '.join(map(str, options))}{_maybe(text, options)}"
        )
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{name} = {shown(value)} in {where} must be a list")
        if origin is tuple and not (len(options) == 2 and options[1] is Ellipsis):
            if len(value) != len(options):
                raise UserError(f"{name} = {shown(value)} in {where} must have {len(options)} entries")
            return tuple(_coerce(option, item, name, where) for option, item in zip(options, value, strict=True))
        return origin(_coerce(options[0], item, name, where) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{name} = {shown(value)} in {where} must be a mapping")
        return {str(key): _coerce(options[1], item, f"{name}.{key}", where) for key, item in value.items()}
    return _scalar(hint, value, name, where)


def _maybe(text: str, options: Sequence[Any]) -> str:
    close = difflib.get_close_matches(text, [str(option) for option in options], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _scalar(hint: Any, value: Any, name: str, where: str) -> Any:
    if hint is Any:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str):
            try:
                return int(value.replace("_", ""))
            except ValueError:
                pass
    if hint is float and not isinstance(value, bool):
        try:
            if not math.isnan(number := float(value)):
                return number
        except (TypeError, ValueError, OverflowError):
            pass
    if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(hint, str(hint))
    raise UserError(f"{name} = {shown(value)} in {where} must be {expected}")

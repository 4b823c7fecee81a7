"""What docs/formats.md says that the commands print with --json, as something to hold real output against.

Its section has a heading for each command and tables of `key` (`a.b`, `a[]`, `a.*`), type and meaning. `check` names what a
value has and the text has not, what it lacks, and what is of another type. tests/helpers.py holds every output against it
that any test makes, and test_json.py every key of it against real output.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "formats.md"
KINDS = {
    "text": str, "integer": int, "number": (int, float), "boolean": bool, "list": list, "object": dict, "null": type(None), "any": object,
}  # fmt: skip
Keys = tuple[str, ...]  # `a[].b` is ("a", "[]", "b")


class Entry(NamedTuple):
    """A key of the text."""

    kinds: tuple[str, ...]
    absent: bool  # it may be


@functools.cache
def commands() -> dict[str, dict[Keys, Entry]]:
    """Command (or `--dry-run`) -> its keys."""
    found: dict[str, dict[Keys, Entry]] = {}
    section = DOCUMENT.read_text(encoding="utf-8").partition("\n## JSON of the commands\n")[2].partition("\n## ")[0]
    for part in section.split("\n### ")[1:]:
        heading, _, body = part.partition("\n")
        entries: dict[Keys, Entry] = {}
        for names, kinds in re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", body, re.MULTILINE):
            words = re.split(r", | or ", kinds)
            assert set(words) <= {*KINDS, "absent"}, f"{heading}: {kinds}"
            for name in re.findall(r"`([^`]+)`", names):
                keys = tuple(name.replace("[]", ".[]").split("."))
                entries[keys] = Entry(tuple(word for word in words if word != "absent"), "absent" in words)
        for name in re.findall(r"`([^`]+)`", heading):
            found[name.removeprefix("dcoder ")] = {("schema_version",): Entry(("integer",), False), **entries}
    return found


def command_of(arguments: Sequence[str]) -> str:
    """The heading that a call's output stands under."""
    if "--dry-run" in arguments:
        return "--dry-run"
    if "--measure-variance" in arguments:
        return "grpo --measure-variance"
    for words in (2, 1):
        if (name := " ".join(arguments[:words])) in commands():
            return name
    return arguments[0]


def check(command: str, value: Any) -> list[str]:
    """What a printed object and the text do not have in common."""
    return [*_found(commands()[command], value, ())]


def check_output(arguments: Sequence[str], stdout: str) -> None:
    """Every line of a call with --json."""
    for line in stdout.split("\n")[:-1]:
        value = json.loads(line, parse_constant=_no_number)
        assert next(iter(value)) == "schema_version" and value["schema_version"] == 1, line[:100]
        wrong = check(command_of(arguments), value)
        assert not wrong, f"{' '.join(arguments)[:200]}: docs/formats.md and what is printed differ: {wrong[:9]}"


def _no_number(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def keys_of(entries: dict[Keys, Entry], value: Any, at: Keys = ()) -> Iterator[Keys]:
    """The keys of the text that a value has."""
    for key, one in _children(value):
        match = _match(entries, (*at, key))
        if match in entries:
            yield match
        if any(keys[: len(match)] == match and len(keys) > len(match) for keys in entries):
            yield from keys_of(entries, one, match)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from (("[]", one) for one in value)


def _match(entries: dict[Keys, Entry], keys: Keys) -> Keys:
    """The keys as the text has them: by name before `*`; ("?",) where it has none."""
    for last in (keys[-1], "*"):
        own = (*keys[:-1], last)
        if any(other[: len(own)] == own for other in entries):
            return own
    return ("?",)


def _found(entries: dict[Keys, Entry], value: Any, at: Keys) -> Iterator[str]:
    below = {keys[len(at)] for keys in entries if keys[: len(at)] == at and len(keys) > len(at)}
    if not below:
        return
    if below == {"[]"} and not isinstance(value, list):
        yield f"{'.'.join(at)} is no list"
        return
    if isinstance(value, dict):
        for name in below - {"*", "[]"} - set(value):
            own = entries.get((*at, name))
            if own is None or not own.absent:
                yield f"{'.'.join((*at, name))} is missing"
    for key, one in _children(value):
        match = _match(entries, (*at, key))
        shown = ".".join((*at, key))
        if match == ("?",):
            yield f"{shown} is not in the text"
            continue
        entry = entries.get(match)
        if entry is not None and not _is(one, entry.kinds):
            yield f"{shown} is {json.dumps(one)[:60]}, not {' or '.join(entry.kinds)}"
        elif entry is None and not isinstance(one, (dict, list)):
            yield f"{shown} is {json.dumps(one)[:60]}, neither object nor list"
        if one is not None and (entry is None or isinstance(one, (dict, list))):
            yield from _found(entries, one, match)


def _is(value: Any, kinds: Sequence[str]) -> bool:
    return any(
        isinstance(value, KINDS[kind]) and (kind in ("boolean", "any") or not isinstance(value, bool)) for kind in kinds
    )

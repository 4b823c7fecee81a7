"""The language between judge and candidate: exact builtin values as tagged JSON.

Lists, strings, numbers, booleans and None are JSON's own; everything else is an object with one key, its tag.
A value is built from *exact* builtin types or it does not cross: an object with its own `__eq__` can never reach
a comparison. A few standard types that tests compare with builtin ones are turned into these by the sender
(Counter, OrderedDict and defaultdict into dict; numpy scalars into Python's), and Decimal, Fraction, range and
`re.Match` have tags of their own. Nothing here runs code from the other side, unlike pickle.

This file also runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import collections
import decimal
import fractions
import functools
import hashlib
import json
import marshal
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

MAX_FRAME = 16 * 2**20  # bytes in one frame from a candidate; the largest reference answer of HumanEval+ has 0.3 MB
_SAMPLE = 1000  # items by which the size of a long list is estimated
MAX_DEPTH = 200  # containers inside containers; Python's own parsers stop near 1000
MAX_RANGE = 1 << 20  # numbers in the ranges of a frame; a longer one is a LongRange, which no test goes through
MAX_COLLISIONS = 64  # values with one hash in a set or dict from outside: more is an attack on the judge's time

_PLAIN = frozenset({bool, int, float, str, type(None)})
_DICTS = (collections.Counter, collections.OrderedDict, collections.defaultdict)
_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, object, type(None))
}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_SHORT = 1 << 63
_BIG = 1 << 4000  # integers beyond travel as hexadecimal: decimal conversion is quadratic and limited by Python


class Unfit(ValueError):
    """The value is not made of exact builtin types, or is too large or too deep."""


class Match:
    """Stands for a `re.Match`: true, not None, and equal to nothing else."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class Digest:
    """Stands for a value too large to cross, by its hash: equal to the digest of the same value and to nothing else."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return type(other) is Digest and other._digest == self._digest


class LongRange:
    """Stands for a range too long to be gone through: it has a length, members and equality, and cannot be iterated.

    A range is a few bytes to send and gigabytes to expand, which `sorted(f(x))` in a test or an oracle's `set` would do.
    """

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return (other._numbers if type(other) is LongRange else other) == self._numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, value: object) -> bool:
        return type(value) is int and value in self._numbers

    def __iter__(self) -> Any:
        raise ValueError(f"a range of more than {MAX_RANGE} numbers, which no test goes through")


class Remote:
    """An object that lives in the candidate's process, known by number. Equal to nothing, hashable by nobody."""

    number: int

    def __init__(self, number: int) -> None:
        object.__setattr__(self, "number", number)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise TypeError("an object of the candidate cannot be compared")

    def __bool__(self) -> bool:
        raise TypeError("an object of the candidate has no truth value")


def dumps(value: Any, remotes: Callable[[Any], int | None] | None = None) -> bytes:
    """`value` as JSON bytes. `remotes` gives the number of an object that may cross as a reference.

    Raises:
        Unfit: a type that may not cross, more than MAX_DEPTH levels, or more than MAX_FRAME bytes.
    """
    if type(value) is int and -_SHORT < value < _SHORT:  # most answers are a number or a truth
        return b"%d" % value
    if value is True or value is False:
        return b"true" if value else b"false"
    if (type(value) is str or type(value) is bytes) and len(value) > MAX_FRAME:  # before it is written out
        raise Unfit(f"a value of {len(value)} characters; the limit is {MAX_FRAME} bytes")
    try:
        text = _json(_tagged(value, MAX_DEPTH, remotes, careful=False))
    except ValueError as problem:
        if isinstance(problem, Unfit):
            raise
        text = _json(_tagged(value, MAX_DEPTH, remotes, careful=True))  # some integer is beyond the decimal limit
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_FRAME:
        raise Unfit(f"a value of {len(data)} bytes; the limit is {MAX_FRAME}")
    return data


# `json.dumps` and `json.loads` with options make one of these at every call.
_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def dumps_or_digest(value: Any) -> bytes:
    """`dumps`, or for a list or tuple too large for a frame a digest of it, which says as much in a comparison for `==`.

    The digest tells True from 1 and 1 from 1.0, and depends on the order of sets and dicts inside: for answers of more
    than MAX_FRAME bytes only, of which MBPP+ has a few (one of 1 GB).
    """
    kind = type(value)
    if kind not in (list, tuple):
        return dumps(value)
    if len(value) > 10 * _SAMPLE:
        sample = dumps(list(value[:_SAMPLE]))
        if len(sample) / _SAMPLE * len(value) > MAX_FRAME:
            return _digest(value)
    try:
        return dumps(value)
    except Unfit as problem:
        if "bytes" not in str(problem):
            raise
        return _digest(value)


def _digest(value: Any) -> bytes:
    digest = hashlib.sha256(f"{type(value).__name__} {len(value)}".encode())
    for start in range(0, len(value), _SAMPLE):
        try:  # exact builtin types only, without shared references: equal values give equal bytes
            digest.update(marshal.dumps(value[start : start + _SAMPLE], 2))
        except ValueError as problem:
            raise Unfit(f"a value that is not of exact builtin types ({problem})") from None
    return _json({"h": digest.hexdigest()}).encode()


def loads(data: bytes, remote: Callable[[int], Any] | None = None, most_in_ranges: int = MAX_RANGE) -> Any:
    """The value in JSON bytes from `dumps`. `remote` makes the stand-in for a reference; without it none may come.

    Of ranges with more numbers than `most_in_ranges` together, those that are too many are a LongRange.

    Raises:
        Unfit: not what `dumps` writes, or a set or dict made to collide.
    """

    try:
        text = data.decode("utf-8", "surrogatepass")
        if b"{" not in data:  # nothing that is tagged
            return _UNTAGGED(text)
        if remote is None and b'{"r":' not in data:
            return _TAGGED(text)
        room = [most_in_ranges]
        return json.JSONDecoder(object_pairs_hook=functools.partial(_untag, remote, room)).decode(text)
    except Unfit:
        raise
    except (ValueError, TypeError, RecursionError, ArithmeticError, LookupError, AttributeError) as error:
        raise Unfit(f"not a frame: {type(error).__name__}") from None


def _untag(remote: Callable[[int], Any] | None, room: list[int], pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) != 1:
        raise Unfit("an object with other than one tag")
    tag, body = pairs[0]
    if tag == "o":
        if remote is None or type(body) is not int:
            raise Unfit("a reference where none may be")
        return remote(body)
    if tag == "r":
        return _range(body, room)
    reader = _READERS.get(tag)
    if reader is None:
        raise Unfit(f"an unknown tag {tag[:20]!r}")
    return reader(body)


_UNTAGGED = json.JSONDecoder().decode
_TAGGED = json.JSONDecoder(object_pairs_hook=functools.partial(_untag, None, [0])).decode


def pack(job: dict[str, Any], texts: Sequence[bytes] = ()) -> bytes:
    """A job's plain JSON, and behind it encoded values as they are."""
    head = json.dumps({**job, "sizes": [len(text) for text in texts]}).encode()
    return b"".join((struct.pack("!I", len(head)), head, *texts))


def unpack(frame: bytes) -> tuple[dict[str, Any], list[memoryview]]:
    """What `pack` was given, without a copy of the encoded values."""
    (end,) = struct.unpack_from("!I", frame)
    job: dict[str, Any] = json.loads(frame[4 : 4 + end])
    texts, start = [], 4 + end
    for size in job.pop("sizes"):
        texts.append(memoryview(frame)[start : start + size])
        start += size
    return job, texts


def _tagged(value: Any, depth: int, remotes: Callable[[Any], int | None] | None, careful: bool) -> Any:
    kind = type(value)
    if kind is int:
        return value if -_BIG < value < _BIG else {"i": hex(value)}
    if kind in _PLAIN:
        return value
    if depth <= 0:
        raise Unfit(f"more than {MAX_DEPTH} levels of containers")
    if kind is list:
        return _tagged_items(value, depth, remotes, careful)
    if kind is tuple:
        return {"t": _tagged_items(value, depth, remotes, careful)}
    if kind is dict or kind in _DICTS:
        flat = [part for pair in dict.items(value) for part in pair]
        return {"d": _tagged_items(flat, depth, remotes, careful)}
    if kind is set:
        return {"s": _tagged_items(list(value), depth, remotes, careful)}
    if kind is frozenset:
        return {"f": _tagged_items(list(value), depth, remotes, careful)}
    return _tagged_rare(value, kind, remotes)


def _tagged_items(items: Any, depth: int, remotes: Callable[[Any], int | None] | None, careful: bool) -> list[Any]:
    kinds = set(map(type, items))
    if str in kinds or bytes in kinds:  # before they are written out: a string of 1 GB would take seconds
        size = sum(len(item) for item in items if type(item) is str or type(item) is bytes)
        if size > MAX_FRAME:
            raise Unfit(f"values of {size} characters; the limit is {MAX_FRAME} bytes")
    if kinds <= _PLAIN and not (careful and int in kinds):
        return list(items)
    return [_tagged(item, depth - 1, remotes, careful) for item in items]


def _tagged_rare(value: Any, kind: type, remotes: Callable[[Any], int | None] | None) -> Any:
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is bytes:
        return {"b": value.hex()}
    if value is ...:
        return {"e": 0}
    if kind is LongRange:
        value, kind = value._numbers, range
    if kind is range:
        return {"r": [hex(value.start), hex(value.stop), hex(value.step)]}
    if kind is fractions.Fraction:
        return {"q": [hex(value.numerator), hex(value.denominator)]}
    if kind is decimal.Decimal:
        return {"n": str(value)}
    if kind is re.Match:
        return {"m": 0}
    if kind is type and value in _NAMES:
        return {"T": _NAMES[value]}
    number = remotes(value) if remotes is not None else None
    if number is not None:
        return {"o": number}
    if kind.__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        plain = value.item()
        if type(plain) in _PLAIN or type(plain) is complex:
            return _tagged(plain, 1, None, True)
    raise Unfit(f"a value of type {kind.__name__[:60]}, which is not an exact builtin type")


def _distinct(items: list[Any]) -> list[Any]:
    """`items`, checked not to be chosen so that a hash table of them takes quadratic time."""
    if len(items) > MAX_COLLISIONS:
        commonest = collections.Counter(map(hash, items)).most_common(1)[0][1]
        if commonest > MAX_COLLISIONS:
            raise Unfit("values of a set or dict with one hash")
    return items


def _dict(flat: list[Any]) -> dict[Any, Any]:
    keys = _distinct(flat[0::2])
    return dict(zip(keys, flat[1::2], strict=True))


def _range(body: Any, room: list[int]) -> range | LongRange:
    """A range, as itself as long as the ranges of the frame have `room` for its numbers."""
    numbers = range(*(int(part, 16) for part in body))
    count = max(0, -((numbers.start - numbers.stop) // numbers.step))  # len() of a very long one fails
    room[0] -= count
    return numbers if room[0] >= 0 else LongRange(numbers)


def _short(text: Any) -> str:
    if type(text) is not str or len(text) > 2000:
        raise Unfit("a number that is too long")
    return text


_READERS: dict[str, Callable[[Any], Any]] = {
    "i": lambda body: int(body, 16),
    "t": tuple,
    "d": _dict,
    "s": lambda body: set(_distinct(body)),
    "f": lambda body: frozenset(_distinct(body)),
    "c": lambda body: complex(*body),
    "b": bytes.fromhex,
    "e": lambda body: Ellipsis,
    "q": lambda body: fractions.Fraction(*(int(_short(part), 16) for part in body)),
    "n": lambda body: decimal.Decimal(_short(body)),
    "h": lambda body: Digest(_short(body)),
    "m": lambda body: Match(),
    "T": lambda body: _TYPES[body],
}

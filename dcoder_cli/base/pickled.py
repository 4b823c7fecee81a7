"""A text that somebody pickled, read without unpickling: a pickle is a program, and this one is looked at, never run."""

from __future__ import annotations

import pickletools

_TEXT = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_AROUND = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP")  # these do nothing else


def text(pickle: bytes) -> str:
    """The one text that a pickle is, of any protocol.

    Raises:
        ValueError: it is no pickle, or one of something else; says of what.
    """
    try:
        operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(pickle)]
    except (ValueError, OverflowError, MemoryError):
        raise ValueError("no whole pickle") from None
    texts = [argument for name, argument in operations if name in _TEXT]
    others = [name for name, _ in operations if name not in (*_TEXT, *_AROUND)]
    if others or len(texts) != 1:
        raise ValueError(f"a pickle with {others[0] if others else f'{len(texts)} texts'}, and must be one of a text")
    return str(texts[0])

"""What a process is started with, looked at before anything else: its streams, its arguments, its place among others."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import TextIO

from dcoder_cli.base.errors import UserError


def open_streams() -> None:
    """Make the three streams safe to use: closed ones, and those whose encoding lacks characters, which show as escapes.

    Raises:
        UserError: stdout is closed, or open for reading alone. The next file that is opened would take its place, and get
            the results.
    """
    closed = sys.stdout is None
    # In this order: a file that is opened takes the lowest number that is free, which must be the stream's own.
    if sys.stdin is None:
        sys.stdin = open(os.open(os.devnull, os.O_RDONLY), encoding="utf-8")  # noqa: SIM115
    if closed:
        sys.stdout = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if closed:
        raise UserError("stdout is closed, and results go there; send it to a file, or to /dev/null")
    if _only_read(sys.stdout):
        raise UserError("stdout is open for reading alone, and results go there; send it to a file, or to /dev/null")


def _only_read(stream: TextIO) -> bool:
    try:
        return fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except (OSError, ValueError):  # no file of the system, as in a test
        return False


def flush() -> OSError | None:
    """Write out what is left for stdout; what keeps that from happening. Then the rest is thrown away, and nothing tries again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises UserError for one with bytes that are no UTF-8: no record, no tokenizer and no terminal takes it."""
    for place, argument in enumerate(arguments, start=1):
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            shown = argument.encode("utf-8", "backslashreplace").decode("utf-8")
            shown = shown if len(shown) < 80 else f"{shown[:77]}..."
            raise UserError(
                f"argument {place} '{shown}' is not UTF-8; write it in UTF-8 (a file can be renamed, a text be given as a file)"
            ) from None


_NUMBERS = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}  # and the least that each may be


def check_ranks() -> None:
    """Raises UserError for ranks in the environment that no launcher sets: all would fail, or nothing would be printed."""
    found = {name: os.environ[name] for name in _NUMBERS if name in os.environ}
    for name, text in found.items():
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= _NUMBERS[name]):
            raise UserError(
                f"{name}={text!r} in the environment must be a whole number from {_NUMBERS[name]}; unset it, or use a launcher"
            )
    size = int(found.get("WORLD_SIZE", "1"))
    for name in ("RANK", "LOCAL_RANK"):
        if int(found.get(name, "0")) >= size:
            raise UserError(
                f"{name}={found[name]} in the environment is not below WORLD_SIZE={size}; unset it, or use a launcher, which sets both"
            )
    port = os.environ.get("MASTER_PORT", "")
    if size > 1 and not (os.environ.get("MASTER_ADDR") and re.fullmatch("[0-9]{1,5}", port) and int(port) < 2**16):
        where = f"{os.environ.get('MASTER_ADDR', '')}:{port}"
        raise UserError(
            f"WORLD_SIZE={size} in the environment, but MASTER_ADDR and MASTER_PORT ({where!r}) name no place to meet; "
            "unset it, or use a launcher, which sets all three"
        )

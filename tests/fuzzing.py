"""Hostile values for every option and argument of every command, and what may happen: an answer or a refusal in one line.

The engines of the commands are replaced as in test_options.py, so that a value goes through all that a command does before
its work begins, in milliseconds. See test_fuzz.py.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import resource
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_options import ALL, EFFECTS, ENGINES, Asked, flag, load_users

LIMIT = 5.0  # seconds of processor time that a call may take before its work begins
WAIT = 60.0  # seconds by the clock
GROWTH = 1024  # MiB of addresses that the process may take more of in one; beyond that it gets no memory
LONG = 100_000  # characters

# By what they are. `{name}` is a path that `make_traps` made.
HOSTILE = {
    "empty": "", "blank": " ", "-1": "-1", "0": "0", "nan": "nan", "inf": "inf", "-inf": "-inf", "1e400": "1e400",
    "huge": "99999999999999999999", "minus huge": "-99999999999999999999", "2^31": "2147483648", "1e-400": "1e-400",
    "half": "0.5", "unicode digits": "\u0664\u0662", "fullwidth digit": "\uff13", "underscored": "1_000", "hex": "0x10",
    "minus zero": "-0.0", "not UTF-8": "\udcff\udcfe", "escape": "\x1b[31mred", "markup": "[red]", "unclosed markup": "[/red]",
    "lines": "a\nb", "return": "a\rb", "a=b=c": "a=b=c", "=": "=", "=1": "=1", ",": ",", "1,,2": "1,,2", "colon": ":", "a:b:c": "a:b:c",
    "@": "@", "@nan": "x@nan", "percent": "%s%n", "brace": "{", "braces": "{0}", "bracket": "[", "glob": "[!", "star": "**", "dash": "-", "dashes": "--",
    "option": "--json", "dots": "..", "tilde": "~nobody/x", "null escape": 'seed="\\0"', "yaml alias": "seed=*a", "yaml tag": "seed=!!python/none x",
    "yaml deep": "seed=" + "[" * 3000, "yaml huge": "seed=" + "9" * 5000, "key nested": "a.b.c.d=1", "key dots": "...=1", "seed nan": "seed=.nan",
    "emoji": "\U0001f600", "combining": "e\u0301", "override": "\u202egnp", "long": "a" * LONG, "long digits": "9" * LONG, "long list": "1," * (LONG // 2) + "1",
    "null device": "/dev/null", "full device": "/dev/full", "root": "/", "proc": "/proc/self/mem", "fifo": "{fifo}", "folder": "{folder}", "missing": "{missing}",
    "below a file": "{binary}/x", "loop": "{loop}", "binary": "{binary}", "binary.jsonl": "{binary_jsonl}", "deep": "{deep}", "empty file": "{empty}",
    "gz": "{gz}", "zst": "{zst}", "unreadable": "{dangling}", "yaml": "{bomb}", "config": "{config}", "utf-16": "{utf16}", "list": "{list}", "numbers": "{numbers}",
}  # fmt: skip

# Other calls than those of EFFECTS. `{run}` is a run folder with metrics.
CALLS = {
    "plot": "{run} --out {tmp}/p.png", "serve": "{model}", "inspect": "{model}", "doctor": "",
}  # fmt: skip
_ALIKE = "eval "  # the benchmarks share one function
_STAND_FOR_ALL = ("eval micro", "eval bigcodebench", "eval humaneval-infilling", "eval gsm8k", "eval judge")


class Case(NamedTuple):
    """One value in one place of a call."""

    command: str
    option: str  # its flag; an argument's name
    kind: str  # of HOSTILE


def cases() -> list[Case]:
    """All of them: every command, option, argument and value; flags, which take none, have none."""
    found = []
    for name, (command, _) in ALL.items():
        if name.startswith(_ALIKE) and name not in _STAND_FOR_ALL:
            continue
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False):
                found += [Case(name, flag(parameter), kind) for kind in HOSTILE]
    return found


def drawn(every: int, seed: int) -> list[Case]:
    """One in so many of each kind of value, in other places for another seed."""
    shuffled = cases()
    random.Random(seed).shuffle(shuffled)
    return [case for kind in HOSTILE for case in [one for one in shuffled if one.kind == kind][::every]]


def make_traps(root: Path) -> dict[str, str]:
    """Files that nobody wants to read."""
    import gzip

    import zstandard

    root.mkdir()
    os.mkfifo(root / "fifo")
    threading.Thread(target=_feed, args=(root / "fifo",), daemon=True).start()
    (root / "folder").mkdir()
    (root / "folder" / "x.bin").write_bytes(b"\xff\x00")
    (root / "loop").symlink_to(root / "loop")
    (root / "dangling").symlink_to(root / "nowhere")
    contents = {
        "binary": bytes(range(256)) * 40, "binary.jsonl": bytes(range(256)) * 40, "deep.json": b"[" * 100_000, "empty.jsonl": b"",
        "broken.jsonl.gz": gzip.compress(b'{"prompt": "a"}\n' * 100)[:40], "broken.jsonl.zst": zstandard.compress(b'{"prompt": "a"}\n' * 100)[:20],
        "bomb.yaml": b"a: &a [x, x]\nb: &b [*a, *a]\n? [1]\n: 2\n", "config.json": b'{"model_type": ["x"], "hidden_size": "many"}',
        "utf16.json": '{"a": 1}'.encode("utf-16"), "list.json": b"[1, [2], null]", "numbers.jsonl": b"1e999\nNaN\n-0\n",
    }  # fmt: skip
    for file, content in contents.items():
        (root / file).write_bytes(content)
    return {"fifo": str(root / "fifo"), "folder": str(root / "folder"), "missing": str(root / "no" / "such"), "loop": str(root / "loop"),
            "dangling": str(root / "dangling"), "binary": str(root / "binary"), "binary_jsonl": str(root / "binary.jsonl"), "deep": str(root / "deep.json"),
            "empty": str(root / "empty.jsonl"), "gz": str(root / "broken.jsonl.gz"), "zst": str(root / "broken.jsonl.zst"), "bomb": str(root / "bomb.yaml"),
            "config": str(root / "config.json"), "utf16": str(root / "utf16.json"), "list": str(root / "list.json"), "numbers": str(root / "numbers.jsonl")}  # fmt: skip


def _feed(fifo: Path) -> None:
    """Whoever reads it gets an end at once. (A FIFO that nobody writes to is waited for, as every program waits.)"""
    while fifo.exists():
        with contextlib.suppress(OSError), open(fifo, "wb"):
            pass


def line_of(case: Case, places: dict[str, str]) -> list[str]:
    """The arguments of a call that holds the value."""
    base, known = EFFECTS.get(case.command, (CALLS.get(case.command, ""), {}))
    command = ALL[case.command][0]
    arguments = [*case.command.split(), *shlex.split(base.format(**places))]
    value = HOSTILE[case.kind]
    value = value.format(**places) if value.startswith("{") and value.endswith("}") and len(value) > 3 else value
    if not case.option.startswith("-"):
        own = [one for one in command.params if one.param_type_name == "argument"]
        return _with_argument(case, arguments, own, value)
    # What the option needs to have an effect stands beside it.
    needed = known.get(case.option, "")
    _, sign, others = f" {needed}".partition(" --")
    return [*arguments, *(shlex.split(f"--{others}".format(**places)) if sign else []), case.option, value]


def _with_argument(case: Case, arguments: list[str], own: list[Any], value: str) -> list[str]:
    """The value in place of the argument in the call, or behind it where there is none."""
    words = case.command.split()
    rest = arguments[len(words) :]
    free = [
        at for at, one in enumerate(rest) if not one.startswith("--") and (at == 0 or not rest[at - 1].startswith("--"))
    ]
    place = [one.name for one in own].index(case.option)
    if place < len(free):
        rest = [*rest[: free[place]], *rest[free[place] + 1 :]]
    others = [rest[at] for at in free[:place]]
    options = [one for at, one in enumerate(rest) if at not in free[:place]]
    return [*words, *options, "--", *others, value]


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise _TooLong

    room = resource.getrlimit(resource.RLIMIT_AS)
    if Path("/proc/self/statm").exists():
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + GROWTH * 2**20, room[1]))
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, LIMIT), (signal.SIGALRM, signal.ITIMER_REAL, WAIT))
    before = [signal.signal(number, ring) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds, 0.5)  # again where what rang was swallowed
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, room)


def replace_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a command's work begins, the call ends."""

    def reached(*_: Any, **__: Any) -> Any:
        raise Asked

    load_users()
    for engine in (*ENGINES, "serving.server.serve", "training.launcher._run"):
        if engine == "model.tokenizer.load_tokenizer":
            continue  # it reads what the user names
        module, _, name = engine.rpartition(".")
        monkeypatch.setattr(importlib.import_module(f"dcoder_cli.{module}"), name, reached)


def trouble(arguments: list[str], watched: list[Path]) -> str:
    """Run a call in this process; "" where it answered or was refused as it should be, else what was wrong with it."""
    from dcoder_cli.main import main

    before = [_listing(folder) for folder in watched]
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors) for errors in ("strict", "backslashreplace")
    ]
    code: Any = 0
    argv, stdin = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["dcoder", *arguments], io.StringIO("")
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]), _bounded():
            main()
    except SystemExit as left:
        code = left.code or 0
    except Asked:
        pass
    except _TooLong:
        return f"not ended after {LIMIT} s of processor time, or {WAIT} by the clock"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        own = [
            f"{Path(one.filename).name}:{one.lineno}"
            for one in where
            if "dcoder_cli" in one.filename or "commands" in one.filename
        ]
        return f"{type(error).__name__} {str(error)[:150]!r} in {', '.join(own[-3:])}"
    finally:
        sys.argv, sys.stdin = argv, stdin
    out, err = ["", ""]
    for index, stream in enumerate(streams):
        stream.flush()
        text = stream.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined]
        out, err = (text, err) if index == 0 else (out, text)
    if code not in (0, 2):
        return f"exit {code}: {err[:150]!r}"
    if code == 2:
        lines = err.rstrip("\n").split("\n")
        if len(lines) != 1 or "\r" in err or not err.startswith("error: "):
            return f"not one line: {err[:200]!r}"
        if out:
            return f"refused, and wrote {out[:80]!r}"
        if "\x1b" in err:
            return f"an escape: {err[:100]!r}"
        if len(err) > 4000:
            return f"{len(err)} characters of refusal: {err[:80]!r}"
    for folder, was in zip(watched, before, strict=True):
        if new := _listing(folder) - was:
            return f"left behind {sorted(new)[:3]}"
    return ""


def _listing(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")} if folder.is_dir() else set()

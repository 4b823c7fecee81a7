"""What a bench found, as one document for programs and as a table for people."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dcoder_cli import __version__
from dcoder_cli.base.machine import cores
from dcoder_cli.timing import memory
from dcoder_cli.timing.race import Timing, spread
from dcoder_cli.timing.rate import MatrixRate

_FIRST, _CELL = 28, 26  # widths of the columns


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Whether both ways made the same.

    Attributes:
        agree: None where there was nothing to compare with.
        words: what was compared, and how it came out.
        numbers: the same for programs.
    """

    agree: bool | None
    words: str
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)


NOTHING = Agreement(None, "nothing to compare with: the plain reference ran out of memory")


def document(
    bench: str, subject: Mapping[str, Any], device: torch.device, rate: MatrixRate | None, repeats: int,
    cases: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """All that a bench found."""
    machine = {
        "device": device.type, "name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processors": cores(), "threads": torch.get_num_threads(), "torch": torch.__version__, "dcoder": __version__,
    }  # fmt: skip
    return {
        "bench": bench, "subject": dict(subject), "machine": machine,
        "matrix_rate": None if rate is None else dataclasses.asdict(rate),
        "peak_is": memory.how(device), "repeats": repeats, "cases": list(cases),
    }  # fmt: skip


def case(
    asked: Mapping[str, Any], unit: str, amount: float, ours: Timing, plain: Timing, agreement: Agreement,
    more: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}), rate: MatrixRate | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One case of a bench.

    Args:
        unit, amount: what is counted a second, and how much of it a lap does.
        more: further numbers of ours and of the plain way; `matrix_operations` of a lap gives its share of `rate`.
    """
    found = {
        "asked": dict(asked), "unit": unit, "amount": amount, "dcoder": _timed(ours, amount, more[0], rate),
        "plain": _timed(plain, amount, more[1], rate), "times_as_fast": None,
        "agreement": {"agree": agreement.agree, "words": agreement.words, **agreement.numbers},
    }  # fmt: skip
    if plain.trouble is None:
        pairs = [slow / fast for slow, fast in zip(plain.wall, ours.wall, strict=True)]
        medians = spread(plain.wall)["median"] / spread(ours.wall)["median"]
        found["times_as_fast"] = {"of_medians": medians, "least": min(pairs), "most": max(pairs)}
    return found


def _timed(timing: Timing, amount: float, more: Mapping[str, Any], rate: MatrixRate | None) -> dict[str, Any]:
    if timing.trouble is not None:
        return {"trouble": timing.trouble}
    found = {
        "warm_up_seconds": timing.warm_up, "seconds": spread(timing.wall),
        "cpu_seconds": spread(timing.cpu) if timing.cpu else None, "laps": {"seconds": timing.wall, "cpu_seconds": timing.cpu},
        "per_second": spread([amount / wall for wall in timing.wall]), "peak_bytes": timing.peak, **more,
    }  # fmt: skip
    if rate is not None and "matrix_operations" in more:
        operations = more["matrix_operations"]
        found["matrix_share"] = spread([operations / wall / rate.median for wall in timing.wall])
    return found


# ---- for people

# What a line of the table shows: its name, the key, and a factor; an entry is left out where there is none.
_LINES = (
    ("seconds", "seconds", 1.0),
    ("CPU seconds", "cpu_seconds", 1.0),
    ("MB a second", "megabytes_per_second", 1.0),
    ("warm-up, seconds", "warm_up_seconds", 1.0),
    ("forward passes", "forwards", 1.0),
    ("tokens a forward pass", "tokens_per_forward", 1.0),
    ("first commit, seconds", "first_commit_seconds", 1.0),
    ("last commit, seconds", "last_commit_seconds", 1.0),
    ("peak memory, MiB", "peak_bytes", 2**-20),
    ("share of the matrix rate, %", "matrix_share", 100.0),
)


def table(found: Mapping[str, Any]) -> list[str]:
    """Lines of at most 80 characters: medians, with least and most behind them."""
    subject, machine, rate = found["subject"], found["machine"], found["matrix_rate"]
    lines = [f"{found['bench']}: {', '.join(str(value) for value in subject.values())}"]
    where = f"{machine['name'] or machine['device']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    if rate is not None:
        spread = f"{_rate(rate['least'])} to {_rate(rate['most'])}"
        where += f"; matrix rate {_rate(rate['median'])} ({spread}), {rate['dtype']}"
    lines += [where, f"medians of {found['repeats']} runs of each in turn, and least to most"]
    for one in found["cases"]:
        lines += ["", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in one["asked"].items())]
        lines.append(f"{'':{_FIRST}}{'dcoder':>{_CELL}}{'plain':>{_CELL}}")
        sides = (one["dcoder"], one["plain"])
        for name, key, factor in ((f"{one['unit']} a second", "per_second", 1.0), *_LINES):
            if any(side.get(key) is not None for side in sides):
                cells = [_cell(side, key, factor) for side in sides]
                lines.append(f"{name:{_FIRST}}{cells[0]:>{_CELL}}{cells[1]:>{_CELL}}")
        times = one["times_as_fast"]
        if times is not None:
            pairs = f"pair by pair {times['least']:.3g} to {times['most']:.3g}"
            lines.append(f"{times['of_medians']:.3g} times as fast, {pairs}")
        lines += textwrap.wrap(one["agreement"]["words"], _FIRST + 2 * _CELL)
    return lines


def _cell(side: Mapping[str, Any], key: str, factor: float) -> str:
    value = side.get("trouble", side.get(key))
    if value is None or isinstance(value, str):
        return value or "-"
    if not isinstance(value, Mapping):
        return _number(value * factor, 4)
    return f"{_number(value['median'] * factor, 4)} ({_number(value['least'] * factor, 3)}-{_number(value['most'] * factor, 3)})"


def _number(value: float, digits: int) -> str:
    """With so many digits, and no exponent from a thousandth to thousands of millions."""
    for size, letter in ((1e6, "M"), (1e5, "k")):
        if value >= size:
            return f"{value / {'M': 1e6, 'k': 1e3}[letter]:,.{digits}g}{letter}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{digits}g}"


def _rate(operations: float) -> str:
    return f"{operations / 1e12:.3g} T/s" if operations >= 1e12 else f"{operations / 1e9:.3g} G/s"

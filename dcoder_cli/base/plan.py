"""What a command would do, as `--dry-run` tells it: everything has been checked, nothing is written. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcoder_cli.base import console
from dcoder_cli.base.files import free_bytes, human_bytes


@dataclass
class RunPlan:
    """What is going to happen.

    Attributes:
        command: as the user calls it, such as `train-stage 1`.
        settings: all of them, resolved.
        facts: name -> (for programs, for people), in the order in which they are shown.
        warnings: what may go wrong all the same, a line each.
    """

    command: str
    settings: Mapping[str, Any]
    facts: dict[str, tuple[Any, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, name: str, value: Any, told: str | None = None) -> None:
        """A fact; `told`: for people, by default the value, with commas in numbers."""
        self.facts[name] = (value, told if told is not None else f"{value:,}" if _is_number(value) else str(value))

    def add_disk(self, out: Path, needed: float, what: str) -> None:
        """The bytes that will be written under `out`, beside what is free there."""
        free = free_bytes(out)
        self.add(
            "disk", {"bytes": round(needed), "free": free, "out": str(out)},
            f"{human_bytes(needed)} for {what} in {out}; {human_bytes(free)} free",
        )  # fmt: skip
        if needed > free:
            self.warnings.append(f"{human_bytes(needed)} will not fit in the {human_bytes(free)} that {out} has free")

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "dry_run": self.command,
            **{name: value for name, (value, _) in self.facts.items()},
            "warnings": self.warnings,
            "settings": dict(self.settings),
        }

    def lines(self) -> list[str]:
        """For people: the facts in two columns, then the settings as YAML."""
        import textwrap

        import yaml

        wide = max((len(name) for name in self.facts), default=0)
        found = [f"dry run of {self.command}: everything is checked, nothing is written"]
        for name, (_, told) in self.facts.items():
            first, *rest = textwrap.wrap(told, 80 - wide - 4, break_long_words=False, break_on_hyphens=False) or [""]
            found.append(f"  {name:{wide}}  {first}")
            found += [f"  {'':{wide}}  {line}" for line in rest]
        if self.settings:
            found.append("  settings")
            for name, value in self.settings.items():
                inner = None if isinstance(value, (dict, list)) else False  # lists of numbers stay on their line
                text = yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=inner, width=74)
                found += [f"    {line}" for line in text.splitlines()]
        return found


def show(plan: RunPlan, json: bool) -> None:
    """Print a plan on the first process: one JSON document, or lines with the warnings behind them."""
    if json:
        console.emit_json(plan.to_json())
        return
    for line in plan.lines():
        console.stdout().print(line, markup=False, highlight=False, soft_wrap=True)
    for line in plan.warnings:
        console.warn(line)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

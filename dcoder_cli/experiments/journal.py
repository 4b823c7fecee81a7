"""What a long run has done, step by step, in one file: a step that is done is not done again after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import StoppedByUser, UserError
from dcoder_cli.base.files import write_json
from dcoder_cli.base.schema import Format

Announce = Callable[[str], None]


@dataclass(frozen=True)
class JournalRecord:
    """The file: what the run was asked, and what each step that is done found, with its `seconds`."""

    settings: dict[str, Any]
    steps: dict[str, dict[str, Any]]


_FORMAT = Format("record", JournalRecord, "start again with --force", version=1, first=1)


class Journal:
    """The steps of one run and what each found, as JSON.

    Attributes:
        settings: what the run was asked.
        steps: name -> what the step found, with its `seconds`, in the order they were done.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], announce: Announce) -> None:
        self.path, self.settings, self.announce = path, dict(settings), announce
        self.steps: dict[str, dict[str, Any]] = {}
        self._began = time.perf_counter()
        self._before = 0.0  # seconds of steps that an earlier call did

    @classmethod
    def begin(cls, path: Path, settings: Mapping[str, Any], announce: Announce) -> Journal:
        """A new one."""
        journal = cls(path, settings, announce)
        journal._write()
        return journal

    @classmethod
    def resume(cls, path: Path, settings: Mapping[str, Any], announce: Announce) -> Journal:
        """The one that a stopped run left.

        Raises:
            UserError: there is none, it is damaged, or it is of other settings.
        """
        kept = _FORMAT.read(path)
        for name, value in settings.items():
            if kept.settings.get(name) != value:
                raise UserError(
                    f"--resume of a run with {name} = {kept.settings.get(name)!r}, and now it is {value!r}; "
                    "give the same, or start again with --force"
                )
        journal = cls(path, settings, announce)
        journal.steps = kept.steps
        journal._before = sum(float(step.get("seconds", 0.0)) for step in kept.steps.values())
        return journal

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, over all of its calls: of an earlier one, the steps that it finished."""
        return self._before + time.perf_counter() - self._began

    def step(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What `work` finds, or what it found in an earlier call. Raises StoppedByUser at Ctrl-C, with how to go on."""
        if name not in self.steps:
            self.announce(name)
            began = time.perf_counter()
            try:
                found = dict(work())
            except KeyboardInterrupt:  # a training says it itself
                raise StoppedByUser(f"stopped in {name!r}; the same command with --resume goes on") from None
            self.steps[name] = {**found, "seconds": round(time.perf_counter() - began, 1)}
            self._write()
        return self.steps[name]

    def _write(self) -> None:
        write_json(self.path, {"settings": self.settings, "steps": self.steps})

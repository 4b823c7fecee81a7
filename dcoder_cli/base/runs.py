"""Run folders: the resolved config, metrics, checkpoints and environment of one training.

config.yaml        what ran, resolved
metrics.jsonl      one line a logged step or evaluation; the same for the same run, bit for bit
timings.jsonl      seconds and rates of the same steps, which differ from run to run
checkpoints/       step-N folders, and `last` and `best` links to two of them
environment.json   every start: command line, time, machine, versions
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dcoder_cli.base import jsonl
from dcoder_cli.base.console import rank
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import atomic_file, check_folder, write_json
from dcoder_cli.base.locks import Lock, lock
from dcoder_cli.base.provenance import started
from dcoder_cli.base.run_files import LOG, LOGS, read_run, read_starts


class RunFolder:
    """A run's folder on disk; only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Lock | None = None

    @classmethod
    def check(cls, path: str | Path, resume: bool, hold: bool = False) -> RunFolder:
        """The folder, checked but not yet made: other checks may still refuse the run.

        Args:
            path: the folder.
            resume: whether it must hold a run, or must not.
            hold: lock it, on the first process of a launch, until `release` or the end.

        Raises:
            UserError: it cannot be written; another process writes to it; it holds a run and `resume` is off, or holds none
                and `resume` is on; its environment.json is damaged.
        """
        check_folder(path)
        run = cls(Path(path))
        if hold and rank() == 0:
            run._lock = lock(path, "run folder")
        try:
            run._check_content(path, resume)
        except BaseException:
            run.release()
            raise
        return run

    def release(self) -> None:
        """Let others write to it."""
        if self._lock is not None:
            self._lock.release()

    def _check_content(self, path: str | Path, resume: bool) -> None:
        holds_run = (self.path / "config.yaml").is_file()
        if resume and not holds_run:
            raise UserError(f"run folder {str(path)!r} holds no run to resume; start without --resume")
        if not resume and holds_run:
            raise UserError(f"run folder {str(path)!r} holds a run already; add --resume or choose another --out")
        for name in ("config.yaml", "environment.json", *(f"{log}.jsonl" for log in LOGS)):
            place = self.path / name
            if place.exists() and not place.is_file():
                raise UserError(f"{str(place)!r} is no regular file, and a run writes there; move it away")
        for name in ("last", "best"):
            place = self.path / "checkpoints" / name
            if place.exists() and not place.is_symlink():
                raise UserError(
                    f"{str(place)!r} is no link to a checkpoint (a copy followed it?); remove it, the run makes it again"
                )
        if resume:
            self.config()
            for name in LOGS:
                self.read(name)
        self.starts()

    def make(self) -> None:
        """Make the folder."""
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)

    def write_config(self, config: Mapping[str, Any], device: str | None = None, preset: str | None = None) -> None:
        """Write config.yaml, and add this start to those in environment.json.

        Args:
            config: what runs, resolved.
            device, preset: see `provenance.started`.

        Raises:
            UserError: environment.json is damaged.
        """
        starts = [*self.starts(), started(device, preset)]
        with atomic_file(self.path / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        write_json(self.path / "environment.json", {"starts": starts})

    def starts(self) -> list[dict[str, Any]]:
        """Every start of this run, the first one first."""
        file = self.path / "environment.json"
        return read_starts(file) if file.is_file() else []

    def config(self) -> dict[str, Any]:
        """What `write_config` wrote. Raises UserError where it is no record of a run."""
        return read_run(self.path / "config.yaml")

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """One line at the end of `NAME.jsonl`."""
        with open(self.path / f"{name}.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(dict(record)) + "\n")

    def read(self, name: str) -> list[dict[str, Any]]:
        """All whole lines of `NAME.jsonl`; a last line cut off by a kill is left out.

        Raises:
            UserError: another line is no JSON object, or has no step; it is named.
        """
        file = self.path / f"{name}.jsonl"
        if not file.is_file():
            return []
        rows = LOG.rows(file, torn=True) if name in LOGS else jsonl.objects(file, "log", torn=True)
        return [record for _, record in rows]

    def cut_after(self, step: int) -> None:
        """Drop lines of later steps from the metrics, all of them at step 0: a resumed run writes them again."""
        for name in LOGS:
            kept = [record for record in self.read(name) if step > 0 and record["step"] <= step]
            with atomic_file(self.path / f"{name}.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def checkpoint(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.path / "checkpoints" / f"step-{step}"

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        found = []
        for folder in (self.path / "checkpoints").glob("step-*"):
            number = folder.name.removeprefix("step-")
            if number.isascii() and number.isdigit() and folder.is_dir():
                found.append(int(number))
        return sorted(found)

    def last(self) -> int:
        """The step of the last whole checkpoint; 0 where a run was stopped before its first."""
        return max(self.steps(), default=0)

    def link(self, name: str, step: int) -> None:
        """Point `checkpoints/NAME` to a step's checkpoint."""
        place = self.path / "checkpoints" / name
        temporary = place.with_name(f".{name}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(f"step-{step}")
        os.replace(temporary, place)

    def linked(self, name: str) -> int | None:
        """The step that `checkpoints/NAME` points to; None where there is no such link, or its checkpoint is gone."""
        place = self.path / "checkpoints" / name
        target = os.readlink(place) if place.is_symlink() else ""
        return next((step for step in self.steps() if target == f"step-{step}"), None)

    def prune(self, keep: int) -> None:
        """Remove all checkpoints but the last `keep` and the best, and what a kill left half-written."""
        best = self.linked("best")
        for step in self.steps()[:-keep]:
            if step != best:
                shutil.rmtree(self.checkpoint(step), ignore_errors=True)
        for leftover in (self.path / "checkpoints").glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


def checkpoint_of(path: Path) -> Path:
    """The last checkpoint of a run folder; any other path as it is.

    Raises:
        UserError: a run folder without a checkpoint.
    """
    if not (path / "config.yaml").is_file() or not (path / "checkpoints").is_dir() or (path / "config.json").is_file():
        return path
    last = path / "checkpoints" / "last"
    if not last.is_dir():
        raise UserError(f"run folder {str(path)!r} has no checkpoint yet; train on, or give a checkpoint's folder")
    return last


def model_labels(models: Sequence[str]) -> list[str]:
    """A short name for each model in tables and folders, different ones: the run's, the folder's or the hub id's last part.

    `runs/sft`, `runs/sft/checkpoints/last` and `.../best` are "sft", `runs/sft/checkpoints/step-100` is "sft-step-100".
    Equal names are numbered in order.
    """
    names = []
    for path in models:
        parts = [part for part in Path(path).parts if part not in ("/", "last", "best", "..", ".")]
        if len(parts) > 2 and parts[-2] == "checkpoints":
            parts = [f"{parts[-3]}-{parts[-1]}"]
        parts = [part for part in parts if part != "checkpoints"]
        names.append(parts[-1] if parts else "model")
    return distinct(names)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, equal ones numbered in order; no number makes a name that is there already."""
    found: list[str] = []
    for place, name in enumerate(names):
        number = place + 1
        label = name if names.count(name) == 1 else f"{name}-{number}"
        while label in found or (label != name and label in names):
            number += 1
            label = f"{name}-{number}"
        found.append(label)
    return found

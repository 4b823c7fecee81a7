"""The place of unfinished work beside an output folder: one writer at a time, resumable, gone when done.

`OUT` itself appears in one rename, complete. Until then everything lies in `.OUT.partial` beside it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.console import note
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_replaceable, is_out_of_space, write_json
from dcoder_cli.base.locks import try_lock
from dcoder_cli.data.dropped import SourceStopped
from dcoder_cli.data.manifest import MANIFEST


class Workspace:
    """`units/`, `tokenizer/`, `copies/` and `out/` under `.OUT.partial`."""

    def __init__(self, out: Path) -> None:
        self.out = Path(os.path.realpath(out))  # a link stays where it is
        self.root = self.out.parent / f".{self.out.name}.partial"
        self.units = self.root / "units"
        self.tokenizer = self.root / "tokenizer"
        self.result = self.root / "out"
        self.copies = self.root / "copies"

    def resume(self, plan: Mapping[str, Any], quiet: bool) -> bool:
        """Keep the work of an earlier run with the same plan and return True; else start empty."""
        path = self.root / "plan.json"
        try:
            same = jsonl.document(path) == plan
        except UserError:  # none, or cut off
            same = False
        if not same:
            if path.exists() and not quiet:
                note(f"{self.root} is of other settings or sources: starting afresh")
            for entry in (path, self.units, self.tokenizer, self.result):
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        self.units.mkdir(exist_ok=True)
        for leftover in self.units.glob(".*.tmp"):
            leftover.unlink()
        if not same:
            write_json(path, plan)
        shutil.rmtree(self.result, ignore_errors=True)
        self.result.mkdir()
        return same

    def forget_units(self) -> None:
        """Remove every finished unit."""
        shutil.rmtree(self.units)
        self.units.mkdir()

    def tidy(self, refused: bool = False) -> None:
        """After a failure: remove what no later run can use; all of it where no unit was finished, or the input is refused."""
        if refused:
            shutil.rmtree(self.root, ignore_errors=True)
            return
        shutil.rmtree(self.result, ignore_errors=True)
        if not self.tokenizer.is_dir() and not any(self.units.glob("unit-*")):
            shutil.rmtree(self.root, ignore_errors=True)

    def publish(self) -> None:
        """Move the finished `out/` to OUT, replacing an older set, and remove the rest."""
        descriptor = os.open(self.result, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        if self.out.exists():
            shutil.rmtree(self.out)
        os.replace(self.result, self.out)
        shutil.rmtree(self.root, ignore_errors=True)


@contextmanager
def open_workspace(out: Path, overwrite: bool) -> Iterator[Workspace]:
    """The workspace of OUT, locked. On a full disk the finished units stay, and the error says so.

    Raises:
        UserError: OUT is in the way, another process works on it, it cannot be written, or the disk is full.
    """
    check_replaceable(out, overwrite, MANIFEST, "finished data")
    workspace = Workspace(out)
    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
        with open(workspace.root / "lock", "w") as lock:
            if not try_lock(lock):
                raise UserError(f"another dcoder tokenize is writing {str(out)!r}; wait for it or choose another")
            try:
                yield workspace
            except BaseException as error:
                # With other input, or other options, nothing of this work counts.
                workspace.tidy(refused=isinstance(error, UserError) and not isinstance(error, SourceStopped))
                raise
    except OSError as error:
        if is_out_of_space(error):
            raise UserError(
                f"no space left for {str(out)!r}: free some and run the same command again, it goes on from "
                f"{str(workspace.root)!r}"
            ) from error
        raise UserError(f"{str(out)!r} cannot be written: {error.strerror or error}") from error

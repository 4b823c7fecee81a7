"""The files of an evaluation: samples.jsonl and judged.jsonl, appended to sample by sample.

A run that was killed goes on where it stopped. Under several processes each appends to files of its own
(`samples.rank-R.jsonl`), and the first one merges them at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import check_folder, json_line, write_json, write_jsonl
from dcoder_cli.base.locks import try_lock
from dcoder_cli.base.run_files import JUDGED, SAMPLES
from dcoder_cli.benchmarks.benchmark import Row

_IDENTITY = "settings.json"
Key = tuple[str, int]  # task id and number of the sample, from 0


def key_of(row: Mapping[str, Any]) -> Key:
    """The key of a row of either file."""
    return row["task_id"], row["sample"]


class Store:
    """What an evaluation's folder holds so far, and where this process appends. A context manager.

    Attributes:
        samples, judged: rows that are there, by key, of all processes.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], rank: int = 0, world: int = 1) -> None:
        """Open the folder, or make it.

        Args:
            identity: what makes samples comparable (model, protocol, settings, data's hash); kept in settings.json.

        Raises:
            UserError: the folder holds samples of another identity, or another process writes to it.
        """
        self.folder, self.rank = folder, rank
        self._claim(identity)
        own = "" if world == 1 else f".rank-{rank}"
        self._files = {name: folder / f"{name}{own}.jsonl" for name in ("samples", "judged")}
        self._handles: dict[str, IO[str]] = {}
        for name, file in self._files.items():
            self._handles[name] = open(file, "a", encoding="utf-8")  # noqa: SIM115
            if not try_lock(self._handles[name]):
                self.close()
                raise UserError(f"another evaluation writes to {str(folder)!r}; wait for it, or give another --out")
            _drop_cut_line(file)
        self.samples: dict[Key, Row] = {}
        self.judged: dict[Key, Row] = {}
        self.read()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles.values():
            handle.close()

    def read(self) -> None:
        """Take in what the files of all processes hold."""
        for name, rows in (("samples", self.samples), ("judged", self.judged)):
            for file in sorted(self.folder.glob(f"{name}*.jsonl")):
                for row in _whole_lines(file):
                    # what infrastructure lost was judged again, further down
                    if rows.get(key_of(row), {"status": "infrastructure"}).get("status") == "infrastructure":
                        rows[key_of(row)] = row

    def add(self, name: str, row: Row) -> None:
        """Append a row to `samples` or `judged`; it outlives a kill from here on."""
        handle = self._handles[name]
        handle.write(json_line(row))
        handle.flush()
        (self.samples if name == "samples" else self.judged)[key_of(row)] = row

    def merge(self, order: Iterable[Key]) -> None:
        """Write both files whole, rows in `order` first and others after them, and remove those of single processes."""
        self.read()
        place = {key: number for number, key in enumerate(order)}
        self.close()
        for name, rows in (("samples", self.samples), ("judged", self.judged)):
            ordered = sorted(rows.values(), key=lambda row: (place.get(key_of(row), len(place)), *key_of(row)))
            write_jsonl(self.folder / f"{name}.jsonl", ordered)
            for file in self.folder.glob(f"{name}.rank-*.jsonl"):
                file.unlink()

    def _claim(self, identity: Mapping[str, Any]) -> None:
        if not check(self.folder, identity) and self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _IDENTITY, identity)


def check(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds an evaluation of this identity already; nothing is written.

    Raises:
        UserError: it holds another one, or something else, or cannot be written.
    """
    file = folder / _IDENTITY
    check_folder(folder)
    if not file.is_file():
        if (folder / "samples.jsonl").exists():
            raise UserError(f"--out {str(folder)!r} holds samples of something else; choose another folder")
        return False
    try:
        before = jsonl.document(file)
    except UserError as error:
        raise UserError(f"{error}; choose another --out") from None
    now = json.loads(json.dumps(identity))
    before.setdefault("weights", now.get("weights"))  # earlier releases did not note them
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise UserError(
            f"--out {str(folder)!r} holds samples with {name} = {_short(before.get(name))}, and this run has "
            f"{_short(now.get(name))}; choose another --out"
        )
    return True


def sampled(folder: Path) -> set[Key]:
    """The keys of the samples that an evaluation's folder holds, of all processes."""
    return {key_of(row) for file in folder.glob("samples*.jsonl") for row in _whole_lines(file)}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _drop_cut_line(file: Path) -> None:
    """Cut off a last line that a kill left without its end."""
    with open(file, "rb+") as handle:
        data = handle.read()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            handle.truncate(whole)


def _whole_lines(file: Path) -> list[Row]:
    kind = JUDGED if file.name.startswith("judged") else SAMPLES
    return [row for _, row in kind.rows(file, torn=True, halves=True)]

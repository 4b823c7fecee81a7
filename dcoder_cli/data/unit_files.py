"""The files of all finished units, as one list of documents. Opened for a moment each, since corpora have tens of thousands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.data.arrays import ArrayFile, ArrayPlace

Numbers = npt.NDArray[np.int64]


def unit_path(folder: str | Path, index: int) -> Path:
    """Where the result of unit `index` lies."""
    return Path(folder) / f"unit-{index:07d}.safetensors"


@dataclass(frozen=True)
class UnitFiles:
    """Travels to other processes.

    Attributes:
        paths: of each unit, in source order.
        starts: [units + 1] the number of each unit's first document, and of all.
    """

    paths: Sequence[Path]
    starts: Numbers
    _types: dict[str, tuple[type[Any], int]]  # of each array its type and, of two-dimensional ones, its width (else 0)
    _begins: dict[str, Numbers]
    _lengths: dict[str, Numbers]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> UnitFiles:
        """Look where the arrays of every file stand. Raises UserError for a damaged one."""
        types: dict[str, tuple[type[Any], int]] = {}
        begins: dict[str, list[int]] = {}
        lengths: dict[str, list[int]] = {}
        for path in paths:
            for name, stored in ArrayFile.open(path).stored.items():
                types[name] = stored.dtype, stored.shape[1] if len(stored.shape) == 2 else 0
                begins.setdefault(name, []).append(stored.begin)
                lengths.setdefault(name, []).append(stored.shape[0])
        return cls(
            paths,
            np.cumsum([0, *lengths.get("lengths", [])], dtype=np.int64),
            types,
            {name: np.array(numbers, np.int64) for name, numbers in begins.items()},
            {name: np.array(numbers, np.int64) for name, numbers in lengths.items()},
        )

    def array(self, unit: int, name: str) -> npt.NDArray[Any]:
        """An array of a unit, mapped."""
        dtype, width = self._types[name]
        length = int(self._lengths[name][unit])
        shape = (length, width) if width else (length,)
        return ArrayPlace(dtype, shape, int(self._begins[name][unit])).map(self.paths[unit])

    def rows(self, name: str, documents: Numbers) -> npt.NDArray[Any]:
        """The rows [n, width] of documents by number, in the order given; each file is opened once."""
        dtype, width = self._types[name]
        order = np.argsort(documents, kind="stable")
        wanted = documents[order]
        rows = np.empty((len(documents), width), dtype)
        # Of these documents alone: there may be many more units.
        units = np.searchsorted(self.starts, wanted, "right") - 1
        heads = np.flatnonzero(np.diff(units, prepend=-1))
        for begin, end in pairwise([*heads.tolist(), len(wanted)]):
            unit = int(units[begin])
            rows[order[begin:end]] = self.array(unit, name)[wanted[begin:end] - self.starts[unit]]
        return rows

    def groups(self, most: int) -> list[range]:
        """Consecutive units with about `most` documents together, or one with more. At least one group, unless there is none."""
        cuts = [0]
        for unit in range(len(self.paths)):
            if self.starts[unit + 1] - self.starts[cuts[-1]] > most and unit > cuts[-1]:
                cuts.append(unit)
        return [range(a, b) for a, b in pairwise([*cuts, len(self.paths)]) if a < b]

    def documents(self, units: range) -> slice:
        """The numbers of the documents of consecutive units."""
        return slice(int(self.starts[units.start]), int(self.starts[units.stop]))

"""Decontamination: finding documents that repeat a benchmark's problems.

A document is contaminated when it shares one run of 10 words with a problem's statement, solution or listed tests:
OpenCoder (arXiv 2411.04905, section 4) removes training samples with any 10-gram overlap with the test sets. Runs of
which fewer than half the words hold a letter are left out: they are lists of numbers, and would match any table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dcoder_cli.base import jsonl
from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.machine import BENCHMARKS_VARIABLE
from dcoder_cli.data.ngrams import Hashes, ngram_hashes, word_codes, words

# A problem's own words. Whole test programs (`test`) are not among them: their unittest boilerplate is everywhere.
_FIELDS = (
    *("prompt", "complete_prompt", "instruct_prompt", "code_prompt", "text", "question"),
    *("canonical_solution", "code", "answer", "test_list", "suffix"),
)


class Contamination:
    """The n-grams of some benchmarks, and which problem each came from."""

    def __init__(self, n: int, hashes: Hashes, tasks: list[str]) -> None:
        self.n, self._hashes, self._tasks = n, hashes, tasks

    def find(self, codes: Hashes) -> str | None:
        """The name of a problem that a text (as `ngrams.word_codes`) shares an n-gram with, or None."""
        found = ngram_hashes(codes, self.n)
        if not len(found) or not len(self._hashes):
            return None
        places = np.minimum(np.searchsorted(self._hashes, found), len(self._hashes) - 1)
        hits = np.flatnonzero(self._hashes[places] == found)
        return self._tasks[int(places[hits[0]])] if len(hits) else None


def load_contamination(names: Sequence[str], folder: str | None, n: int) -> Contamination:
    """The n-grams of the benchmarks `names`, each a subfolder with .json or .jsonl files (.gz too) of problems.

    `folder` defaults to the environment variable DCODER_BENCHMARKS.

    Raises:
        UserError: no folder given or found, an unknown benchmark, or a broken file.
    """
    place = folder or os.environ.get(BENCHMARKS_VARIABLE)
    if not place:
        raise UserError(
            f"--decontaminate {','.join(names)} needs the benchmarks: give --benchmarks DIR or {BENCHMARKS_VARIABLE}"
        )
    if not Path(place).is_dir():
        raise UserError(f"benchmark folder {place!r} does not exist; give --benchmarks DIR or {BENCHMARKS_VARIABLE}")
    known = sorted(entry.name for entry in Path(place).iterdir() if entry.is_dir())
    owners: dict[int, str] = {}
    for name in names:
        if name not in known:
            raise UserError(f"no benchmark {name!r} in {place!r}{nearest(name, known)}")
        before = len(owners)
        for label, text in _problems(Path(place) / name, name):
            for value in _telling_ngrams(text, n):
                owners.setdefault(value, label)
        if len(owners) == before and not any(label.startswith(f"{name}: ") for label in owners.values()):
            raise UserError(f"benchmark folder {str(Path(place) / name)!r} has no problems with {n} words or more")
    hashes = np.array(sorted(owners), np.uint64)
    return Contamination(n, hashes, [owners[int(value)] for value in hashes])


def _telling_ngrams(text: str, n: int) -> list[int]:
    lettered = np.array([any(map(str.isalpha, word)) for word in words(text)], bool)
    hashes = ngram_hashes(word_codes(text), n)
    if not len(hashes):
        return []
    counts = np.convolve(lettered.astype(int), np.ones(n, int), "valid")
    chosen: list[int] = hashes[counts * 2 >= n].tolist()
    return chosen


def _problems(folder: Path, benchmark: str) -> Iterator[tuple[str, str]]:
    """(label, text) of every telling field of every problem; a training split (train.jsonl, GSM8K's) is there to train on."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")) and not path.name.startswith("train.")
    )
    for path in files:
        for index, entry in enumerate(jsonl.table(path, "benchmark file")):
            row = entry.value
            if not isinstance(row, dict):
                continue
            label = f"{benchmark}: {row.get('task_id', index)}"
            for field in _FIELDS:
                value = row.get(field)
                if isinstance(value, list):
                    value = "\n".join(map(str, value))
                if isinstance(value, str):
                    yield label, value

"""Readers of what dcoder writes, for notebooks and programs: plain dictionaries, or a pandas frame. Neither torch nor pandas.

docs/formats.md says what the rows hold. Each reader takes a file or a folder; what is below a folder is found by the names
that the commands give their files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.run_files import JUDGED, LOG, SAMPLES

if TYPE_CHECKING:
    from pandas import DataFrame

Record = dict[str, Any]
_PACKED = ("", ".gz", ".zst")
_LOST = {"status": "infrastructure"}


@overload
def read_metrics(path: str | Path, frame: Literal[False] = False, timings: bool = False) -> list[Record]: ...
@overload
def read_metrics(path: str | Path, frame: Literal[True], timings: bool = False) -> DataFrame: ...
def read_metrics(path: str | Path, frame: bool = False, timings: bool = False) -> list[Record] | DataFrame:
    """The lines of `metrics.jsonl` of a run, or of all runs below a folder.

    Args:
        path: the file, a run folder, or a folder above some.
        frame: a pandas frame instead; what is nested becomes columns such as `heldout.loss`.
        timings: add the numbers of `timings.jsonl` (seconds) to the steps' lines.

    Returns:
        the lines in order, each with `run`: its folder as seen from `path`, "." for `path` itself.

    Raises:
        UserError: there is none, or one is damaged; a last line that is being written is left out.
    """
    rows = []
    for file, run in _files(Path(path), "metrics.jsonl", "run folder", "train with: dcoder train-stage"):
        lines = [row for _, row in LOG.rows(file, torn=True)]
        times = {}
        if timings and (found := _packed(file.parent / file.name.replace("metrics", "timings", 1))) is not None:
            times = {row.get("step"): row for _, row in LOG.rows(found, torn=True)}
        for row in lines:
            rows.append({"run": run, **row, **(times.get(row.get("step"), {}) if "loss" in row else {})})
    return _frame(rows) if frame else rows


@overload
def read_results(path: str | Path, frame: Literal[False] = False) -> list[Record]: ...
@overload
def read_results(path: str | Path, frame: Literal[True]) -> DataFrame: ...
def read_results(path: str | Path, frame: bool = False) -> list[Record] | DataFrame:
    """The record of each evaluation, as its own `results.json` has it.

    Args:
        path: a `results.json`, the --out of `dcoder eval` or `dcoder eval judge` (of several models, temperatures or speeds
            too), or a folder above some.
        frame: a pandas frame instead, with a row for each metric and pass@k (`metric`, `pass`, `score`, `low`, `high`) and
            the record's other keys beside it.

    Returns:
        the records, each with `folder`: where it lies as seen from `path`.

    Raises:
        UserError: there is none, or one is damaged.
    """
    rows = []
    for file, folder in _files(Path(path), "results.json", "folder of results", "score a model with: dcoder eval"):
        record = jsonl.document(file, "results file")
        if isinstance(record.get("runs"), list):  # over several, each of which has its own, in a folder below
            if not Path(path).is_dir():
                rows += read_results(file.parent)
            continue
        if not isinstance(record.get("scores"), dict):
            raise UserError(f"results file {str(file)!r} has no scores; score the model again with: dcoder eval")
        rows.append({"folder": folder, **record})
    return _frame(_each_score(rows)) if frame else rows


@overload
def read_samples(path: str | Path, frame: Literal[False] = False) -> list[Record]: ...
@overload
def read_samples(path: str | Path, frame: Literal[True]) -> DataFrame: ...
def read_samples(path: str | Path, frame: bool = False) -> list[Record] | DataFrame:
    """The samples of evaluations with their verdicts: `samples.jsonl` joined with the `judged.jsonl` beside it.

    Args:
        path: a `samples.jsonl`, the --out of an evaluation, or a folder above some.
        frame: a pandas frame instead.

    Returns:
        a row a sample, each with `folder`; a sample that is not judged yet has no `passed` and no `status`. `seconds` is of
        the decoding, `judge_seconds` of the judge. Files of an evaluation's processes that is still running count too.

    Raises:
        UserError: there is none, or one is damaged.
    """
    rows = []
    for file, folder in _files(Path(path), "samples*.jsonl", "folder of samples", "score a model with: dcoder eval"):
        verdicts: dict[Any, Record] = {}
        for judged in sorted({one for end in _PACKED for one in file.parent.glob(f"judged*.jsonl{end}")}):
            for _, row in JUDGED.rows(judged, torn=True, halves=True):
                key = (row["task_id"], row["sample"])
                if verdicts.get(key, _LOST)["status"] == "infrastructure":  # which is judged again, further down
                    verdicts[key] = row
        for _, row in SAMPLES.rows(file, torn=True, halves=True):
            verdict = verdicts.get((row["task_id"], row["sample"]), {})
            seconds = {"judge_seconds": verdict["seconds"]} if "seconds" in verdict else {}
            rows.append({"folder": folder, **verdict, **row, **seconds})
    return _frame(rows) if frame else rows


@overload
def read_trajectories(path: str | Path, frame: Literal[False] = False) -> list[Record]: ...
@overload
def read_trajectories(path: str | Path, frame: Literal[True]) -> DataFrame: ...
def read_trajectories(path: str | Path, frame: bool = False) -> list[Record] | DataFrame:
    """The lines of a trajectory file, or of all below a folder, of this system or another.

    Args:
        path: a file; or a folder with some, such as the --out of `dcoder arness` or a run of stage 4.
        frame: a pandas frame instead, a row a sample; lists stay lists, settings become columns `settings.rule` ...

    Returns:
        the lines in order, each with `file`.

    Raises:
        UserError: there is none, one is damaged, or a line tells no order (`reveal_step` or `order`).
    """
    place, rows = Path(path), []
    files: Iterable[tuple[Path, str]] = [(place, place.name)]
    if place.is_dir():
        names = ("trajectories*.jsonl", "samples/step-*.jsonl")
        found = sorted({file for name in names for end in _PACKED for file in place.rglob(name + end)}, key=_natural)
        files = [(file, str(file.relative_to(place))) for file in found]
        if not found:
            raise UserError(
                f"folder {str(place)!r} has no trajectories; write some with `dcoder generate --trajectories FILE`"
            )
    for file, name in files:
        for number, row in jsonl.objects(file, "trajectory file", torn=True):
            if not isinstance(row.get("reveal_step"), list) and not isinstance(row.get("order"), list):
                raise UserError(
                    f"trajectory file {str(file)!r} line {number} has neither a list 'reveal_step' nor 'order'; "
                    "write one with `dcoder generate --trajectories FILE`"
                )
            rows.append({"file": name, **row})
    return _frame(rows) if frame else rows


def _files(path: Path, name: str, what: str, remedy: str) -> Iterator[tuple[Path, str]]:
    """A file itself, or those of a name in and below a folder, each with its folder as seen from there. Raises UserError."""
    if not path.is_dir():
        yield path, "."  # what cannot be read says so itself
        return
    found = sorted({file for end in _PACKED for file in path.rglob(name + end)}, key=_natural)
    if not found:
        raise UserError(f"{what} {str(path)!r} has no {name} in it or below; {remedy}")
    for file in found:
        yield file, str(file.parent.relative_to(path))


def _natural(file: Path) -> list[list[tuple[int, str]]]:
    """Paths in order, part by part, numbers by size: step-9 before step-10."""
    return [
        [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"([0-9]+)", part) if piece]
        for part in file.parts
    ]


def _packed(file: Path) -> Path | None:
    """A file as it is or packed; None where there is none."""
    stem = file.with_suffix("") if file.suffix in _PACKED[1:] else file
    return next((one for end in _PACKED if (one := stem.with_name(stem.name + end)).is_file()), None)


def _each_score(records: Iterable[Record]) -> list[Record]:
    rows = []
    for record in records:
        told = {key: value for key, value in record.items() if key != "scores"}
        for metric, by_k in record["scores"].items():
            for name, score in by_k.items():
                rows.append({**told, "metric": metric, "pass": name, **score})
    return rows


def _frame(rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Raises UserError without pandas."""
    try:
        import pandas
    except ImportError:
        raise UserError("frame=True needs pandas; install it with `pip install pandas`, or leave frame out") from None
    return pandas.DataFrame([_flat(row) for row in rows])


def _flat(row: Mapping[str, Any], before: str = "") -> Record:
    found: Record = {}
    for key, value in row.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) and value else {f"{before}{key}": value}
    return found

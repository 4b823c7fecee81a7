"""Finding the data of a public benchmark: a file, the folder named by DCODER_BENCHMARKS, or the hub and its cache.

What EvalPlus publishes is read from its cache instead of the hub, whose data sets of that name have no inputs to test on,
only tests as text. Nothing public is shipped. What is found is counted (a benchmark with tasks missing is refused) and
hashed, and the hash goes into every result.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.functions import short
from dcoder_cli.base.hub import fail_at_once_offline
from dcoder_cli.base.machine import BENCHMARKS_VARIABLE


@dataclass(frozen=True)
class BenchmarkSource:
    """A data file of a benchmark, and where it comes from.

    Attributes:
        name: in messages and in `dcoder doctor`.
        file: place below the benchmarks folder.
        count: number of tasks, anything else is refused; None where files of any number are published.
        hub: dataset on the hub, with configuration and splits (joined in order).
        fields: every row has these, under the names of the original files.
        texts: those of them that are text in every row.
        evalplus: name and version of the release that the package evalplus keeps in its cache (there with the same fields).
        hub_file: the file's name on the hub, where it is read as it is; None: by splits.
    """

    name: str
    file: str
    count: int | None
    hub: str | None
    config: str | None
    splits: tuple[str, ...]
    fields: tuple[str, ...]
    evalplus: tuple[str, str] | None = None
    hub_file: str | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchmarkRows:
    """A benchmark's raw rows, where they came from, and the hash of their content (the same however compressed)."""

    name: str
    rows: tuple[dict[str, Any], ...]
    origin: str
    sha256: str


def find(source: BenchmarkSource, file: str | Path | None = None) -> BenchmarkRows:
    """The rows of a data file: from `file`, else the folder named by DCODER_BENCHMARKS, else EvalPlus' cache or the hub.

    Raises:
        UserError: data not found (the line names the three ways), broken, or of the wrong count.
    """
    name, path = source.name, locate(source, file)
    if path is not None:
        found = _local(name, path)
    else:
        found = _from_hub(source)
    if source.count is not None and len(found.rows) != source.count:
        raise UserError(
            f"{name} from {found.origin} has {len(found.rows)} tasks and must have {source.count}; fetch the whole file"
        )
    for place, row in enumerate(found.rows, 1):
        missing = [field for field in source.fields if field not in row]
        if missing:
            raise UserError(
                f"{name} from {found.origin}: task {place} has no field {missing[0]!r}; is it another benchmark's?"
            )
        for field in source.texts:
            if not isinstance(row[field], str):
                raise UserError(
                    f"{name} from {found.origin}: task {place} has {field} = {short(row[field])}, which must be text; fetch the file again"
                )
    return found


def _local(name: str, path: Path) -> BenchmarkRows:
    return BenchmarkRows(name, tuple(_read(path)), str(path), hashlib.sha256(jsonl.read(path)).hexdigest())


def locate(source: BenchmarkSource, file: str | Path | None = None) -> Path | None:
    """The local file that `find` would read; None where it would ask the hub."""
    if file is not None:
        if not Path(file).is_file():
            raise UserError(f"--data {str(file)!r} is not a file; give the benchmark's .jsonl, .json or .gz file")
        return Path(file)
    folder = os.environ.get(BENCHMARKS_VARIABLE)
    if folder:
        place = Path(folder) / source.file
        for path in (
            place,
            place.with_suffix(""),
            place.with_name(place.name + ".gz"),
        ):  # as published, or (de)compressed
            if path.is_file():
                return path
    kept = source.evalplus
    if kept is not None and (path := _evalplus_cache() / f"{kept[0]}-{kept[1]}.jsonl").is_file():
        return path
    return None


def _evalplus_cache() -> Path:
    """Where the package evalplus keeps its downloads: appdirs' user_cache_dir("evalplus"), which a user may not have."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "evalplus"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(local) / "evalplus" / "evalplus" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evalplus"


def _read(path: Path) -> list[dict[str, Any]]:
    return [jsonl.as_object(entry.value, entry.where) for entry in jsonl.table(path, "benchmark file")]


def _from_hub(source: BenchmarkSource) -> BenchmarkRows:
    ways = f"give --data FILE, set {BENCHMARKS_VARIABLE} to a folder with {source.file}, "
    if source.evalplus is not None:
        release, version = source.evalplus
        ways += (
            f"or run EvalPlus once, whose cache {str(_evalplus_cache())!r} is read too; the file is "
            f"https://github.com/evalplus/{release.lower()}_release/releases/download/{version}/{release}.jsonl.gz"
        )
    else:
        ways += f"or let the hub be reached ({source.hub})" if source.hub else "(it is not on the hub)"
    if source.hub is None:
        raise UserError(f"no data for {source.name}: {ways}")
    fail_at_once_offline()
    try:
        if source.hub_file is not None:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source.hub, source.hub_file, repo_type="dataset"))
            return replace(_local(source.name, path), origin=f"hub:{source.hub}/{source.hub_file}")
        from datasets import load_dataset

        rows: list[dict[str, Any]] = []
        for split in source.splits:
            rows += [dict(row) for row in load_dataset(source.hub, source.config, split=split)]
    except Exception as error:  # the hub's libraries raise dozens of kinds; each means that there is no data
        raise UserError(f"no data for {source.name}: {ways}. The hub says: {one_line(error)[:200]}") from None
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    return BenchmarkRows(source.name, tuple(rows), f"hub:{source.hub}", digest)

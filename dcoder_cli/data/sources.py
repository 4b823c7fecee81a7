"""Sources: what the user named, found on disk or on the hub and cut into units of work.

A source is a folder, a file, or `hub:NAME[:CONFIG][:SPLIT]` (a `datasets` name, streamed), and may end in `@WEIGHT`:
3 takes each document three times, 0.5 about half of them, chosen by their content (for training: what is held out
counts once, and the held-out loss weighs its source as training does). In a folder the most telling kind
of file wins: source code, else tables (.jsonl .json .parquet), else text; all but .parquet also as .gz and .zst.
A unit is what one worker reads at a time: some small files, a byte range of a .jsonl, row groups of a .parquet.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dcoder_cli.base.errors import UserError, one_line, valid_text
from dcoder_cli.base.hub import fail_at_once_offline

Form = Literal["text", "jsonl", "json", "parquet", "hub"]

CODE_EXTENSIONS = (
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".java", ".kt", ".scala", ".go", ".rs", ".swift"),
    *(".js", ".jsx", ".ts", ".tsx", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".ml", ".sh", ".sql"),
)
TABLE_EXTENSIONS = (".jsonl", ".json", ".parquet")
TEXT_EXTENSIONS = (".txt", ".md", ".rst")
COMPRESSIONS = (".gz", ".zst")
_SKIPPED_FOLDERS = ("__pycache__", "node_modules")

# Big enough to hide the cost of a unit (a file, an fsync), small enough to share out and to lose at a stop.
_FILES_UNIT_BYTES = 2**20
_LINES_UNIT_BYTES = 16 * 2**20
_LEAST, _MOST = 1e-6, 1000.0  # of a weight (ours): beyond them nothing is left of a source, or a disk fills


@dataclass(frozen=True)
class Piece:
    """Part of a unit: a file or a range of one. `start`, `end`: bytes (jsonl), row groups (parquet), parts (hub)."""

    path: str
    name: str
    form: Form
    start: int = 0
    end: int = 0
    is_source: bool = False


@dataclass(frozen=True)
class Unit:
    """Work for one worker: pieces of one source, by its number, and about how many bytes they hold."""

    source: int
    pieces: tuple[Piece, ...]
    bytes: int


@dataclass(frozen=True)
class Source:
    """One source: as it was written, a short name for the manifest, and its weight."""

    location: str
    label: str
    weight: float
    is_hub: bool


def parse_sources(specs: Sequence[str]) -> list[Source]:
    """The sources of a command line. Raises UserError for a weight that is no positive number."""
    if not specs:
        raise UserError("no source given: name a folder, a file or hub:NAME")
    sources: list[Source] = []
    for spec in specs:
        location, weight = spec, 1.0
        before, mark, after = spec.rpartition("@")
        if mark and before and not Path(spec).exists():
            try:
                location, weight = before, float(after)
            except ValueError:
                raise UserError(f"source {spec!r}: {after!r} after '@' is no weight; write SRC@3 or SRC@0.5") from None
            if not (weight > 0 and _LEAST <= weight <= _MOST):
                raise UserError(f"source {spec!r}: the weight must be above 0, from {_LEAST:g} to {_MOST:g}")
        is_hub = location.startswith("hub:")
        label = location if is_hub else Path(os.path.realpath(location)).name
        same = sum(source.label.split("#")[0] == label for source in sources)
        sources.append(Source(location, f"{label}#{same + 1}" if same else label, weight, is_hub))
    return sources


def kind_of(source: Source) -> str:
    """What a source is by its name alone: "folder", "table", "python", "code", "text", or "other", which --extensions must name."""
    if source.is_hub:
        return "table"
    return "folder" if Path(source.location).is_dir() else _kind(source.location)


def kinds_within(
    sources: Sequence[Source], extensions: Sequence[str] = (), exclude: Sequence[str] = ()
) -> frozenset[str]:
    """As `kind_of` of all sources, of a folder the kinds of those files that are taken of it. Args and errors as of `plan_units`."""
    found = set()
    for source in sources:
        if kind_of(source) == "folder":
            found |= {_kind(name) for _, name in _taken(source, extensions, exclude)[0]}
        else:
            found.add(kind_of(source))
    return frozenset(found)


def _kind(name: str) -> str:
    extension = _extension(name)
    if extension in (".py", ".pyi"):
        return "python"
    kinds = {"table": TABLE_EXTENSIONS, "code": CODE_EXTENSIONS, "text": TEXT_EXTENSIONS}
    return next((kind for kind, known in kinds.items() if extension in known), "other")


def what_kinds(specs: Sequence[str], extensions: Sequence[str], exclude: Sequence[str]) -> dict[str, Any]:
    """`kinds` of sources by their names, and `within`: a call to `kinds_within`, which takes its time on a large folder."""
    sources = parse_sources(specs)
    return {
        "kinds": {kind_of(source) for source in sources},
        "within": lambda: kinds_within(sources, extensions, exclude),
    }


def plan_units(
    sources: Sequence[Source], extensions: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[list[Unit], list[str]]:
    """Every unit of every source, in an order that depends on the names alone, and notes for the user.

    Args:
        extensions: take exactly these (such as `.py`), not the most telling kind.
        exclude: patterns (as of a shell) of paths within a folder, or of single names on the way, to leave out.

    Raises:
        UserError: a source that does not exist or holds no usable file.
    """
    units: list[Unit] = []
    notes: list[str] = []
    for number, source in enumerate(sources):
        if source.is_hub:
            units.extend(_hub_units(number, source))
            continue
        root = Path(source.location)
        if root.is_file():
            found = [(root, root.name)]
            if _extension(root.name) not in {*CODE_EXTENSIONS, *TABLE_EXTENSIONS, *TEXT_EXTENSIONS, *extensions}:
                raise UserError(
                    f"source file {source.location!r} is of no known kind{_remedy(root.name)}; known: {_known_kinds()}"
                )
        elif root.is_dir():
            found, note = _taken(source, extensions, exclude)
            notes.extend([f"{source.label}: {note}"] if note else [])
        else:
            try:
                root.stat()
            except OSError as error:
                why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
                raise UserError(f"source {source.location!r} {why}; name a folder, a file or hub:NAME") from None
            raise UserError(
                f"source {source.location!r} is no ordinary file (a pipe, a socket or a device); save it to a file"
            )
        units.extend(_file_units(number, found))
    return units, notes


def _known_kinds() -> str:
    return f"source code ({', '.join(CODE_EXTENSIONS[:4])} ...), {', '.join(TABLE_EXTENSIONS + TEXT_EXTENSIONS)}"


_REMEDIES = {
    "csv": "; write its rows as .jsonl or .parquet, as most programs for tables do",
    "ndjson": "; rename it to .jsonl",
    "bz2": "; unpack it, or pack it as .gz or .zst",
}
_AS = {
    "tsv": "csv",
    "xlsx": "csv",
    "arrow": "csv",
    "feather": "csv",
    "xz": "bz2",
    "lz4": "bz2",
    "zip": "bz2",
    "7z": "bz2",
    "tar": "bz2",
}


def _remedy(name: str) -> str:
    ending = (
        _extension(name) if name.lower().endswith(COMPRESSIONS) else os.path.splitext(name.lower())[1]
    ).removeprefix(".")
    return _REMEDIES.get(_AS.get(ending, ending), "")


def _extension(name: str) -> str:
    stem, extension = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if extension in COMPRESSIONS else extension


def _walk(root: Path, exclude: Sequence[str]) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []

    def excluded(name: str, relative: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(relative, pattern) for pattern in exclude)

    for folder, subfolders, names in os.walk(root):
        place = Path(folder)
        within = place.relative_to(root).as_posix()
        prefix = "" if within == "." else f"{within}/"  # by hand: a Path for every file costs more than to read it
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".") and name not in _SKIPPED_FOLDERS and not excluded(name, prefix + name)
        ]
        for name in sorted(names):
            if not name.startswith(".") and not excluded(name, prefix + name) and (place / name).is_file():
                found.append((place / name, valid_text(prefix + name)))  # a record takes no bytes that are not UTF-8
    return sorted(found, key=lambda entry: entry[1])


def _taken(source: Source, extensions: Sequence[str], exclude: Sequence[str]) -> tuple[list[tuple[Path, str]], str]:
    """The files that are taken of a folder, and a note. Raises UserError where there are none."""
    there = _walk(Path(source.location), exclude)
    found, note = _choose(there, extensions)
    if not found:
        wanted = ", ".join(extensions) or _known_kinds()
        remedy = next((f" ({name}{told})" for _, name in there if (told := _remedy(name))), "")
        raise UserError(f"source folder {source.location!r} has no usable file{remedy}; looked for {wanted}")
    return found, note


def _choose(found: list[tuple[Path, str]], extensions: Sequence[str]) -> tuple[list[tuple[Path, str]], str]:
    if extensions:
        wanted = {extension if extension.startswith(".") else f".{extension}" for extension in extensions}
        return [entry for entry in found if _extension(entry[1]) in wanted], ""
    for kind in (CODE_EXTENSIONS, TABLE_EXTENSIONS, TEXT_EXTENSIONS):
        chosen = [entry for entry in found if _extension(entry[1]) in kind]
        if chosen:
            others = {_extension(entry[1]) for entry in found} & {*TABLE_EXTENSIONS, *TEXT_EXTENSIONS} - {*kind}
            note = f"left out {', '.join(sorted(others))} files beside; ask for them with --extensions"
            return chosen, note if others else ""
    return [], ""


def _file_units(number: int, found: list[tuple[Path, str]]) -> Iterator[Unit]:
    waiting: list[Piece] = []
    size = 0
    for path, name in found:
        extension, bytes_ = _extension(name), path.stat().st_size
        compressed = name.lower().endswith(COMPRESSIONS)
        if extension == ".parquet":
            yield from _parquet_units(number, path, name)
        elif extension == ".jsonl" and not compressed and bytes_ > _LINES_UNIT_BYTES:
            for start in range(0, bytes_, _LINES_UNIT_BYTES):
                end = min(start + _LINES_UNIT_BYTES, bytes_)
                yield Unit(number, (Piece(str(path), name, "jsonl", start, end),), end - start)
        else:
            form: Form = "jsonl" if extension == ".jsonl" else "json" if extension == ".json" else "text"
            if waiting and size + bytes_ > _FILES_UNIT_BYTES:
                yield Unit(number, tuple(waiting), size)
                waiting, size = [], 0
            waiting.append(Piece(str(path), name, form, 0, bytes_, extension in CODE_EXTENSIONS))
            size += bytes_
    if waiting:
        yield Unit(number, tuple(waiting), size)


def _parquet_units(number: int, path: Path, name: str) -> Iterator[Unit]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise unreadable_parquet(str(path), error) from None
    start = 0
    while start < len(sizes):
        end, size = start, 0
        while end < len(sizes) and (end == start or size + sizes[end] <= _LINES_UNIT_BYTES):
            size, end = size + sizes[end], end + 1
        yield Unit(number, (Piece(str(path), name, "parquet", start, end),), size)
        start = end


def unreadable_parquet(path: str, error: Exception) -> UserError:
    """The refusal of a Parquet file whose footer or pages are no good."""
    return UserError(
        f"parquet file {path!r} cannot be read: {one_line(error)[:200]}; copy or make it again, without encryption"
    )


def open_hub(location: str) -> Any:
    """The streamed `datasets` split of `hub:NAME[:CONFIG][:SPLIT]`; the split defaults to train.

    Raises:
        UserError: one line for anything that keeps it from loading, being offline included.
    """
    fail_at_once_offline()
    from datasets import load_dataset

    name, _, rest = location.removeprefix("hub:").partition(":")
    config, _, split = rest.partition(":")
    try:
        return load_dataset(name, config or None, split=split or "train", streaming=True)
    except Exception as error:  # datasets raises dozens of kinds, by what the set is made of
        raise UserError(f"source {location!r} cannot be loaded: {one_line(error)[:200]}; offline, name files") from None


def _hub_units(number: int, source: Source) -> Iterator[Unit]:
    parts = max(1, getattr(open_hub(source.location), "num_shards", 1))
    for index in range(parts):
        yield Unit(number, (Piece(source.location, source.location, "hub", index, parts),), 0)

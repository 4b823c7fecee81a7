"""manifest.json of a data folder: what it must hold, read and written, and the parts of a set made on several machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from dcoder_cli.base.checksums import SEAL, check_seal, write_sealed
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.schema import Format, Least

FORMAT_VERSION = 2  # 1 had no seal, and of every file its sha256 alone
MANIFEST = "manifest.json"
_HASHES = ("sha256", "xxh3_128")
_REMEDY = "copy or make the data again with: dcoder tokenize"

Count = Annotated[int, Least(0)]


@dataclass(frozen=True)
class Tokenizer:
    """What made the ids."""

    hash: str
    vocab_size: Annotated[int, Least(1)]
    name: str = ""


@dataclass(frozen=True)
class Special:
    """A special token."""

    id: Count
    token: str | None = None


@dataclass(frozen=True)
class Listed:
    """A file of rows or prompts; `source`: its number in `sources`, `padding`: tokens at its end that only fill it."""

    file: str
    split: Literal["train", "heldout"]
    rows: Count
    sha256: str | None = None
    xxh3_128: str | None = None
    source: Count | None = None
    padding: Count = 0


@dataclass(frozen=True)
class Origin:
    """A source."""

    name: str
    taught_tokens: Count | None = None


@dataclass(frozen=True)
class SplitCounts:
    """Counts of a split."""

    rows: Count
    documents: Count = 0
    tokens: Count = 0
    padding_tokens: Count = 0


@dataclass(frozen=True)
class Prompts:
    """A manifest of any kind."""

    kind: Literal["pretrain", "sft", "rl"]
    files: list[Listed]
    tokenizer: Tokenizer | None = None
    special_tokens: dict[str, Special] = field(default_factory=dict)
    sources: list[Origin] = field(default_factory=list)
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    engine: str | None = None


@dataclass(frozen=True)
class Rows:
    """What a manifest of rows must hold beside that."""

    sequence_length: Annotated[int, Least(1)]
    tokenizer: Tokenizer


ANY = Format("manifest", Prompts, _REMEDY, version=FORMAT_VERSION)
OF_ROWS = Format("manifest", Rows, _REMEDY)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a shard folder, without its seal.

    Raises:
        UserError: there is none, it is of a newer version, damaged (told by its seal), or a field is missing or wrong.
    """
    path = Path(folder) / MANIFEST
    if not Path(folder).is_dir():
        raise UserError(f"data folder {str(folder)!r} does not exist; make it with: dcoder tokenize")
    if not path.is_file():
        raise UserError(f"no {MANIFEST} in {str(folder)!r}: not a finished output of dcoder tokenize")
    manifest = ANY.document(path)
    where = f"{ANY.what} {str(path)!r}"
    if manifest["kind"] != "rl":
        OF_ROWS.check(manifest, where)
    if manifest["format_version"] > 1 or SEAL in manifest:
        check_seal(path, ANY.what, ANY.remedy)
    for number, entry in enumerate(manifest["files"]):
        sources = manifest.get("sources", [])
        if entry.get("source") is not None and entry["source"] >= len(sources):
            raise UserError(
                f"{where} has files[{number}].source = {entry['source']}, of {len(sources)} sources; {_REMEDY}"
            )
    manifest.pop(SEAL, None)
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write `manifest` into `folder`, sealed; returns it as a reader will see it."""
    write_sealed(folder / MANIFEST, manifest)
    return read_manifest(folder)


def manifests(folder: str | Path) -> list[dict[str, Any]]:
    """The manifest of each part of a folder of any kind. Raises UserError where one is missing or of another format."""
    return [read_manifest(part) for part in part_folders(Path(folder))]


def fingerprint(folder: str | Path) -> str:
    """Which rows or prompts a folder of any kind holds: the same for a copy of it, another for any other content.

    It is of the hashes in the manifest; the files are not read. Raises UserError where there is no manifest.
    """
    digest = hashlib.sha256()
    for manifest in manifests(folder):
        for entry in manifest["files"]:
            told = {key: value for key, value in entry.items() if key != "xxh3_128"}  # not known everywhere
            digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()


def hashes_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """The checksums of a file, by its entry in `files`."""
    return {name: entry[name] for name in _HASHES if entry.get(name)}


def part_name(index: int, count: int) -> str:
    """The folder of machine `index` (from 1) of `count` under the common output folder."""
    return f"shard-{index:05d}-of-{count:05d}"


def parse_part(shard: str) -> tuple[int, int]:
    """`2/4` as (2, 4). Raises UserError for anything else than i/n with 1 <= i <= n."""
    first, _, second = shard.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise UserError(f"--shard {shard!r} must be i/n with i from 1 to n, such as 2/4")
    return int(first), int(second)


def part_folders(folder: Path) -> list[Path]:
    """`folder` itself, or its `shard-i-of-n` parts, all of them. Raises UserError where a part is missing."""
    if (folder / MANIFEST).is_file():
        return [folder]
    parts = sorted(folder.glob("shard-*-of-*")) if folder.is_dir() else []
    if not parts:
        return [folder]
    count = parts[0].name.rsplit("-", 1)[1]
    if not (count.isascii() and count.isdigit()):
        raise UserError(f"{str(parts[0])!r} is no part of dcoder tokenize --shard; move it away")
    expected = [folder / part_name(index, int(count)) for index in range(1, int(count) + 1)]
    missing = [part.name for part in expected if not (part / MANIFEST).is_file()]
    if missing or len(parts) != int(count):
        raise UserError(
            f"{str(folder)!r} lacks {missing[0] if missing else 'parts'}: run dcoder tokenize --shard for it"
        )
    return expected

"""Reading: the records of a piece of a source, one at a time, each with a name that says where it stood."""

from __future__ import annotations

import contextlib
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from dcoder_cli.base import jsonl
from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.data.dropped import BadRow, SourceStopped
from dcoder_cli.data.sources import COMPRESSIONS, Piece, Unit, open_hub, unreadable_parquet


class Record(NamedTuple):
    """What a piece holds: a whole text file or a row of a table, or the reason it cannot be used."""

    name: str
    value: str | dict[str, Any]
    problem: str | None = None


def read_records(piece: Piece) -> Iterator[Record]:
    """The records of a piece, in order.

    Raises:
        UserError: the file is damaged or no JSON; names the file, and the line of a .jsonl.
    """
    if piece.form == "text":
        yield _read_text(piece)
    elif piece.form == "jsonl":
        yield from _read_lines(piece)
    elif piece.form == "json":
        yield from _read_json(piece)
    elif piece.form == "parquet":
        yield from _read_parquet(piece)
    else:
        yield from _read_hub(piece)


def _read_text(piece: Piece) -> Record:
    data = jsonl.read(piece.path)
    try:
        return Record(piece.name, data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Record(piece.name, data.decode("latin-1"), "not UTF-8")


def _read_lines(piece: Piece) -> Iterator[Record]:
    if piece.path.lower().endswith(COMPRESSIONS):
        for number, value in jsonl.lines(piece.path):
            yield _row(f"{piece.name}:{number}", value)
        return
    try:
        with jsonl.open_binary(piece.path) as handle:
            yield from _read_range(piece, handle)
    except OSError as error:
        raise UserError(f"file {piece.path!r} cannot be read: {error.strerror or error}") from None


def _read_range(piece: Piece, handle: BinaryIO) -> Iterator[Record]:
    """The rows of the lines that begin in a range of bytes."""
    place = 0
    if piece.start:
        handle.seek(piece.start - 1)
        place = piece.start - 1 + len(handle.readline())
    first = place
    at = f"@{first}+" if first else ":"  # counting the lines before a range would read the file again
    for offset, line in enumerate(handle, start=1):
        if place >= piece.end:
            return
        place += len(line)
        if not line.strip():
            continue
        try:
            value = jsonl.parse(line, f"file {piece.path!r} line {offset}")
        except UserError as error:
            if first:  # only now is the number worth counting for
                jsonl.parse(line, f"file {piece.path!r} line {_lines_before(piece, first) + offset}")
            raise UserError(f"{error}{'' if first else jsonl.over_lines(line, offset)}") from None
        if isinstance(value, list) and not first and (told := jsonl.over_lines(line, offset)):
            raise UserError(f"file {piece.path!r} line 1 holds a list of rows{told}")
        yield _row(f"{piece.name}{at}{offset}", value)


def _row(name: str, value: Any) -> Record:
    return Record(name, value) if isinstance(value, dict) else Record(name, {}, "not an object of columns")


def _lines_before(piece: Piece, place: int) -> int:
    count, left = 0, place
    with open(piece.path, "rb") as handle:
        while left and (block := handle.read(min(left, 2**20))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count


def _read_json(piece: Piece) -> Iterator[Record]:
    for number, _, value in jsonl.table(piece.path):
        yield _row(f"{piece.name}:{number}", value)


def _read_parquet(piece: Piece) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(piece.path) as file:
            if twice := {name for name in file.schema_arrow.names if file.schema_arrow.names.count(name) > 1}:
                raise UserError(f"parquet file {piece.path!r} has the column {min(twice)!r} twice; rename one of them")
            number = sum(file.metadata.row_group(index).num_rows for index in range(piece.start))
            groups = list(range(piece.start, piece.end))
            for batch in file.iter_batches(batch_size=256, row_groups=groups) if groups else ():
                for row in zip(*map(_values, batch.columns), strict=True):
                    number += 1
                    yield Record(f"{piece.name}:{number}", dict(zip(batch.schema.names, row, strict=True)))
    except (OSError, pa.ArrowException) as error:
        raise unreadable_parquet(piece.path, error) from None


class Unreadable:
    """In place of a table's value that Python cannot hold, such as a date after the year 9999: bad only where it is asked for."""


def _values(column: Any) -> list[Any]:
    """A column of a table, value by value where one of them cannot be had."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, ImportError):  # UnicodeDecodeError and ArrowInvalid too; nanoseconds want pandas
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, ImportError):
        return Unreadable()


def _read_hub(piece: Piece) -> Iterator[Record]:
    stream = open_hub(piece.path)
    if piece.end > 1:
        stream = stream.shard(num_shards=piece.end, index=piece.start)
    rows = iter(stream)
    index = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # whatever the network or the set's own reader raises
            raise SourceStopped(f"source {piece.path!r} stopped: {one_line(error)[:200]}; run again to go on") from None
        index += 1
        yield Record(f"{piece.name}:{piece.start}:{index}", row)


_USUAL_COLUMNS = ("text", "content", "code")


@dataclass(frozen=True)
class TextMapping:
    """How a row becomes text: a column, or a template such as `{title}\\n{body}`; else a usual column."""

    column: str | None = None
    template: str | None = None

    def check(self) -> None:
        """Raises UserError for both at once, or a template without a column."""
        if self.column and self.template:
            raise UserError("--column and --template exclude each other; give one")
        if self.template and not _fields(self.template):
            raise UserError(f"--template {self.template!r} names no column; write it like '{{title}}\\n{{body}}'")

    def text(self, row: dict[str, Any], where: str) -> str:
        """The text of a row; a column that is null counts as empty, and only a template may take numbers.

        Raises:
            BadRow: no such column, or no text in it; names the known columns.
        """
        if self.template:
            values = {name: _column(row, name, where, numbers=True) for name in _fields(self.template)}
            filled = re.sub(r"\\([nt])", lambda found: {"n": "\n", "t": "\t"}[found[1]], self.template)
            return string.Formatter().vformat(filled, (), values)
        if self.column:
            return _column(row, self.column, where)
        for name in _USUAL_COLUMNS:
            if name in row:
                return _column(row, name, where)
        raise BadRow(
            f"{where} has none of the columns {', '.join(_USUAL_COLUMNS)}; {_known(row)}; choose one with --column",
            "no column of text",
        )


def _fields(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None and name != ""]
    except ValueError as error:
        raise UserError(f"--template {template!r}: {error}; write {{{{ for a brace of the text") from None


def _column(row: dict[str, Any], name: str, where: str, numbers: bool = False) -> str:
    if name not in row:
        raise BadRow(f"{where} has no column {name!r}{nearest(name, list(row), listed=True)}", f"no column {name!r}")
    value = row[name]
    if value is None:
        return ""
    if not isinstance(value, (str, int, float) if numbers else str):
        kind = "a value out of range, or not UTF-8" if isinstance(value, Unreadable) else type(value).__name__
        raise BadRow(f"{where}: column {name!r} holds {kind}, not text; {_known(row)}", f"no text in {name!r}")
    return str(value)


def _known(row: dict[str, Any]) -> str:
    return f"known: {', '.join(map(str, row))}"


def first_record(pieces: tuple[Piece, ...]) -> Record | None:
    """The first usable record of some pieces, to check a mapping before the long part."""
    return next((record for piece in pieces for record in read_records(piece) if record.problem is None), None)


def texts_of(units: Sequence[Unit], mapping: TextMapping) -> Iterator[str]:
    """The texts of all usable records, in order, as UTF-8 can hold them."""
    for unit in units:
        for piece in unit.pieces:
            for record in read_records(piece):
                if record.problem is None:
                    with contextlib.suppress(BadRow):  # dropped and counted where it is tokenized
                        text = (
                            record.value if isinstance(record.value, str) else mapping.text(record.value, record.name)
                        )
                        yield text.encode("utf-8", "replace").decode("utf-8")

"""Sources and records: every kind of file, ranges of large ones, and what is said when something is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dcoder_cli.base.errors import UserError
from dcoder_cli.data import sources as sources_module
from dcoder_cli.data.records import Record, TextMapping, read_records
from dcoder_cli.data.sources import kinds_within, parse_sources, plan_units

ROWS = [{"text": f"row {index} ä", "n": index} for index in range(50)]


def records(*specs: str, **options: tuple[str, ...]) -> list[Record]:
    units, _ = plan_units(parse_sources(specs), **options)
    return [record for unit in units for piece in unit.pieces for record in read_records(piece)]


def lines(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.jsonl.gz", "r.jsonl.zst", "r.json", "r.json.gz", "r.parquet", "lines.json"]
)
def test_every_table_gives_its_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = json.dumps(ROWS).encode() if name.startswith("r.json") and ".jsonl" not in name else lines(ROWS)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(data))
    elif name.endswith(".zst"):  # two frames, as appending writers leave them
        half = len(lines(ROWS[:20])) + 5
        path.write_bytes(zstandard.compress(data[:half]) + zstandard.compress(data[half:]))
    else:
        path.write_bytes(data)
    found = records(str(path))
    assert [record.value for record in found] == ROWS
    assert len({record.name for record in found}) == 50 and found[1].name == f"{name}:2"


@pytest.mark.parametrize("size", [1, 37, 64, 1000])
def test_ranges_of_a_jsonl_own_each_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(sources_module, "_LINES_UNIT_BYTES", size)
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:3]) + b"\n\n" + lines(ROWS[3:]).rstrip())
    found = records(str(path))
    assert [record.value for record in found] == ROWS and len({record.name for record in found}) == 50


def test_a_folder_gives_its_most_telling_files_in_order(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a.py", ".git/x.py", "__pycache__/y.py", "tests/t.py", "notes.txt", "config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}" if name.endswith("json") else f"# {name}")
    assert [record.name for record in records(str(tmp_path))] == ["a.py", "a/z.py", "b.py", "tests/t.py"]
    assert [record.name for record in records(str(tmp_path), exclude=("tests",))] == ["a.py", "a/z.py", "b.py"]
    assert [record.name for record in records(str(tmp_path), exclude=("a/*", "b.*"))] == ["a.py", "tests/t.py"]
    assert [record.value for record in records(str(tmp_path), extensions=("txt",))] == ["# notes.txt"]
    _, notes = plan_units(parse_sources([str(tmp_path)]))
    assert ".json" in notes[0] and ".txt" in notes[0]
    (tmp_path / "bad.py").write_bytes(b"x = '\xff'")
    assert records(str(tmp_path / "bad.py"))[0].problem == "not UTF-8"


def test_weights_and_names_of_sources(tmp_path: Path) -> None:
    (tmp_path / "at@2").mkdir()
    parsed = parse_sources([f"{tmp_path}@3", f"{tmp_path}@0.5", str(tmp_path / "at@2"), "hub:org/name:cfg:test@2"])
    assert [source.weight for source in parsed] == [3, 0.5, 1, 2]
    assert [source.label for source in parsed] == [tmp_path.name, f"{tmp_path.name}#2", "at@2", "hub:org/name:cfg:test"]
    for wrong in ("x@y", "x@0", "x@-1", "x@nan", "x@inf"):
        with pytest.raises(UserError, match="weight"):
            parse_sources([wrong])


def test_a_streamed_datasets_name_gives_its_rows(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(ROWS[:9]))
    found = records(f"hub:{tmp_path}")
    assert [record.value for record in found] == ROWS[:9]
    with pytest.raises(UserError, match="hub:no-such/data-set"):
        records("hub:no-such/data-set")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"a\.jsonl' line 3 is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl' line 1 is not UTF-8"),
        ("a.jsonl", b'{}\n{"text": "\\ud800"}\n', r"a\.jsonl' line 2 holds .ud800, half of a surrogate pair"),
        ("a.jsonl", b"{}\n" + b"[" * 100_000 + b"\n", r"a\.jsonl' line 2 is nested too deeply"),
        ("a.jsonl.gz", gzip.compress(b"{}\n[\n", mtime=0), r"a\.jsonl\.gz' line 2 is not JSON"),
        ("a.json", b"{}\n\n[}\n", r"a\.json' line 3 is not JSON"),
        ("a.json", b"{", r"a\.json' is not JSON.*line 1"),
        ("a.json", b"", r"a\.json' is empty"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 999, mtime=0)[:30], r"a\.jsonl\.gz' is damaged"),
        ("a.jsonl.zst", b"nothing like it", r"a\.jsonl\.zst' is damaged"),
        ("a.txt.zst", zstandard.compress(b"words " * 99)[:-5], r"a\.txt\.zst' is damaged"),
        ("a.parquet", b"nothing like it", r"a\.parquet' cannot be read"),
        ("a.exe", b"", "no known kind"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        records(str(tmp_path / name))


def test_damaged_pages_and_names_that_are_there_twice_name_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"words {number}" for number in range(1000)]}), path)
    data = path.read_bytes()
    path.write_bytes(data[:200] + b"\xff" * 100 + data[300:])
    with pytest.raises(UserError, match=r"cannot be read: .*; copy or make it again"):
        records(str(path))
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(UserError, match="has the column 'text' twice; rename one of them"):
        records(str(path))


def test_rows_that_are_no_objects_have_a_problem(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b'{"a": 1}\n[1]\nnull\n'), ("b.json", b'[{"a": 1}, [1], null]')):
        (tmp_path / name).write_bytes(data)
        first, *others = records(str(tmp_path / name))
        assert first == Record(f"{name}:1", {"a": 1})
        assert others == [Record(f"{name}:{number}", {}, "not an object of columns") for number in (2, 3)]


def test_the_line_number_is_right_deep_in_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "_LINES_UNIT_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:40]) + b"broken\n" + lines(ROWS[40:]))
    with pytest.raises(UserError, match="line 41 is not JSON"):
        records(str(tmp_path / "a.jsonl"))


def test_what_is_taken_of_a_folder_is_known_before_it_is_read(tmp_path: Path) -> None:
    for name in ("a/x.py", "a/b/y.jsonl", "a/z.txt", "c/z.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    sources = parse_sources([str(tmp_path / "a"), str(tmp_path / "c")])
    assert kinds_within(sources) == {"python", "text"}, "code wins over tables"
    assert kinds_within(sources, exclude=["*.py"]) == {"table", "text"}
    assert kinds_within(sources, [".py", "md"]) == {"python", "text"}
    assert kinds_within(parse_sources(["hub:x", "gone.parquet"])) == {"table"}
    with pytest.raises(UserError, match="has no usable file"):
        kinds_within(sources, [".c"])


def test_missing_and_empty_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(UserError, match="no usable file"):
        records(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        records(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no source"):
        parse_sources([])


def test_columns_and_templates() -> None:
    row = {"title": "T", "body": "B{x}", "count": 3, "none": None, "list": [1]}
    assert TextMapping(column="body").text(row, "r:1") == "B{x}"
    assert TextMapping(template="# {title}\\n{body} {count}{none}").text(row, "r:1") == "# T\nB{x} 3"
    assert TextMapping().text({"content": "c", "other": 1}, "r:1") == "c"
    for mapping, message in (
        (TextMapping(column="boddy"), r"r:1 has no column 'boddy'; did you mean 'body'\?.*known: title, body"),
        (TextMapping(), "none of the columns text, content, code; known: title"),
        (TextMapping(column="zzz"), r"r:1 has no column 'zzz'; known: title, body, count, none, list$"),
        (TextMapping(column="list"), "'list' holds list"),
        (TextMapping(column="count"), "'count' holds int, not text"),
        (TextMapping(template="{x.y}"), "no column 'x.y'"),
    ):
        with pytest.raises(UserError, match=message):
            mapping.text(row, "r:1")
    for mapping in (TextMapping("a", "{b}"), TextMapping(template="plain"), TextMapping(template="{")):
        with pytest.raises(UserError):
            mapping.check()

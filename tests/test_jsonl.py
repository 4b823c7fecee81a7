"""The one reader of JSON lines: what ends a line, what is refused, and that a message names file and line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
import zstandard

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.jsonl import lines, objects, open_binary, read, table


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(objects(path, "prompt file"))
    message = str(caught.value)
    assert "\n" not in message and "prompt file" in message and str(path) in message
    return message


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_a_newline_ends_a_line(tmp_path: Path, mark: str) -> None:
    rows = [{"text": f"a{mark}b"}, {"text": "c"}]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\r\n".join(json.dumps(row, ensure_ascii=ord(mark) < 32) for row in rows).encode())
    assert [value for _, value in lines(path)] == rows


def test_marks_of_byte_order_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n\xef\xbb\xbf{"a": 2}')
    assert list(lines(path)) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', r"\ud800, half of a surrogate pair"),
        (b'{"\\uDFFF": 1}', r"\udfff, half of a surrogate pair"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "holds a number of more than 4,300 digits; write it as text or leave it out"),
        (b'{"a": 1', "not JSON"),
        (b"[1]", "holds a list, not an object"),
        (b"null", "holds null, not an object"),
        (b'"\\ud83d\\ude00"', "holds a string, not an object"),
    ],
)
def test_what_cannot_be_read_names_its_line(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "fine"}\n\n' + line + b"\n")
    message = refusal(path)
    assert words in message and "line 3" in message


def test_whole_pairs_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "\\ud83d\\ude00 \\\\ud800"}')
    assert list(lines(path)) == [(1, {"a": "\U0001f600 \\ud800"})]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_compressed_files_whole_in_parts_and_cut(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    rows = [{"i": number, "text": "ab\u2028" * (number % 7)} for number in range(3000)]
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path = tmp_path / ("rows.jsonl.gz" if pack is gzip.compress else "rows.jsonl.zst")
    path.write_bytes(pack(raw[:5000]) + pack(raw[5000:]))  # two members, cut inside a line
    assert [value for _, value in lines(path)] == rows
    with open_binary(path) as handle:
        assert handle.read(7) + handle.read() == raw
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) - 9, len(whole) // 2):
        path.write_bytes(whole[:size])
        assert "is damaged after line" in refusal(path)
    path.write_bytes(b"no such thing")
    assert "is damaged after line 0" in refusal(path)


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.jsonl")
    assert "Is a directory" in refusal(tmp_path)


def test_a_table_is_a_list_an_object_or_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for data, found in (
        (b'\xef\xbb\xbf[{"a": 1}, 2]', [(1, "entry 1", {"a": 1}), (2, "entry 2", 2)]),
        (b'{\n"a": 1}\n', [(1, "entry 1", {"a": 1})]),
        ('{"a": "\u2028"}\n\n3\n'.encode(), [(1, "line 1", {"a": "\u2028"}), (3, "line 3", 3)]),
    ):
        path.write_bytes(data)
        assert [
            (number, where.removeprefix(f"file {str(path)!r} "), value) for number, where, value in table(path)
        ] == found
    for data, words in ((b" \n", "is empty"), (b"{}\n{\n", "line 2 is not JSON"), (b"[1,\n", "is not JSON")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"t\.json' {words}"):
            list(table(path))


def test_a_last_line_that_a_kill_cut_is_left_out_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xc3')
    assert list(objects(path, torn=True)) == [(1, {"a": 1})]
    assert "line 2 is not UTF-8" in refusal(path)
    path.write_bytes(b'{"a": 1}\n{"a": 2}')  # whole, but for its end
    assert len(list(objects(path, torn=True))) == 2
    for data in (b'{"a": 1}\n{"a\n', b'{"a": \n{"a": 2}\n{"a"'):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"log\.jsonl' line [12] is not JSON"):
            list(objects(path, torn=True))


@pytest.mark.parametrize(
    "pack", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress], ids=["gz", "zst"]
)
def test_a_flipped_byte_is_found_wherever_it_is(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    raw = b"".join(b'{"i": %d, "text": "%x"}\n' % (number, number**5) for number in range(400))
    whole, path = pack(raw), tmp_path / ("a.jsonl.gz" if pack is gzip.compress else "a.jsonl.zst")
    refused = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert read(path) == raw  # the time in a header of gzip means nothing
        except UserError as error:
            refused += 1
            assert "a.jsonl" in str(error) and "is damaged" in str(error) and "\n" not in str(error)
    assert refused > len(whole) // 7 - 3


def test_only_packed_files_need_zstandard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and logs are read where the package is missing; tests/gpu/run.py meets such machines."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    assert [line.value for line in lines(tmp_path / "a.jsonl")] == [{"a": 1}]


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/urandom"])
def test_a_device_without_an_end_is_refused(device: str) -> None:
    assert "device without an end" in refusal(Path(device))
    assert read(Path("/dev/null")) == b""

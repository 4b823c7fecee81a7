"""Each filter drops what it says and nothing else; duplicates and benchmark problems are found."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcoder_cli.base.errors import UserError
from dcoder_cli.data.decontaminate import load_contamination
from dcoder_cli.data.duplicates import are_blank, bands, signatures
from dcoder_cli.data.filters import FilterSettings, alphanumeric_share, judge_document, licence_header, parses
from dcoder_cli.data.ngrams import ngram_hashes, word_codes, words
from dcoder_cli.data.remarks import remarks

GOOD = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("x = 1\0\n", "binary"),
        ("a" * 101, "too large"),
        ("x = '" + "a" * 60 + "'\n", "line too long"),
        ("abcdefghijklmnopqrstuvwxyz = 1\n" * 2, "lines too long on average"),
        ("-=+ " * 5 + "\n", "too few letters and digits"),
        ("print 'python 2'\n", "unparsable Python"),
    ],
)
def test_each_filter_drops_and_says_why(text: str, reason: str | None) -> None:
    settings = FilterSettings(max_line_length=50, mean_line_length=25, max_document_bytes=100, drop_unparsable=True)
    assert judge_document(text, settings, is_source=True, maybe_python=True).reason == reason


def test_code_limits_leave_prose_alone_unless_asked() -> None:
    prose = "word " * 400
    assert judge_document(prose, FilterSettings(), False, True).reason is None
    assert judge_document(prose, FilterSettings(), True, True).reason == "line too long"
    assert judge_document(prose, FilterSettings(code_filters="all"), False, True).reason == "line too long"
    assert judge_document(prose, FilterSettings(code_filters="none"), True, True).reason is None
    assert judge_document("print 'x'", FilterSettings(drop_unparsable=True), True, maybe_python=False).reason is None


def test_limits_are_inclusive_and_count_unicode() -> None:
    assert judge_document("x" * 1000, FilterSettings(mean_line_length=1000), True, True).reason is None
    assert judge_document("x" * 1001, FilterSettings(mean_line_length=2000), True, True).reason == "line too long"
    assert alphanumeric_share("ab--") == 0.5 and alphanumeric_share("äß漢-") == 0.75
    assert not parses("x = (") and not parses("\0") and parses("x = 1")


LICENCED = "#!/usr/bin/env python\n# Copyright (c) 2020 Someone.\n# Licensed under the Apache License, Version 2.0.\n\n# What it does.\nx = 1\n"


def test_licence_headers_are_stripped_or_dropped_by_name() -> None:
    header = licence_header(LICENCED)
    assert header is not None and header.licence == "Apache"
    assert header.rest == "#!/usr/bin/env python\n\n# What it does.\nx = 1\n"
    stripped = judge_document(LICENCED, FilterSettings(licence="strip"), True, True)
    assert (stripped.text, stripped.stripped, stripped.reason) == (header.rest, "Apache", None)
    assert judge_document(LICENCED, FilterSettings(licence="drop"), True, True).reason == "licence header Apache"
    assert judge_document(LICENCED, FilterSettings(licence="drop:GPL,MIT"), True, True).reason is None
    assert judge_document(LICENCED, FilterSettings(licence="drop:Apache"), True, True).reason is not None
    assert judge_document(LICENCED, FilterSettings(), True, True).text == LICENCED
    block = licence_header("/* This is free software under the\n * GNU General Public License. */\nint x;\n")
    assert block is not None and block == ("GPL", "int x;\n")
    assert licence_header("# just a comment\nx = 1\n# Copyright further down\n") is None
    assert licence_header("/* never closed, copyright") is None


def test_a_licence_filter_that_met_nothing_says_so() -> None:
    asked: dict[str, dict[str, object]] = {"filters": {"licence": "drop:GPL"}, "dropped": {}}
    assert list(remarks(asked)) == ["--licence drop:GPL: no document begins with such a header"]
    for met in ({"dropped": {"licence header GPL": {}}}, {"filters": {"licence": "keep"}}):
        assert not list(remarks(asked | met))


@pytest.mark.parametrize(
    "settings",
    [
        FilterSettings(near_duplicates=1.5),
        FilterSettings(licence="maybe"),
        FilterSettings(licence="drop:gpl"),  # nothing was dropped, without a word
        FilterSettings(licence="drop:MIT,GPL-3.0"),
        FilterSettings(code_filters="some"),  # type: ignore[arg-type]
        FilterSettings(decontaminate_ngram=1),
    ],
)
def test_senseless_settings_are_refused(settings: FilterSettings) -> None:
    with pytest.raises(UserError):
        settings.check()


def test_ngrams_are_the_same_numbers_everywhere() -> None:
    codes = word_codes("Foo_bar, BAZ 12")
    assert len(codes) == 4 and (codes == word_codes("foo bar\nbaz ... 12")).all()
    assert ngram_hashes(codes, 5).size == 0 and ngram_hashes(codes, 4).size == 1
    assert ngram_hashes(codes, 2).tolist() == [
        int(ngram_hashes(word_codes(pair), 2)[0]) for pair in ("foo bar", "bar baz", "baz 12")
    ]
    digest = hashlib.sha256(ngram_hashes(word_codes("a b c d e f"), 3).tobytes()).hexdigest()
    assert digest == hashlib.sha256(ngram_hashes(word_codes("A b C d E f"), 3).tobytes()).hexdigest()


@given(text=st.one_of(st.text(), st.text("aZ0_é²K \n-")))
def test_words_and_shares_are_those_of_plain_definitions(text: str) -> None:
    assert words(text) == re.findall(r"[^\W_]+", text.lower())
    assert word_codes(text).tolist() == [crc32(word.encode("utf-8", "surrogatepass")) for word in words(text)]
    assert not text or alphanumeric_share(text) == pytest.approx(sum(map(str.isalnum, text)) / len(text), abs=1e-12)


def test_signatures_and_bands_never_change() -> None:
    """They decide which documents survive; the numbers are those of datasketch 2.0 with seed 1."""
    codes = [word_codes(" ".join(_text(seed, count))) for seed, count in ((1, 400), (2, 9), (3, 10), (4, 5000))]
    made = signatures(codes)
    assert (
        hashlib.sha256(made.tobytes()).hexdigest() == "3c5c19c24ec2e298f306fb34d25255cb09227fcafce0b3b8b82b0c98b274d352"
    )
    assert are_blank(made).tolist() == [False, True, False, False]
    assert all((signatures([one])[0] == row).all() for one, row in zip(codes, made, strict=True))
    assert signatures([]).shape == (0, 256)
    assert [bands(threshold) for threshold in (0.5, 0.7, 0.8, 0.95, 1.0)] == [
        (42, 6),
        (25, 10),
        (17, 15),
        (5, 51),
        (1, 256),
    ]


def _text(seed: int, words: int = 400) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefgh", k=5)) for _ in range(words)]


@pytest.fixture()
def own_benchmarks(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks"
    (folder / "puzzle").mkdir(parents=True)
    row = {
        "task_id": "P/1",
        "prompt": "Write a function that counts how many of the given words begin with a vowel and returns it.",
        "answer": "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
    }
    (folder / "puzzle" / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (folder / "empty").mkdir()
    return folder


def test_contamination_needs_ten_words_in_a_row(own_benchmarks: Path) -> None:
    found = load_contamination(["puzzle"], str(own_benchmarks), 10)
    ten = "FUNCTION that_counts how-many of the given words begin"
    assert found.find(word_codes(f"before {ten} after")) == "puzzle: P/1"
    assert found.find(word_codes(ten.rsplit(" ", 1)[0] + " near")) is None
    assert found.find(word_codes("x = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]")) is None, (
        "a run of numbers tells nothing"
    )
    assert found.find(word_codes("")) is None


def test_contamination_settings_are_checked(own_benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCODER_BENCHMARKS", raising=False)
    with pytest.raises(UserError, match="DCODER_BENCHMARKS"):
        load_contamination(["puzzle"], None, 10)
    monkeypatch.setenv("DCODER_BENCHMARKS", str(own_benchmarks))
    assert load_contamination(["puzzle"], None, 10).find(word_codes("x")) is None
    with pytest.raises(UserError, match="did you mean 'puzzle'"):
        load_contamination(["puzle"], None, 10)
    with pytest.raises(UserError, match="no problems"):
        load_contamination(["empty"], None, 10)
    (own_benchmarks / "empty" / "x.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"x\.jsonl"):
        load_contamination(["empty"], None, 10)


def test_a_humaneval_problem_and_an_mbpp_solution_are_found(benchmark_files: Path) -> None:
    found = load_contamination(["humaneval"], str(benchmark_files), 10)
    with gzip.open(benchmark_files / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as handle:
        problem = json.loads(handle.readline())
    assert found.find(word_codes("import os\n" + problem["prompt"])) == "humaneval: HumanEval/0"
    found = load_contamination(["mbpp"], str(benchmark_files), 10)
    with gzip.open(benchmark_files / "mbpp" / "mbpp.jsonl.gz", "rt", encoding="utf-8") as handle:
        assert "mbpp" in str(found.find(word_codes(json.loads(handle.readline())["code"])))

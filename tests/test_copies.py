"""Copies of earlier documents: what is found is what comparing every pair finds, however the work is cut."""

from __future__ import annotations

import hashlib
import os
import resource
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_data_filters import _text

from dcoder_cli.data import copies, spill
from dcoder_cli.data.arrays import write_arrays
from dcoder_cli.data.duplicates import PERMUTATIONS, Signature, bands, signatures
from dcoder_cli.data.ngrams import word_codes
from dcoder_cli.data.tasks import Processes
from dcoder_cli.data.unit_files import UnitFiles, unit_path

THRESHOLD = 0.7


def contents_of(texts: list[str]) -> np.ndarray:
    made = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(made), np.uint8).reshape(-1, 16)


def unit_files(folder: Path, parts: list[tuple[np.ndarray, Signature]]) -> UnitFiles:
    """Finished units with these contents and signatures."""
    for number, (contents, signed) in enumerate(parts):
        arrays = {"contents": contents, "signatures": signed, "lengths": np.ones(len(contents), np.int64)}
        write_arrays(unit_path(folder, number), arrays, {})
    return UnitFiles.open([unit_path(folder, number) for number in range(len(parts))])


def plainly(contents: np.ndarray, signed: Signature, exact: bool, threshold: float) -> list[tuple[int, bool, int]]:
    """(of, exact, agreeing) of every document, by the definition: each compared with all before it, band by band."""
    number, rows = bands(threshold)
    blank = (signed == 0xFFFFFFFF).all(1)
    found = []
    for later in range(len(contents)):
        same = [one for one in range(later) if exact and (contents[one] == contents[later]).all()]
        if same:
            found.append((same[0], True, 0))
            continue
        best, most = -1, 0
        if threshold and not blank[later]:
            for one in np.flatnonzero(~blank[:later]).tolist():
                shared = any(
                    (signed[one, at * rows : (at + 1) * rows] == signed[later, at * rows : (at + 1) * rows]).all()
                    for at in range(number)
                )
                agreeing = int((signed[one] == signed[later]).sum())
                if shared and agreeing / PERMUTATIONS >= threshold and agreeing > most:
                    best, most = one, agreeing
        found.append((best, False, most))
    return found


def families(seed: int, count: int) -> tuple[np.ndarray, Signature]:
    """Contents, and signatures of which many are like an earlier one in 50 to 100% of places; some are blank, some equal."""
    rng = np.random.default_rng(seed)
    signed = rng.integers(0, 2**32, (count, PERMUTATIONS), np.uint32)
    contents = rng.integers(0, 256, (count, 16), np.uint8)
    for later in range(1, count):
        earlier, kind = int(rng.integers(later)), rng.random()
        if kind < 0.1:
            contents[later], signed[later] = contents[earlier], signed[earlier]
        elif kind < 0.2:
            signed[later] = signed[earlier]
        elif kind < 0.7:
            kept = rng.random(PERMUTATIONS) < rng.uniform(0.5, 1)
            signed[later, kept] = signed[earlier, kept]
        elif kind < 0.75:
            signed[later] = 0xFFFFFFFF
    return contents, signed


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 0.95, 1.0])
def test_what_every_pair_says_is_found(
    exact: bool, threshold: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, signed = families(int(threshold * 100) + exact, 200)
    expected = plainly(contents, signed, exact, threshold) if exact or threshold else [(-1, False, 0)] * 200
    cuts = np.array([0, 1, 1, 70, 71, 150, 200])  # units of one, of none, of many documents
    for size, documents, compared, pairs in ((2**26, 2**17, 2**15, 2**23), (500, 60, 7, 50)):  # whole, in many pieces
        for name, value in (("PART_BYTES", size), ("DOCUMENTS", documents), ("COMPARED", compared), ("PAIRS", pairs)):
            monkeypatch.setattr(copies, f"_{name}", value)
        monkeypatch.setattr(spill, "_SEGMENT", size // 50)
        for ends in (cuts, np.array([0, 200])):
            files = unit_files(tmp_path, [(contents[a:b], signed[a:b]) for a, b in pairwise(ends)])
            found = copies.find(files, exact, threshold, tmp_path / "scratch")
            assert list(zip(found.of.tolist(), found.exact.tolist(), found.agreeing.tolist(), strict=True)) == expected
            assert not (tmp_path / "scratch").exists()


def test_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents, signed = families(7, 600)
    files = unit_files(tmp_path, [(contents[a:b], signed[a:b]) for a, b in pairwise(range(0, 601, 50))])
    alone = copies.find(files, True, THRESHOLD, tmp_path / "scratch")
    for name, value in (("PART_BYTES", 2000), ("DOCUMENTS", 100)):
        monkeypatch.setattr(copies, f"_{name}", value)
    told: list[tuple[float, str]] = []
    shared = copies.find(
        files, True, THRESHOLD, tmp_path / "scratch", Processes(2), lambda *news: told.append(news)
    )  # fmt: skip
    for name in ("of", "exact", "agreeing"):
        assert (getattr(alone, name) == getattr(shared, name)).all(), name
    assert sum(share for share, _ in told) == pytest.approx(1) and len(told) > 20
    assert (alone.of >= 0).sum() > 100 and not (tmp_path / "scratch").exists()


def test_thousands_of_files_need_few_at_once(tmp_path: Path) -> None:
    """A process may have 1,024 open on most machines; here it has 60 more than it needs for anything."""
    contents, signed = families(3, 200)
    files = unit_files(tmp_path, [(contents[at : at + 1], signed[at : at + 1]) for at in range(200)])
    used = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, hard))
    try:
        found = copies.find(files, True, THRESHOLD, tmp_path / "scratch")
        whole = files.rows("contents", np.arange(199, -1, -1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.of >= 0).any() and (whole == contents[::-1]).all()


def test_texts_are_copies_by_their_true_similarity(tmp_path: Path) -> None:
    base, part = _text(1), _text(2, 200)
    texts = [
        base, base, [*base[:200], "changed", *base[201:]],  # 5 of 396 shingles differ: Jaccard 0.975
        [*base[:200], *part], _text(3), ["x"] * 5, ["y"] * 5,  # Jaccard about 0.33, 0; too short for a signature
    ]  # fmt: skip
    words = [" ".join(one) for one in texts]
    signed = signatures([word_codes(text) for text in words])
    found = copies.find(unit_files(tmp_path, [(contents_of(words), signed)]), True, THRESHOLD, tmp_path / "scratch")
    assert found.of.tolist() == [-1, 0, 0, -1, -1, -1, -1] and found.exact.tolist()[:3] == [False, True, False]
    assert found.agreeing[2] / PERMUTATIONS > 0.9


def test_a_copy_of_a_copy_goes_too(tmp_path: Path) -> None:
    """Each of a chain is like the one before it, and no longer like the first: what stays must not depend on what went."""
    words = _text(1, 400)
    chain = [" ".join([*_text(9, 40 * step), *words[40 * step :]]) for step in range(4)]
    signed = signatures([word_codes(text) for text in chain])
    assert (signed[0] == signed[3]).mean() < THRESHOLD
    found = copies.find(unit_files(tmp_path, [(contents_of(chain), signed)]), True, THRESHOLD, tmp_path / "scratch")
    assert found.of.tolist() == [-1, 0, 1, 2]


def test_a_band_of_very_many_is_compared_with_its_first_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "GROUP", 3)
    rng = np.random.default_rng(0)
    signed = rng.integers(0, 2**32, (9, PERMUTATIONS), np.uint32)
    signed[:, :10] = 7  # a band of all
    for later, like in ((5, 2), (6, 4)):  # the third of the band, and the fifth
        signed[later, :250] = signed[like, :250]
    contents = rng.integers(0, 256, (9, 16), np.uint8)
    found = copies.find(unit_files(tmp_path, [(contents, signed)]), False, THRESHOLD, tmp_path / "scratch")
    assert found.of[5] == 2
    assert found.of[6] == 4  # by its other bands, which few share

"""The one check of files that we read back: every field that is wrong is named, with what it holds and what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.schema import Format, Least


@dataclass(frozen=True)
class Part:
    file: str
    rows: Annotated[int, Least(0)]
    share: float = 1.0


@dataclass(frozen=True)
class Whole:
    kind: Literal["a", "b"]
    parts: list[Part]
    size: tuple[int, int] | None = None
    names: dict[str, str] = field(default_factory=dict)
    more: Any = None
    done: bool = False


FORMAT = Format("whole", Whole, "make it again", version=2)
GOOD: dict[str, Any] = {"format_version": 1, "kind": "a", "parts": [{"file": "x", "rows": 3}]}


def message(**changed: Any) -> str:
    with pytest.raises(UserError) as caught:
        FORMAT.check({**GOOD, **changed}, "whole 'w.json'")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("whole 'w.json' ")
    return str(caught.value).removeprefix("whole 'w.json' ")


def test_a_good_file_becomes_its_dataclass_and_keys_of_later_versions_stay(tmp_path: Path) -> None:
    value = {**GOOD, "size": [1, 2], "names": {"x": "y"}, "of a later version": 1}
    (tmp_path / "w.json").write_text(json.dumps(value))
    assert FORMAT.read(tmp_path / "w.json") == Whole("a", [Part("x", 3)], (1, 2), {"x": "y"})
    assert FORMAT.document(tmp_path / "w.json") == value
    (tmp_path / "w.jsonl").write_text(json.dumps(value) + "\n" + json.dumps(value) + "\n{")
    assert [number for number, _ in FORMAT.rows(tmp_path / "w.jsonl", torn=True)] == [1, 2]


def test_every_field_that_is_wrong_is_named() -> None:
    assert message(kind="c") == 'has kind = "c", which must be one of a, b; make it again'
    assert message(parts=3) == "has parts = 3, which must be a list; make it again"
    assert message(parts=[3]) == "has parts[0] = 3, which must be an object; make it again"
    assert message(parts=[{"file": "x"}]) == "has no parts[0].rows; make it again"
    assert message(parts=[{"file": "x", "rows": True}]).startswith("has parts[0].rows = true, which must be a whole")
    assert message(parts=[{"file": "x", "rows": "3"}]).startswith('has parts[0].rows = "3", which must be a whole')
    assert message(parts=[{"file": "x", "rows": -1}]).startswith("has parts[0].rows = -1, which must be at least 0")
    assert message(parts=[{"file": None, "rows": 1}]).startswith("has parts[0].file = null, which must be text")
    assert message(parts=[{"file": "", "rows": 1, "share": float("nan")}]).startswith("has parts[0].share = NaN, which")
    for far in ({"rows": 10**400}, {"rows": 1, "share": 10**400}):  # a curve of it ended in an OverflowError
        assert "= 1000000" in message(parts=[{"file": "", **far}])
    assert message(size=[1]) == "has size = [1], which must have 2 entries; make it again"
    assert message(names={"x": 1}) == "has names.x = 1, which must be text; make it again"
    assert message(done=0) == "has done = 0, which must be true or false; make it again"
    assert len(message(done="x" * 1000)) < 150
    with pytest.raises(UserError, match=r"whole 'w.json' holds .*, not an object; make it again"):
        FORMAT.check([1], "whole 'w.json'")


def test_a_newer_version_is_told_apart_from_a_damaged_one() -> None:
    newer = "was written by a newer dcoder (format 3; this one reads 2); update dcoder"
    assert message(format_version=3) == newer
    assert message(format_version=3, kind="of later") == newer
    for damaged in ("1", 1.0, True, 0, -1, [1]):
        assert "has format_version = " in message(format_version=damaged)
    with pytest.raises(UserError, match="has no format_version; make it again"):
        FORMAT.check({"kind": "a", "parts": []}, "whole 'w.json'")
    lenient = Format("whole", Whole, "make it again", version=2, first=1)
    assert lenient.check({"kind": "a", "parts": []}, "w") == Whole("a", [])

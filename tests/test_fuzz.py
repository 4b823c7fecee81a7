"""No value of any option or argument of any command ends in a traceback, in more than one line, in files, or not at all.

Hundreds of pairs by default, another place for each value; all, tens of thousands, with `-m slow`. What is tried, and what
counts as trouble, is in fuzzing.py.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

import fuzzing
import pytest
from helpers import refused
from test_options import ALL, places  # noqa: F401  # a fixture


@pytest.fixture(scope="module")
def ground(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:  # noqa: F811
    """Where calls run: files to name, and folders that must stay as they are."""
    root = tmp_path_factory.mktemp("fuzz")
    for name in ("here", "temporary", "run"):
        (root / name).mkdir()
    (root / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (Path(places["tmp"])).mkdir(exist_ok=True)
    more = {"run": str(root / "run"), "here": str(root / "here"), "temporary": str(root / "temporary")}
    return {**places, **fuzzing.make_traps(root / "traps"), **more}


def _run(cases: list[fuzzing.Case], ground: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[fuzzing.Case, str]:
    monkeypatch.chdir(ground["here"])
    monkeypatch.setenv("TMPDIR", ground["temporary"])
    monkeypatch.setattr(tempfile, "tempdir", ground["temporary"])
    fuzzing.replace_engines(monkeypatch)
    watched = [Path(ground["tmp"]).parent, Path(ground["run"]).parent]
    found = {case: fuzzing.trouble(fuzzing.line_of(case, ground), watched) for case in cases}
    return {case: told for case, told in found.items() if told}


def test_a_draw_of_all_commands_options_and_hostile_values(
    ground: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = fuzzing.drawn(every=115, seed=15)
    assert len(cases) > 250 and {case.kind for case in cases} == set(fuzzing.HOSTILE)
    assert not (wrong := _run(cases, ground, monkeypatch)), wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({case.command for case in fuzzing.cases()}))
def test_all_hostile_values_of_a_command(name: str, ground: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = _run([case for case in fuzzing.cases() if case.command == name], ground, monkeypatch)
    assert not wrong, wrong


def test_no_command_is_left_out() -> None:
    tried = {case.command for case in fuzzing.cases()}
    assert set(ALL) - tried - {"doctor", "presets list", "quickstart"} == {
        name for name in ALL if name.startswith("eval ") and name not in fuzzing._STAND_FOR_ALL
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("generate --model {model} --n 99999999999999999999 a", "is not in the range|less than or equal|--n"),
        ("arness --model {model} --prompts {prompts} --n 2147483648", "--n"),
        ("eval micro --model {model} --workers 2147483648", "--workers"),
        ("bench generate --batch " + "1," * 100 + "1", "--batch has 101 values; give at most 64"),
        (
            "arness --model {model} --prompts {prompts} --temperatures " + "0," * 100 + "1",
            "--temperatures has 101 values",
        ),
        ("chat --model {model} --load /dev/full", "a device without an end"),
        ("generate --model {model} --nproc 1000 --device cpu a", "--nproc 1000 is more than the .* lower it"),
        (
            "train-stage 1 --model {model} --data d --nproc 1_000 --device cpu --preset cpu-tiny",
            "--nproc 1000 is more than",
        ),
        ("train-stage 1 --model {model} --data d --config /dev/full", "a device without an end"),
        ("reproduce --out /", "--out '/' is the root of the file system"),
        ("presets slurm 8x80gb --stage sft --partition 'a\nrm -rf b'", "--partition .* has no place in a job script"),
        ("presets slurm 8x80gb --stage sft --time '1\r2'", "--time .* has no place in a job script"),
        ("presets slurm 8x80gb --stage sft --out '\x1b[2J'", "--out .* has no place in a job script"),
        (f"presets show {'a' * 100_000}", r"unknown preset 'a+ \.\.\([0-9,]+ characters\)\.\. .*released"),
    ],
    ids=lambda text: text[:60],
)
def test_what_it_found(line: str, told: str, ground: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzing.replace_engines(monkeypatch)
    message = refused(*shlex.split(line.format(**ground)))
    assert re.search(told, message) and len(message) < 1500, message[:2000]


@pytest.mark.parametrize(
    ("act", "told"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("raise SystemExit(1)", "exit 1"),
        ("print('a'); raise UserError('b')", "refused, and wrote"),
        ("sys.stderr.write('error: \\x1b[31m\\n'); raise SystemExit(2)", "an escape"),
        ("print('note', file=sys.stderr); raise UserError('b')", "not one line"),
        ("open('left', 'w').close()", "left behind"),
        ("while True: pass", "not ended"),
        ("[0] * 2**40", "exit 1: 'error: out of memory"),
        ("raise UserError('a' * 10**6)", ""),  # clipped
    ],
)
def test_each_trouble_is_seen(act: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from dcoder_cli import main
    from dcoder_cli.base.errors import UserError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzzing, "LIMIT", 0.3)
    monkeypatch.setattr(main, "app", lambda **_: exec(act, {"sys": sys, "UserError": UserError}))
    found = fuzzing.trouble(["doctor"], [tmp_path])
    assert found.startswith(told) if told else not found, found

"""Progress in a log: what nohup, Slurm and CI keep of a run."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from grpo_runs import common, make_place
from helpers import make_model, make_shards, make_tokenizer

from dcoder_cli.base import console

# The command line with a line every 50 ms in place of every 30 s.
CODE = """
import sys
from dcoder_cli.base import console
from dcoder_cli.main import main
console._EVERY = 0.05
main()
"""
CLOCK = r"\d+:\d\d:\d\d"


def logged(folder: Path, arguments: list[Any], **options: Any) -> tuple[str, str]:
    """What a real process wrote into two files, as `> out 2> log` makes them."""
    with open(folder / "out", "w") as out, open(folder / "log", "w") as log:
        done = subprocess.run(
            [sys.executable, "-c", CODE, *map(str, arguments)], stdout=out, stderr=log, timeout=300, **options
        )
    out_text, log_text = (folder / "out").read_bytes().decode(), (folder / "log").read_bytes().decode()
    assert done.returncode == 0, log_text
    assert "\x1b" not in log_text + out_text and "\r" not in log_text + out_text
    return out_text, log_text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("progress")
    tokenizer = make_tokenizer()
    make_model(folder / "model", tokenizer=tokenizer)
    make_shards(folder / "data", tokenizer)
    return folder


def stage(place: Path, out: Path, steps: int = 150) -> list[Any]:
    return [
        "train-stage", "2", "--model", place / "model", "--data", place / "data", "--device", "cpu", "--out", out,
        f"--set=steps={steps}",
    ]  # fmt: skip


@pytest.mark.parametrize("forced", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "FORCE_COLOR"])
def test_a_training_tells_a_log_how_far_it_is(
    place: Path, tmp_path: Path, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, in between and at the end: step of total, loss, tokens a second, time left."""
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    _, log = logged(tmp_path, stage(place, tmp_path / "run"))
    lines = [line for line in log.splitlines() if line.startswith("stage 2 (mid): ")]
    assert lines[0] == "stage 2 (mid): 0/150"
    assert re.fullmatch(rf"stage 2 \(mid\): 150/150  loss \d+\.\d+  [\d,]+ tok/s  ended after {CLOCK}", lines[-1])
    between = [
        re.fullmatch(rf"stage 2 \(mid\): (\d+)/150  loss \d+\.\d+  [\d,]+ tok/s  {CLOCK} left", line)
        for line in lines[1:-1]
    ]
    told = [int(one[1]) for one in between if one]
    assert len(told) >= 2 and told == sorted(told)
    untold = [line for line, one in zip(lines[1:-1], between, strict=True) if one is None]
    assert all(line == lines[0] or line.startswith("stage 2 (mid): 1/150 ") for line in untold), (
        "one step tells no rate"
    )


def test_json_keeps_standard_output_for_itself(place: Path, tmp_path: Path) -> None:
    out, log = logged(tmp_path, [*stage(place, tmp_path / "run", 5), "--json"])
    assert json.loads(out)["steps"] == 5 and "stage 2 (mid): " not in log


def test_stage_4_tells_reward_and_speed(tmp_path: Path) -> None:
    make_place(tmp_path)
    _, log = logged(tmp_path, [*common(tmp_path, tmp_path / "run"), "--set=steps=2"], cwd=tmp_path)
    lines = [line for line in log.splitlines() if line.startswith("stage 4 (grpo): ")]
    assert lines[0] == "stage 4 (grpo): 0/2"
    assert re.match(r"stage 4 \(grpo\): 2/2  reward \d+\.\d+  kl \d+\.\d+  [\d,]+ tok/s  ended after ", lines[-1])


def test_generate_with_several_prompts_tells_a_log(place: Path, tmp_path: Path) -> None:
    _, log = logged(
        tmp_path, ["generate", "--model", place / "model", "--device", "cpu", "--max-new-tokens", "8", "a", "b", "c"]
    )
    assert re.search(rf"^generate: 3/3  ended after {CLOCK}$", log, re.MULTILINE), log


def test_tokenize_and_eval_tell_a_log(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"file{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 40)
    arguments = [
        "tokenize",
        "pretrain",
        source,
        "--tokenizer",
        place / "model",
        "--seq-len",
        "32",
        "--out",
        tmp_path / "t",
    ]
    _, log = logged(tmp_path, arguments)
    assert re.search(rf"^tokenizing \(MB\): \S+  \S+ MB/s  ended after {CLOCK}$", log, re.MULTILINE), log
    arguments = [
        "eval",
        "micro",
        "--model",
        place / "model",
        "--limit",
        "3",
        "--device",
        "cpu",
        "--out",
        tmp_path / "e",
    ]
    _, log = logged(tmp_path, [*arguments, "--max-new-tokens", "8"])
    assert re.search(rf"^.*: 3/3  ended after {CLOCK}$", log, re.MULTILINE), log


def test_a_long_step_is_no_silence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_EVERY", 0.02)
    with console.bar("slow", 3) as bar:
        time.sleep(0.2)
        bar.advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("slow: 0/3") >= 2 and lines[-1] == "slow: 3/3  ended after 0:00:00"


def test_input_refused_inside_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), console.bar("asked", 3):
        raise ValueError
    assert capsys.readouterr().err == ""


def test_time_left_counts_from_the_first_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 of 1,000 were found done; from there on 10 took 20 s, so the other 490 take 980 s."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.bar("scored", 1000, at_once=True) as bar:
        bar.advance(500)
        now[0] += 20
        bar.advance(10)
        bar._show.__self__._tell()  # type: ignore[attr-defined]  # as the clock does
    assert capsys.readouterr().err.splitlines()[1] == "scored: 510/1,000  0:16:20 left"


def test_one_step_tells_no_time_left_and_a_burst_no_rate_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 8 of 80 ends after 40 s, its rows within a moment: 9 more of them take 360 s, not none."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.bar("scored", 80, at_once=True) as bar:
        now[0] += 40
        bar.advance(1)
        bar._show.__self__._tell()  # type: ignore[attr-defined]  # as the clock does
        bar.advance(7)
        now[0] += 1
        bar._show.__self__._tell()  # type: ignore[attr-defined]
    assert capsys.readouterr().err.splitlines()[1:3] == ["scored: 1/80", "scored: 8/80  0:06:09 left"]


def test_ctrl_c_says_a_word_where_nothing_can_be_gone_on_with(place: Path, tmp_path: Path) -> None:
    arguments = [
        "generate",
        "--model",
        place / "model",
        "--raw",
        "--max-new-tokens",
        "60",
        "--n",
        "500",
        "--temperature",
        "1",
        "x = 1",
    ]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", CODE, *map(str, arguments)], stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while "generate: " not in (tmp_path / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert (tmp_path / "log").read_text().splitlines()[-1] == "error: stopped before the end"


def test_unknown_totals_and_fractions() -> None:
    assert console._count(1234.0) == "1,234" and console._count(0.5) == "0.5"
    assert console._clock(3725.4) == "1:02:05" and console._clock(59) == "0:00:59"


def test_a_total_that_is_known_late(capsys: pytest.CaptureFixture[str]) -> None:
    with console.bar("judging", None) as bar:
        bar.advance(1, total=4)
    assert capsys.readouterr().err.splitlines()[-1].startswith("judging: 1/4  ended")


def test_short_work_tells_a_log_nothing_and_long_work_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with console.bar("short", None, late=True) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "_EVERY", 0.02)
    with console.bar("long", None, late=True) as bar:
        bar.advance(3)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("long: 3") >= 2 and lines[-1] == "long: 3  ended after 0:00:00"


def test_prompts_of_stage_4_are_heard_of_while_they_are_read(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcoder_cli.data import rl

    rows = [{"question": f"Write f{n}.", "test_cases": [f"assert f{n}(1) == {n}"]} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(console, "_EVERY", 0.02)
    slow, real = (lambda text: time.sleep(0.02)), rl.why_unusable
    monkeypatch.setattr(rl, "why_unusable", lambda problem: slow(problem) or real(problem))
    settings = rl.RlSettings((str(tmp_path / "rows.jsonl"),), str(tmp_path / "out"), str(place / "model"))
    assert rl.tokenize_rl(settings)["splits"]["train"]["rows"] == 6
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("reading rows: ") for line in lines) and lines[0].split(": ")[1] in "0123456"
    rl.tokenize_rl(rl.RlSettings(settings.sources, settings.out, settings.tokenizer, overwrite=True, quiet=True))
    assert capsys.readouterr().err == ""


def test_the_evaluation_before_stage_4_is_no_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a real size it takes minutes: the first line stands before it, and more follow every 30 s."""
    from dcoder_cli.main import main
    from dcoder_cli.training.grpo import train

    make_place(tmp_path)
    heard, real = [], train._evaluate
    monkeypatch.setattr(train, "_evaluate", lambda *asked: heard.append(capsys.readouterr().err) or real(*asked))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dcoder", *map(str, common(tmp_path, tmp_path / "run")), "--set=steps=1"])
    with contextlib.suppress(SystemExit):
        main()
    assert "stage 4 (grpo): 0/1" in heard[0] and len(heard) == 2

"""Claims: effects, intervals and verdicts from known numbers; the real measurements on a tiny family; bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import unit_work
from helpers import make_model, make_tokenizer

from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.benchmarks import claims, desk
from dcoder_cli.benchmarks.claims import CLAIMS, Claim, check, choose, roles_of
from dcoder_cli.benchmarks.desk import Desk
from dcoder_cli.benchmarks.family import ROLES, STARTS, given, parts, train_part, trained
from dcoder_cli.benchmarks.measures import Settings, at_desk_size
from dcoder_cli.benchmarks.parallel import run_units
from dcoder_cli.benchmarks.reproduce import _identity, reproduce


def _families(*values: dict[str, float]) -> list[Any]:
    return [
        SimpleNamespace(values=one, family=SimpleNamespace(models={"sft": "x"}, rl=None, pretrain="p"))
        for one in values
    ]


def _claim(needs: str | None = None, roles: tuple[str, ...] = ("sft",)) -> Claim:
    return Claim("c", "it is so", "points", "1", roles, lambda measures: measures.values, needs)  # type: ignore[attr-defined]


def test_verdicts_follow_the_interval() -> None:
    """Five seeds: Student over their means (by hand: mean 2, s.d. 1.5811, t(4) = 2.7764). Fewer: over tasks."""
    five = check(_claim(), _families(*({"a": float(v), "b": float(v)} for v in (0, 1, 2, 3, 4))))
    assert (five.effect, five.over) == (2.0, "seeds")
    assert five.low == pytest.approx(2 - 2.7764 * 1.5811 / 5**0.5, abs=1e-3) and five.verdict == "shown"
    assert five.by_seed == (0.0, 1.0, 2.0, 3.0, 4.0)
    two = check(_claim(), _families({"a": -1.0, "b": -3.0, "c": -2.0}, {"a": -1.0, "b": -3.0, "c": -2.0}))
    assert (two.over, two.verdict) == ("tasks", "contrary")
    assert two.low is not None and two.high is not None and -3 <= two.low < -2 < two.high <= -1
    flat = check(_claim(), _families({"a": 1.0, "b": -1.0}))
    assert flat.verdict == "not shown" and flat.effect == 0
    assert check(_claim(), _families({"mean": 1.0})).why == "one number of one seed has no interval"
    assert check(_claim(), _families({"mean": 1.0}, {"mean": 1.1})).over == "seeds"


def test_what_is_missing_is_not_measured() -> None:
    absent = check(_claim(roles=("sft", "grpo")), _families({"a": 1.0}))
    assert (absent.verdict, absent.why) == ("not measured", "needs --model grpo=PATH")
    assert check(_claim(needs="rl"), _families({"a": 1.0})).why == "needs --rl DIR"
    assert {role for claim in CLAIMS for role in claim.roles} == set(ROLES)
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def test_every_claim_is_measured_on_a_tiny_family_and_a_stopped_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TRAIN_TASKS": 140, "RL_TASKS": 20, "STDLIB_SHARE": 0.01}.items():
        monkeypatch.setattr(desk, name, value)
    from dcoder_cli.base import presets
    from dcoder_cli.benchmarks import measures

    monkeypatch.setattr(measures, "LAB_DRAWS", 2)
    small = presets.load("cpu-tiny")
    small["grpo"] |= {"prompts_per_step": 2, "group_size": 2}
    small["grpo"]["rollout"] |= {"max_new_tokens": 8}
    monkeypatch.setattr(presets, "load", lambda _: small)
    heard: list[str] = []

    def stopped(line: str) -> None:
        heard.append(line)
        if "full-mask" in line:
            raise KeyboardInterrupt

    settings = replace(at_desk_size(Settings(limit=2, many=2)), max_new_tokens=8)
    out = tmp_path / "r"

    def run(announce: Any) -> Any:
        return reproduce(out, CLAIMS, settings, 1, 0.002, {}, None, None, announce, jobs=1)

    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    again: list[str] = []
    outcome = run(again.append)
    assert not set(heard[:-1]) & set(again) and heard[-1] in again  # only what was not finished
    assert [one.claim for one in outcome.findings] == list(CLAIMS)
    assert all(one.effect is not None and one.verdict != "not measured" for one in outcome.findings)
    record = json.loads((out / "reproduce.json").read_text())
    assert [one["name"] for one in record["claims"]] == [claim.name for claim in CLAIMS]
    scores = record["scores"]
    assert set(scores["grpo"]) == {"pass@1", "pass@1, half the steps", "pass@1, hot", "pass@2, hot", "global@1"}
    assert {"grpo-full-mask", "grpo-decoupled", "sft"} <= set(scores) and all(
        len(v) == 1 for v in scores["sft"].values()
    )
    assert "AR-ness falls as temperature rises" in (out / "report.html").read_text(encoding="utf-8")
    from dcoder_cli.base.errors import UserError

    with pytest.raises(UserError, match="begun with other effort"):
        reproduce(out, CLAIMS, settings, 1, 0.5, {}, None, None, again.append)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"  # nobody may reap it here
    except OSError:
        return False


@pytest.mark.slow
def test_parts_at_a_time_are_those_one_after_another_and_end_with_their_caller(tmp_path: Path) -> None:
    """Two seeds in two processes, killed once, and in one: the same models, but for rounding in another number of threads."""

    def command(jobs: int) -> list[str]:
        return [
            sys.executable, "-m", "dcoder_cli", "reproduce", "--seeds", "2", "--jobs", str(jobs), "--effort", "0.003",
            "--claim", "adaptation", "--claim", "grpo-order", "--limit", "7", "--out", str(tmp_path / str(jobs)),
        ]  # fmt: skip

    with subprocess.Popen(command(2), stderr=subprocess.PIPE, text=True) as caller:
        assert caller.stderr is not None
        heard = iter(caller.stderr.readline, "")
        assert any("seed 0: stage 1" in line for line in heard)
        workers = Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text().split()
        caller.kill()
    assert len(workers) >= 2
    until = time.monotonic() + 20
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < until, "a process outlives its caller"
        time.sleep(0.1)
    effects = []
    for jobs in (1, 2):
        done = subprocess.run([*command(jobs), "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        effects.append([claim["by_seed"] for claim in json.loads(done.stdout)["claims"]])
    assert effects[0][0] == pytest.approx(effects[1][0], abs=1e-3) and effects[0][0][0] != effects[0][0][1]
    assert effects[0][1] == pytest.approx(effects[1][1], abs=5), "points: one of 7 answers may flip on a tie"


def test_every_part_is_trained_once_after_what_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(desk: Desk, name: str, start: Path) -> Path:
        assert start.name == "tokenizer" or f"{start.parent.name}/{start.name}" in made, f"{name} before {start}"
        made.append(name)
        return desk.out / name

    monkeypatch.setattr(Desk, "new_model", lambda desk, tokenizer: make(desk, "models/random", tokenizer))
    monkeypatch.setattr(Desk, "convert", lambda desk, start, name: make(desk, f"models/{name}", start))
    monkeypatch.setattr(Desk, "stage", lambda desk, _n, start, _d, _w, name: make(desk, f"runs/{name}", start))
    monkeypatch.setattr(Desk, "grpo", lambda desk, start, estimator: make(desk, f"runs/by-{estimator}", start))
    quiet: Any = lambda _: None  # noqa: E731
    assert parts(roles_of(choose(["adaptation"]))) == ["random", "adapted", "scratch"]
    family = trained(tmp_path, 0, 1.0, quiet, roles=roles_of(choose(["adaptation"])))
    assert set(family.models) == {"adapted", "scratch"} and not any("sft" in name for name in made)
    family = trained(tmp_path, 0, 1.0, quiet)
    assert len(made) == len(set(made)) == 13, "what was made stays"
    assert {role: str(Path(path).relative_to(tmp_path / "seed-0")) for role, path in family.models.items()} == {
        "adapted": "runs/adapted-2", "scratch": "runs/scratch-2", "sft": "runs/sft", "scratch-sft": "runs/scratch-sft",
        "grpo": "runs/by-coupled", "grpo-full-mask": "runs/by-full-mask", "grpo-decoupled": "runs/by-decoupled",
    }  # fmt: skip
    assert parts(ROLES) == list(STARTS)


def _too_long(*_: object) -> None:
    raise AssertionError("the processes do not end")


def test_a_failure_ends_all_processes_at_once() -> None:
    """One is training, which takes SIGTERM for a wish; one waits for work."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(60)  # what went wrong here once was a wait without end
    told: list[str] = []
    units: dict[str, set[str]] = {"fails": set(), "trains": set(), "after": {"fails"}}
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(UserError, match="no sandbox"):
            run_units(units, partial(unit_work.work, folder), 2, told.append)
        assert told == ["trains", "fails"], "and what needed it did not run"
        Path(folder, "trains").unlink()
        with pytest.raises(WorkFailed, match="a family's process was killed"):
            run_units(
                {"killed": set(), "trains": set(), "idle": set()}, partial(unit_work.work, folder), 3, told.append
            )
    signal.alarm(0)
    assert not multiprocessing.active_children()


def test_a_folder_that_was_moved_is_gone_on_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Desk, "new_model", lambda desk, _: desk.out / "models" / "random")
    monkeypatch.chdir(tmp_path)
    assert train_part(Path("out"), 0, "random", 1.0, print) == Path("out/seed-0/models/random")
    Path("out").rename("other")
    assert train_part(tmp_path / "other", 0, "random", 1.0, print) == tmp_path / "other/seed-0/models/random"


def test_a_checkpoint_that_moved_on_is_not_the_one_that_was_measured(tmp_path: Path) -> None:
    make_model(tmp_path / "model", tokenizer=make_tokenizer())
    before = _identity(str(tmp_path / "model"))
    assert _identity(str(tmp_path / "model")) == before
    weights = next((tmp_path / "model").glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    assert _identity(str(tmp_path / "model")) != before


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    def dcoder(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "dcoder_cli", *arguments], capture_output=True, text=True)

    for arguments, words in (
        (["reproduce", "--claim", "x"], "--claim 'x' is unknown; use adaptation"),
        (["reproduce", "--model", "sft"], "must be ROLE=PATH"),
        (["reproduce", "--model", "x=y", "--out", str(tmp_path / "o")], "role 'x' is unknown; use adapted"),
        (["reproduce", "--rl", "x"], "name those with --model ROLE=PATH"),
        (["reproduce", "--seeds", "0", "--out", str(tmp_path / "o")], "--seeds 0 must be at least 1"),
        (["reproduce", "--task", "humaneval"], "asks for real checkpoints"),
        (["reproduce", "--model", "sft=y", "--seeds", "2"], "leave them out with --model"),
        (["reproduce", "--jobs", "0", "--out", str(tmp_path / "o")], "--jobs 0 must be at least 1"),
        (["reproduce", "--limit", "0", "--out", str(tmp_path / "o")], "--limit 0 must be at least 1"),
        (["reproduce", "--max-new-tokens", "1", "--out", str(tmp_path / "o")], "--max-new-tokens 1 must be at least 2"),
        (["reproduce", "--max-new-tokens", "400", "--out", str(tmp_path / "o")], "leaves no room for the questions"),
        (["reproduce", "--data", "x.jsonl", "--out", str(tmp_path / "o")], "leave --data out"),
        (["reproduce", "--effort", "nan", "--out", str(tmp_path / "o")], "--effort nan a number above 0"),
        (["reproduce", "--model", "sft=./y", "--out", str(tmp_path / "o")], "is no folder here"),
        (["reproduce", "--seeds", "10000000", "--out", str(tmp_path / "o")], "no space left for 10000000 families"),
        (["reproduce", "--foo"], "No such option: --foo"),
        (["reproduc"], "No such command 'reproduc'"),
        (["eval", "humanevl", "--model", "m"], "Did you mean 'humaneval'"),
    ):
        done = dcoder(*arguments)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "o").exists()


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dcoder_cli.main import main

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dcoder_cli.benchmarks.reproduce.reproduce", stopped)
    monkeypatch.setattr(sys, "argv", ["dcoder", "reproduce", "--out", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: stopped; run the same command again to go on\n"


def test_names_choose_claims_and_roles(tmp_path: Path) -> None:
    assert choose([]) == CLAIMS and [claim.name for claim in choose(["grpo"])] == ["grpo"]
    assert given({"sft": "m"}, None, None, tmp_path).models == {"sft": "m"}
    assert claims.FEW == 5

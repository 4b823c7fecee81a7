"""`dcoder arness` as a process: its numbers, its files, its one-line errors; and its model path on a tiny checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import helpers
import pytest
from helpers import refused


def dcoder(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    changed: dict[str, Any] = {"env": {**os.environ, **environment}} if environment else {}
    return helpers.dcoder(*arguments, check=False, **changed)


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_numbers_of_trajectory_files(tmp_path: Path) -> None:
    straight = written(tmp_path / "straight.jsonl", *({"id": str(i), "reveal_step": list(range(30))} for i in range(3)))
    backwards = written(tmp_path / "back.jsonl", *({"order": list(range(30))[::-1]} for _ in range(2)))
    run = dcoder("arness", "--trajectories", straight, "--trajectories", backwards, "--json")
    assert run.returncode == 0, run.stderr
    first, second = json.loads(run.stdout)["series"]
    assert (first["label"], first["samples"]) == ("straight", 3)
    assert first["local"]["mean"] == [1.0] * 9 and first["global"]["mean"] == [1.0] * 4
    assert first["per_sample"][2]["local"] == [1.0] * 9
    assert second["local"]["mean"][0] == 0 and second["global"]["mean"][3] == pytest.approx(4 / 30)


def test_the_table_fits_80_columns_and_labels_are_no_markup(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", *({"reveal_step": [1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 10 + i]} for i in range(3))
    )
    label = "a rather long label of a model [red] T=0.2"
    run = dcoder("arness", "--trajectories", path, "--label", label, FORCE_COLOR="1", COLUMNS="80", TERM="xterm")
    assert run.returncode == 0, run.stderr
    assert "[red]" in run.stdout.replace("\n", "")
    plain = dcoder("arness", "--trajectories", path, "--label", "short")
    assert max(len(line) for line in plain.stdout.splitlines()) <= 80
    assert "short" in plain.stdout and "±" in plain.stdout and "\x1b" not in plain.stdout


def test_out_writes_report_pictures_and_numbers(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": "p", "tokens": [5] * 20, "reveal_step": list(range(20))} for i in range(2)]
    path, out = written(tmp_path / "a b?.jsonl", *rows), tmp_path / "out"
    run = dcoder("arness", "--trajectories", path, "--out", out, "--json", "--ties", "left-to-right")
    assert run.returncode == 0, run.stderr
    files = json.loads(run.stdout)["files"]
    assert files[0].endswith("report.html") and all(Path(file).stat().st_size > 0 for file in files)
    names = {Path(file).name for file in files}
    assert {
        "arness.json",
        "arness.png",
        "arness.svg",
        "order.png",
        "text-a-b-rainbow.png",
        "text-a-b-ordered.svg",
    } <= names
    assert json.loads((out / "arness.json").read_text())["series"][0]["ties"] == "left-to-right"
    assert 'data-part="step"' in (out / "report.html").read_text()
    blocked = dcoder("arness", "--trajectories", path, "--out", path)
    assert blocked.returncode == 2 and "is a file" in blocked.stderr


BAD = {
    "hole": ('{"reveal_step": [0, null, 2]}', "reveal_step[1] is None"),
    "negative": ('{"reveal_step": [0, -1]}', "reveal_step[1] is -1"),
    "order hole": ('{"order": [0, 1, 3]}', "position 2 is never committed"),
    "repeated": ('{"order": [0, 1, 0]}', "position 0 is committed at steps 0 and 2"),
    "lengths": ('{"reveal_step": [0, 1], "tokens": [3]}', "tokens has 1 entries but reveal_step has 2"),
    "empty list": ('{"reveal_step": []}', "reveal_step is empty"),
    "no list": ('{"text": "x"}', "has no list 'reveal_step'"),
    "no JSON": ("{", "is not JSON"),
    "empty": ("", "holds no trajectory"),
}


@pytest.mark.parametrize("case", ["hole", "order hole", "repeated", "lengths"])
def test_bad_trajectory_files_are_one_line_and_exit_2(tmp_path: Path, case: str) -> None:
    line, message = BAD[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    run = dcoder("arness", "--trajectories", path)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1 and message in run.stderr, run.stderr
    assert str(path) in run.stderr and run.stdout == ""


@pytest.mark.parametrize("case", list(BAD))
def test_every_bad_trajectory_file_is_named(tmp_path: Path, case: str) -> None:
    from dcoder_cli.analysis.sources import read_trajectories
    from dcoder_cli.base.errors import UserError

    line, message = BAD[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError) as raised:
        read_trajectories(path)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure"),
        (["--trajectories", "missing.jsonl"], "'missing.jsonl' cannot be read"),
        (["--model", "m"], "--model needs --prompts"),
        (["--model", "m", "--prompts", "p", "--temperatures", "0.2;1"], "must be numbers separated by commas"),
        (["--trajectories", "a", "--label", "x", "--label", "y"], "2 --label for 1"),
        (["--task", "micro"], "--task needs --model"),
        (["--model", "m", "--task", "mikro"], "unknown task 'mikro'; did you mean 'micro'"),
        (["--model", "m", "--task", "evalplus", "--data", "f"], "evalplus reads several files and --data names one"),
        (["--model", "m", "--task", "bigcodebench"], "needs an interpreter with its libraries"),
        (["--trajectories", "a", "--tie-break", "left"], "--trajectories are decoded already"),
        (["--trajectories", "a", "--sensitivity"], "--sensitivity has no effect: it is of decoding"),
        (
            ["--model", "m", "--prompts", "p", "--sensitivity", "--tie-break", "left"],
            "--sensitivity runs left, random and model",
        ),
        (["--model", "m", "--prompts", "p", "--sensitivity", "--top-p", "1"], "compares a top-p below 1 with none"),
        (["--model", "m", "--prompts", "p", "--sensitivity", "--rule", "random"], "scores no two places alike"),
        (["--model", "m", "--prompts", "p", "--data", "f"], "--data f has no effect: it is of --task"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    assert message in refused("arness", *arguments)


def test_models_diffusion_and_ar(tmp_path: Path) -> None:
    from dcoder_cli.model.conversion import initialise

    source = tmp_path / "code.py"
    source.write_text("def add(a, b):\n    return a + b\n" * 20)
    tiny, ar = tmp_path / "tiny", tmp_path / "ar"
    initialise("tiny", tiny, None, [source], 300, False, None, 0, None)
    initialise("tiny", ar, str(tiny), [], 0, True, None, 0, None)
    prompts, out = written(tmp_path / "p.jsonl", {"prompt": "def f(x):"}, {"prompt": "import"}), tmp_path / "out"
    run = dcoder(
        "arness", "--model", tiny, "--model", ar, "--prompts", prompts, "--temperatures", "0.2,1",
        "--max-new-tokens", 16, "--n", 2, "--out", out, "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert [series["label"] for series in result["series"]] == ["tiny T=0.2", "tiny T=1", "ar T=0.2", "ar T=1"]
    for series in result["series"]:
        assert series["samples"] == 4 and series["commits_per_step"] == 1.0
        if series["label"].startswith("ar"):
            assert set(series["global"]["mean"]) == {1.0} and set(series["local"]["mean"]) <= {1.0, None}
        else:
            assert series["global"]["mean"][0] < 1.0 and series["tokens"] == 16
    assert list(result["first_step"]) == ["tiny"] and len(result["first_step"]["tiny"]["confidence"]) == 16
    names = {Path(file).name for file in result["files"]}
    assert {"entropy.png", "first-step.svg", "temperature.png", "trajectories-tiny-T=1.jsonl"} <= names
    again = dcoder("arness", "--trajectories", out / "trajectories-tiny-T=1.jsonl", "--until", "end", "--json")
    assert again.returncode == 0, again.stderr
    whole = dcoder("arness", "--trajectories", out / "trajectories-tiny-T=1.jsonl", "--json")
    assert json.loads(whole.stdout)["series"][0]["global"] == result["series"][1]["global"]


def test_a_task_gives_pass_at_k_beside_the_order(tmp_path: Path) -> None:
    from helpers import make_model

    folder, out = make_model(tmp_path / "model", context=256), tmp_path / "out"
    run = dcoder(
        "arness", "--model", folder, "--task", "micro", "--limit", 3, "--temperatures", "0.2,1.2", "--n", 2,
        "--max-new-tokens", 8, "--out", out, "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)["series"]
    assert [series["label"] for series in found] == [
        "model, micro T=0.2", "model, micro T=1.2", "model, micro-kinds T=0.2", "model, micro-kinds T=1.2"
    ]  # fmt: skip
    for series in found:
        assert series["samples"] == 6
        assert {"pass@1", "pass@2"} <= set(series) and series["pass@1"]["mean"] == 0.0
    assert "pass@2" in (out / "report.html").read_text()


def test_pass_at_k_joins_samples_with_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two right answers to the second task, one to the third: a shuffle of tasks or samples would change the shares."""
    from dcoder_cli.benchmarks import answers, suites
    from dcoder_cli.benchmarks.judging import Judging
    from dcoder_cli.benchmarks.protocols import Ask, Protocol
    from dcoder_cli.decoding.requests import Encoded, Settings
    from dcoder_cli.decoding.trajectory import Trajectory

    suite = suites.load("micro", limit=3)
    right = [item.source.messages()[1]["content"] for item in suite.items]
    texts = ["", "", right[1], right[1], right[1], right[2]]

    def decode(_: object, __: object, ___: object, ids: list[str], on_done: Any, **____: object) -> list[Trajectory]:
        found = [Trajectory(name, "", [1], text, [0], [1.0], [0.0], 1) for name, text in zip(ids, texts, strict=True)]
        for one in reversed(found):  # batches end in any order
            on_done(one)
        return found

    monkeypatch.setattr(answers.spread, "decode", decode)
    tasks = tuple(answers.Prompted(item, Ask(""), Encoded("", ())) for item in suite.items)
    asked = answers.Asked(suite, Protocol("diffucoder", True), tasks)
    with Judging(suite) as judging:
        done = answers.answer(None, asked, Settings(), judging, n=2)  # type: ignore[arg-type]
    assert [row["task_id"] for row in done.judged] == [item.task_id for item in suite.items for _ in range(2)]
    assert done.passes()["pass@1"][0] == pytest.approx(0.5, abs=1e-4)
    assert done.passes()["pass@2"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert done.estimate(1).mean == pytest.approx(0.5) and done.estimate(2).mean == pytest.approx(2 / 3)


def test_the_share_of_tied_steps_is_told_and_warned_of(tmp_path: Path) -> None:
    steps = list(range(10))
    tied = written(tmp_path / "tied.jsonl", {"reveal_step": steps, "tied": [True] * 9 + [False], "tied_from": [0] * 10,
                                              "settings": {"tie_break": "left"}})  # fmt: skip
    few = written(tmp_path / "few.jsonl", {"reveal_step": steps, "tied": [True] + [False] * 9, "tied_from": steps})
    untold = written(tmp_path / "untold.jsonl", {"reveal_step": steps})
    run = dcoder("arness", "--trajectories", tied, "--trajectories", few, "--trajectories", untold, COLUMNS="100")
    assert run.returncode == 0, run.stderr
    rows = [line.split()[:3] for line in run.stdout.splitlines()[1:4]]
    assert rows == [["tied", "1", "90%"], ["few", "1", "10%"], ["untold", "1", "unknown"]]
    warned = " ".join(run.stderr.split())
    assert "tied: 90% of steps were decided by a tie (tie break: left)" in warned and warned.count("of steps") == 1
    assert "global@1 1.000 (these tokens in other orders that the ties allow: 0.100 to 1.000)" in warned
    shown = json.loads(dcoder("arness", "--trajectories", untold, "--json").stdout)["series"][0]
    assert shown["tied_share"] is None and shown["ties_known"] == 0 and shown["global"]["tie_low"] == [None] * 4


def test_sensitivity_decodes_every_tie_break_with_and_without_top_p(tmp_path: Path) -> None:
    """A random model's distributions are flat, so a tiny top-p leaves one token everywhere: all is tied."""
    from helpers import make_model

    model, out = make_model(tmp_path / "model"), tmp_path / "out"
    prompts = written(tmp_path / "p.jsonl", {"prompt": "def f(x):"}, {"prompt": "import"})
    options = ["--model", model, "--prompts", prompts, "--top-p", "1e-6", "--max-new-tokens", 12, "--rule", "entropy"]
    run = dcoder("arness", *options, "--sensitivity", "--out", out, "--json")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    cells = {(cell["top_p"], cell["tie_break"]): cell for cell in result["sensitivity"]["model"]}
    assert list(cells) == [(top_p, ties) for top_p in (1e-6, None) for ties in ("left", "random", "model")]
    left, own = cells[1e-6, "left"], cells[1e-6, "model"]
    assert left["tied_share"] == pytest.approx(11 / 12) and left["global@1"]["mean"] == left["local@1"]["mean"] == 1.0
    assert cells[1e-6, "random"]["global@1"]["mean"] < 0.9 and own["tied_share"] > 0.9
    assert {cell["tied_share"] for (top_p, _), cell in cells.items() if top_p is None} == {0.0}
    plain = dcoder("arness", *options[:4], "--top-p", 1, *options[6:], "--tie-break", "left", "--json")
    assert json.loads(plain.stdout)["series"][0]["global"]["mean"][0] == cells[None, "left"]["global@1"]["mean"]
    assert (out / "sensitivity-model.png").stat().st_size > 10_000
    shown = dcoder("arness", *options, "--sensitivity").stdout
    assert "the tie break alone moves local@1 by" in shown and "nothing is tied, so the order is the model's" in shown
    table = shown.splitlines()[1:6]
    assert max(map(len, table)) <= 80 and table[-1].split()[2] == "any"

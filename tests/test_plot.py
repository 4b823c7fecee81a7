"""`dcoder plot`: the curves of several runs in one picture, or as numbers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers import dcoder, refused, said

from dcoder_cli.analysis import training_plot


def make_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two stages and a stage 4."""
    made = []
    for seed in (0, 1):
        rows: list[dict[str, Any]] = [{"step": n, "loss": 5 / n + seed, "grad_norm": 1.0} for n in range(1, 41)]
        rows.insert(20, {"step": 20, "heldout": {"loss": 2.0 + seed, "rows": 8, "mixture": "as trained"}})
        made.append(make_run(tmp_path / f"seed{seed}" / "adapt", [*rows, {"step": 40, "heldout": {"loss": 1.5}}]))
    rows = [{"step": n, "loss": -0.1, "reward": n / 10, "passed": 0.5, "kl": 0.0} for n in range(1, 11)]
    made.append(make_run(tmp_path / "grpo", [{"step": 0, "heldout": {"pass@1": 0.25}}, *rows]))
    return made


def lines_of(figure: Any, title: str) -> list[Any]:
    (axis,) = (axis for axis in figure.axes if axis.get_title(loc="left") == title)
    return [line for line in axis.get_lines() if not line.get_label().startswith("_")]


def test_a_panel_has_every_run_that_has_its_metric(runs: list[Path]) -> None:
    names = training_plot.labels(runs)
    assert names == ["seed0/adapt", "seed1/adapt", "grpo"]
    curves = {name: training_plot.read_curves(run) for name, run in zip(names, runs, strict=True)}
    panels = training_plot.chosen(curves, [])
    assert panels == ["loss", "heldout/loss", "reward", "passed", "heldout/pass@1"], "no KL: it is 0 throughout"
    figure = training_plot.compare(curves, panels)
    assert len(figure.axes) == 5
    held = lines_of(figure, "held-out loss (nats)")
    assert [list(line.get_ydata()) for line in held] == [[2.0, 1.5], [3.0, 1.5]]
    assert [list(line.get_xdata()) for line in held] == [[20, 40], [20, 40]]
    assert [line.get_label() for line in lines_of(figure, "training loss (nats)")] == ["seed0/adapt", "seed1/adapt"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names


def test_a_run_that_earns_nothing_shows_it() -> None:
    nothing = {name: [(1, 0.0), (2, 0.0)] for name in ("reward", "passed", "heldout/pass@1", "flat_groups", "kl")}
    assert training_plot.chosen({"a": nothing}, []) == ["reward", "passed", "heldout/pass@1", "flat_groups"]
    assert "kl" in training_plot.chosen({"a": nothing, "b": {"kl": [(1, 0.1)]}}, [])


def test_a_run_keeps_its_look_in_every_panel_and_no_two_are_alike(runs: list[Path]) -> None:
    looks = [tuple(training_plot._look(index).values()) for index in range(49)]
    assert len(set(looks)) == 49
    curves = {str(run): training_plot.read_curves(run) for run in (runs[2], runs[0])}
    figure = training_plot.compare(curves, ["loss", "heldout/loss"])
    for title in ("training loss (nats)", "held-out loss (nats)"):
        (line,) = lines_of(figure, title)
        assert line.get_color() == looks[1][0]


def test_the_command_writes_what_the_ending_says(runs: list[Path], tmp_path: Path) -> None:
    for ending, begins in (("png", b"\x89PNG"), ("SVG", b"<?xml")):
        out = tmp_path / f"picture.{ending}"
        told = dcoder("plot", *runs, "--out", out)
        assert out.read_bytes().startswith(begins) and str(out) in told.stderr
    header, *rows = told.stdout.splitlines()
    assert header.split() == ["run", "step", "loss", "heldout/loss", "reward", "passed", "heldout/pass@1"]
    assert rows[0].split() == ["seed0/adapt", "40", "0.125", "1.5"]
    dcoder("plot", runs[0], cwd=tmp_path)
    assert (tmp_path / "curves.png").is_file()


def test_json_has_every_number(runs: list[Path], tmp_path: Path) -> None:
    told = json.loads(dcoder("plot", runs[0], runs[2], "--json", cwd=tmp_path).stdout)
    first, last = told["runs"]
    assert (first["label"], last["label"], told["picture"]) == ("adapt", "grpo", None)
    assert first["series"]["loss"]["step"] == list(range(1, 41)) and first["series"]["loss"]["value"][1] == 2.5
    assert last["series"]["policy_loss"]["value"] == [-0.1] * 10 and "loss" not in last["series"]
    assert not list(tmp_path.glob("*.png"))
    told = json.loads(dcoder("plot", runs[0], "--metric", "grad_norm", "--json", "--out", tmp_path / "a.svg").stdout)
    assert told["panels"] == ["grad_norm"] and (tmp_path / "a.svg").is_file()


def test_what_cannot_be_drawn_is_one_line(runs: list[Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty' has no metrics yet" in refused("plot", runs[0], empty)
    assert "is no folder here" in refused("plot", tmp_path / "gone")
    assert "did you mean 'grad_norm'?" in refused("plot", runs[0], "--metric", "gradnorm")
    assert "must end in .png or .svg" in refused("plot", runs[0], "--out", tmp_path / "a.pdf")
    assert "does not exist" in refused("plot", runs[0], "--out", tmp_path / "gone" / "a.png")
    (empty / "metrics.jsonl").write_text('{"step": 1, "loss": 1' + "0" * 400 + "}\n")
    assert "empty' has no metrics yet" in refused("plot", empty)
    assert "is named twice" in refused("plot", runs[0], runs[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "grpo", "seed0", "seed1"]


@pytest.mark.parametrize("name", [r"$\frac{$", r"a$\nosuch$", "_hidden", "\u4e2d\u6587", "a\nb"])
def test_names_are_text_in_a_picture(runs: list[Path], tmp_path: Path, name: str) -> None:
    """matplotlib read `$` as mathematics, a traceback where it is none, and left names with a leading `_` out of the legend."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": 1e308, name: 1.0}) + "\n" for step in (1, 2))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said("plot", folder, runs[0], "--metric", name, "--metric", "loss", "--out", tmp_path / "a.svg")
    figure = training_plot.compare(
        {name: training_plot.read_curves(folder), "other": training_plot.read_curves(runs[0])}, ["loss"]
    )
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == [" ".join(name.split()), "other"]

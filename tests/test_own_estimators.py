"""An estimator of the user's own: one function in a file outside the package, named on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from grpo_runs import common, make_place
from helpers import refused

from dcoder_cli.base.errors import UserError
from dcoder_cli.diffusion.coupled import MaskSettings
from dcoder_cli.diffusion.estimators import ESTIMATORS, estimator_function, try_estimator

TOY = """
import torch
from dcoder_cli.diffusion.coupled import Passes, coupled

asked = []

def halves(tokens, prompt_tokens, generator, settings):
    asked.append((tokens, prompt_tokens, settings.pairs))
    first_N = torch.rand(tokens, generator=generator) < 0.5
    masked_PN = torch.stack([first_N, ~first_N])
    return Passes(masked_PN, masked_PN.float(), torch.zeros(2, prompt_tokens, dtype=torch.bool))

def same(tokens, prompt_tokens, generator, settings):
    return coupled(tokens, prompt_tokens, generator, settings)

def threefold(tokens, prompt_tokens, generator, settings):
    whole_1N = torch.ones(1, tokens, dtype=torch.bool)
    return Passes(whole_1N, 3.0 * whole_1N, torch.zeros(1, prompt_tokens, dtype=torch.bool), (0,))

def raises(tokens, prompt_tokens, generator, settings):
    return 1 / (tokens - 1)

def number(tokens, prompt_tokens, generator, settings):
    return 0.5

def doubles(tokens, prompt_tokens, generator, settings):
    passes = halves(tokens, prompt_tokens, generator, settings)
    return Passes(passes.masked_PN, passes.weight_PN.double(), passes.prompt_masked_PM)

def longer(tokens, prompt_tokens, generator, settings):
    return halves(tokens + 1, prompt_tokens, generator, settings)

def unread(tokens, prompt_tokens, generator, settings):
    passes = halves(tokens, prompt_tokens, generator, settings)
    return Passes(passes.masked_PN, torch.ones(2, tokens), passes.prompt_masked_PM)

def infinite(tokens, prompt_tokens, generator, settings):
    passes = halves(tokens, prompt_tokens, generator, settings)
    return Passes(passes.masked_PN, passes.weight_PN / 0, passes.prompt_masked_PM)

def shares(tokens, prompt_tokens, generator, settings):
    passes = halves(tokens, prompt_tokens, generator, settings)
    return Passes(passes.masked_PN, passes.weight_PN, passes.prompt_masked_PM, (1,))

def late(tokens, prompt_tokens, generator, settings):
    if len(asked) > 6:
        raise KeyError("tired")
    return halves(tokens, prompt_tokens, generator, settings)

def three(tokens, prompt_tokens, generator):
    return None

constant = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("own"))
    (folder / "toy_estimators.py").write_text(TOY)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)


def ran(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The command line in this process, where the toy module can be looked into: exit code, stdout, stderr."""
    from dcoder_cli.main import main

    before = sys.argv
    sys.argv = ["dcoder", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        sys.argv = before
    told = capsys.readouterr()
    return code, told.out, told.err


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_trains_and_is_asked_for_every_completion_of_every_update(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import toy_estimators  # type: ignore[import-not-found]

    toy_estimators.asked.clear()
    run = tmp_path / "run"
    code, _, told = ran(
        capsys, *common(place, run), "--estimator", "toy_estimators:halves", "--set=steps=1", "--set=pairs=2"
    )
    assert code == 0, told
    tried, *asked = [tokens for tokens, _, pairs in toy_estimators.asked if pairs == 2]
    assert tried == 1 and asked == [8] * (1 + 2 * 8), "8 completions, 2 updates; before them it was tried on 1 and 8"
    done = metrics(run)[1]
    assert done["grad_norm"] > 0 and done["kl"] != 0
    assert "estimator: toy_estimators:halves" in (run / "config.yaml").read_text()


def test_one_that_returns_what_coupled_does_gives_the_same_run(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("coupled", "toy_estimators:same", "full-mask"):
        out = tmp_path / name.replace(":", "-")
        assert ran(capsys, *common(place, out), "--estimator", name, "--set=steps=2")[0] == 0
    coupled, same, other = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("coupled", "toy_estimators-same", "full-mask"))  # fmt: skip
    assert coupled == same != other


def test_the_lab_measures_it_beside_ours(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Thrice the full mask is the full mask once its weight is known; two halves make 2 passes, and 8 where 9 are allowed."""
    base = [*common(place, tmp_path / "lab")[1:], "--draws=2", "--json"]
    lab = {}
    for name in ("threefold", "halves"):
        code, out, told = ran(
            capsys, "grpo", "--measure-variance", *base, f"--out={tmp_path / name}", f"--estimator=toy_estimators:{name}"
        )  # fmt: skip
        assert code == 0, told
        rows = json.loads(out)["rows"]
        assert {row["estimator"] for row in rows} == {*ESTIMATORS, f"toy_estimators:{name}"}
        lab[name] = {(row["estimator"], row["pairs"]): row for row in rows}
    full = lab["threefold"]["full-mask", 0]
    for pairs, passes in ((1, 3), (2, 5), (4, 9)):
        own = lab["threefold"]["toy_estimators:threefold", pairs]
        assert own["passes"] == passes and own["variance"] < 1e-9
        for truth in ("path", "masks"):
            assert own["error"][truth] == pytest.approx(full["error"][truth], rel=1e-3)
    assert [lab["halves"]["toy_estimators:halves", pairs]["passes"] for pairs in (1, 2, 4)] == [2, 4, 8]
    assert lab["halves"]["toy_estimators:halves", 1]["variance"] > 0
    told = refused("grpo", "--measure-variance", *base, "--estimator", "coupled")
    assert "has no effect: --measure-variance measures all of ours" in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "asked about 1 tokens after a prompt of 3, raised ZeroDivisionError: division by zero; mend it"),
        ("number", "returned 0.5; it must return dcoder_cli.diffusion.coupled.Passes"),
        ("doubles", "weight_PN as torch.float64 [2, 1] on cpu; it must be torch.float32 [2, 1] on the CPU"),
        ("longer", "masked_PN as torch.bool [2, 2] on cpu; it must be torch.bool [2, 1] on the CPU"),
        ("unread", "a weight_PN that is not 0 where its pass does not mask the token"),
        ("infinite", "a weight_PN that is not finite"),
        ("shares", "blank = (1,); it names passes that mask all of the completion and nothing of the prompt"),
        ("three", "must be a function of (tokens, prompt_tokens, generator, settings): too many positional"),
        ("constant", "is not a function but 3"),
        ("missing", "cannot be imported: AttributeError"),
    ],
)
def test_a_broken_one_is_one_line_before_the_run(name: str, message: str) -> None:
    with pytest.raises(UserError) as told:
        for _ in range(20):  # those that draw may be lucky once
            try_estimator(f"toy_estimators:{name}", 6, MaskSettings())
    assert message in str(told.value) and f"estimator 'toy_estimators:{name}'" in str(told.value)
    assert "\n" not in str(told.value)


def test_wrong_ones_on_the_command_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import toy_estimators

    base = [*common(place, tmp_path / "run"), "--estimator"]
    assert "estimator 'couplet' is unknown; did you mean 'coupled'?" in refused(*base, "couplet")
    assert "write it as module:function" in refused(*base, "nowhere:mine")
    assert "returned 0.5" in refused(*base, "toy_estimators:number") and not (tmp_path / "run").exists()
    toy_estimators.asked.clear()  # one that breaks in the run: the work failed
    code, _, told = ran(capsys, *base, "toy_estimators:late", "--set=steps=1")
    *_, last = told.strip().splitlines()  # before it: the preset, and that it began
    assert code == 1 and last.startswith(
        "error: estimator 'toy_estimators:late', asked about 8 tokens after a prompt of "
    )
    assert last.endswith("raised KeyError: 'tired'; mend it") and "Traceback" not in told


def test_every_registered_one_is_there() -> None:
    for name in ESTIMATORS:
        try_estimator(name, 6, MaskSettings())
        assert estimator_function(name).__doc__

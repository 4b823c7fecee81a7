"""Claims: effects, intervals and verdicts from known numbers; the real measurements on a tiny replicate; bad input."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import documented
import pytest
import unit_work
from helpers import make_model, make_tokenizer, refused

from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.experiments import effects, stages
from dcoder_cli.experiments.claims import CLAIMS, PRIMARY, Claim, choose
from dcoder_cli.experiments.effects import effect_of, holm
from dcoder_cli.experiments.findings import check
from dcoder_cli.experiments.measures import Measures
from dcoder_cli.experiments.processes import run_units
from dcoder_cli.experiments.quantities import HELD_OUT, KINDS, Quantity, StudySettings, View, at_cpu_size
from dcoder_cli.experiments.reproduce import Outcome, ReproduceCall, _identity, reproduce
from dcoder_cli.experiments.scores import COLUMNS, quantities_of, scores
from dcoder_cli.experiments.seeds import ROLES as ROLE_WORDS
from dcoder_cli.experiments.seeds import STARTS, Replicate, given, parts, train_part, trained
from dcoder_cli.experiments.stages import Pipeline

ROLES = tuple(ROLE_WORDS)


COLD, HOT = Quantity("sft", "pass@1", "cold"), Quantity("sft", "pass@1", "many hot")


class Known(Measures):
    """A replicate whose measurements are given."""

    def __init__(self, values: dict[Quantity, Any], models: tuple[str, ...] = ROLES, data: str | None = "d") -> None:
        replicate = Replicate(0, dict.fromkeys(models, "x"), data, data, Path())
        super().__init__(replicate, at_cpu_size(StudySettings()), print)
        self.known = values

    def value(self, quantity: Quantity) -> dict[str, float]:
        value = self.known.get(quantity, {})
        return value if isinstance(value, dict) else {"mean": value}


def _claim(name: str = "grpo-hot", primary: bool = True) -> Claim:
    return Claim(name, "it is so", "points", "1", ((1, HOT), (-1, COLD)), primary)


def _by_seed(*effects: float, **changes: Any) -> list[Measures]:
    return [Known({HOT: effect + 1.0, COLD: 1.0}) for effect in effects]


def _verdicts(claim: Claim, *effects: float) -> str:
    return check([claim], _by_seed(*effects))[0].verdict


def test_effects_over_seeds_by_hand() -> None:
    """0..4: mean 2, s.d. 1.5811, t(4) = 2.7764; t = 2 / 0.7071 = 2.8284, p = 0.0474; d_z 1.2649, Hedges x 0.8."""
    found = effect_of([{"a": float(v), "b": float(v)} for v in (0, 1, 2, 3, 4)])
    assert (found.mean, found.over, found.by_seed) == (2.0, "seeds", (0.0, 1.0, 2.0, 3.0, 4.0))
    assert (found.low, found.high) == pytest.approx((2 - 1.9632, 2 + 1.9632), abs=1e-3)
    assert found.p == pytest.approx(0.0474, abs=1e-4)
    assert (found.d_z, found.hedges_g) == pytest.approx((1.2649, 1.2649 * 0.8), abs=1e-4)
    two = effect_of([{"a": -1.0, "b": -3.0, "c": -2.0}] * 2)
    assert (two.over, two.p, two.d_z) == ("tasks", None, None), "a bootstrap over tasks has no p"
    assert two.low is not None and two.high is not None and -3 <= two.low < -2 < two.high <= -1
    assert effect_of([{"mean": 1.0}, {"mean": 1.1}]).over == "seeds"
    assert effect_of([{"a": 1.0, "b": 2.0}]).over == "tasks"
    for equal in ([{"a": 0.0, "b": 0.0}], [{"mean": 3.0}], [{"mean": 0.3}] * 5):
        one = effect_of(equal)
        assert (one.low, one.high, one.p, one.over) == (None, None, None, ""), "no spread, no interval"


def test_holm_by_hand() -> None:
    """Of four: 0.01 x 4, 0.02 x 3, 0.02 x 2 raised to the one before, 0.9 x 1; a missing one counts as 1."""
    found = holm({"c": 0.02, "a": 0.01, "d": 0.9, "b": 0.02}, 4)
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.9})
    assert holm({"a": 0.01, "b": None}, 4) == pytest.approx({"a": 0.04, "b": 1.0}), "capped at 1"
    assert holm({"a": 0.01}, 6) == pytest.approx({"a": 0.06}), "those that are not measured count"


def test_what_is_shown_is_primary_over_five_seeds_after_correction() -> None:
    sure, unsure = (1.0, 1.1, 0.9, 1.2, 1.0), (0.0, 1.0, 2.0, 3.0, 4.0)
    assert _verdicts(_claim(), *sure) == "shown"
    assert _verdicts(_claim(), *(-one for one in sure)) == "contrary"
    assert check([_claim()], _by_seed(*unsure))[0].adjusted == pytest.approx(6 * 0.0474, abs=1e-3)
    assert _verdicts(_claim(), *unsure) == "not shown", "p 0.047 is 0.28 once six are counted"
    assert _verdicts(_claim(primary=False), *unsure) == "suggestive"
    assert _verdicts(_claim(primary=False), *(-one for one in unsure)) == "suggestive against"
    assert _verdicts(_claim(primary=False), *sure) == "suggestive", "never shown"
    assert _verdicts(_claim(), *sure[:4]) == "suggestive", "four seeds show nothing"
    assert _verdicts(_claim(primary=False), 1.0, -1.0, 1.0, -1.0, 0.5) == "not shown"
    tasks = {HOT: {"a": 1.0, "b": 0.8, "c": 1.0}, COLD: {"a": 0.0, "b": 0.1, "c": 0.2}}
    found = check([_claim()], [Known(tasks)] * 2)[0]
    assert (found.verdict, found.adjusted, found.effect and found.effect.over) == ("suggestive", None, "tasks")
    equal = check([_claim()], _by_seed(*[1.0] * 5))[0]
    assert (equal.verdict, equal.why) == ("not shown", "all seeds are equal: there is no spread to judge by")
    assert check([_claim()], _by_seed(1.0))[0].why == "one number of one seed has no interval"


def test_a_primary_claim_alone_is_corrected_for_all() -> None:
    others = [replace(_claim(name), name=name) for name in PRIMARY]
    alone = check(others[:1], _by_seed(0, 1, 2, 3, 4))[0].adjusted
    together = check(others, _by_seed(0, 1, 2, 3, 4))
    assert {one.adjusted for one in together} == {alone} and len(PRIMARY) == 6
    assert PRIMARY == (
        "adaptation", "variance-decoupled", "grpo-hot", "grpo-order", "temperature-order", "temperature-pass",
    )  # fmt: skip


def test_an_effect_is_the_signed_sum_of_its_sides() -> None:
    """grpo-speed: stage 3 falls from 60 to 40, stage 4 from 70 to 65 points: 20 - 5."""
    values = {("sft", "cold"): 0.6, ("sft", "half"): 0.4, ("grpo", "cold"): 0.7, ("grpo", "half"): 0.65}
    known = Known({Quantity(role, "pass@1", view): value for (role, view), value in values.items()})
    found = check(choose(["grpo-speed"]), [known])[0]
    assert found.effect is not None and found.effect.mean == pytest.approx(15)
    lab = Known({Quantity("sft", f"error own {name}"): value for name, value in (("decoupled", 3.0), ("coupled", 1.0))})
    found = check(choose(["variance-decoupled"]), [lab])[0]
    assert found.effect is not None and found.effect.mean == pytest.approx(2), "log2 of the ratio"
    assert [side.effect.mean for side in found.sides] == [3.0, 1.0]


def test_every_order_is_told_with_its_ties() -> None:
    order, tied = Quantity("sft", "global@1", "cold"), Quantity("sft", "tied", "cold")
    after = Quantity("grpo", "global@1", "cold")
    found = check(choose(["grpo-order"]), [Known({order: 0.5, tied: 0.99, after: 0.4})])[0]
    assert [side.tied for side in found.sides] == [0.99, None], "None where it is unknown"
    for claim in CLAIMS:
        for _, quantity in claim.terms:
            if quantity.what in ("global@1", "local@1"):
                assert Quantity(quantity.role, "tied", quantity.view) in claim.quantities


def test_models_are_compared_at_an_equal_loss_or_pass_rate_only() -> None:
    def told(loss: float, passed: float, own: float = 0.5) -> Any:
        values = {
            Quantity("adapted", "loss"): 2.0, Quantity("scratch-long", "loss"): loss,
            COLD: own, replace(COLD, role="scratch-sft"): passed,
            Quantity("sft", "global@1", "cold"): 0.4, Quantity("scratch-sft", "global@1", "cold"): 0.2,
        }  # fmt: skip
        return check(choose(["adapted-order"]), [Known(values), Known({**values, COLD: own})])[0]

    assert told(2.5, 0.0).verdict == "not comparable"
    assert told(2.5, 0.0).why == "comparable in 0 of 2 seeds: loss 2.00 against 2.50, pass@1 0.50 against 0.00"
    assert told(2.5, 0.0).effect.mean == pytest.approx(20), "the numbers stay"
    assert told(1.99, 0.0).why.startswith("all seeds"), "equal loss"
    assert told(2.5, 0.47).why.startswith("all seeds"), "equal pass rate"
    assert told(2.5, 0.0, own=0.0).verdict == "not comparable", "two that pass nothing are not equally good"


def test_what_is_missing_is_not_measured() -> None:
    def missing(name: str, *roles: str, data: str | None = None) -> tuple[str, str]:
        found = check(choose([name]), [Known({}, roles, data)])[0]
        return found.verdict, found.why

    assert missing("grpo", "sft") == ("not measured", "needs --model grpo=PATH")
    assert missing("variance-decoupled", "sft") == ("not measured", "needs --rl DIR")
    assert missing("adaptation", "adapted", "scratch") == ("not measured", "needs --pretrain DIR")
    other = Known({}, ("sft", "grpo"))
    other.settings = StudySettings(task="humaneval")
    assert check(choose(["grpo-kinds"]), [other])[0].why == "humaneval has no tasks held out by kind"
    assert {one.role for claim in CLAIMS for one in claim.quantities} == set(ROLES)
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def test_every_temperature_is_decoded_with_the_same_top_p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `decode` is asked for, by the claims that compare temperatures, and by the paper's protocol."""
    make_model(tmp_path / "model", tokenizer=make_tokenizer())
    asked: list[dict[str, Any]] = []

    def spy(model: Any, prompts: Any, settings: Any, **_: Any) -> Any:
        asked.append({**asdict(settings), "prompts": len(prompts)})
        raise WorkFailed("asked")

    monkeypatch.setattr("dcoder_cli.decoding.spread.decode", spy)
    for top_p in (None, 0.8):
        settings = replace(at_cpu_size(StudySettings(limit=7, top_p=top_p)), max_new_tokens=8)
        found: dict[str, dict[str, Any]] = {}
        for view in ("cold", "hot", "many cold", "many hot", "half", "paper cold", "paper hot", "filtered", "plain"):
            with pytest.raises(WorkFailed):
                Measures(given({"sft": str(tmp_path / "model")}, None, None, tmp_path), settings, print).value(
                    Quantity("sft", "pass@1", view)
                )
            found[view] = asked[-1]
        own = [found[view] for view in ("cold", "hot", "many cold", "many hot", "half")]
        assert {one["top_p"] for one in own} == {top_p} and {one["tie_break"] for one in own} == {"model"}
        assert [one["temperature"] for one in own] == [0.2, 1.0, 0.2, 1.0, 0.2]
        assert [one["mode"] for one in own] == ["exact", "exact", "fast", "fast", "exact"]
        assert [one["prompts"] for one in own] == [7, 7, 70, 70, 7]
        assert (found["half"]["steps"], found["cold"]["steps"]) == (4, 8)
        paper = [found[view] for view in ("paper cold", "paper hot")]
        assert {(one["top_p"], one["tie_break"]) for one in paper} == {(0.95, "topk")}
        assert (found["filtered"]["top_p"], found["filtered"]["tie_break"]) == (0.95, "model")
        assert found["plain"]["top_p"] is None


def test_other_settings_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def decode(measures: Measures, role: str, view: View, tasks: str) -> dict[str, dict[str, float]]:
        made.append(f"{role} {tasks} {view}")
        return {"pass@1": {"a": len(made)}}

    monkeypatch.setattr(Measures, "_decode", decode)
    replicate = Replicate(3, {"sft": "x", "grpo": "y"}, None, None, tmp_path)
    settings = at_cpu_size(StudySettings())

    def value(role: str, view: str, **changes: Any) -> float:
        measures = Measures(replicate, replace(settings, **changes), print)
        return measures.value(Quantity(role, "pass@1", view))["a"]

    first = value("sft", "cold")
    assert value("sft", "cold") == value("sft", "plain") == first and len(made) == 1, (
        "the same decoding is not done twice"
    )
    for changes in (
        {"top_p": 0.9},
        {"limit": 7},
        {"cold": 0.3},
        {"rule": "margin"},
        {"max_new_tokens": 20},
        {"many": 3},
    ):
        value("sft", "many cold" if "many" in changes else "cold", **changes)
    value("grpo", "cold")
    assert len(made) == 8 and value("sft", "cold") == first, "and none replaces another"
    assert sorted(file.name for file in (tmp_path / "measures").iterdir()) == ["grpo.json", "sft.json"]


def test_scores_have_the_change_from_stage_3(tmp_path: Path) -> None:
    settings = at_cpu_size(StudySettings())
    wanted = quantities_of(choose([]), settings)
    assert len(wanted) == len(set(wanted))
    for role in ("sft", "grpo", "grpo-decoupled", "grpo-full-mask"):
        for tasks in (HELD_OUT, KINDS):
            for what, view in COLUMNS:
                assert Quantity(role, what, view, tasks) in wanted
    assert not [one for one in quantities_of(choose(["temperature-order"]), settings) if one.tasks == KINDS]
    after = replace(HOT, role="grpo")
    families: list[Measures] = [
        Known({HOT: v, after: v + change}) for v, change in ((0.1, 0.1), (0.5, 0.2), (0.3, 0.3))
    ]
    before, changed = scores([HOT, after], families)
    assert before.change is None and before.effect.mean == pytest.approx(0.3)
    assert changed.change is not None and changed.change.by_seed == pytest.approx((0.1, 0.2, 0.3))
    assert changed.change.low == pytest.approx(0.2 - 4.3027 * 0.1 / 3**0.5, abs=1e-4), "paired: by seed"
    assert changed.to_json()["change_from_stage_3"]["mean"] == pytest.approx(0.2)


def test_the_tables_fit_a_terminal_and_start_with_the_primary_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from dcoder_cli.base import console

    show = importlib.import_module("dcoder_cli.commands.reproduce")._show
    settings = at_cpu_size(StudySettings())
    wanted = quantities_of(CLAIMS, settings)
    families: list[Measures] = [
        Known({one: 0.4 + 0.01 * seed * len(one.role) + 0.2 * (one.role == "grpo") for one in wanted})
        for seed in range(5)
    ]
    result = Outcome(check(CLAIMS, families), scores(wanted, families), (0, 1, 2, 3, 4), settings, {}, 4000.0)
    narrow = Console(width=80, highlight=False)
    monkeypatch.setattr(console, "stdout", lambda: narrow)
    show(result, tmp_path)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 80
    first = text.index("primary claims, named in advance (5 seeds)")
    assert first < text.index("p (Holm)") < text.index("exploratory (5 seeds)") < text.index("held out by kind")
    assert text.count("p (Holm)") == 1, "exploratory claims have no p to be misread"
    assert any(line.startswith("sft ") and "0.2, 0.95, topk" in line for line in lines)
    assert "corrected by Holm for all 6" in text.replace("\n", " ").replace("  ", " ")
    console.emit_json(result.to_json())
    printed = capsys.readouterr().out
    documented.check_output(["reproduce"], printed)
    keys = documented.commands()["reproduce"]
    assert set(documented.keys_of(keys, json.loads(printed))) >= {one for one in keys if one[-1] != "*"}
    found = result.to_json()
    assert found["claims"][2]["name"] == "grpo-hot" and found["claims"][2]["sides"][0]["by_seed"]
    assert {one["view"] for one in found["scores"]} >= {"filtered", "plain", "many hot", "paper cold", "paper hot"}


@pytest.mark.slow
def test_every_claim_is_measured_on_a_tiny_family_and_a_stopped_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TRAIN_TASKS": 140, "RL_TASKS": 20, "STDLIB_SHARE": 0.01}.items():
        monkeypatch.setattr(stages, name, value)
    from dcoder_cli.base import presets
    from dcoder_cli.experiments import measures

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

    settings = replace(at_cpu_size(StudySettings(limit=2, many=2)), max_new_tokens=8)
    out = tmp_path / "r"

    def run(announce: Any) -> Any:
        return reproduce(ReproduceCall(out, CLAIMS, settings, 1, 0.002, jobs=1), announce)

    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    again: list[str] = []
    outcome = run(again.append)
    assert not set(heard[:-1]) & set(again) and heard[-1] in again  # only what was not finished
    assert [one.claim for one in outcome.findings] == list(CLAIMS)
    assert all(one.effect is not None and one.verdict != "not measured" for one in outcome.findings)
    third: list[str] = []
    assert run(third.append).findings == outcome.findings and not third, "all is kept"
    record = json.loads((out / "reproduce.json").read_text())
    assert [one["name"] for one in record["claims"]] == [claim.name for claim in CLAIMS]
    assert not [one["name"] for one in record["claims"] if one["verdict"] in ("shown", "contrary")], "one seed"
    told = {(one["role"], one["what"], one["view"], one["tasks"]) for one in record["scores"]}
    assert told == {(one.role, one.what, one.view, one.tasks) for one in quantities_of(CLAIMS, settings)}
    page = (out / "report.html").read_text(encoding="utf-8")
    for words in (
        "AR-ness falls as temperature rises",
        "Primary claims, named in advance",
        "Stage 4",
        KINDS,
        "tied: steps that a tie decided",
    ):
        assert words in page, words
    settings_json = json.loads((out / "settings.json").read_text())
    assert settings_json["ran_with"] == [record["ran_with"]] and record["ran_with"]["jobs"] == 1
    with pytest.raises(UserError, match="begun with other step_scale"):
        reproduce(ReproduceCall(out, CLAIMS, settings, 1, 0.5), again.append)
    small["stage1"]["steps"] += 1
    with pytest.raises(UserError, match="begun with other preset"):
        run(again.append)


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
            sys.executable, "-m", "dcoder_cli", "reproduce", "--seeds", "2", "--jobs", str(jobs), "--step-scale", "0.003",
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

    def make(pipeline: Pipeline, name: str, start: Path) -> Path:
        assert start.name == "tokenizer" or f"{start.parent.name}/{start.name}" in made, f"{name} before {start}"
        made.append(name)
        return pipeline.out / name

    monkeypatch.setattr(Pipeline, "new_model", lambda pipeline, tokenizer: make(pipeline, "models/random", tokenizer))
    monkeypatch.setattr(Pipeline, "convert", lambda pipeline, start, name: make(pipeline, f"models/{name}", start))
    monkeypatch.setattr(
        Pipeline, "stage", lambda pipeline, _n, start, _d, _w, name, until=None: make(pipeline, f"runs/{name}", start)
    )
    monkeypatch.setattr("dcoder_cli.model.loading.load", lambda path: path)
    monkeypatch.setattr("dcoder_cli.training.evaluation.heldout_loss", lambda *_: 1.0)
    monkeypatch.setattr(
        Pipeline, "grpo", lambda pipeline, start, estimator: make(pipeline, f"runs/by-{estimator}", start)
    )
    quiet: Any = lambda _: None  # noqa: E731
    roles = choose(["adaptation"])[0].roles
    assert parts(roles) == ["random", "adapted", "scratch"]
    assert parts(["scratch-long"]) == ["random", "adapted", "scratch", "scratch-long"], "for the loss it trains to"
    replicate = trained(tmp_path, 0, 1.0, quiet, roles=roles)
    assert set(replicate.models) == {"adapted", "scratch"} and not any("sft" in name for name in made)
    replicate = trained(tmp_path, 0, 1.0, quiet)
    assert len(made) == len(set(made)) == 14, "what was made stays"
    assert {role: str(Path(path).relative_to(tmp_path / "seed-0")) for role, path in replicate.models.items()} == {
        "adapted": "runs/adapted-2", "scratch": "runs/scratch-2", "scratch-long": "runs/scratch-long", "sft": "runs/sft",
        "scratch-sft": "runs/scratch-sft",
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
        with pytest.raises(WorkFailed, match="a seed's process was killed"):
            run_units(
                {"killed": set(), "trains": set(), "idle": set()}, partial(unit_work.work, folder), 3, told.append
            )
    signal.alarm(0)
    assert not multiprocessing.active_children()


def test_a_folder_that_was_moved_is_gone_on_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "new_model", lambda pipeline, _: pipeline.out / "models" / "random")
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
    for arguments, words in (
        (["reproduce", "--claim", "x"], "--claim 'x' is unknown; use adaptation"),
        (["reproduce", "--model", "sft"], "must be ROLE=PATH"),
        (["reproduce", "--model", "x=y", "--out", str(tmp_path / "o")], "role 'x' is unknown; use adapted"),
        (["reproduce", "--rl", "x"], "name those with --model ROLE=PATH"),
        (["reproduce", "--seeds", "0", "--out", str(tmp_path / "o")], "--seeds 0 must lie between 1 and 10000"),
        (["reproduce", "--task", "humaneval"], "asks for real checkpoints"),
        (["reproduce", "--model", "sft=y", "--seeds", "2"], "the checkpoints of --model are trained already"),
        (["reproduce", "--jobs", "0", "--out", str(tmp_path / "o")], "--jobs 0 must be at least 1"),
        (["reproduce", "--limit", "0", "--out", str(tmp_path / "o")], "'--limit': "),
        (["reproduce", "--max-new-tokens", "1", "--out", str(tmp_path / "o")], "--max-new-tokens 1 must be at least 2"),
        (["reproduce", "--max-new-tokens", "400", "--out", str(tmp_path / "o")], "leaves no room for the questions"),
        (["reproduce", "--data", "x.jsonl", "--out", str(tmp_path / "o")], "leave --data out"),
        (
            ["reproduce", "--step-scale", "nan", "--out", str(tmp_path / "o")],
            "--step-scale nan must be above 0",
        ),
        (["reproduce", "--model", "sft=./y", "--out", str(tmp_path / "o")], "is no folder here"),
        (["reproduce", "--seeds", "10000", "--out", str(tmp_path / "o")], "no space left for 10000 seeds"),
        (["reproduce", "--foo"], "No such option: --foo"),
        (["reproduc"], "No such command 'reproduc'"),
        (["eval", "humanevl", "--model", "m"], "Did you mean 'humaneval'"),
    ):
        assert words in refused(*arguments)
    assert not (tmp_path / "o").exists()


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dcoder_cli.main import main

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dcoder_cli.experiments.reproduce.reproduce", stopped)
    monkeypatch.setattr(sys, "argv", ["dcoder", "reproduce", "--out", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 130
    assert capsys.readouterr().err == "error: stopped; run the same command again to go on\n"


def test_names_choose_claims_and_roles(tmp_path: Path) -> None:
    assert choose([]) == CLAIMS and [claim.name for claim in choose(["grpo"])] == ["grpo"]
    assert given({"sft": "m"}, None, None, tmp_path).models == {"sft": "m"}
    assert effects.FEW == 5

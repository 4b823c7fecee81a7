"""The whole method at small scale: from this machine's Python sources to a diffusion model that writes functions.

One process, no network, every stage through the same functions that the other commands call, with the `cpu-tiny`
preset (`stages.py`); scores on both held-out sets and decoding order before and after stage 4, and one report.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base import presets
from dcoder_cli.base.config import build
from dcoder_cli.base.files import check_replaceable, require_space, write_json, write_jsonl
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.base.ranges import Scale, Seed, check_number
from dcoder_cli.execution.judge import resolve_tier
from dcoder_cli.experiments.stages import Announce, Pipeline, Step

if TYPE_CHECKING:
    from dcoder_cli.analysis.series import Series
    from dcoder_cli.benchmarks.answers import Answered

_RECORD = "quickstart.json"
_DISK = 500 * 2**20  # measured, with room
# Of micro's 210 and micro-kinds' 150, families in turn. Ours: the second set adds about 12 s a model to the first's 18.
SCORED_TASKS = {"micro": 105, "micro-kinds": 70}
HELD_OUT = {"micro": "functions", "micro-kinds": "kinds"}  # what each set's tasks do not share with training
# pass@10 is sampled at stage 4's temperature (DiffuCoder fig. 6), pass@1 at the preset's 0.2. A thousand samples: fast mode.
MANY, MANY_AT = 10, 1.0


@dataclass(frozen=True)
class Sample:
    """A held-out task, the model's answer and the judge's word."""

    question: str
    text: str
    status: str


@dataclass(frozen=True)
class QuickstartOutcome:
    """What quickstart made."""

    steps: list[Step]
    samples: list[Sample]
    scores: dict[str, float]
    seconds: float
    model: Path

    def to_json(self) -> dict[str, Any]:
        """Everything, for --json and quickstart.json."""
        return {
            "steps": [vars(step) for step in self.steps],
            "samples": [vars(sample) for sample in self.samples],
            "scores": self.scores,
            "seconds": round(self.seconds, 1),
            "model": str(self.model),
        }


def plan(out: Path, seed: int, step_scale: float, force: bool = False, unsafe: bool = False) -> RunPlan:
    """What `quickstart` would do, once its input is checked; nothing is written. Args and errors are its."""
    from dcoder_cli.training.config import STAGE_NAMES

    tier = _check(out, seed, step_scale, force, unsafe)
    values = presets.load("cpu-tiny")
    found = RunPlan("quickstart", {"seed": seed, "step_scale": step_scale, "preset": "cpu-tiny"})
    sections = {f"stage{number}": f"stage {number} ({name})" for number, name in enumerate(STAGE_NAMES)}
    for section, name in {**sections, "grpo": "stage 4 (grpo)"}.items():
        steps = max(2, round(values[section]["steps"] * step_scale))
        found.add(name, steps, f"{steps:,} steps")
    scored = ", ".join(f"{count} tasks of {name}" for name, count in SCORED_TASKS.items())
    found.add("scored", SCORED_TASKS, f"after stages 3 and 4: {scored}")
    found.add("sandbox", {"tier": tier}, f"tier {tier}")
    found.add_disk(out, _DISK, "everything")
    return found


def _check(out: Path, seed: int, step_scale: float, force: bool, unsafe: bool) -> str:
    """The sandbox's tier. Raises UserError where the command would."""
    check_number("--seed", seed, Seed)
    check_number("--step-scale", step_scale, Scale)
    tier = resolve_tier(unsafe=unsafe)
    check_replaceable(out, force, _RECORD, "a quickstart")
    require_space(out, _DISK, "quickstart")
    return tier


def quickstart(
    out: Path,
    seed: int,
    step_scale: float,
    announce: Announce,
    force: bool = False,
    unsafe: bool = False,
    quiet: bool = False,
) -> QuickstartOutcome:
    """Run everything into `out`.

    Args:
        out: a new folder.
        seed: of weights, order, noise and tasks.
        step_scale: factor on the training steps; 1 is what the preset says.
        announce: told each step's name as it begins.
        force: replace `out` if it is of an earlier quickstart.
        unsafe: agree to run model-written code without a sandbox where none holds.
        quiet: no progress bars.

    Raises:
        UserError: `out` exists, there is no space, or no sandbox holds here.
    """
    from dcoder_cli.analysis.series import Series
    from dcoder_cli.experiments.quickstart_report import write_report

    _check(out, seed, step_scale, force, unsafe)
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    write_json(out / _RECORD, {"seed": seed, "step_scale": step_scale})  # the mark that --force looks for
    began = time.perf_counter()
    pipeline = Pipeline(out, seed, step_scale, announce, quiet=quiet, unsafe=unsafe)
    scores, series = dict[str, float](), list[Series]()
    pipeline.tasks()
    tokenizer = pipeline.tokenizer()
    pipeline.tokenize_code(tokenizer)
    ar = pipeline.stage(0, pipeline.new_model(tokenizer), "pretrain", "learns code from left to right")
    converted = pipeline.convert(ar)
    pipeline.tokenize_chats(converted)
    adapted = pipeline.stage(
        1, converted, "pretrain", "attention opens from causal to full, masks instead of next tokens"
    )
    mid = pipeline.stage(2, adapted, "pretrain", "goes on at full attention")
    tuned = pipeline.stage(3, mid, "sft", "answers questions; pads teach it to end")
    _score(pipeline, tuned, "stage 3", scores, series)
    pipeline.tokenize_prompts(tuned)
    trained = pipeline.grpo(tuned)
    samples = _score(pipeline, trained, "stage 4", scores, series)
    outcome = QuickstartOutcome(pipeline.steps, samples, scores, time.perf_counter() - began, trained)
    write_json(out / _RECORD, outcome.to_json())
    write_report(out, pipeline.steps, scores, series)
    return outcome


def _score(
    pipeline: Pipeline, model_folder: Path, label: str, scores: dict[str, float], series: list[Series]
) -> list[Sample]:
    """Score a model and measure its order, into `scores` and `series`; returns a few samples to show."""
    from dcoder_cli.analysis.measure import tied_text
    from dcoder_cli.analysis.series import Measure, Series
    from dcoder_cli.benchmarks import answers, suites
    from dcoder_cli.benchmarks.judging import Judging
    from dcoder_cli.decoding import trajectory
    from dcoder_cli.decoding.requests import Settings
    from dcoder_cli.model.loading import load

    name = label.replace(" ", "-")
    model = load(model_folder)
    cold = build(Settings, pipeline.preset["generate"], {"seed": pipeline.seed}, where="the preset's section generate")
    hot = Settings(
        max_new_tokens=cold.max_new_tokens, rule=cold.rule, temperature=MANY_AT, mode="fast", seed=pipeline.seed
    )  # fmt: skip
    results, rows = {}, {}
    for benchmark, held_out in HELD_OUT.items():
        with pipeline.step(f"score, {label}, {benchmark}") as done:
            suite = suites.load(benchmark, limit=SCORED_TASKS[benchmark])
            asked = answers.ask(model, suite)
            with Judging(suite, unsafe=pipeline.unsafe) as judging:
                result = answers.answer(model, asked, cold, judging, batch_size=64)
                many = answers.answer(model, asked, hot, judging, MANY, batch_size=128)
            results[benchmark], rows[benchmark] = result, _rows(result)
            one, ones, tens = result.estimate(1), many.estimate(1), many.estimate(MANY)
            place = label if benchmark == "micro" else f"{label} {benchmark}"
            scores |= {
                f"{place} pass@1": one.mean,
                f"{place} pass@1 at temperature {MANY_AT:g}": ones.mean,
                f"{place} pass@{MANY} at temperature {MANY_AT:g}": tens.mean,
            }
            path = pipeline.out / f"samples-{name}{'' if benchmark == 'micro' else '-' + benchmark}.jsonl"
            write_jsonl(path, rows[benchmark])
            done(
                f"{len(suite.items)} tasks, {held_out} held out, judged in a sandbox (tier {result.tier})",
                f"pass@1 {one.mean:.0%}; at temperature {MANY_AT:g} pass@1 {ones.mean:.0%}, pass@{MANY} {tens.mean:.0%}",
                path,
            )
    result = results["micro"]
    one = result.estimate(1)
    with pipeline.step(f"AR-ness, {label}") as done:
        path = pipeline.out / f"trajectories-{name}.jsonl"
        trajectory.write(path, result.trajectories)
        numbers = Measure()(result.trajectories)
        local, everywhere = numbers["local"]["mean"][0], numbers["global"]["mean"][0]
        scores |= {f"{label} local@1": local, f"{label} global@1": everywhere}
        share = (one.mean, one.low, one.high)
        series.append(
            Series(
                label, result.trajectories, numbers, label, cold.temperature, model.tokenizer, passes={"pass@1": share}
            )
        )
        done(
            "how left-to-right those answers were decoded",
            f"local@1 {local:.2f}, global@1 {everywhere:.2f}; {tied_text(numbers)} of steps tied, there by the model's own order",
            path,
        )
    order = sorted(rows["micro"], key=lambda row: (row["status"] != "passed", -row["level"]))
    shown = [*order[:3], *[row for row in order[3:] if row["status"] != "passed"][:1]]
    return [Sample(row["question"], row["text"], row["status"]) for row in shown]


def _rows(result: Answered) -> list[dict[str, Any]]:
    """A row a task: what was asked, answered and judged."""
    return [
        {
            "task_id": item.task_id,
            "family": item.source.family,
            "level": item.source.level,
            "question": item.source.question,
            "text": trajectory.text,
            "status": verdict["status"],
        }
        for item, trajectory, verdict in zip(result.suite.items, result.trajectories, result.judged, strict=True)
    ]

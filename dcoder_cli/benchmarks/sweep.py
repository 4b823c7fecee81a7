"""Everything one call of `dcoder eval` runs: models, the parts of a task, temperatures and speeds, each in its folder.

A single evaluation writes straight into the folder. Several write into folders below it, and a results.json above them
holds their scores, the drop of each speed, and paired comparisons of the models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcoder_cli.base import config
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_json
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.base.runs import model_labels
from dcoder_cli.benchmarks import compare, protocols, published, suites
from dcoder_cli.benchmarks.benchmark import ByTests, ByUnittests, Suite
from dcoder_cli.benchmarks.evaluation import Evaluation, Result, Setup, evaluate, planned
from dcoder_cli.benchmarks.judging import Judging, check_interpreter
from dcoder_cli.benchmarks.protocols import Protocol
from dcoder_cli.data.holes import INFILL_LENGTHS as INFILL_LENGTHS
from dcoder_cli.decoding import ranks, unused
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.execution.judge import Judge
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import load
from dcoder_cli.model.outline import outline
from dcoder_cli.model.special_ids import warn_of_mask
from dcoder_cli.training.memory.foresee import Decodings, add_decoding


@dataclass(frozen=True)
class Options:
    """What the user chose; None takes the protocol's or the machine's.

    Attributes:
        settings: of the sampler, over the protocol's.
        temperatures: one evaluation each.
        speeds: divisors of the number of steps, one evaluation each.
        written: what stands on the command line, by name, to refuse what has no effect.
    """

    subset: str | None = None
    data: Path | None = None
    limit: int | None = None
    protocol: str | None = None
    instruct: bool | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    temperatures: tuple[float, ...] = ()
    speeds: tuple[int, ...] = (1,)
    infill_lengths: tuple[int, ...] = INFILL_LENGTHS
    n: int = 1
    seed: int = 0
    batch_size: int = 8
    device: str | None = None
    dtype: str | None = None
    attention: str = "sdpa"
    cuda_graphs: bool = False
    workers: int | None = None
    python: str | None = None
    unsafe: bool = False
    written: Mapping[str, str] = field(default_factory=dict)
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class Sweep:
    """All evaluations, with what follows from them together (`summary`, as in results.json above several)."""

    runs: list[Evaluation]
    summary: dict[str, Any]


Announce = Callable[[str], None]
Progress = Callable[[str, int, Callable[[Callable[[int], None]], Result]], Result]


def run(models: list[str], task: str, out: Path, options: Options, announce: Announce, progress: Progress) -> Sweep:
    """Evaluate every model on every part of the task at every temperature and speed.

    Args:
        announce: told what people should know (prompts that are shortened, and the like).
        progress: given a label, a number of samples and the work, which it calls with a function to tell progress to.

    Raises:
        UserError: whatever of the input is wrong; found before anything is decoded where it can be.
        WorkFailed: the judge does not work.
    """
    parts = _parts(task, options)
    names = model_labels(models)
    for path in models if len(models) > 1 else ():  # the last one is wrong before the first has worked for hours
        _check(path, parts, options)
    ranks.join()
    runs: list[Evaluation] = []
    for name, path in zip(names, models, strict=True):
        model = load(path, ranks.device(options.device), options.dtype, options.attention, options.cuda_graphs)
        if ranks.rank() == 0:
            warn_of_mask(model.findings)
        protocol = protocols.choose(model, options.protocol, options.instruct)
        for suite in parts:
            setups = _setups(model, protocol, suite, options, announce)
            with _judging(suite, options, announce) as judging:
                for (temperature, speed), setup in setups.items():
                    pieces = _pieces(name, suite, temperature, speed, len(models), len(parts), options)
                    folder = out.joinpath(*pieces)
                    label = " ".join([*pieces, suite.name, protocol.title])
                    work = _work(model, setup, folder, judging, options.batch_size)
                    result = progress(label, len(setup.keys) // ranks.world_size(), work)
                    runs.append(
                        Evaluation(
                            name, suite.task, suite.subset, protocol.instruct, temperature, speed, folder, result
                        )
                    )
        del model
    summary = summarize(task, runs)
    if len(runs) > 1 and ranks.rank() == 0:
        write_json(out / "results.json", {**summary, "runs": [_entry(one, out) for one in runs]})
    ranks.leave()
    return Sweep(runs, summary)


def _check(path: str, parts: list[Suite], options: Options) -> None:
    """Raises UserError for what is wrong with a model, or with the settings for it, but for its weights."""
    model = outline(path, options.device, options.dtype, options.attention, options.cuda_graphs)
    protocol = protocols.choose(model, options.protocol, options.instruct)
    for suite in parts:
        _setups(model, protocol, suite, options, lambda _: None)


def plan(models: list[str], task: str, out: Path, options: Options, processes: int, announce: Announce) -> RunPlan:
    """What `run` would do on so many processes; nothing is written. Raises UserError as it does, for all but the weights."""
    parts = _parts(task, options)
    found = RunPlan(f"eval {task}", {})
    decodings: list[Decodings] = []
    settings: list[dict[str, Any]] = []
    for name, path in zip(model_labels(models), models, strict=True):
        model = outline(path, options.device, options.dtype, options.attention, options.cuda_graphs)
        protocol = protocols.choose(model, options.protocol, options.instruct)
        for suite in parts:
            for (temperature, speed), setup in _setups(model, protocol, suite, options, announce).items():
                pieces = _pieces(name, suite, temperature, speed, len(models), len(parts), options)
                decodings.append(planned(model, setup, out.joinpath(*pieces)))
                settings.append({"run": " ".join([*pieces, suite.name]), "protocol": protocol.title, **setup.chosen})
    told = ", ".join(f"{suite.name}: {len(suite.items):,} of {suite.total:,} tasks" for suite in parts)
    found.add("tasks", {suite.name: len(suite.items) for suite in parts}, told)
    found.settings = {"runs": settings}
    found.add("processes", processes)
    add_decoding(found, decodings, options.batch_size, options.device, options.dtype, processes)
    if any(isinstance(suite.benchmark.judged, ByTests) for suite in parts):
        with Judge(1, unsafe=options.unsafe) as judge:
            found.add("sandbox", {"tier": str(judge.tier)}, f"tier {judge.tier}")
    found.add("out", str(out))
    return found


def _parts(task: str, options: Options) -> list[Suite]:
    """The suites of a task's parts, all that they need looked for."""
    names = suites.parts(task)
    suites.check_file(task, options.data)
    parts = [
        suites.load(part, options.subset, options.data, options.limit, options.since, options.until) for part in names
    ]
    if isinstance(suites.find(task).judged, ByUnittests):
        check_interpreter(task, options.python, options.unsafe)
    return parts


def _pieces(
    name: str, suite: Suite, temperature: float, speed: int, models: int, parts: int, options: Options
) -> list[str]:
    """What tells an evaluation from the others of the call: the folders below --out."""
    pieces = [
        name if models > 1 else "",
        suite.task if parts > 1 else "",
        f"t{temperature:g}" if len(options.temperatures) > 1 else "",
        f"x{speed}" if len(options.speeds) > 1 else "",
    ]
    return [piece for piece in pieces if piece]


def summarize(task: str, runs: list[Evaluation]) -> dict[str, Any]:
    """What several runs say together: the mean of a task's parts, the drop of each speed, comparisons, the paper's rows."""
    first = runs[0]
    subset = first.subset if len(suites.parts(task)) == 1 else ""
    return {
        "task": task,
        "means": compare.means(task, runs),
        "speed": compare.speeds(runs),
        "comparisons": compare.models(runs),
        "published": [
            {"system": system, "scores": scores} for system, scores in published.rows(task, subset, first.instruct)
        ],
    }


def _entry(one: Evaluation, out: Path) -> dict[str, Any]:
    return {
        "model": one.model, "task": one.task, "temperature": one.temperature, "speed": one.speed,
        "folder": str(one.folder.relative_to(out)), "scores": one.result.record["scores"],
    }  # fmt: skip


def _work(
    model: Model, setup: Setup, folder: Path, judging: Judging, batch_size: int
) -> Callable[[Callable[[int], None]], Result]:
    return lambda tell: evaluate(model, setup, folder, judging, batch_size, tell)


def default_folder(task: str, models: list[str]) -> Path:
    """Where results go when nothing is said: `eval/TASK-MODEL` below the current folder."""
    return Path("eval") / "-".join([task, *model_labels(models)])


def _judging(suite: Suite, options: Options, announce: Announce) -> Judging:
    """The judge; plus tests' expected values are computed by the first process and read by the others."""
    told: list[str] = []

    def tell(task_id: str) -> None:
        if not told:
            announce(f"{suite.name}: running the reference solutions once, for what plus tests expect")
        told.append(task_id)

    if ranks.rank() != 0:
        ranks.wait()
    judging = Judging(suite, ranks.workers(options.workers), options.unsafe, options.python, tell)
    if ranks.rank() == 0:
        ranks.wait()
    return judging


def _setups(
    model: Model, protocol: Protocol, suite: Suite, options: Options, announce: Announce
) -> dict[tuple[float, int], Setup]:
    """The evaluation at each temperature and speed, all settings checked."""
    settings = config.merge(protocol.settings(suite.kind, suite.settings), options.settings)
    if suite.kind == "infill" and "instruct" in options.written and _same_gaps(protocol):
        raise UserError(
            f"{options.written['instruct']} has no effect: {suite.name} shows the code around a gap, never a chat; leave it out"
        )
    room = model.max_length // 2  # ours: half the context for the prompt
    if "max_new_tokens" not in options.settings and settings["max_new_tokens"] > room:
        announce(
            f"{model.name}: {room} new tokens and not {settings['max_new_tokens']}, for a context of {model.max_length}"
        )
        settings["max_new_tokens"] = room
    if model.is_diffusion:
        settings.setdefault("rule", model.default_rule)
    elif options.speeds != (1,) or "steps" in settings:
        raise UserError(
            f"--speed and --steps are for diffusion models, and {model.name!r} is an AR model; leave them out"
        )
    temperatures = options.temperatures or (settings["temperature"],)
    unused.refuse(options.written, {**settings, "temperature": max(temperatures)}, lambda: model.is_diffusion)
    protocols_own = _filled({"rule": model.default_rule, **protocol.settings(suite.kind, suite.settings)})
    infill = suite.kind == "infill"
    found = {}
    for temperature, speed in itertools.product(temperatures, options.speeds):
        chosen = {**settings, "temperature": temperature}
        if speed != 1:
            if settings.get("mode", "exact") != "exact" or suite.kind == "infill":
                raise UserError(f"--speed {speed} divides the steps of mode exact, and not of fast mode or of infills")
            chosen["steps"] = (settings.get("steps") or settings["max_new_tokens"]) // speed
        # Settings checks each value; a fast mode's defaults are filled in by the sampler again
        whole = _filled(chosen)
        unused.refuse_repeats(options.n, whole, lambda: model.is_diffusion)
        departures = {
            name: {"protocol": protocols_own[name], "here": value}
            for name, value in whole.items()
            if value != protocols_own[name] and not (infill and name == "max_new_tokens")
        }
        found[temperature, speed] = Setup(
            suite, protocol, chosen, options.n, options.seed, options.infill_lengths, departures
        )
    return found


def _same_gaps(protocol: Protocol) -> bool:
    """Whether a protocol fills gaps alike by chat and by plain text; how long they are is searched."""
    by_chat, plain = ({**Protocol(protocol.name, way).settings("infill"), "max_new_tokens": 0} for way in (True, False))
    return by_chat == plain


def _filled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the sampler's defaults, all checked."""
    return config.to_dict(config.build(Settings, settings, where="the settings of eval"))

"""Models decoded on prompts or on benchmarks' tasks, their decoding order measured: what `dcoder arness --model` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from dcoder_cli.analysis import sensitivity, series
from dcoder_cli.analysis.entropy_sink import EntropyMap
from dcoder_cli.analysis.measure import Findings
from dcoder_cli.analysis.series import Measure, Series
from dcoder_cli.base.config import to_dict
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.base.runs import distinct
from dcoder_cli.benchmarks import answers, suites
from dcoder_cli.benchmarks.answers import Asked
from dcoder_cli.benchmarks.benchmark import ByUnittests, Suite
from dcoder_cli.benchmarks.judging import Judging
from dcoder_cli.decoding import ranks
from dcoder_cli.decoding.prompts import read
from dcoder_cli.decoding.requests import Prompt, Settings, encode, encode_prompt
from dcoder_cli.execution.judge import resolve_tier
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import load
from dcoder_cli.model.outline import outline
from dcoder_cli.model.special_ids import warn_of_mask
from dcoder_cli.training.memory.foresee import Decodings, add_decoding


@dataclass(frozen=True)
class PromptSet:
    """Prompts to decode: those of a file, or (`suite`) a benchmark's tasks."""

    name: str
    prompts: Sequence[tuple[str, Prompt]] = ()  # with their names
    suite: Suite | None = None

    @property
    def count(self) -> int:
        """How many prompts."""
        return len(self.prompts) if self.suite is None else len(self.suite.items)


def of_files(files: Sequence[Path]) -> list[PromptSet]:
    """The prompts of files. Raises UserError for a broken one."""
    return [PromptSet(path.stem, read(path)) for path in files]


def of_tasks(tasks: Sequence[str], data: Path | None, limit: int | None) -> list[PromptSet]:
    """The tasks of benchmarks, a set for each part.

    Raises:
        UserError: no such benchmark or data, or one whose tasks are judged or decoded in another way.
    """
    found = []
    for task in tasks:
        if isinstance(suites.find(task).judged, ByUnittests):
            raise UserError(f"--task {task} needs an interpreter with its libraries; score it with `dcoder eval`")
        suites.check_file(task, data)
        for part in suites.parts(task):
            suite = suites.load(part, None, data, limit)
            answers.check_whole(suite)
            found.append(PromptSet(part, suite=suite))
    return found


@dataclass(frozen=True)
class OrderPlan:
    """How every model is run on every set of prompts.

    Attributes:
        settings: of the sampler; its temperature is replaced by each of `temperatures`.
        sensitivity: all tie breaks, with top-p and without, in place of the settings' own.
        samples: decodings of a prompt.
        unsafe: agree to judge without a sandbox where none holds.
    """

    settings: Settings
    temperatures: tuple[float, ...]
    sensitivity: bool = False
    samples: int = 1
    batch_size: int = 8
    device: str | None = None
    dtype: str | None = None
    unsafe: bool = False

    def variants(self) -> list[tuple[str, Settings]]:
        """What a label ends in, and the settings: one a temperature, or all that --sensitivity compares."""
        if self.sensitivity:
            return sensitivity.variants(self.temperatures, self.settings)
        several = len(self.temperatures) > 1
        return [
            (f" T={temperature:g}" if several else "", replace(self.settings, temperature=temperature))
            for temperature in self.temperatures
        ]

    def total(self, models: int, sets: Sequence[PromptSet]) -> int:
        """How many decodings there will be."""
        return models * len(self.variants()) * self.samples * sum(one.count for one in sets)


def plan_of(
    models: Sequence[tuple[str, str]], sets: Sequence[PromptSet], plan: OrderPlan, processes: int = 1
) -> RunPlan:
    """What `run` would decode; no weights are read. Args and errors are its."""
    found = RunPlan("arness", to_dict(plan.settings))
    decodings = []
    for path, name in models:
        model = outline(path, plan.device, plan.dtype)
        _check_sensitive(model, name, plan)
        for one in sets:
            prompts = answers.ask(model, one.suite).prompts if one.suite is not None else _encoded(model, one.prompts)
            names = None if one.suite is not None else [name for name, _ in one.prompts]
            requests = encode(model, prompts, plan.settings, names, None)
            longest = max((len(request.prefix) + len(request.suffix) for request in requests), default=0)
            for _, settings in plan.variants():
                decodings.append(Decodings(model, settings, one.count * plan.samples, longest))
    found.add("models", [path for path, _ in models], ", ".join(name for _, name in models))
    found.add("prompts", {one.name: one.count for one in sets}, ", ".join(f"{one.name}: {one.count:,}" for one in sets))
    variants = [ending.strip() or f"T={settings.temperature:g}" for ending, settings in plan.variants()]
    found.add("variants", variants, ", ".join(variants))
    found.add("processes", processes)
    add_decoding(found, decodings, plan.batch_size, plan.device, plan.dtype, processes)
    if any(one.suite is not None for one in sets):
        tier = resolve_tier(unsafe=plan.unsafe)
        found.add("sandbox", {"tier": tier}, f"tier {tier}")
    return found


def _check_sensitive(model: Model, name: str, plan: OrderPlan) -> None:
    if plan.sensitivity and not model.is_diffusion:
        raise UserError(f"--sensitivity varies how ties are broken, and {name!r} is an AR model, which has none")


def run(
    findings: Findings,
    measure: Measure,
    models: Sequence[tuple[str, str]],
    sets: Sequence[PromptSet],
    plan: OrderPlan,
    advance: Callable[[int], None],
) -> None:
    """Every model on every set of prompts in every variant, into `findings`; one model in memory at a time.

    Args:
        models: checkpoints with their labels.
        advance: told how many decodings have just been done, of this process's share.

    Raises:
        UserError: a model or prompts that do not fit the plan.
        WorkFailed: several samples in a row could not be judged.
    """
    for path, name in models if len(models) > 1 else ():  # the last one is wrong before the first has worked for hours
        _check_sensitive(outline(path, ranks.device(plan.device), plan.dtype), name, plan)
    ranks.join()
    sets = [replace(one, name=name) for one, name in zip(sets, distinct([one.name for one in sets]), strict=True)]
    with ExitStack() as stack:  # sandboxes start once for all models
        judging = {
            one.name: stack.enter_context(Judging(one.suite, ranks.workers(None), plan.unsafe))
            for one in sets
            if one.suite is not None
        }
        for path, name in models:
            model = load(path, device=ranks.device(plan.device), dtype=plan.dtype)
            if ranks.rank() == 0:
                warn_of_mask(model.findings)
            _check_sensitive(model, name, plan)
            for one in sets:
                place = f"{name}, {one.name}" if len(sets) > 1 else name
                asked = None if one.suite is None else answers.ask(model, one.suite)
                prompts = asked.prompts if asked is not None else _encoded(model, one.prompts)
                if model.is_diffusion:
                    profile = series.profile_of(model, prompts, plan.settings.max_new_tokens)
                    if profile is not None:
                        findings.profiles[place] = profile
                found: list[Series] = []
                for ending, settings in plan.variants():
                    same = sensitivity.equal_run(found, settings) if plan.sensitivity else None
                    if same is not None:  # nothing was tied there, so no tie break changes anything
                        found.append(sensitivity.relabelled(same, place + ending, settings))
                        advance(one.count * plan.samples)
                    elif asked is not None:
                        found.append(
                            _scored(model, asked, measure, place + ending, settings, plan, judging[one.name], advance)
                        )
                    else:
                        found.append(
                            series.of_model(
                                model, prompts, measure, place + ending, settings, plan.samples, plan.batch_size,
                                lambda _: advance(1), [name for name, _ in one.prompts],
                            )
                        )  # fmt: skip
                findings.series.extend(found)
                if plan.sensitivity:
                    findings.sensitivity[place] = sensitivity.compare(found)
    # A file may be called as a model at a temperature is: "sft T=0.2". Pictures know series by their labels.
    labels = distinct([one.label for one in findings.series])
    findings.series[:] = [replace(one, label=label) for one, label in zip(findings.series, labels, strict=True)]
    ranks.leave()


def _encoded(model: Model, prompts: Sequence[tuple[str, Prompt]]) -> list[Prompt]:
    """Each prompt as ids, once for all variants."""
    return [encode_prompt(model, prompt, name) for name, prompt in prompts]


def _scored(
    model: Model,
    asked: Asked,
    measure: Measure,
    label: str,
    settings: Settings,
    plan: OrderPlan,
    judging: Judging,
    advance: Callable[[int], None],
) -> Series:
    """A series of a benchmark's tasks, with pass@k."""
    entropy = EntropyMap() if model.is_diffusion else None
    done = answers.answer(
        model, asked, settings, judging, plan.samples, plan.batch_size, by="place",
        observer=entropy.observe if entropy is not None else None, on_done=lambda _: advance(1),
    )  # fmt: skip
    found = series.of_decoded(model, done.trajectories, measure, label, settings, entropy)
    return replace(found, passes=done.passes())

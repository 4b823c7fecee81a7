"""Stage 4: coupled-GRPO (DiffuCoder 5, Algorithm 1) and its baselines, one flat loop over steps (`step.take_step`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base import console
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_jsonl
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.data.batches import RowOrder
from dcoder_cli.data.manifest import read_manifest
from dcoder_cli.data.rl import load_prompts
from dcoder_cli.diffusion.coupled import MaskSettings
from dcoder_cli.diffusion.estimators import try_estimator
from dcoder_cli.execution.judge import Judge
from dcoder_cli.model import lean
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import damage, plans, setup, sharded
from dcoder_cli.training.context import Context, DryRun
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import EntryLogProbs, smallest
from dcoder_cli.training.grpo.evaluation import evaluate
from dcoder_cli.training.grpo.record import WINDOW, Monitor, StepResult, flat_warning, sample_record, step_metrics
from dcoder_cli.training.grpo.reference import REFERENCE_FILE, REFERENCE_PARTS, load_reference, make_reference
from dcoder_cli.training.grpo.rewards import Rewarder, check_prompts, probe
from dcoder_cli.training.grpo.rollouts import check_sampling, encode_prompts, forget_rollouts
from dcoder_cli.training.grpo.step import Learner, take_step
from dcoder_cli.training.record import Preset
from dcoder_cli.training.tracking import Tracking

# What the rollouts of a step depend on, beside the weights.
_OF_ROLLOUTS = ("seed", "prompts_per_step", "group_size", "rollout", "rewards", "format", "precision")


@dataclass(frozen=True)
class GrpoResult:
    """How stage 4 ended; `before` and `after` are evaluations on the held-out prompts (None without them).

    `flat_groups`: the share of groups without spread over the last tenth of the steps; `warning`: where that is (nearly) all.
    """

    steps: int
    reward: float
    before: dict[str, float] | None
    after: dict[str, float] | None
    seconds: float
    checkpoint: Path
    stopped: str | None
    flat_groups: float = 0.0
    warning: str | None = None


def train(
    model_name: str,
    data: str,
    out: str,
    config: GrpoConfig,
    resume: bool = False,
    device: str | None = None,
    track: Tracking | None = None,
    quiet: bool = False,
    monitor: Monitor | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
    unsafe: bool = False,
    preset: Preset | None = None,
) -> GrpoResult:
    """Run stage 4 in a run folder.

    Args:
        model_name: an instruction-tuned diffusion checkpoint.
        data: a folder from `dcoder tokenize rl`.
        out, resume, device, track, quiet, preset: as in `denoise.train`.
        config: see GrpoConfig.
        monitor: more numbers to log about the rollouts' trajectories (their AR-ness, say).
        on_step: called with (step, total, metrics) on the first process.
        unsafe: agree to run model-written code without a sandbox where none holds.

    Raises:
        UserError: anything wrong with the input, before the first rollout.
        WorkFailed: the judge fails for good, or the loss or a gradient became NaN or infinite; see `Context.update`.
    """
    with _ready(model_name, data, out, config, resume, device, track, unsafe, preset) as ready:
        context, prompts, heldout, total_steps = ready.context, ready.prompts, ready.heldout, ready.total_steps
        model = context.model
        lean.keep_less(model.network)
        context.prepare(EntryLogProbs(model), {"before": None, "tail": [], "flat": [], "updates": 0})
        state = context.state
        if state.get("updates") is None:  # checkpoints of before it was counted
            state["updates"] = context.start * config.inner_iterations
        state["flat"] = state.get("flat") or []
        learner = Learner(
            context, config, prompts, ready.prompt_ids, RowOrder(len(prompts), config.seed), ready.rewarder,
            make_reference(context, config),
        )  # fmt: skip
        if context.start and learner.reference is not None and learner.reference_is_a_copy:
            with damage.resuming(context.folder, context.start):
                load_reference(learner.reference, context.last_checkpoint() / "training", config.kl_coef)
        _begin(learner)
        began, stopped, after = time.perf_counter(), None, None

        step = context.start
        with context.running(total_steps, quiet) as bar:
            if heldout and state["before"] is None:
                before = _evaluate(learner, heldout, ready.heldout_ids)
                state["before"] = before
                context.log_heldout(0, before)
            while step < total_steps:
                done = take_step(learner, step, total_steps)
                step += 1
                # Record.
                metrics = step_metrics(context.accelerator, done, config, monitor)
                state["tail"] = [*state["tail"], metrics["reward"]][-max(1, total_steps // 10) :]
                state["flat"] = [*state["flat"], metrics["flat_groups"]][-max(WINDOW, total_steps // 10) :]
                if step == WINDOW < total_steps and context.is_first and not quiet:
                    _warn(flat_warning(state["flat"], config.rewards, config.kl_coef > 0))
                speed = _log(learner, step, done, metrics)
                passed = f"  passed {metrics['passed']:.0%}" if "passed" in metrics else ""
                bar.advance(1, f"reward {metrics['reward']:.3f}{passed}  kl {metrics['kl']:.4f}  {speed:,.0f} tok/s")
                if on_step is not None and context.is_first:
                    on_step(step, total_steps, metrics)
                # Evaluate, stop, checkpoint.
                ends = step == total_steps
                if heldout and (ends or (config.evaluate_every and step % config.evaluate_every == 0)):
                    after = _evaluate(learner, heldout, ready.heldout_ids)
                    context.log_heldout(step, after)
                if context.stop_asked():
                    stopped = "asked"
                if ends or stopped or (config.checkpoint_every and step % config.checkpoint_every == 0):
                    _save(learner, step)
                if stopped:
                    break
        tail = state["tail"] or [float("nan")]
        flat = state["flat"]
        return GrpoResult(
            step, sum(tail) / len(tail), state["before"], after, time.perf_counter() - began,
            context.folder.checkpoint(step), stopped, sum(flat) / max(1, len(flat)),
            flat_warning(flat, config.rewards, config.kl_coef > 0),
        )  # fmt: skip


def _warn(line: str | None) -> None:
    if line is not None:
        console.warn(line)


def plan(
    model_name: str,
    data: str,
    out: str,
    config: GrpoConfig,
    dry: DryRun,
    resume: bool = False,
    device: str | None = None,
    track: Tracking | None = None,
    unsafe: bool = False,
    preset: Preset | None = None,
) -> RunPlan:
    """What `train` would do, once all of its checks have passed, the sandbox's and the rewards' too; nothing is written.

    Args are those of `train`, and `dry`: the processes that it would have. Raises as `train`, before its first rollout.
    """
    with _ready(model_name, data, out, config, resume, device, track, unsafe, preset, dry) as ready:
        return plans.of_grpo(ready.context, ready.prompt_ids, ready.heldout_ids, ready.total_steps)


@dataclass(frozen=True)
class _Ready:
    """All that is checked before the first rollout."""

    context: Context
    prompts: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    prompt_ids: list[list[int]]
    heldout_ids: list[list[int]]
    rewarder: Rewarder
    total_steps: int


@contextmanager
def _ready(
    model_name: str,
    data: str,
    out: str,
    config: GrpoConfig,
    resume: bool,
    device: str | None,
    track: Tracking | None,
    unsafe: bool,
    preset: Preset | None,
    dry: DryRun | None = None,
) -> Iterator[_Ready]:
    prompts = load_prompts(data, "train")
    heldout = load_prompts(data, "heldout") if _has_heldout(data) else []
    check_prompts([*prompts, *heldout], config.rewards)
    check_sampling(config)
    settings = MaskSettings(config.pairs, config.t_range, config.prompt_mask)
    try_estimator(config.estimator, config.rollout.max_new_tokens, settings)
    RunFolder.check(out, resume)  # before the judge starts
    with Judge(unsafe=unsafe) if "code" in config.rewards else nullcontext() as judge:
        rewarder = Rewarder(config.rewards, judge, config.format == "strict")
        probe(rewarder, prompts[0])
        context = Context.open(4, "grpo", model_name, data, out, config, resume, device, track, preset, dry)
        model = _load(context, model_name, config)
        model.answer_length = config.rollout.max_new_tokens
        prompt_ids = encode_prompts(model, prompts, config.rollout.max_new_tokens)
        heldout_ids = encode_prompts(model, heldout, config.rollout.max_new_tokens)
        if not config.train_embeddings:
            setup.freeze_embeddings(model)
        context.check_space(copies=int(config.holds_reference))
        total_steps = config.steps or max(1, round(config.epochs * len(prompts) / config.prompts_per_step))
        yield _Ready(context, prompts, heldout, prompt_ids, heldout_ids, rewarder, total_steps)


def _load(context: Context, model_name: str, config: GrpoConfig) -> Model:
    """The policy, float32 on the CPU. Raises UserError for a launch or a model that stage 4 cannot train."""
    if config.prompts_per_step % context.processes:
        raise UserError(
            f"prompts_per_step = {config.prompts_per_step} must be a multiple of the {context.processes} processes"
        )
    model = context.load_model(model_name)
    if not model.is_diffusion:
        raise UserError(
            f"stage 4 trains a diffusion model but {model_name!r} is an AR checkpoint; convert and tune it first"
        )
    return model


def _evaluate(learner: Learner, prompts: list[dict[str, Any]], ids: list[list[int]]) -> dict[str, float]:
    """The held-out scores of the weights as they are."""
    context = learner.context
    with sharded.gathered(context.module, smallest(context.accelerator.device)):
        return evaluate(context.accelerator, context.model, prompts, ids, learner.config, learner.rewarder)


def _begin(learner: Learner) -> None:
    """Write down what runs. Rollouts that a killed run kept stay where this one would sample and score the same."""
    context = learner.context
    context.record["reward_sources"] = learner.rewarder.sources()
    path = context.folder.path

    def tidy() -> None:
        for name in ("samples", "rollouts"):
            (path / name).mkdir(exist_ok=True)
        if context.resume:
            forget_rollouts(
                path / "rollouts", context.start if _same_rollouts(context.folder, context.record) else None
            )

    context.begin(tidy)


def _log(learner: Learner, step: int, done: StepResult, metrics: dict[str, float]) -> float:
    """A step's metrics, seconds and, every `samples_every` steps, its completions; returns this process's tokens a second."""
    context, every = learner.context, learner.config.samples_every
    rate = sum(len(item.completion.tokens) for item in done.rollouts) / done.clock.total()
    context.log(
        step,
        {**metrics, "learning_rate": done.learning_rate},
        {**done.clock.laps, "tokens_per_second": round(rate, 1)},
    )
    if context.is_first and every and (step - 1) % every == 0:
        prompts = [learner.prompts[index] for index in done.chosen for _ in range(learner.config.group_size)]
        lines = (sample_record(item, prompt) for item, prompt in zip(done.rollouts, prompts, strict=True))
        write_jsonl(context.folder.path / "samples" / f"step-{step}.jsonl", lines)
    return rate


def _save(learner: Learner, step: int) -> None:
    """A checkpoint, with the reference where it is a copy; the weights at hand have sampled no later rollout yet."""
    context, reference = learner.context, learner.reference
    extra: dict[str, Any] = {}
    if reference is not None and learner.reference_is_a_copy:
        extra = {REFERENCE_PARTS: reference} if context.sharded else {REFERENCE_FILE: reference.state_dict()}
    context.save(step, extra=extra)
    if context.is_first:
        forget_rollouts(context.folder.path / "rollouts", step)


def _has_heldout(data: str) -> bool:
    return any(entry["split"] == "heldout" for entry in read_manifest(data)["files"])


def _same_rollouts(run: RunFolder, record: dict[str, Any]) -> bool:
    """Whether the run samples and scores as it did before: a resumed run may have been given other settings.

    `record` is what the run folder will note of it. A user's own reward may have been mended under the same name.
    """
    before = run.config()
    return before.get("reward_sources") == record["reward_sources"] and all(
        before.get("config", {}).get(name) == record["config"][name] for name in _OF_ROLLOUTS
    )

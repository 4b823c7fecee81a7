"""Replicates of checkpoints whose claims are checked: roles with paths, trained at small scale or given."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_json
from dcoder_cli.base.schema import Format
from dcoder_cli.experiments.stages import Announce, Pipeline
from dcoder_cli.model.sizes import SIZES

# What each role is; the names are also the options of `dcoder reproduce`.
ROLES = {
    "adapted": "diffusion model adapted from an AR model, before instruction tuning",
    "scratch": "diffusion model from random weights, at the same diffusion training as `adapted`",
    "scratch-long": "`scratch`, trained on until its held-out loss is that of `adapted`",
    "sft": "`adapted`, instruction-tuned (stage 3)",
    "scratch-sft": "`scratch-long`, instruction-tuned",
    "grpo": "`sft` after coupled-GRPO",
    "grpo-full-mask": "`sft` after GRPO with the full-mask estimator, at the same steps",
    "grpo-decoupled": "`sft` after GRPO with the decoupled estimator, at the same steps",
}
CONTEXT = SIZES["tiny"].context  # of the models that are trained here
RANDOM = "random"  # the weights that a replicate's AR model and its `scratch` start from
# The parts that a replicate is trained in, one a role, and what each starts from.
STARTS: dict[str, str | None] = {
    RANDOM: None,
    "adapted": RANDOM,
    "scratch": RANDOM,
    "scratch-long": "scratch",
    "sft": "adapted",
    "scratch-sft": "scratch-long",
    "grpo": "sft",
    "grpo-full-mask": "sft",
    "grpo-decoupled": "sft",
}
# What else a part needs finished: the loss that it trains to is that of another.
_ALSO = {"scratch-long": "adapted"}


@dataclass(frozen=True)
class Replicate:
    """One seed's checkpoints.

    Attributes:
        seed: of training at small scale; of sampling where checkpoints are given.
        models: role -> checkpoint.
        pretrain, rl: shards with held-out rows, prompts with tests; None where they are not given.
        folder: where its measurements are kept.
    """

    seed: int
    models: Mapping[str, str]
    pretrain: str | None
    rl: str | None
    folder: Path


def given(models: Mapping[str, str], pretrain: str | None, rl: str | None, out: Path) -> Replicate:
    """A replicate of real checkpoints. Raises UserError for an unknown role, or none."""
    unknown = sorted(set(models) - set(ROLES))
    if unknown:
        raise UserError(f"role {unknown[0]!r} is unknown; use {', '.join(ROLES)}")
    return Replicate(0, dict(models), pretrain, rl, out)


def prepare(out: Path, step_scale: float, announce: Announce) -> None:
    """What all seeds share, into `out`/shared: tasks, tokenizer and shards, those of seed 0."""
    shared = _shared(out)
    record, pipeline = _Record(shared), Pipeline(shared, 0, step_scale, announce)
    record.once("tasks", pipeline.tasks)
    tokenizer = record.once("tokenizer", pipeline.tokenizer)
    record.once("data/pretrain", lambda: pipeline.tokenize_code(tokenizer))
    # Chats and prompts need a diffusion model's tokenizer, which is the same whatever its weights.
    start = record.once("models/random", lambda: pipeline.new_model(tokenizer))
    converted = record.once("models/from-random", lambda: pipeline.convert(start, "from-random"))
    record.once("data/sft", lambda: pipeline.tokenize_chats(converted))
    record.once("data/rl", lambda: pipeline.tokenize_prompts(converted))


def before(part: str) -> set[str]:
    """The parts that must be finished for this one."""
    return {other for other in (STARTS[part], _ALSO.get(part)) if other is not None}


def parts(roles: Iterable[str]) -> list[str]:
    """The parts that make these roles, each after those it needs."""
    needed: set[str] = set()
    waiting = list(roles)
    while waiting:
        part = waiting.pop()
        if part not in needed:
            needed.add(part)
            waiting += before(part)
    return [part for part in STARTS if part in needed]


def is_trained(out: Path, seed: int, part: str) -> bool:
    """Whether one of `parts` of a replicate is finished."""
    name = {RANDOM: "models/random", "adapted": "runs/adapted-2", "scratch": "runs/scratch-2"}.get(part, f"runs/{part}")
    return name in _Record(out / f"seed-{seed}").made()


def trained(
    out: Path,
    seed: int,
    step_scale: float,
    announce: Announce,
    quiet: bool = False,
    roles: Iterable[str] = ROLES,
    unsafe: bool = False,
) -> Replicate:
    """Train a replicate's `roles` at small scale into `out`/seed-N, on what `prepare` made.

    Each finished checkpoint is written down, so a stopped call goes on after the last of them.
    """
    models = {part: str(train_part(out, seed, part, step_scale, announce, quiet, unsafe)) for part in parts(roles)}
    models.pop(RANDOM, None)
    data = _shared(out) / "data"
    return Replicate(seed, models, str(data / "pretrain"), str(data / "rl"), out / f"seed-{seed}")


def train_part(
    out: Path, seed: int, part: str, step_scale: float, announce: Announce, quiet: bool = False, unsafe: bool = False
) -> Path:
    """One of `parts` of a replicate, once what it starts from is there. Several may run at the same time."""
    folder, shared = out / f"seed-{seed}", _shared(out)
    record = _Record(folder)
    again = "run the same command again to go on"
    pipeline = Pipeline(
        folder, seed, step_scale, lambda name: announce(f"seed {seed}: {name}"), shared, quiet, again, unsafe
    )

    def stage(number: int, model: Path, data: str, name: str) -> Path:
        return record.once(f"runs/{name}", lambda: pipeline.stage(number, model, data, "", name))

    if part == RANDOM:
        return record.once("models/random", lambda: pipeline.new_model(shared / "tokenizer"))
    start = train_part(out, seed, STARTS[part] or RANDOM, step_scale, announce, quiet, unsafe)
    if part in ("adapted", "scratch"):
        source = "from-ar" if part == "adapted" else "from-random"
        if part == "adapted":
            start = stage(0, start, "pretrain", "ar")
        begin = start
        start = record.once(f"models/{source}", lambda: pipeline.convert(begin, source))
        return stage(2, stage(1, start, "pretrain", f"{part}-1"), "pretrain", f"{part}-2")
    if part == "scratch-long":
        from dcoder_cli.model.loading import load
        from dcoder_cli.training.evaluation import heldout_loss

        adapted = train_part(out, seed, "adapted", step_scale, announce, quiet, unsafe)
        pretrain = str(shared / "data" / "pretrain")

        def go_on() -> Path:
            loss = heldout_loss(load(adapted), pretrain)
            return pipeline.stage(2, start, "pretrain", "", part, until=loss)

        return record.once(f"runs/{part}", go_on)
    if part in ("sft", "scratch-sft"):
        return stage(3, start, "sft", part)
    estimator = "coupled" if part == "grpo" else part.removeprefix("grpo-")
    return record.once(f"runs/{part}", lambda: pipeline.grpo(start, estimator))


def _shared(out: Path) -> Path:
    return out / "shared"


@dataclass(frozen=True)
class Made:
    """made.json, below a name of ours."""

    made: dict[str, str]


_MADE = Format("list of what is made", Made, "remove it, and what it lists is made again")


class _Record:
    """Name -> path of what is finished below a folder; what a stopped attempt left is removed before the next.

    Several processes may each make a thing of another name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "made.json"

    def made(self) -> dict[str, str]:
        """What is finished, by paths within the folder, which may be moved."""
        if not self.path.is_file():
            return {}
        found = jsonl.document(self.path, _MADE.what)
        _MADE.check({"made": found}, f"{_MADE.what} {str(self.path)!r}")
        return found

    def once(self, name: str, make: Callable[[], Path | None]) -> Path:
        """What `make` makes in `folder`/`name`; it returns the path, or None for that folder."""
        known = self.made()
        if name in known:
            return self.folder / known[name]
        place = self.folder / name
        if place.is_dir():
            shutil.rmtree(place)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = make() or place
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_json(self.path, {**self.made(), name: str(path.relative_to(self.folder))})
        return path

"""Families of checkpoints whose claims are checked: roles with paths, trained at desk size or given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_json
from dcoder_cli.benchmarks.desk import Announce, Desk

# What each role is; the names are also the options of `dcoder reproduce`.
ROLES = {
    "adapted": "diffusion model adapted from an AR model, before instruction tuning",
    "scratch": "diffusion model from random weights, at the same tokens as `adapted`",
    "sft": "`adapted`, instruction-tuned (stage 3)",
    "scratch-sft": "`scratch`, instruction-tuned",
    "grpo": "`sft` after coupled-GRPO",
    "grpo-full-mask": "`sft` after GRPO with the full-mask estimator, at the same steps",
    "grpo-decoupled": "`sft` after GRPO with the decoupled estimator, at the same steps",
}


@dataclass(frozen=True)
class Family:
    """One seed's checkpoints.

    Attributes:
        seed: of training at desk size; of sampling where checkpoints are given.
        models: role -> checkpoint.
        pretrain, rl: shards with held-out rows, prompts with tests; None where they are not given.
        folder: where its measurements are kept.
    """

    seed: int
    models: Mapping[str, str]
    pretrain: str | None
    rl: str | None
    folder: Path


def given(models: Mapping[str, str], pretrain: str | None, rl: str | None, out: Path) -> Family:
    """A family of real checkpoints. Raises UserError for an unknown role, or none."""
    unknown = sorted(set(models) - set(ROLES))
    if unknown:
        raise UserError(f"role {unknown[0]!r} is unknown; use {', '.join(ROLES)}")
    return Family(0, dict(models), pretrain, rl, out)


def prepare(out: Path, effort: float, announce: Announce) -> None:
    """What all seeds share, into `out`/shared: tasks, tokenizer and shards, those of seed 0."""
    shared = _shared(out)
    record, desk = _Record(shared), Desk(shared, 0, effort, announce)
    record.once("tasks", desk.tasks)
    tokenizer = record.once("tokenizer", desk.tokenizer)
    record.once("data/pretrain", lambda: desk.tokenize_code(tokenizer))
    # Chats and prompts need a diffusion model's tokenizer, which is the same whatever its weights.
    start = record.once("models/random", lambda: desk.new_model(tokenizer))
    converted = record.once("models/from-random", lambda: desk.convert(start, "from-random"))
    record.once("data/sft", lambda: desk.tokenize_chats(converted))
    record.once("data/rl", lambda: desk.tokenize_prompts(converted))


def trained(out: Path, seed: int, effort: float, announce: Announce, quiet: bool = False) -> Family:
    """Train a family at desk size into `out`/seed-N, on what `prepare` made.

    Each finished checkpoint is written down, so a stopped call goes on after the last of them.
    """
    folder, shared = out / f"seed-{seed}", _shared(out)
    record = _Record(folder)
    again = "run the same command again to go on"
    desk = Desk(folder, seed, effort, lambda name: announce(f"seed {seed}: {name}"), shared, quiet, again)
    start = record.once("models/random", lambda: desk.new_model(shared / "tokenizer"))
    ar = record.once("runs/ar", lambda: desk.stage(0, start, "pretrain", ""))
    models = {
        "adapted": record.once("models/from-ar", lambda: desk.convert(ar, "from-ar")),
        "scratch": record.once("models/from-random", lambda: desk.convert(start, "from-random")),
    }

    def stage(number: int, model: Path, data: str, name: str) -> Path:
        return record.once(f"runs/{name}", lambda: desk.stage(number, model, data, "", name))

    for arm, tuned in (("adapted", "sft"), ("scratch", "scratch-sft")):
        models[arm] = stage(2, stage(1, models[arm], "pretrain", f"{arm}-1"), "pretrain", f"{arm}-2")
        models[tuned] = stage(3, models[arm], "sft", tuned)
    for estimator in ("coupled", "full-mask", "decoupled"):
        role = "grpo" if estimator == "coupled" else f"grpo-{estimator}"
        models[role] = record.once(f"runs/{role}", partial(desk.grpo, models["sft"], estimator))
    data = shared / "data"
    return Family(
        seed, {role: str(path) for role, path in models.items()}, str(data / "pretrain"), str(data / "rl"), folder
    )


def _shared(out: Path) -> Path:
    return out / "shared"


class _Record:
    """Name -> path of what is finished below a folder; what a stopped attempt left is removed before the next."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "family.json"
        self.made: dict[str, str] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}

    def once(self, name: str, make: Callable[[], Path | None]) -> Path:
        """What `make` makes in `folder`/`name`; it returns the path, or None for that folder."""
        if name not in self.made:
            place = self.folder / name
            if place.is_dir():
                shutil.rmtree(place)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.made[name] = str(make() or place)
            write_json(self.path, self.made)
        return Path(self.made[name])

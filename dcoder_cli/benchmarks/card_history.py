"""How a checkpoint came to be, from what its runs recorded: stages, data by hash, settings. No path of this machine is told."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.config import read_yaml
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.runs import RunFolder, checkpoint_of, model_labels
from dcoder_cli.data import manifest as manifests
from dcoder_cli.training.config import STAGE_NAMES as OF_TRAINING

FACTS = "dcoder_card.json"  # of an exported folder: what its model card says, for programs
STAGE_NAMES = (*OF_TRAINING, "grpo")
# What a reader asks first; the rest is in the run's config.yaml.
_SETTINGS = {
    **dict.fromkeys(range(4), (
        "global_batch", "precision", "weighting", "normalizer", "anneal_steps", "truncate_share", "clean_prefix_share", "lora", "seed",
    )),
    4: (
        "prompts_per_step", "group_size", "inner_iterations", "estimator", "pairs", "kl_coef", "reference_sync", "clip",
        "loss_normaliser", "rewards", "format", "rollout", "precision", "lora", "seed",
    ),
}  # fmt: skip
_OPTIMIZER = ("name", "learning_rate", "schedule", "warmup_steps", "warmup_ratio", "weight_decay")

Facts = dict[str, Any]


def run_of(folder: Path) -> Path | None:
    """The run folder that a checkpoint's folder lies in, None for a model from elsewhere."""
    place = folder.resolve()
    run = place.parent.parent
    return run if place.parent.name == "checkpoints" and (run / "config.yaml").is_file() else None


def stages(folder: Path) -> tuple[list[Facts], str | None]:
    """The stages behind a checkpoint, the earliest first, and the model before them (a hub id or a short name; None: unknown).

    A stage is told as its run folder stands now; before a run that is not here nothing is known. Facts of a stage: `stage`,
    `run`, `began_with`, `steps`, `tokens` (read in training), `completions` (stage 4), `settings`, `data` (`name`, `sha256`, and
    where the folder is still there and still the same `kind`, `sources`, `rows`, `tokens`, `row_length`, `tokenizer`), `heldout`,
    `hardware`, `dcoder`. What no file holds is None.

    Raises:
        UserError: a record is damaged.
    """
    found: list[Facts] = []
    before: str | None = None
    seen: set[Path] = set()
    place: Path | None = folder
    while place is not None and (run := run_of(place)) is not None and run not in seen:
        seen.add(run)
        facts, place, before = _stage(run, place.resolve())
        found.insert(0, facts)
    if place is not None and run_of(place) is None and (earlier := _exported(place)):
        return [*earlier["stages"], *found], earlier["began_with"]
    return found, before


def _exported(folder: Path) -> Facts | None:
    """What an exported folder's own facts say; None where it is no such folder."""
    path = folder / FACTS
    if not path.is_file():
        return None
    try:
        value = jsonl.document(path)
    except UserError as error:
        raise UserError(f"{error}; export the run again") from None
    try:
        found = {"stages": list(value["stages"]), "began_with": value["began_with"]}
        for one in found["stages"]:
            _check(one, {"stage": str, "run": str, "began_with": str, "settings": dict, "data": dict})
            _check(one, dict.fromkeys(("steps", "tokens", "completions"), (int, type(None))))
            _check(one, dict.fromkeys(("heldout", "hardware", "dcoder"), (dict, type(None))))
            _check(one["settings"], {"optimizer": dict})
            _check(one["data"], {"name": str, "sha256": (str, type(None))})
            for source in one["data"].get("sources", []):
                _check(source, {"name": str, "weight": (int, float)})
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({one_line(error)}); export the run again") from None


def _check(value: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for key, kind in kinds.items():
        if not isinstance(value[key], kind):
            raise TypeError(f"{key} is {value[key]!r}")


def _stage(run: Path, checkpoint: Path) -> tuple[Facts, Path | None, str]:
    """A run's facts, the folder of the model that it began with where that is here, and that model's name."""
    record = read_yaml(run / "config.yaml")
    try:
        number, model, data = int(record["stage"]), str(record["model"]), str(record["data"])
        config = dict(record["config"])
        name = STAGE_NAMES[number]
    except (KeyError, TypeError, ValueError, IndexError):
        raise UserError(f"{str(run / 'config.yaml')!r} is no record of a run; mend it, or copy the run again") from None
    starts = RunFolder(run).starts()
    start = starts[0] if starts and isinstance(starts[0], dict) else {}
    step = _step(checkpoint)
    lines = [line for line in RunFolder(run).read("metrics") if step is None or line.get("step", 0) <= step]
    place = _place(model, start)
    packages = start.get("packages") or {}
    began_with = _label(model, place)
    facts: Facts = {
        "stage": name,
        "run": run.name,
        "began_with": began_with,
        "steps": step,
        "tokens": next((line["tokens"] for line in reversed(lines) if "tokens" in line), None),
        "completions": _completions(config, step) if number == 4 else None,
        "settings": {
            **{key: config[key] for key in _SETTINGS[number] if config.get(key) is not None},
            "optimizer": _optimizer(config.get("optimizer") or {}),
        },
        "data": _data(data, record.get("data_sha256"), start),
        "heldout": next((line["heldout"] for line in reversed(lines) if isinstance(line.get("heldout"), dict)), None),
        "hardware": {"device": start.get("device"), "processes": start.get("processes")} if start.get("device") else None,
        "dcoder": {"version": packages.get("dcoder"), "commit": start.get("commit")} if start else None,
    }  # fmt: skip
    return facts, place, began_with


def _optimizer(config: Mapping[str, Any]) -> Facts:
    """Warmup by the setting that decides: a ratio wins over a number of steps."""
    unused = "warmup_steps" if config.get("warmup_ratio") is not None else "warmup_ratio"
    return {key: config[key] for key in _OPTIMIZER if key in config and key != unused}


def _completions(config: Mapping[str, Any], step: int | None) -> int | None:
    """Sampled up to a step of stage 4."""
    prompts, group = config.get("prompts_per_step"), config.get("group_size")
    if step is None or not isinstance(prompts, int) or not isinstance(group, int):
        return None
    return step * prompts * group


def _step(checkpoint: Path) -> int | None:
    with contextlib.suppress(ValueError):
        return int(checkpoint.name.removeprefix("step-"))
    return None


def _place(name: str, start: Mapping[str, Any]) -> Path | None:
    """The folder that a record names, which may be relative to where the run was started; None where there is none."""
    for base in (start.get("folder"), "."):
        path = Path(str(base or "."), Path(name).expanduser())
        if path.is_dir():
            with contextlib.suppress(UserError):
                return checkpoint_of(path)
    return None


def _label(name: str, place: Path | None) -> str:
    """A hub id as it is; of a folder its short name."""
    return name if place is None and name.count("/") == 1 and name[0] not in "./~" else model_labels([name])[0]


def _data(name: str, sha256: Any, start: Mapping[str, Any]) -> Facts:
    facts: Facts = {"name": Path(name).name or name, "sha256": sha256 if isinstance(sha256, str) else None}
    folder = _place(name, start)
    if folder is None:
        return facts
    try:
        if manifests.fingerprint(folder) != sha256:
            return facts  # other rows by now, or a record of before the hash was written
        parts = manifests.manifests(folder)
    except UserError:
        return facts
    manifest = parts[0]
    entries = [entry for part in parts for entry in part["files"] if entry.get("split") == "train"]
    tokens = [((part.get("splits") or {}).get("train") or {}).get("tokens") for part in parts]
    sources = [
        one for one in manifest.get("sources") or [] if isinstance(one, dict) and isinstance(one.get("name"), str)
    ]
    return {
        **facts,
        "kind": manifest["kind"],
        "sources": [{"name": one["name"], "weight": one.get("weight", 1.0)} for one in sources],
        "rows": sum(entry.get("rows", 0) for entry in entries) or None,
        "tokens": None if None in tokens else sum(tokens),
        "row_length": manifest.get("sequence_length"),
        "tokenizer": (manifest.get("tokenizer") or {}).get("hash"),
    }


def hub_datasets(found: list[Facts]) -> list[str]:
    """Hub ids of all data that the stages name, each once, in order. A source's label is hub:NAME[:CONFIG][:SPLIT][#n]."""
    names = [source["name"] for one in found for source in one["data"].get("sources", [])]
    return list(dict.fromkeys(name.split(":")[1].split("#")[0] for name in names if name.startswith("hub:")))

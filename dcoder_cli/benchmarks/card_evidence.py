"""The measurements of a model card, from the files that `dcoder eval` and `dcoder arness` wrote, each asked whose they are.

A file that notes the weights it was measured on (`weights`) must note these; one of an earlier release must name a path or hub
id that leads here to the same checkpoint, and must not be older than it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.base.runs import checkpoint_of

Facts = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """The checkpoint that a card is of: how it was named, where it lies, and its weights' id."""

    name: str
    folder: Path
    weights_id: str

    def fits(self, record: Mapping[str, Any], file: Path) -> bool:
        """Whether a measurement was of this checkpoint."""
        noted, model = record.get("weights"), record.get("model")
        if isinstance(noted, str):
            return noted == self.weights_id
        if not isinstance(model, str) or not model:
            return False
        if not Path(model).expanduser().exists():
            return model == self.name
        try:
            place = checkpoint_of(Path(model).expanduser())
        except UserError:
            return False
        return place.resolve() == self.folder.resolve() and not _moved_since(place, file)


def _moved_since(place: Path, file: Path) -> bool:
    """Whether `place` leads over a run's `last` or `best`, which pointed elsewhere when `file` was written."""
    if place.resolve() == place.absolute():
        return False
    return file.stat().st_mtime < (place / "config.json").stat().st_mtime


def scores(folders: Sequence[Path], subject: Subject) -> list[Facts]:
    """What results.json of each folder (of a comparison: of its parts) says of the subject.

    Raises:
        UserError: no such file, a broken one, or one that says nothing of this checkpoint.
    """
    found: list[Facts] = []
    for folder in folders:
        file = folder / "results.json" if folder.is_dir() else folder
        record = _read(file, "dcoder eval")
        parts = [file]
        if isinstance(record.get("runs"), list):  # several models, temperatures or tasks: each has a folder below
            parts = [
                file.parent / str(run.get("folder")) / "results.json" for run in record["runs"] if isinstance(run, dict)
            ]
        records = [(part, _read(part, "dcoder eval")) for part in parts]
        if all("samples_from" in one for _, one in records):
            raise UserError(
                f"{str(file)!r} scores samples made elsewhere, which name no model; give a folder of `dcoder eval TASK --model`"
            )
        mine = [(part, one) for part, one in records if subject.fits(one, part)]
        if not mine:
            raise _another(file, [one for _, one in records], subject)
        found += [_score(one, part) for part, one in mine]
    return list({json.dumps(one, sort_keys=True): one for one in found}.values())


_KEPT = (
    "task", "subset", "tasks", "tasks_of_benchmark", "n", "protocol", "departures", "settings", "counts", "data", "sandbox_tier",
    "low_trust", "dtype", "device",
)  # fmt: skip


def _score(record: Mapping[str, Any], file: Path) -> Facts:
    try:
        scores = {
            str(metric): {str(k): {end: float(one[end]) for end in ("score", "low", "high")} for k, one in by_k.items()}
            for metric, by_k in record["scores"].items()
        }
        if not scores or not all(scores.values()):
            raise KeyError("scores")
        facts = {key: record.get(key) for key in _KEPT}
        facts["data"] = {key: (record.get("data") or {}).get(key) for key in ("version", "sha256")}
        facts["dcoder"] = ((record.get("environment") or {}).get("packages") or {}).get("dcoder")
        for key, kind in (("settings", dict), ("departures", dict), ("counts", dict), ("task", str)):
            if not isinstance(facts[key], kind):
                raise KeyError(key)
        for key in ("tasks", "tasks_of_benchmark", "n"):
            facts[key] = int(record[key])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{str(file)!r} is no results.json of `dcoder eval` ({one_line(error)}); score the model again"
        ) from None
    return {**facts, "scores": scores}


def orders(files: Iterable[Path], subject: Subject) -> list[Facts]:
    """The AR-ness that each arness.json gives of the subject: a series each, with how it was measured.

    Raises:
        UserError: no such file, a broken one, or one that says nothing of this checkpoint.
    """
    found: list[Facts] = []
    for given in files:
        file = given / "arness.json" if given.is_dir() else given
        record = _read(file, "dcoder arness")
        series = record.get("series")
        if not isinstance(series, list) or not all(isinstance(one, dict) for one in series):
            raise UserError(f"{str(file)!r} is no arness.json of `dcoder arness` (it has no series); measure again")
        mine = [one for one in series if subject.fits(one, file)]
        if not mine:
            raise _another(file, series, subject)
        settings = record.get("settings")
        found += [_order(one, settings if isinstance(settings, dict) else {}, file) for one in mine]
    return found


# Of the settings of a call of `dcoder arness`: those of the sampler, and what was decoded. Prompt files by their name alone.
_ASKED = (
    "max_new_tokens", "steps", "block_length", "rule", "top_p", "top_k", "alg_temperature", "compat", "mode", "tie_break", "seed", "n",
    "tasks", "limit",
)  # fmt: skip


def _order(series: Mapping[str, Any], settings: Mapping[str, Any], file: Path) -> Facts:
    try:
        curves = {}
        for kind in ("local", "global"):
            values = {name: list(series[kind][name]) for name in ("k", "mean", "low", "high", "tie_low", "tie_high")}
            if not values["k"] or len({len(column) for column in values.values()}) > 1:
                raise KeyError(kind)
            curves[kind] = values
        kept = (
            "convention",
            "ties",
            "until",
            "interval_method",
            "tied_share",
            "tie_break",
            "temperature",
            "tokens",
            "commits_per_step",
        )
        facts = {key: series[key] for key in kept}
        facts["samples"] = int(series["samples"])
        facts["label"] = str(series.get("label", ""))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{str(file)!r} is no arness.json of `dcoder arness` ({one_line(error)}); measure again"
        ) from None
    prompts = settings.get("prompts")
    asked = {key: settings[key] for key in _ASKED if settings.get(key) is not None}
    if isinstance(prompts, list) and prompts:
        asked["prompts"] = [Path(str(one)).name for one in prompts]
    return {**facts, **curves, "settings": asked, "departures": settings.get("departures") or {}}


def _another(file: Path, records: Sequence[Mapping[str, Any]], subject: Subject) -> UserError:
    names = ", ".join(dict.fromkeys(repr(one.get("model") or "a model it does not name") for one in records))
    return UserError(
        f"{str(file)!r} was measured on {names}, other weights than {subject.name!r} (by the weights it notes, else by the path); "
        "leave it out, or measure this checkpoint"
    )


def _read(file: Path, command: str) -> Facts:
    try:
        return jsonl.document(file)
    except UserError as error:
        raise UserError(f"{error}; give a folder that `{command}` wrote") from None

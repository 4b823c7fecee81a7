"""A run in an Accelerate tracker (TensorBoard, Weights & Biases ...): its name, all settings, every number that is logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dcoder_cli.base.schema import MOST_FLOAT

PROJECT = "dcoder"
# Where Accelerate gives a tracker its project alone: the option of the tracker's own start that takes the run's name.
# For the others (TensorBoard, Aim ...) the project's place is the run's name.
_NAME = {"wandb": "name", "trackio": "name", "swanlab": "experiment_name", "mlflow": "run_name", "clearml": "task_name"}


@dataclass(frozen=True)
class Tracking:
    """Where a run is tracked. It stands in the run's record, so that a resumed run goes on there.

    Attributes:
        tracker: one of Accelerate's, for example "tensorboard".
        name: the run's name in it.
        id: the same as long as the run lives; by it Weights & Biases goes on with the same curves.
    """

    tracker: str
    name: str
    id: str


def begin(accelerator: Any, tracking: Tracking, start: int, record: Mapping[str, Any]) -> None:
    """Open the tracker, and give it the run's record as hyperparameters.

    Args:
        accelerator: made with `log_with=tracking.tracker`.
        tracking: see there.
        start: the step of the checkpoint that the run goes on from, 0 for a new run.
        record: what config.yaml holds.
    """
    track = tracking.tracker
    options: dict[str, Any] = {_NAME[track]: tracking.name} if track in _NAME else {}
    if track == "wandb":
        options |= {"id": tracking.id, "resume": "allow"}
    if track == "clearml":
        options["project_name"] = PROJECT
    if track == "tensorboard" and start:
        options["purge_step"] = start + 1  # what a stopped run told of later steps comes again
    settings = flat({name: value for name, value in record.items() if name not in ("config", "tracking")})
    accelerator.init_trackers(
        PROJECT if track in _NAME else tracking.name,
        config={**settings, **flat(record["config"])},
        init_kwargs={track: options},
    )


def to_record(tracking: Tracking | None) -> dict[str, Any]:
    """Its part of a run's record."""
    return {} if tracking is None else {"tracking": asdict(tracking)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings by dotted keys, each a value that a tracker takes: a list as its text, null as "null"."""
    result: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= flat(value, f"{name}.")
        elif value is None:
            result[name] = "null"
        else:
            result[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return result


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line of metrics by names with slashes, for curves: nested ones, and each of a list's by its place.

    A source of the held-out rows is called by its name. Text and what is not known (null) is left out.
    """
    result: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= numbers(value, f"{name}/")
        elif isinstance(value, (list, tuple)):
            named = {
                str(item.get("name", place)) if isinstance(item, Mapping) else str(place): item
                for place, item in enumerate(value)
            }
            result |= numbers(named, f"{name}/")
        elif isinstance(value, float) or (type(value) is int and abs(value) < MOST_FLOAT):
            result[name] = value
    return result

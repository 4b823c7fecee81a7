"""What the files of a run folder must hold: config.yaml, environment.json, metrics.jsonl and timings.jsonl.

And those of an evaluation's folder: samples.jsonl and judged.jsonl.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.config import read_yaml
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.schema import Format, Least


@dataclass(frozen=True)
class RunRecord:
    """config.yaml; the settings in `config` are checked where they are used."""

    stage: Annotated[int, Least(0)]
    model: str
    data: str
    config: dict[str, Any]
    data_sha256: str | None = None


@dataclass(frozen=True)
class RunStart:
    """A start in environment.json."""

    preset: str | None = None
    folder: str | None = None
    commit: str | None = None
    packages: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStarts:
    """environment.json."""

    starts: list[RunStart]


@dataclass(frozen=True)
class LogLine:
    """A line of metrics.jsonl or timings.jsonl."""

    step: Annotated[int, Least(0)]
    tokens: Annotated[int, Least(0)] | None = None
    heldout: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sampled:
    """A line of samples.jsonl. What was not made here has no counts."""

    task_id: str
    sample: Annotated[int, Least(0)]
    text: str
    tokens: int = 0
    forwards: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class JudgedLine:
    """A line of judged.jsonl."""

    task_id: str
    sample: Annotated[int, Least(0)]
    status: str
    tier: str | None = None


RUN = Format("run's record", RunRecord, "mend it, copy the run again, or start another with another --out")
STARTS = Format("run's environment", RunStarts, "move it away, and what it tells of earlier starts is lost")
LOG = Format("log", LogLine, "mend or remove that line")
SAMPLES = Format("samples file", Sampled, "mend or remove that line")
JUDGED = Format("verdicts", JudgedLine, "mend or remove that line")
LOGS = ("metrics", "timings")


def read_run(path: Path) -> dict[str, Any]:
    """A run's config.yaml. Raises UserError where it is no YAML, or no record of a run."""
    record = read_yaml(path)
    RUN.check(record, f"{RUN.what} {str(path)!r}")
    return record


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The starts in an environment.json, the first one first. Raises UserError where it is none."""
    try:
        value = jsonl.document(path, STARTS.what)
    except UserError as error:
        raise UserError(f"{error}; {STARTS.remedy}") from None
    starts = value.get("starts", [value])  # an earlier release kept the last start alone
    STARTS.check({"starts": starts}, f"{STARTS.what} {str(path)!r}")
    return list(starts)

"""A decoding as data: which token was committed where, at which step, with what confidence.

Everything that looks at decoding order (AR-ness, plots, coloured text, RL monitors) reads this,
and a line of JSON holds one, so any system's decoding can be measured.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import write_jsonl
from dcoder_cli.base.jsonl import lines


@dataclass(frozen=True)
class Trajectory:
    """One decoded sample.

    Attributes:
        id: name of the sample, for example a task id.
        prompt: the prompt as text ("" where ids were given and there is no tokenizer).
        tokens: ids of the new tokens, in text order, all of them (also those after an end of turn).
        text: the decoded text up to the first end of text, pad or end of turn.
        reveal_step: for each new token the denoising step (from 0) at which it was committed.
        confidence: probability of the committed token under the model (temperature 1, nothing filtered) at that step.
        entropy: entropy in nats of the same distribution.
        prompt_length: number of prompt tokens.
        model: name or path of the model.
        settings: the sampler's settings and counts (steps, rule, temperature, forwards, seconds ...).
        tied: for each new token whether its commit was decided by a tie: the rule scored another candidate that was
            not committed exactly as high. `settings["tie_break"]` says how such ties were broken. None: unknown.
        tied_from: for each new token the first of the unbroken run of steps, up to its commit, at which it could have
            been committed had ties fallen otherwise; `reveal_step` where it stood in no tie. None: unknown.
        suffix: of an infill, the text after the hole, with which `prompt` ends; None: no infill.
    """

    id: str
    prompt: str
    tokens: list[int]
    text: str
    reveal_step: list[int]
    confidence: list[float]
    entropy: list[float]
    prompt_length: int
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    tied: list[bool] | None = None
    tied_from: list[int] | None = None
    suffix: str | None = None

    @property
    def prefix(self) -> str:
        """The text before what was written: the prompt, of an infill without the suffix."""
        return self.prompt.removesuffix(self.suffix or "")

    def order(self) -> list[list[int]]:
        """Positions committed at each step that committed any, in step order; ascending within a step."""
        steps: dict[int, list[int]] = {}
        for position, step in enumerate(self.reveal_step):
            steps.setdefault(step, []).append(position)
        return [steps[step] for step in sorted(steps)]

    def to_json(self) -> dict[str, Any]:
        """The record of DESIGN.md section 4, ties where they are known; floats rounded to 5 significant digits.

        An infill has `prefix`, `hole` and `suffix` besides, the parts of the whole text; its hole is its `text`.
        """
        ties = {"tied": self.tied, "tied_from": self.tied_from}
        return {
            "id": self.id,
            "prompt": self.prompt,
            "tokens": self.tokens,
            "text": self.text,
            **({} if self.suffix is None else {"prefix": self.prefix, "hole": self.text, "suffix": self.suffix}),
            "reveal_step": self.reveal_step,
            **{name: values for name, values in ties.items() if values is not None},
            "confidence": [_short(value) for value in self.confidence],
            "entropy": [_short(value) for value in self.entropy],
            "prompt_length": self.prompt_length,
            "model": self.model,
            "settings": self.settings,
        }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def write(path: str | Path, trajectories: Iterable[Trajectory]) -> None:
    """Write a trajectory file (JSON lines), atomically."""
    write_jsonl(path, (trajectory.to_json() for trajectory in trajectories))


def read(path: str | Path) -> list[Trajectory]:
    """Read a trajectory file.

    Only `reveal_step` is required of a line, so other systems can write it.

    Raises:
        UserError: the file, or a line of it, is broken; the message names the line.
    """
    trajectories = [from_record(value, f"{path} line {number}") for number, value in lines(path, "trajectory file")]
    if not trajectories:
        raise UserError(
            f"trajectory file {str(path)!r} holds no trajectory; write one with `dcoder generate --trajectories`"
        )
    return trajectories


def from_record(record: Any, where: str) -> Trajectory:
    """One line's value as a trajectory. Raises UserError, which begins with `where`, for what is none."""
    if not isinstance(record, dict) or not isinstance(record.get("reveal_step"), list):
        raise UserError(
            f"{where} has no list 'reveal_step'; a trajectory gives each new token the step that committed it"
        )
    steps = record["reveal_step"]
    for position, step in enumerate(steps):
        if type(step) is not int or not 0 <= step < 2**63:
            raise UserError(
                f"{where}: reveal_step[{position}] is {reprlib.repr(step)}; every new token needs the step (0, 1, ..) that committed it"
            )
    length = len(steps)
    if not length:
        raise UserError(f"{where}: reveal_step is empty; there is no token to measure")
    prompt_length = _said(record, "prompt_length", 0)
    if type(prompt_length) is not int or prompt_length < 0:
        raise UserError(f"{where}: prompt_length is {prompt_length!r}; it must be a number of tokens")
    return Trajectory(
        tokens=[int(token) for token in _column(record, "tokens", length, where, 0)],
        reveal_step=steps,
        confidence=[float(value) for value in _column(record, "confidence", length, where, math.nan)],
        entropy=[float(value) for value in _column(record, "entropy", length, where, math.nan)],
        prompt_length=prompt_length,
        suffix=str(record["suffix"]) if isinstance(record.get("suffix"), str) else None,
        **read_names(record, where),
        **read_ties(record, steps, where),
    )


def read_names(record: dict[str, Any], where: str) -> dict[str, Any]:
    """What a record in any form says of its sample: `id`, `prompt`, `text`, `model` and `settings`; null is unsaid.

    Raises:
        UserError: `settings` are none; the message begins with `where`.
    """
    settings = _said(record, "settings", {})
    if not isinstance(settings, dict):
        raise UserError(f"{where}: settings is {reprlib.repr(settings)}; it must be an object of names and values")
    texts = {name: str(_said(record, name, "")) for name in ("prompt", "text", "model")}
    return {"id": str(_said(record, "id", where)), **texts, "settings": settings}


def _said(record: dict[str, Any], name: str, default: Any) -> Any:
    return default if record.get(name) is None else record[name]


def read_ties(record: dict[str, Any], steps: list[int], where: str) -> dict[str, Any]:
    """`tied` and `tied_from` of a record whose `reveal_step` is `steps`, where it has them.

    Raises:
        UserError: they do not fit the steps; the message begins with `where`.
    """
    ties: dict[str, Any] = {}
    for name, kind, fits in (
        ("tied", "true or false", lambda value, _: isinstance(value, bool)),
        ("tied_from", "a step from 0 to its commit", lambda value, step: type(value) is int and 0 <= value <= step),
    ):
        values = record.get(name)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != len(steps):
            size = len(values) if isinstance(values, list) else "no list"
            raise UserError(f"{where}: {name} has {size} entries but reveal_step has {len(steps)}; they must match")
        for position, (value, step) in enumerate(zip(values, steps, strict=True)):
            if not fits(value, step):
                raise UserError(f"{where}: {name}[{position}] is {value!r}; it must be {kind}")
        ties[name] = values
    return ties


def _column(record: dict[str, Any], name: str, length: int, where: str, default: float) -> Sequence[Any]:
    values = record.get(name)
    if values is None:
        return [default] * length
    if not isinstance(values, list) or len(values) != length:
        size = len(values) if isinstance(values, list) else "no list"
        raise UserError(f"{where}: {name} has {size} entries but reveal_step has {length}; they must match")
    check_numbers(values, name, where)
    return values


def check_numbers(values: Sequence[Any], name: str, where: str) -> None:
    """Raises UserError, which begins with `where`, for what is no number in a column; in `tokens`, for what is no id."""
    for position, value in enumerate(values):
        if name == "tokens" and (type(value) is not int or not 0 <= value < 2**63):
            raise UserError(
                f"{where}: tokens[{position}] is {reprlib.repr(value)}; a token id is a whole number from 0"
            )
        if (
            not isinstance(value, (int, float))
            or isinstance(value, bool)
            or (type(value) is int and abs(value) > 2**63)
        ):
            raise UserError(f"{where}: {name}[{position}] is {reprlib.repr(value)}, not a number")

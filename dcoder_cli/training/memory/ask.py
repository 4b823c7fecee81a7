"""From a preset, a model and hardware to the cases whose memory is asked for: what `dcoder presets fit` calls."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dcoder_cli.base import presets
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.presets import Hardware
from dcoder_cli.base.ranges import Scale, check_number
from dcoder_cli.training.config import STAGES, StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.memory.case import ROWS, Case, Decoding, spread_of
from dcoder_cli.training.memory.fit import Fit, fit
from dcoder_cli.training.memory.shape import read_config, shape_of

SECTIONS = ("stage0", "stage1", "stage2", "stage3", "grpo", "generate", "eval")
EVALUATED = (
    1024  # new tokens of an evaluation: of the protocols the longest, Dream's for MBPP (benchmarks/protocols.py)
)


@dataclass(frozen=True)
class FitQuestion:
    """What is asked: of a preset's sections on its hardware, or on other; None where nothing was said.

    Attributes:
        stages: as train-stage names them (0 to 3, ar to sft), grpo, generate or eval; none = all that the preset has.
        settings: over the preset's, for the stages asked.
        tokens: of a row; of stage 4, generate and eval: of a prompt.
    """

    preset: str | None = None
    model: str | None = None
    gpus: int | None = None
    gpu_memory: float | None = None
    stages: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class FitAnswer:
    """What came out: of which preset, on what, and a Fit for each section."""

    preset: str
    hardware: Hardware
    fits: dict[str, Fit]


def answer(asked: FitQuestion) -> FitAnswer:
    """The memory of every section asked for.

    Raises:
        UserError: a preset, model, stage or setting that is wrong, or hardware that is not.
    """
    if asked.preset is None and asked.model is None:
        raise UserError("presets fit needs --preset or --model; `dcoder presets list` names the presets")
    sections = [_section(name) for name in asked.stages]
    if asked.settings and not sections:
        raise UserError("--set changes a stage's settings; name it with --stage")
    for name, value in (("--gpus", asked.gpus), ("--gpu-memory", asked.gpu_memory), ("--tokens", asked.tokens)):
        check_number(name, value, Scale)
    shape = shape_of(read_config(asked.model), asked.model) if asked.model is not None else None
    if asked.preset is not None:
        name = asked.preset
    else:
        from dcoder_cli.training.launch import nearest_preset

        assert shape is not None
        name = nearest_preset(shape.parameters)
    values = presets.load(name)
    if "hardware" not in values and asked.model and asked.gpus and asked.gpu_memory:  # of a preset of the user's own
        hardware = Hardware(asked.model, asked.gpus, asked.gpu_memory)
    else:
        hardware = presets.hardware(name)
    if shape is None:
        shape = shape_of(read_config(hardware.model), hardware.model)
    cpu = hardware.gpus == 0 and asked.gpus is None
    changed = replace(
        hardware, model=shape.name,
        gpu_memory_gb=asked.gpu_memory if asked.gpu_memory is not None else hardware.gpu_memory_gb,
        gpus=asked.gpus if asked.gpus is not None else hardware.gpus,
        machines=hardware.machines if asked.gpus is None else max(1, -(-asked.gpus // 8)) if asked.gpus % 8 == 0 else 1,
        sections=hardware.sections if asked.gpus is None else {},
    )  # fmt: skip
    rows = {**ROWS, **hardware.rows}
    if asked.tokens is not None:
        rows = dict.fromkeys(rows, asked.tokens)
    fits = {}
    for section in sections or [one for one in SECTIONS if one in values or (one == "eval" and "generate" in values)]:
        layer = values.get(section) or {}
        if section not in values and section != "eval":
            raise UserError(f"preset {name!r} has no section {section!r}; it has {', '.join(values)}")
        gpus = changed.gpus_for(section)
        spread = spread_of(values.get("launch", {}), gpus)
        if spread == "one" and gpus > 1:
            spread = "fsdp"
        longest = max(1, shape.context - rows["question"])
        case = Case(section, shape, _config(section, layer, asked.settings or {}, longest), spread, gpus, rows, cpu)
        _check(case)
        fits[section] = fit(case, changed.gpu_memory_gb, cpu)
    return FitAnswer(name, changed, fits)


def _section(stage: str) -> str:
    if stage in STAGES:
        return f"stage{STAGES[stage]}"
    if stage in SECTIONS:
        return stage
    raise UserError(f"stage {stage!r} is unknown; use {', '.join([*STAGES, *SECTIONS[4:]])}")


def _config(
    section: str, layer: Mapping[str, Any], settings: Mapping[str, Any], longest: int
) -> StageConfig | GrpoConfig | Decoding:
    if section == "grpo":
        return build(GrpoConfig, layer, settings, where="grpo")
    if section.startswith("stage"):
        return build(StageConfig, layer, settings, where=section)
    known = {"max_new_tokens": min(EVALUATED, longest)} if section == "eval" else {}
    known |= {key: layer[key] for key in ("max_new_tokens", "batch_size", "mode", "logits_mib") if key in layer}
    return build(Decoding, known, settings, where=section)


def _check(case: Case) -> None:
    """Raises UserError where the stage itself would refuse to run on so many processes."""
    config, gpus = case.config, case.gpus
    if isinstance(config, StageConfig) and config.global_batch % gpus:
        raise UserError(f"{case.section}: global_batch = {config.global_batch} must be a multiple of the {gpus} GPUs")
    if isinstance(config, GrpoConfig) and config.prompts_per_step % gpus:
        raise UserError(
            f"{case.section}: prompts_per_step = {config.prompts_per_step} must be a multiple of the {gpus} GPUs"
        )


def as_json(found: FitAnswer) -> dict[str, Any]:
    """The answer for programs: bytes by part and phase, the verdict, and the settings that fit."""
    from dcoder_cli.base.config import to_dict

    def choice(one: Any) -> dict[str, Any] | None:
        return None if one is None else {"settings": one.told(), "bytes": round(one.total), "gpus": one.case.gpus}

    sections = {
        name: {
            "gpus": one.case.gpus, "spread": one.case.spread, "fits": one.fits, "bytes": round(one.estimate.total),
            "budget": round(one.budget), "peak": one.estimate.peak_phase,
            "parts": {part: round(value) for part, value in one.estimate.parts.items()},
            "phases": {
                phase: {part: round(value) for part, value in held.items()} for phase, held in one.estimate.phases.items()
            },
            "fastest": choice(one.fastest), "speed": round(one.speed, 2),
            "otherwise": [choice(other) for other in one.otherwise],
        }
        for name, one in found.fits.items()
    }  # fmt: skip
    return {"preset": found.preset, "hardware": to_dict(found.hardware), "sections": sections}


def table(found: FitAnswer) -> list[str]:
    """The answer for people, in lines of at most 80 columns."""
    hardware = found.hardware
    cards = (
        f"{hardware.gpus} x {hardware.gpu_memory_gb:g} GB"
        if hardware.gpus
        else f"a CPU with {hardware.gpu_memory_gb:g} GB"
    )
    room = next(iter(found.fits.values())).budget
    most = max(one.estimate.total for one in found.fits.values())
    unit, name = (1024**3, "GiB") if most > 1024**3 else (1024**2, "MiB")
    each = "GPU" if hardware.gpus else "process"
    lines = [
        f"{found.preset}: {hardware.model} on {cards}",
        f"{name} of each {each}; {room / unit:.1f} of them can be planned with",
    ]
    lines.append(" " * 8 + "".join(f"{head:>{width}}" for head, width in _COLUMNS))
    for section, one in found.fits.items():
        numbers = [*one.estimate.parts.values(), one.estimate.total]
        cells = "".join(f"{value / unit:>{width}.1f}" for (_, width), value in zip(_COLUMNS, numbers, strict=True))
        lines.append(f"{section:8}{cells} {'ok' if one.fits else 'NO'}")
    for section, one in found.fits.items():
        lines += [part for line in advice(section, one) for part in textwrap.wrap(line, 80, subsequent_indent="  ")]
    return lines


_COLUMNS = (
    ("weights", 8), ("grads", 7), ("moments", 8), ("refer.", 7), ("gather.", 8), ("activ.", 7), ("logits", 7), ("cache", 7),
    ("total", 7),
)  # fmt: skip


def advice(section: str, one: Fit) -> list[str]:
    """The settings that would fit, or be faster, a line each."""
    if one.fits:
        if one.fastest is None or not one.fastest.changes or one.speed < 1.05:
            return []
        return [f"{section}: fastest that fits: {one.fastest.told()} ({one.speed:.1f} x)"]
    lines = []
    if one.fastest is not None:
        lines.append(f"{section}: fits with {one.fastest.told()}")
    lines += [f"{section}: fits with {other.told()}" for other in one.otherwise]
    return lines or [f"{section}: no settings that were tried fit"]

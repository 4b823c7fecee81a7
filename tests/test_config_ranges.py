"""Numbers of settings: every one has a range or says why it has none, and what lies outside is one line."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from helpers import refused

from dcoder_cli.base import presets
from dcoder_cli.base.config import build, known_keys, parse_assignments
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.presets import Hardware
from dcoder_cli.base.ranges import Range
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.experiments.quantities import StudySettings
from dcoder_cli.training.config import LoraConfig, OptimizerConfig, StageConfig
from dcoder_cli.training.grpo.config import GrpoConfig, RolloutConfig
from dcoder_cli.training.memory.case import Decoding

CONFIGS: dict[type, dict[str, Any]] = {  # with what must be given
    StageConfig: {},
    GrpoConfig: {"reference_sync": 0},
    Settings: {"mode": "fast"},
    Hardware: {"model": "tiny", "gpus": 1, "gpu_memory_gb": 1},
    Decoding: {},
    StudySettings: {},
}
NUMBERS = (int, float)


def leaves(hint: Any) -> Iterator[tuple[Any, Range | None]]:
    """The number types in an annotation, each with its range."""
    if get_origin(hint) is Annotated:
        kind, *more = get_args(hint)
        ranges = [one for one in more if isinstance(one, Range)]
        for inner, own in leaves(kind):
            yield inner, own or (ranges[0] if ranges else None)
    elif hint in NUMBERS:
        yield hint, None
    else:
        for one in get_args(hint):
            if isinstance(one, type) or get_origin(one) is not None:
                yield from leaves(one)


def numeric_keys(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, Range | None]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inner = next(
            (one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one) and isinstance(one, type)), None
        )
        if inner is not None:
            yield from numeric_keys(inner, f"{prefix}{field.name}.")
        else:
            for number, own in leaves(hint):
                yield prefix + field.name, number, own


KEYS = [(kind, *key) for kind in CONFIGS for key in numeric_keys(kind)]


def test_every_number_of_every_configuration_has_a_range_or_a_reason_for_none() -> None:
    assert len(KEYS) > 90
    for kind, name, _, own in KEYS:
        assert own is not None, f"{kind.__name__}.{name} has no Range"
        bounded = any(end is not None for end in (own.least, own.most, own.above, own.below))
        assert bounded != bool(own.free), f"{kind.__name__}.{name} wants bounds, or a reason for none"
    walked = {(kind, name) for kind, name, _, _ in KEYS}
    for kind in CONFIGS:  # and nothing numeric is known that the walk above does not see
        for key in known_keys(kind):
            value = dataclasses.asdict(build(kind, CONFIGS[kind]))
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None  # type: ignore[assignment]
            if isinstance(value, NUMBERS) and not isinstance(value, bool):
                assert (kind, key) in walked, key


def put(name: str, value: Any, kind: type) -> dict[str, Any]:
    hint: Any = kind
    for part in name.split("."):
        hints = typing.get_type_hints(hint, include_extras=True)
        found = hints[part]
        hint = next(
            (one for one in (found, *get_args(found)) if dataclasses.is_dataclass(one) and isinstance(one, type)), found
        )
    if get_origin(hint) is tuple:
        value = [value] * len(get_args(hint))
    if get_origin(hint) is dict:
        value = {"code" if part == "rewards" else "pretrain": value}
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(
    "given",
    [-1, 0, math.nan, math.inf, -math.inf, 1e30, -1e30, 10**30, 2**63, "9" * 5000, 16**5000],
    ids=lambda given: (
        f"{given:.20}" if isinstance(given, str) else hex(given)[:20] if isinstance(given, int) else str(given)
    ),
)
def test_an_extreme_number_is_refused_in_one_line_or_lies_in_its_range(given: Any) -> None:
    """Over every numeric key of every configuration, as --set and as files give it."""
    for kind, name, number, own in KEYS:
        assert own is not None
        try:
            built = build(kind, CONFIGS[kind], put(name, given, kind))
        except UserError as error:
            line = str(error)
            assert "\n" not in line and len(line) < 400 and name.rpartition(".")[2] in line, (kind, name, line)
            continue
        value: Any = built
        for part in name.split("."):
            value = getattr(value, part)
        values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        for one in values:
            assert own.holds(one) and not math.isnan(one) and (own.infinite or math.isfinite(one)), (kind, name, one)
            assert number is float or one < 2**63, (kind, name, one)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (StageConfig, "optimizer.max_grad_norm=-1", "optimizer.max_grad_norm = -1.0 must be 0 or more; null does not clip"),
        (StageConfig, "optimizer.weight_decay=.nan", "optimizer.weight_decay = nan in .* must be a number"),
        (StageConfig, "optimizer.weight_decay=-0.1", "optimizer.weight_decay = -0.1 must lie between 0 and"),
        (StageConfig, "optimizer.betas=[1,2]", "optimizer.betas = 1.0 must be at least 0 and below 1"),
        (StageConfig, "optimizer.learning_rate=.inf", "optimizer.learning_rate = inf must be above 0"),
        (StageConfig, "epochs=nan", "epochs = 'nan' in .* must be a number"),
        (StageConfig, "epochs=.inf", "epochs = inf must be above 0"),
        (StageConfig, "seed=-1", "seed = -1 must lie between 0 and"),
        (StageConfig, "steps=0", "steps = 0 must be at least 1, or null for epochs"),
        (StageConfig, "optimizer={learning_rate: 0.1, weight_decay: 20}", "weight_decay = 20 times learning_rate = 0.1 must be"),
        (StageConfig, f"micro_batch=0x{'f' * 5000}", "micro_batch = a number of more than 4,300 digits must lie"),
        (GrpoConfig, "rewards={code: .nan}", "rewards.code = nan"),
        (GrpoConfig, "rewards={code: .inf}", "rewards.code = inf must be a finite number"),
        (GrpoConfig, "rollout.top_p=0", "rollout.top_p = 0.0 must be above 0 and at most 1"),
        (GrpoConfig, "kl_coef=.inf", "kl_coef = inf must lie between 0 and"),
        (Settings, "temperature=.inf", "temperature = inf must be a finite number, at least 0; 0 is argmax"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_wrong_number(kind: type, given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(kind, parse_assignments([given]), where="x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(max_grad_norm=-1.0), "optimizer.max_grad_norm = -1.0"),
        (lambda: OptimizerConfig(betas=(0.9, math.nan)), "optimizer.betas = nan"),
        (lambda: LoraConfig(rank=0), "lora.rank = 0 must lie .*lora=null trains all weights"),
        (lambda: RolloutConfig(temperature=0.0), "rollout.temperature = 0.0 must be above 0"),
        (lambda: GrpoConfig(rewards={"code": math.nan}), "rewards.code = nan"),
        (lambda: Settings(top_k=0), "top_k = 0 must be at least 1"),
        (lambda: StudySettings(hot=math.nan), "hot = nan"),
    ],
)
def test_python_code_is_told_the_same(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_what_has_a_meaning_is_taken() -> None:
    for none in (None, 0.0, math.inf):
        assert OptimizerConfig(max_grad_norm=none).max_grad_norm == none
    assert GrpoConfig(clip=math.inf).clip == math.inf and GrpoConfig(rewards={"code": -1.0}).rewards["code"] == -1
    assert Settings(seed=-5).seed == -5 and Settings(stop_penalty=-50.0).stop_penalty == -50
    assert StageConfig(steps=None, epochs=0.001).total_steps(10) == 1


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("hardware: {model: tiny, gpus: -1, gpu_memory_gb: 8}", "hardware.gpus|gpus = -1 must be 0 or more"),
        ("hardware: {model: tiny, gpus: 1, gpu_memory_gb: .nan}", "gpu_memory_gb = nan"),
        ("hardware: {model: tiny, gpus: 1, gpu_memory_gb: 8, rows: {sft: 0}}", "rows.sft = 0 must be at least 1"),
        ("eval: {batch_size: 0}", "batch_size = 0 must lie between 1"),
        ("eval: {batch_size: .nan}", "batch_size = nan must be a whole number"),
        ("launch: {num_processes: -1}", "num_processes = -1 must be at least 1"),
        ("launch: {num_machines: 1.5}", "num_machines = 1.5 must be a whole number"),
        ("launch: {main_process_port: 70000}", "main_process_port = 70000 must lie between 0 and 65535"),
    ],
)
def test_the_other_sections_of_a_preset_too(section: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(section + "\n")
    read: Any = {"hardware": presets.hardware, "eval": presets.evaluation, "launch": presets.launch}
    with pytest.raises(UserError, match=message):
        read[section.partition(":")[0]](str(file))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("quickstart --seed -1", "--seed"),
        ("quickstart --step-scale inf", "--step-scale inf must be above 0"),
        ("reproduce --step-scale nan", "--step-scale nan must be above 0"),
        ("reproduce --seeds 99999999999", "--seeds 99999999999 must lie between 1 and 10000"),
        ("reproduce --jobs -1", "--jobs -1 must be at least 1"),
        ("reproduce --top-p nan", "top_p = nan"),
        ("presets fit --preset paper --gpu-memory nan", "--gpu-memory nan must be above 0"),
        ("presets fit --preset paper --tokens -1", "--tokens -1 must be above 0"),
        ("generate --replay x --delay nan", "--delay nan must lie between 0 and 3600 seconds"),
        ("serve x --timeout inf", "--timeout inf must be above 0"),
    ],
)
def test_options_that_are_no_settings_have_ranges_too(command: str, message: str, tmp_path: Path) -> None:
    words = command.split()
    out = ["--out", str(tmp_path / "out")] if words[0] in ("quickstart", "reproduce") else []
    assert message in refused(*words, *out)
    assert not (tmp_path / "out").exists()

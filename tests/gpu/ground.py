"""Real runs of all stages at a place's sizes, with random weights: their metrics, seconds and peak of memory."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers import make_prompts, make_shards
from memory_runs import Enough
from places import Place, drawing, note, outline, peak_of

from dcoder_cli.base.config import build
from dcoder_cli.model.tokenizer import load_tokenizer
from dcoder_cli.training import denoise
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.grpo import train as grpo
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.memory.case import ROWS, Case, Decoding
from dcoder_cli.training.memory.parts import MemoryEstimate
from dcoder_cli.training.memory.shape import shape_of

PROMPT = "x = 1\n" * 12  # of stage 4
HOPPER = 989e12  # dense bf16 operations a second of an H100 or H200 SXM (NVIDIA's data sheet)
NEAR = 0.15  # how far the formula may be off: what docs/sizes.md says of it


def spread(prompt: dict[str, Any], text: str) -> float:
    """The reward of stage 4 here: it needs no sandbox, and hardly two texts have the same."""
    return sum(map(ord, text)) % 97 / 97


@dataclass(frozen=True)
class Ran:
    """Attributes: steps, laps: lines of metrics.jsonl and timings.jsonl, one a step; peak: bytes."""

    steps: list[dict[str, Any]]
    laps: list[dict[str, Any]]
    peak: int

    def median(self, name: str, warm: int) -> float:
        """Of a lap, over the steps after the first `warm`."""
        return float(statistics.median(lap[name] for lap in self.laps[warm:]))


@dataclass(frozen=True)
class Ground:
    """A model of a size without weights, and data for all stages, in a folder.

    Attributes: rows, length: of the one batch that training reads again and again.
    """

    place: Place
    folder: Path
    size: str
    rows: int = 4
    length: int = 32
    model: dict[str, Path] = field(default_factory=dict)

    def outline(self, kind: str) -> Path:
        """The model, `dream` or `ar`."""
        if kind not in self.model:
            self.model[kind] = outline(self.folder / kind, self.place.size(self.size), kind)
        return self.model[kind]

    def data(self, kind: str) -> Path:
        """The one batch of kind pretrain or sft, or the prompts of stage 4."""
        target = self.folder / kind
        if target.exists():
            return target
        if kind == "prompts":
            return make_prompts(target, [{"task_id": f"t{i}", "prompt": PROMPT + "y" * i} for i in range(4)])
        tokenizer = load_tokenizer(self.outline("dream" if kind == "sft" else "ar"))
        return make_shards(target, tokenizer, kind, self.rows, self.length, heldout=0)

    def stage(
        self, number: int, out: Path, until: int, resume: bool = False, measure: bool = False, **changes: Any
    ) -> Ran:
        """Stage 0 to 3 up to step `until`, and no checkpoint at its end. `changes`: its settings."""
        config = self.stage_config(**changes)
        model = self.outline("ar" if number == 0 else "dream")
        data = self.data("sft" if number == 3 else "pretrain")

        def on_step(step: int, total: int, loss: float) -> None:
            if step == until:
                raise Enough

        arguments = (number, str(model), str(data), str(out), config, resume, self._device)
        return self._run(out, measure, lambda: denoise.train(*arguments, quiet=True, on_step=on_step))

    def stage_config(self, **changes: Any) -> StageConfig:
        """Its settings: one batch, in bf16, all places asked (t near 1), a plain mean over them."""
        plain: dict[str, Any] = {
            "steps": 1000, "global_batch": self.rows, "micro_batch": self.rows, "precision": "bf16", "t_min": 0.999,
            "weighting": "uniform", "normalizer": "masked", "evaluate_every": 0, "checkpoint_every": 0,
            "optimizer": {"learning_rate": self.place.pick(1e-3, 1e-2), "warmup_steps": 0, "schedule": "constant"},
        }  # fmt: skip
        return build(StageConfig, plain, changes)

    def grpo(self, out: Path, until: int, measure: bool = False, **changes: Any) -> Ran:
        """Stage 4 up to step `until`, and no checkpoint at its end."""
        config = self.grpo_config(**changes)

        def on_step(step: int, total: int, metrics: dict[str, float]) -> None:
            if step == until:
                raise Enough

        arguments = (str(self.outline("dream")), str(self.data("prompts")), str(out), config, False, self._device)
        return self._run(out, measure, lambda: grpo.train(*arguments, quiet=True, on_step=on_step), lively=True)

    def grpo_config(self, **changes: Any) -> GrpoConfig:
        """Its settings: two prompts of four completions, two updates on each, the reference moved after three."""
        plain: dict[str, Any] = {
            "steps": 1000, "prompts_per_step": 2, "group_size": 4, "micro_batch": 4, "precision": "bf16", "kl_coef": 0.01,
            "reference_sync": 3, "rewards": {"ground:spread": 1.0}, "samples_every": 0, "checkpoint_every": 0,
            "rollout": {"max_new_tokens": self.place.pick(64, 8)},
        }  # fmt: skip
        return build(GrpoConfig, plain, changes)

    def fitted(self, section: str, config: StageConfig | GrpoConfig | Decoding, **rows: int) -> MemoryEstimate:
        """What `dcoder presets fit` counts for it; `rows`: tokens by kind of data, where not this ground's own."""
        kind = "ar" if section == "stage0" else "dream"
        shape = shape_of(json.loads((self.outline(kind) / "config.json").read_text()), self.size)
        prompt = len(load_tokenizer(self.outline("dream"))(PROMPT + "yyy")["input_ids"])
        known = {**ROWS, "pretrain": self.length, "sft": self.length, "prompt": prompt, **rows}
        return Case(section, shape, config, rows=known, cpu=not self.place.card).estimate()

    @property
    def _device(self) -> str | None:
        return None if self.place.card else "cpu"

    def _run(self, out: Path, measure: bool, train: Any, lively: bool = False) -> Ran:
        peak = peak_of(self.place) if measure else None
        with fresh_accelerator(), drawing(self.place, lively):
            if peak is not None:
                peak.start()
            with contextlib.suppress(Enough):
                train()
            most = peak.stop() if peak is not None else 0
        steps, laps = (_lines(out / f"{name}.jsonl") for name in ("metrics", "timings"))
        return Ran([line for line in steps if "heldout" not in line], laps, most)


def speed(here: Ground, seconds: float, lora: bool = False) -> dict[str, Any]:
    """Tokens a second of a training step of `seconds`, and the share of the card's arithmetic that the model needs of it.

    6 operations a parameter and token (LoRA 4: no gradients of frozen weights), of the blocks' matrices and the head, and 12 x
    layers x length x width of attention (PaLM, arXiv 2204.02311, appendix B). What checkpointing computes again is not counted.
    """
    shape = shape_of(json.loads((here.outline("dream") / "config.json").read_text()), here.size)
    tokens = here.rows * here.length
    each = (4 if lora else 6) * (shape.layers * shape.matrices + shape.table)
    each += 12 * shape.layers * here.length * shape.queries
    made = {"tokens_per_second": round(tokens / seconds, 1), "seconds_a_step": seconds, "tokens_a_step": tokens}
    made["tflops"] = each * tokens / seconds / 1e12
    name = torch.cuda.get_device_name() if here.place.card else ""
    if any(card in name for card in ("H100", "H200")):
        made["mfu"] = round(made["tflops"] * 1e12 / HOPPER, 4)
    return made


@contextmanager
def fresh_accelerator() -> Iterator[None]:
    """Accelerate anew: one process otherwise keeps the precision and the device of its first run."""
    from accelerate.state import AcceleratorState

    before = os.environ.pop("ACCELERATE_USE_CPU", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_USE_CPU", None)
        if before is not None:
            os.environ["ACCELERATE_USE_CPU"] = before


def compare(place: Place, name: str, peak: int, estimate: MemoryEstimate, toys: bool = True) -> None:
    """Note a measured peak beside the formula's. They must be within NEAR at real sizes on a card, and for `toys` on the CPU."""
    off = estimate.total / peak - 1
    parts = {key: round(value / 2**20, 1) for key, value in estimate.parts.items() if value}
    note(
        f"memory: {name}", measured_mib=round(peak / 2**20, 1), formula_mib=round(estimate.total / 2**20, 1),
        off=round(off, 4), moment=estimate.peak_phase, parts_mib=parts,
    )  # fmt: skip
    assert peak > 0
    if place.full if place.card else toys:
        assert abs(off) <= NEAR, (
            f"{name}: {peak / 2**20:,.1f} MiB, by the formula {estimate.total / 2**20:,.1f} ({off:+.1%})"
        )


def _lines(file: Path) -> list[dict[str, Any]]:
    from dcoder_cli.base.jsonl import objects

    return [dict(value) for _, value in objects(file, "log")]

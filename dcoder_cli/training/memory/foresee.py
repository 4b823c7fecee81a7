"""What is about to run, its work and its memory beside what this machine has, as facts of a plan (`--dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dcoder_cli.base.files import human_bytes
from dcoder_cli.base.machine import memory_bytes
from dcoder_cli.base.plan import RunPlan
from dcoder_cli.base.presets import Hardware
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import choose_device, choose_dtype
from dcoder_cli.training.memory.ask import advice
from dcoder_cli.training.memory.case import GIB, ROWS, Case, Decoding
from dcoder_cli.training.memory.fit import fit
from dcoder_cli.training.memory.shape import shape_of


@dataclass(frozen=True)
class Room:
    """Memory that a process has: how much, in GiB, of what, and whether that is a CPU's."""

    gib: float
    of: str
    cpu: bool


def room(device: torch.device, processes: int, hardware: Hardware | None = None) -> Room | None:
    """Of the GPU at hand, else of the cards that a preset is made for, else this machine's; None where nothing tells.

    Args:
        device: of this process.
        processes: that share this machine where it is a CPU.
        hardware: of the preset, where there is one.
    """
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return Room(found.total_memory / GIB, found.name, False)
    if hardware is not None and hardware.gpus:
        return Room(
            hardware.gpu_memory_gb, f"the preset's card of {hardware.gpu_memory_gb:g} GB (no GPU is here)", False
        )
    total = memory_bytes()
    return (
        None
        if total is None
        else Room(total / processes / GIB, "this machine" if processes == 1 else "this machine, shared by all", True)
    )


def add_memory(plan: RunPlan, case: Case, given: Room | None) -> None:
    """The estimate of `dcoder presets fit`, the verdict, and where it does not fit the settings that would."""
    estimate = case.estimate()
    parts = {name: round(value) for name, value in estimate.parts.items() if value >= 1}
    value = {"bytes": round(estimate.total), "phase": estimate.peak_phase, "parts": parts}
    split = ", ".join(f"{part} {human_bytes(size)}" for part, size in parts.items() if size >= 0.01 * estimate.total)
    told = f"{human_bytes(estimate.total)} a process"
    if given is None:
        plan.add("memory", value, f"{told}: {split}")
        return
    found = fit(case, given.gib, given.cpu)
    value |= {"budget": round(found.budget), "of": given.of, "fits": found.fits}
    there = f"of {human_bytes(found.budget)} that can be planned with on {given.of}"
    plan.add("memory", value, f"{told} {there}; at its peak, {estimate.peak_phase}: {split}")
    if not found.fits:
        plan.warnings.append(f"by the estimate it does not fit {given.of}")
        plan.warnings += advice(case.section, found)


@dataclass(frozen=True)
class Decodings:
    """Samples that are going to be decoded alike.

    Attributes:
        samples: how many are to be decoded.
        longest: tokens of the longest prompt.
        done: samples that an earlier call has left.
        too_long: samples whose prompt leaves no room in the context; they count as empty.
    """

    model: Model
    settings: Settings
    samples: int
    longest: int
    done: int = 0
    too_long: int = 0

    @property
    def forwards(self) -> int:
        """Forward passes of a batch, at most."""
        settings = self.settings
        if not self.model.is_diffusion or settings.mode == "fast":
            return settings.max_new_tokens
        return (settings.steps or settings.max_new_tokens) * (2 if settings.cfg_scale else 1)


def add_decoding(
    plan: RunPlan,
    decodings: Sequence[Decodings],
    batch_size: int,
    device: str | None,
    dtype: str | None,
    processes: int = 1,
    hardware: Hardware | None = None,
) -> None:
    """Samples, tokens and forward passes, over all processes, and the memory of the one that takes most.

    Args:
        decodings: models may be `outline`s.
        batch_size: rows decoded together.
        device, dtype: as for `load`.

    Raises:
        UserError: a device that is not here, or an unknown dtype.
    """
    place = choose_device(device)
    samples, done, too_long = (sum(getattr(one, name) for one in decodings) for name in ("samples", "done", "too_long"))
    tokens = sum(one.samples * one.settings.max_new_tokens for one in decodings)
    batches = [math.ceil(math.ceil(one.samples / processes) / batch_size) for one in decodings]
    forwards = sum(count * one.forwards for count, one in zip(batches, decodings, strict=True))
    there = f"; {done:,} more are there" if done else ""
    plan.add("samples", {"to_decode": samples, "done": done, "too_long": too_long}, f"{samples:,} to decode{there}")
    if too_long:
        plan.warnings.append(f"{too_long:,} prompts leave no room for an answer in the context; they count as empty")
    each = "" if processes == 1 else " by each process"
    plan.add(
        "work", {"tokens": tokens, "batches": sum(batches), "forwards": forwards},
        f"at most {tokens:,} tokens, {forwards:,} forward passes{each} of up to {batch_size} rows",
    )  # fmt: skip
    given = room(place, processes, hardware)
    cases = []
    for one in decodings:
        number = choose_dtype(dtype, one.model.config, place)
        config = Decoding(
            one.settings.max_new_tokens, max(1, min(batch_size, one.samples)), one.settings.logits_mib, one.settings.mode,
            "float32" if number == torch.float32 else "bfloat16",
        )  # fmt: skip
        shape = shape_of(one.model.config, one.model.name)
        rows = {**ROWS, "question": max(1, one.longest)}
        cases.append(Case("generate", shape, config, rows=rows, cpu=given is None or given.cpu))
    if cases:
        add_memory(plan, max(cases, key=lambda case: case.estimate().total), given)

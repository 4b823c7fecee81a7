"""Benches of `run.py`: `python tests/gpu/benches.py PLACE SHAPE LOG DEADLINE [NAME ...]` writes a line a bench to LOG.

Device time is waited for, warm runs are apart, and numbers are medians; their spread or their runs stand beside them.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import pytest  # noqa: E402
import torch  # noqa: E402
from ground import Ground, speed  # noqa: E402
from places import Place, drawn, tidy, timed  # noqa: E402
from run import LATE  # noqa: E402

from dcoder_cli.base.config import build  # noqa: E402
from dcoder_cli.decoding.requests import Settings  # noqa: E402
from dcoder_cli.decoding.sampler import decode  # noqa: E402
from dcoder_cli.diffusion import unmasking  # noqa: E402
from dcoder_cli.model.backbone import Model  # noqa: E402

Numbers = dict[str, Any]


def ceilings(place: Place, folder: Path) -> Numbers:
    """What this card does at best: a large bf16 product of random numbers, and a large copy (read and written bytes)."""
    size, bytes_ = place.pick(8192, 256), place.pick(2**32, 2**22)
    one, two = (torch.randn(size, size, device=place.torch).to(torch.bfloat16) for _ in range(2))
    product = timed(place, lambda: one @ two, 10, 3)
    source, target = (torch.ones(bytes_, dtype=torch.uint8, device=place.torch) for _ in range(2))
    copy = timed(place, lambda: target.copy_(source), 10, 3)
    card = {}
    if place.card:
        about = torch.cuda.get_device_properties(0)
        card = {"card": about.name, "gib": round(about.total_memory / 2**30, 1), "units": about.multi_processor_count}
    return {
        **card, "cuda": torch.version.cuda, "product_tflops": 2 * size**3 / product["median"] / 1e12, "product_seconds": product,
        "copy_gb_per_second": 2 * bytes_ / copy["median"] / 1e9, "copy_seconds": copy,
    }  # fmt: skip


def training(place: Place, folder: Path, **changes: Any) -> Numbers:
    """Stage 2 at 0.5B, 8 rows of 1024 in one micro-batch: the median of the steps after the first four."""
    place.needs(24)
    here = Ground(place, folder, "half", rows=8, length=place.pick(1024, 32))
    ran = here.stage(2, folder / "run", place.pick(14, 6), **changes)
    return speed(here, ran.median("seconds", 4))


def training_checkpointed(place: Place, folder: Path) -> Numbers:
    """The same with activation checkpointing."""
    return training(place, folder, activation_checkpointing=True)


def training_compiled(place: Place, folder: Path) -> Numbers:
    """The same with compiled blocks."""
    if not place.card:
        pytest.skip("compiles for longer than a CPU's turn takes; tests/test_compile.py has it")
    return training(place, folder, compile=True)


def grpo(place: Place, folder: Path) -> Numbers:
    """Coupled-GRPO at 0.5B, 2 prompts of 8 completions of 128 tokens, 2 updates: seconds by phase of steps 2 and 3."""
    place.needs(24)
    found: Numbers = {}
    for mode, more in (("exact", {}), ("fast", {"threshold": 0.9})):
        here = Ground(place, folder / mode, "half")
        rollout = {"max_new_tokens": place.pick(128, 8), "mode": mode, **more}
        ran = here.grpo(folder / f"{mode}-run", 3, group_size=8, micro_batch=8, rollout=rollout)
        phases = ("rollout", "judge", "old", "reference", "update")
        found[mode] = {phase: ran.median(phase, 1) for phase in phases}
        found[mode]["tokens_per_second"] = ran.median("tokens_per_second", 1)
    return found


def sampling(place: Place, folder: Path) -> Numbers:
    """The shape of 7B in bf16, 256 new tokens behind 64, for 1, 8 and 32 rows.

    exact: 8 steps of 32 tokens. A step is one evaluation, with logits of all places that are left, 256 to 32 of them, so the
    mean step is about that of a run of 256 steps; `tokens_per_second_one_a_step` is rows over it, extrapolated, not run.
    fast: 64 steps of 4 tokens by schedule in blocks of 32, cached on both sides, run as it is.
    """
    place.needs(22)
    here = Ground(place, folder, "seven")
    model = drawn(here.outline("dream"), place.torch, torch.bfloat16, lively=True)
    new, found = place.pick(256, 32), {}
    ways: dict[str, dict[str, Any]] = {
        "exact": {"steps": 8},
        "fast": {"mode": "fast", "commit": "schedule", "steps": new // 4, "early_stop": False},
    }
    for name, way in ways.items():
        settings = build(Settings, {"max_new_tokens": new, **way})
        for rows in place.pick((1, 8, 32), (1, 2)):
            seconds, forwards = _decoded(place, model, settings, rows)
            a_step = seconds["median"] / forwards
            numbers = {"seconds": seconds, "forwards": forwards, "seconds_a_forward": a_step}
            numbers["tokens_per_second"] = rows * new / seconds["median"]
            if name == "exact":
                numbers["tokens_per_second_one_a_step"] = rows / a_step
            found[f"{name}, {rows} rows"] = numbers
    return found


def _decoded(place: Place, model: Model, settings: Settings, rows: int) -> tuple[Numbers, int]:
    prompts = [[5 + (7 * row + at) % 200 for at in range(64)] for row in range(rows)]
    forwards = 0

    def work() -> None:
        nonlocal forwards
        forwards = decode(model, prompts, settings, batch_size=rows)[0].settings["forwards"]

    return timed(place, work, 3, 1), forwards


def top_p(place: Place, folder: Path) -> Numbers:
    """Filtering 700 candidates of the whole vocabulary: heat alone, top-p where 256 tokens are enough, and where none are."""
    rows = place.pick(700, 16)
    vocabulary = place.size("seven").get("vocab_size", 303)
    flat_NV = torch.randn(rows, vocabulary, device=place.torch)
    cases = {"heat alone": (flat_NV, None), "top-p, sharp": (flat_NV * 8, 0.95), "top-p, flat": (flat_NV, 0.95)}
    return {
        name: timed(place, lambda given=given, p=p: unmasking.filter_logits(given, 0.8, p, None), 5)  # type: ignore[misc]
        for name, (given, p) in cases.items()
    }  # fmt: skip


def plain_loop(place: Place, folder: Path) -> Numbers:
    """Ours beside the plain sampler of tests/test_sampler.py (one row, one candidate at a time, all logits): 16 tokens at 0.5B."""
    from test_sampler import reference

    here = Ground(place, folder, "half")
    model = drawn(here.outline("dream"), place.torch, torch.float32, lively=True)
    prefix, asked = list(range(20, 52)), {"max_new_tokens": place.pick(16, 6)}
    settings, told = build(Settings, asked), []
    ours = timed(place, lambda: told.append(decode(model, [prefix], settings)[0]), 3)
    began = time.perf_counter()
    tokens, reveal = reference(model, prefix, [], asked)
    place.wait()
    seconds = time.perf_counter() - began
    same = (told[-1].tokens, told[-1].reveal_step) == (tokens, reveal)
    return {"ours_seconds": ours, "plain_seconds": seconds, "times": seconds / ours["median"], "same_tokens": same}


@dataclass(frozen=True)
class Bench:
    """Attributes: name; seconds that it is planned with on a card at real sizes (ours, by count); function."""

    name: str
    seconds: float
    work: Callable[[Place, Path], Numbers]


# The order is that of their worth, should the time run out.
BENCHES = (
    Bench("ceilings", 5, ceilings),
    Bench("training 0.5B", 15, training),
    Bench("sampling 7B", 60, sampling),
    Bench("grpo 0.5B", 40, grpo),
    Bench("top-p", 5, top_p),
    Bench("training 0.5B, checkpointing", 15, training_checkpointed),
    Bench("plain sampler", 15, plain_loop),
    Bench("training 0.5B, compiled", 75, training_compiled),
)


def main(device: str, shape: str, log: str, deadline: float, names: list[str]) -> int:
    """Run the benches in order; 1 where one failed."""
    place, failed = Place(device, shape), False
    for bench in BENCHES:
        if names and bench.name not in names:
            continue
        line: Numbers = {"bench": bench.name, "what": inspect.getdoc(bench.work)}
        began = time.time()
        if (place.full and began + bench.seconds > deadline) or began > deadline:
            line |= {"outcome": "left out", "why": LATE}
        else:
            try:
                if place.card and not torch.cuda.is_available():
                    pytest.skip("no CUDA device")
                with tempfile.TemporaryDirectory() as folder:
                    line |= {"numbers": bench.work(place, Path(folder)), "outcome": "passed"}
            except pytest.skip.Exception as error:
                line |= {"outcome": "skipped", "why": str(error)}
            except Exception as error:
                traceback.print_exc()
                line |= {"outcome": "failed", "why": f"{type(error).__name__}: {error}"[:2000]}
                failed = True
        line["seconds"] = round(time.time() - began, 2)
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        tidy()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5:]))

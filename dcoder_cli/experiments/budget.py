"""How much of each stage fits into a number of minutes: rates measured on this machine, then steps, rows and tasks."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base.errors import UserError

if TYPE_CHECKING:
    from dcoder_cli.model.backbone import Model

# Shares of the time (ours, a guess that no run at size has tested yet): adapting is what all else stands on. What is left
# is for reading, converting, tokenizing and the report.
SHARES = {"adapt": 0.36, "mid": 0.08, "sft": 0.14, "grpo": 0.08, "scores": 0.24}
SCORED = 5  # diffusion models that are scored: converted, and after each of the four stages
ROW = {"cpu": 256, "mps": 256, "cuda": 1024}  # tokens of a packed row (ours; the paper's 4,096 is for days of training)
ROWS_A_STEP = (4, 8, 16, 32)  # global batches that are tried, largest first (ours)
STEPS = 120  # least steps of stage 1 for which a larger batch is taken (ours)
LEAST_STEPS = 20  # of stage 1, or the budget is refused (ours)
ANSWER = 40  # new tokens of a micro task's answer, as in the cpu-tiny preset
TASKS = (8, 100)  # least and most tasks, and holes, that a model is scored on
_TIMED = 3


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        row: tokens of a row. train: tokens a second of a training step, at a micro-batch of `micro` rows.
        sample: seconds of a decoded answer of ANSWER tokens, in fast mode, of a batch.
    """

    row: int
    micro: int
    train: float
    sample: float


@dataclass(frozen=True)
class Amounts:
    """What fits.

    Attributes:
        seconds: of the budget. row, rows: tokens of a row, rows of a step.
        steps: of each stage, by name. tasks: tasks, and holes, that each model is scored on.
        needed_tokens: of the corpus, read once.
    """

    seconds: float
    row: int
    rows: int
    micro: int
    steps: dict[str, int]
    prompts: int
    group: int
    tasks: int
    needed_tokens: int

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)


def measure(folder: Path, device: str | None, seed: int) -> Rates:
    """Rates of a converted model, by a few steps that change nothing. Raises WorkFailed: out of memory."""
    import torch

    from dcoder_cli.timing import learning, models
    from dcoder_cli.timing.race import wait
    from dcoder_cli.timing.train import forward

    choice = models.choose(str(folder), None)
    stepper = learning.Stepper(choice, device, "bfloat16" if _is_cuda(device) else "float32", seed)
    kind = stepper.device.type
    row = min(ROW.get(kind, 256), choice.shape.context)
    micro = 4 if kind != "cuda" else 8
    step = forward(stepper, seed, micro, row)
    times = []
    for _ in range(_TIMED + 1):  # the first makes the moments
        wait(stepper.device)
        began = time.perf_counter()
        stepper.step(step)
        wait(stepper.device)
        times.append(time.perf_counter() - began)
    train = micro * row / sorted(times[1:])[_TIMED // 2]
    model = stepper.model.eval()
    stepper.optimizer.state.clear()
    with torch.no_grad():
        sample = _sample_seconds(model)
    return Rates(row, micro, train, sample)


def _is_cuda(device: str | None) -> bool:
    import torch

    return torch.cuda.is_available() if device is None else device.startswith("cuda")


def _sample_seconds(model: Model) -> float:
    from dcoder_cli.decoding.sampler import generate

    prompts = [list(range(place + 5, place + 65)) for place in range(8)]
    began = time.perf_counter()
    # Every token alone: the converted model is never sure, and what is trained is faster.
    generate(model, prompts, max_new_tokens=ANSWER, mode="fast", commit="schedule", block_length=ANSWER // 2)
    return (time.perf_counter() - began) / len(prompts)


def allot(minutes: float, rates: Rates) -> Amounts:
    """Steps, rows and tasks for so many minutes.

    Raises:
        UserError: too few for stage 1 to learn anything.
    """
    seconds = 60 * minutes
    adapt_tokens = SHARES["adapt"] * seconds * rates.train
    fitting = [rows for rows in ROWS_A_STEP if rows % min(rows, rates.micro) == 0]
    rows = next((rows for rows in reversed(fitting) if adapt_tokens / (rows * rates.row) >= STEPS), fitting[0])
    steps = {name: int(SHARES[name] * seconds * rates.train / (rows * rates.row)) for name in ("adapt", "mid", "sft")}
    if steps["adapt"] < LEAST_STEPS:
        least = LEAST_STEPS * rows * rates.row / rates.train / SHARES["adapt"] / 60
        raise UserError(
            f"--minutes {minutes:g} is too short: at {rates.train:,.0f} tokens/s stage 1 would have {steps['adapt']} steps, "
            f"and needs {LEAST_STEPS}; give at least --minutes {least:.0f}, or a smaller model"
        )
    # A step of stage 4 decodes prompts x group answers, and learns from each in two passes of coupled masks.
    prompts, group = 4, 8
    of_a_step = prompts * group * (rates.sample + 2 * 2 * 128 / rates.train)
    steps["grpo"] = max(2, int(SHARES["grpo"] * seconds / of_a_step))
    steps["mid"], steps["sft"] = max(2, steps["mid"]), max(4, steps["sft"])
    # Each scored model answers `tasks` tasks and fills as many holes, which are about half as long.
    tasks = int(SHARES["scores"] * seconds / (SCORED * 1.5 * rates.sample))
    tasks = min(TASKS[1], max(TASKS[0], tasks))
    needed = (steps["adapt"] + steps["mid"]) * rows * rates.row
    return Amounts(seconds, rates.row, rows, min(rows, rates.micro), steps, prompts, group, tasks, needed)

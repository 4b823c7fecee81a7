"""How much of each stage fits into a number of minutes: rates measured on this machine, then steps, rows and tasks."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base.errors import UserError

if TYPE_CHECKING:
    from dcoder_cli.model.backbone import Model

# Shares of the time that is left once the corpus is tokenized (ours). Of an hour with SmolLM2-135M on a CPU: 142 steps of stage 1
# brought the held-out loss from 8.0 to 4.7, 101 of stage 3 with 350 micro tasks the micro score from 0 to 4 of 17, with 230 to 0.
SHARES = {"adapt": 0.34, "mid": 0.04, "sft": 0.28, "grpo": 0.05, "scores": 0.22, "orders": 0.04}
SCORED = 6  # models that are scored: the AR model, its conversion, and one after each of the four stages
ROW = {"cpu": 256, "mps": 256, "cuda": 1024}  # tokens of a packed row (ours; the paper's 4,096 is for days of training)
CHAT_ROW = 128  # least tokens of an instruction row (ours): micro's tasks with a template's system turn
ROWS_A_STEP = (4, 8, 16, 32)  # global batches that are tried, largest first (ours)
STEPS = 120  # least steps of stage 1 for which a larger batch is taken (ours)
LEAST_STEPS = 20  # of stage 1, or the budget is refused (ours)
ANSWER = 40  # new tokens of a micro task's answer, as in the cpu-tiny preset
AR_ANSWER = 128  # of the AR model, which explains before it writes
HOLE = 8  # most tokens of a line that is a hole (ours): small models fill longer ones hardly ever
TASKS = (8, 100)  # least and most tasks, and holes, that a model is scored on
ORDERS = (4, 50)  # least and most answers of a temperature whose order is measured
HELDOUT = (16, 64)  # least and most held-out rows
SAMPLED = ((4, 8), (2, 8), (2, 4))  # prompts and samples of a step of stage 4, the largest that leaves GRPO_STEPS
GRPO_STEPS = 8
TEMPERATURES = (0.0, 0.6, 1.2)  # of the decoding orders: greedy, DiffuCoder's fig. 6 and its sampling in stage 4
_TIMED, _LONG = 3, 10.0  # steps that are timed, and the seconds after which fewer will do
PROMPT = 80  # tokens of a task's prompt, for a guess of what an answer takes


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
        seconds: that are shared out. row, rows: tokens of a row, rows of a step. chat_row: tokens of an instruction row.
        steps: of each stage, by name. prompts, group: prompts of a step of stage 4, samples of each.
        tasks: tasks, and holes, that each model is scored on. heldout: rows of the held-out loss.
        orders: answers of a temperature whose order is measured.
        needed_tokens: of the corpus, read once.
    """

    seconds: float
    row: int
    rows: int
    micro: int
    chat_row: int
    steps: dict[str, int]
    prompts: int
    group: int
    tasks: int
    heldout: int
    orders: int
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
    times: list[float] = []
    while len(times) <= _TIMED and (len(times) < 2 or sum(times) < _LONG):
        wait(stepper.device)
        began = time.perf_counter()
        stepper.step(step)
        wait(stepper.device)
        times.append(time.perf_counter() - began)
    usual = sorted(times[1:])[(len(times) - 1) // 2]  # the first makes the moments
    train = micro * row / usual
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


def allot(seconds: float, rates: Rates, minutes: float) -> Amounts:
    """Steps, rows and tasks for so many seconds, of `minutes` in all.

    Raises:
        UserError: too few for stage 1 to learn anything.
    """
    spent = {name: share * seconds for name, share in SHARES.items()}
    adapt_tokens = spent["adapt"] * rates.train
    fitting = [rows for rows in ROWS_A_STEP if rows % min(rows, rates.micro) == 0]
    rows = next((rows for rows in reversed(fitting) if adapt_tokens / (rows * rates.row) >= STEPS), fitting[0])
    chat_row = max(CHAT_ROW, rates.row // 4)
    width = {"adapt": rates.row, "mid": rates.row, "sft": chat_row}
    steps = {name: int(spent[name] * rates.train / (rows * tokens)) for name, tokens in width.items()}
    if steps["adapt"] < LEAST_STEPS:
        least = LEAST_STEPS * rows * rates.row / rates.train / SHARES["adapt"] - seconds + 60 * minutes
        raise UserError(
            f"--minutes {minutes:g} is too short: at {rates.train:,.0f} tokens/s stage 1 would have {steps['adapt']} steps, "
            f"and needs {LEAST_STEPS}; give at least --minutes {math.ceil(least / 60)}, or a smaller model"
        )
    steps["mid"], steps["sft"] = max(2, steps["mid"]), max(4, steps["sft"])
    read = 3 * rates.train  # tokens a second without gradients
    # A step of stage 4 decodes prompts x group answers, and learns from each in a pair of coupled masks.
    of_a_sample = rates.sample + 2 * 2 * CHAT_ROW / rates.train
    fits = {both: int(spent["grpo"] / (both[0] * both[1] * of_a_sample)) for both in SAMPLED}
    prompts, group = next((both for both in SAMPLED if fits[both] >= GRPO_STEPS), SAMPLED[-1])
    steps["grpo"] = max(2, fits[prompts, group])
    # Held-out rows take a third of what a model's scores take; each of its tasks and holes share the rest.
    of_a_model = spent["scores"] / SCORED
    heldout = _within(HELDOUT, of_a_model / 3 * read / rates.row)
    hole = max((rates.row + HOLE * HOLE) / read, rates.sample * HOLE / ANSWER)
    tasks = _within(TASKS, (of_a_model - heldout * rates.row / read) / (rates.sample + hole))
    # An order is measured in the exact mode: as many passes of the whole row as there are tokens.
    of_an_order = ANSWER * (PROMPT + ANSWER) / read
    orders = _within(ORDERS, spent["orders"] / (len(TEMPERATURES) * of_an_order))
    needed = (steps["adapt"] + steps["mid"]) * rows * rates.row
    return Amounts(
        seconds,
        rates.row,
        rows,
        min(rows, rates.micro),
        chat_row,
        steps,
        prompts,
        group,
        tasks,
        heldout,
        orders,
        needed,
    )


def _within(bounds: tuple[int, int], value: float) -> int:
    return min(bounds[1], max(bounds[0], int(value)))

"""`bench generate`: the engine beside the plain loops, on the same prompts with the same random numbers."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding import unused
from dcoder_cli.decoding.requests import Request, Settings, encode
from dcoder_cli.decoding.sampler import decode
from dcoder_cli.model import recordable
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import choose_device
from dcoder_cli.timing import models, plain_batch, plain_rows, race, rate, report
from dcoder_cli.timing.near_ties import Written

# How far scores, confidences and probabilities may lie apart where rounding alone chose otherwise (ours): rows in other
# company are rounded otherwise, and a choice is as close as its best two. Entropies are in nats.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
_FOLLOWED = 4  # rows that differ and are followed, both ways, step by step


@dataclass(frozen=True)
class GenerateBench:
    """What is measured: every batch size with every length in every mode.

    Attributes:
        model, shape: a checkpoint, or a size of random weights.
        batches, new_tokens: rows decoded together, and tokens of each.
        prompt_tokens: of the longest prompt; the others of a batch go down to half of it.
        modes: exact and fast. Fast rows are decoded to their end, so that all have equally many tokens.
        settings: rule, temperature, top_p, steps as decoding has them; threshold for fast.
        cuda_graphs: ours plays recorded evaluations back; the plain loops never do.
    """

    batches: Sequence[int] = (1, 8)
    new_tokens: Sequence[int] = (32,)
    prompt_tokens: int = 32
    modes: Sequence[str] = ("exact", "fast")
    settings: dict[str, Any] | None = None
    model: str | None = None
    shape: str | None = None
    repeats: int = 5
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    cuda_graphs: bool = False

    def plans(self) -> list[tuple[int, int, Settings]]:
        """Batch size, length and settings of each case. Raises UserError for numbers that do not fit together."""
        return [
            (batch, new, self._settings(new, mode))
            for new in self.new_tokens
            for batch in self.batches
            for mode in self.modes
        ]

    def _settings(self, new: int, mode: str) -> Settings:
        given = dict(self.settings or {})
        if mode == "exact":
            given.pop("threshold", None)
            return Settings(max_new_tokens=new, seed=self.seed, **given)
        return Settings(max_new_tokens=new, seed=self.seed, mode="fast", early_stop=False, **given)


def bench(asked: GenerateBench, on_run: Callable[[str], None]) -> dict[str, Any]:
    """The document of report.py.

    Raises:
        UserError: a wrong setting, a row longer than the model's context (before weights are read), a model that is none.
        WorkFailed: out of memory.
    """
    race.check_repeats(asked.repeats)
    plans = asked.plans()
    choice = models.choose(asked.model, asked.shape)
    longest = max(new for _, new, _ in plans)
    choice.check_length(asked.prompt_tokens + longest, f"{asked.prompt_tokens} prompt and {longest} new tokens")
    if asked.cuda_graphs:
        recordable.check_device(choose_device(asked.device))
    model = choice.load(asked.device, asked.dtype, asked.seed)
    if asked.cuda_graphs:
        recordable.check(model, model.device)
        model.cuda_graphs = True
    reached = rate.measure(model.device, model.dtype)
    on_run("matrix rate measured")
    cases = [_case(model, choice, asked, batch, settings, reached, on_run) for batch, _, settings in plans]
    return report.document("generate", models.told(choice, model), model.device, reached, asked.repeats, cases)


def runs(asked: GenerateBench) -> int:
    """How often `on_run` will be called."""
    return 1 + len(asked.plans()) * (race.RUNS_ASIDE + 2 * asked.repeats)


def prompts(model: Model, rows: int, longest: int, seed: int) -> list[list[int]]:
    """Ids without a meaning of their own, in rows from half the longest to all of it."""
    source = random.Random(f"bench prompts {seed}")
    named = {model.ids.mask, model.ids.pad, model.ids.bos, model.ids.eos, *model.ids.stops}
    plain = [one for one in range(min(model.vocab_size, 2048)) if one not in named]
    lengths = [longest - row * (longest // 2) // max(1, rows - 1) for row in range(rows)]
    return [source.choices(plain, k=max(1, length)) for length in lengths]


@dataclass
class _Watched:
    """What a watched run saw."""

    rows: list[Written]
    first: float
    last: float


def _told(timing: race.Timing, choice: models.ModelChoice, tokens: int) -> dict[str, Any]:
    if timing.result is None:
        return {}
    return {
        "forwards": timing.counts.forwards, "tokens_per_forward": tokens / timing.counts.forwards,
        "first_commit_seconds": timing.result.first, "last_commit_seconds": timing.result.last,
        "matrix_operations": timing.counts.operations(choice.shape),
    }  # fmt: skip


def _case(
    model: Model, choice: models.ModelChoice, asked: GenerateBench, batch: int, settings: Settings,
    reached: rate.MatrixRate, on_run: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    ids = prompts(model, batch, asked.prompt_tokens, asked.seed)
    requests = encode(model, ids, settings, None, None)

    def ours(on_step: Callable[[], None] | None = None) -> list[Written]:
        looking = None if on_step is None else lambda *_: on_step()
        found = decode(model, ids, settings, batch_size=batch, on_commit=looking)
        return [Written(one.tokens, one.reveal_step) for one in found]

    plainly = partial(_batch if settings.mode == "exact" else _rows, model, requests, settings)
    one, two = (race.Work(way, partial(_watched, model, way), partial(_counted, model, way)) for way in (ours, plainly))
    timings = race.race((one, two), asked.repeats, model.device, on_run)
    tokens = batch * settings.max_new_tokens
    mine, plain = (timing.result for timing in timings)
    agreement = report.NOTHING if plain is None else agree(model, requests, settings, mine.rows, plain.rows)
    what = {
        "batch": batch,
        "prompt_tokens": asked.prompt_tokens,
        "new_tokens": settings.max_new_tokens,
        "mode": settings.mode,
    }
    more = (_told(timings[0], choice, tokens), _told(timings[1], choice, tokens))
    return report.case(what, "tokens", tokens, *timings, agreement, more, reached)


def _batch(
    model: Model, requests: list[Request], settings: Settings, on_step: Callable[[], None] | None = None
) -> list[Written]:
    return plain_batch.decode(model, requests, settings, on_step)


def _rows(
    model: Model, requests: list[Request], settings: Settings, on_step: Callable[[], None] | None = None
) -> list[Written]:
    found = [plain_rows.decode(model, request, settings, on_step=on_step).columns() for request in requests]
    return [Written(one["tokens"], one["reveal_step"]) for one in found]


def _watched(model: Model, way: Callable[..., list[Written]]) -> _Watched:
    times: list[float] = []

    def noted() -> None:
        race.wait(model.device)
        times.append(time.perf_counter())

    began = time.perf_counter()
    rows = way(noted)
    return _Watched(rows, times[0] - began, times[-1] - began)


def _counted(model: Model, way: Callable[..., list[Written]]) -> rate.ForwardCounts:
    with rate.counting(model) as counts:
        way()
    return counts


def agree(
    model: Model, requests: Sequence[Request], settings: Settings, ours: Sequence[Written], plain: Sequence[Written]
) -> report.Agreement:
    """Whether two answers to each request are the same, or part by rounding alone.

    Where a row differs, each of its two answers is followed by the loop of single rows: every commit must be the one that
    it would make there, but for choices that lie closer together than TOLERANCE.
    """
    pairs = list(zip(requests, ours, plain, strict=True))
    tokens = sum(len(mine.tokens) for mine in ours)
    equal = sum(
        token == other and step == at
        for _, mine, his in pairs
        for token, other, step, at in zip(mine.tokens, his.tokens, mine.reveal_step, his.reveal_step, strict=False)
    )
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    numbers: dict[str, Any] = {
        "tokens": tokens,
        "equal_tokens": equal,
        "rows": len(pairs),
        "equal_rows": len(pairs) - len(differing),
    }
    if not differing:
        return report.Agreement(True, f"agree: all {tokens:,} tokens, and the step that committed each", numbers)
    tolerance = TOLERANCE.get(model.dtype, 1e-3)
    gaps: list[float] = []
    for request, mine, his in differing[:_FOLLOWED]:
        for course in (mine, his):
            gaps += plain_rows.decode(model, request, settings, follow=course).gaps
    largest = max(gaps)
    same = sum(gap == 0 for gap in gaps)
    numbers |= {
        "followed_rows": len(differing[:_FOLLOWED]), "followed_steps": len(gaps), "equal_steps": same,
        "largest_gap": largest if math.isfinite(largest) else None, "tolerance": tolerance,
    }  # fmt: skip
    share = f"{equal:,} of {tokens:,} tokens equal in token and step"
    if largest <= tolerance:
        words = (
            f"agree up to rounding: {share}; of {len(gaps):,} steps followed one by one {same:,} are equal, the others "
            f"within {largest:.2g} of it"
        )
        return report.Agreement(True, words, numbers)
    words = f"DISAGREE: {share}; a step is {largest:.2g} from what was to be committed (tolerance {tolerance:g})"
    return report.Agreement(False, words, numbers)


def check_modes(modes: Sequence[str]) -> None:
    """Raises UserError for a mode that is none."""
    for mode in modes:
        if mode not in ("exact", "fast"):
            raise UserError(f"--mode {mode!r} is unknown; use exact or fast, or exact,fast for both")


def refuse_unused(written: Mapping[str, str], asked: GenerateBench) -> None:
    """Raises UserError for a setting that was given and changes nothing in any case; see decoding/unused.py."""
    for _, _, settings in asked.plans()[:1]:
        unused.refuse(written, asdict(settings), lambda: True)

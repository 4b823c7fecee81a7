"""Series: decodings that stand together (a model, temperature or stage), with their decoding order measured.

Trajectory files are read without torch; what decodes imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.analysis import sources
from dcoder_cli.analysis.arness import GLOBAL_K, LOCAL_K, Convention, Ties, Until, arness
from dcoder_cli.analysis.entropy_sink import EntropyMap, first_step_profile
from dcoder_cli.analysis.pieces import tokenizer_of
from dcoder_cli.decoding.trajectory import Trajectory

if TYPE_CHECKING:
    from dcoder_cli.decoding.requests import Prompt, Settings
    from dcoder_cli.model.backbone import Model


@dataclass(frozen=True)
class Measure:
    """What to measure; see `arness.py` for the meaning of each choice."""

    local_k: int = LOCAL_K
    global_k: int = GLOBAL_K
    convention: Convention = "defined"
    ties: Ties = "random"
    until: Until = "all"
    end_ids: tuple[int, ...] = ()

    def __call__(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """`arness` with these choices."""
        return arness(
            trajectories, self.local_k, self.global_k, self.convention, self.ties, self.until, self.end_ids or None
        )


@dataclass(frozen=True)
class Series:
    """One line of the table: the decodings of one model, temperature, stage or kind of data.

    Attributes:
        label: its name in tables and legends.
        trajectories: the decodings.
        numbers: what `arness` gave.
        model: name of the model ("" if unknown).
        temperature: of the sampler, if known.
        tokenizer: for showing text; None shows ids.
        entropy: entropies of the masked positions; only from a diffusion model run here.
        passes: `pass@k` as (share, low, high), where the prompts are tasks with tests.
        weights_id: of the model, where it was run here.
    """

    label: str
    trajectories: list[Trajectory]
    numbers: dict[str, Any]
    model: str = ""
    temperature: float | None = None
    tokenizer: Any | None = None
    entropy: EntropyMap | None = None
    passes: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    weights_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The series' numbers with its label, model and temperature, and pass@k where it is known."""
        scores = {name: dict(zip(("mean", "low", "high"), share, strict=True)) for name, share in self.passes.items()}
        told = {"label": self.label, "model": self.model, "weights": self.weights_id, "temperature": self.temperature}
        return {**told, **self.numbers, **scores}

    def ends(self) -> dict[str, tuple[float, float, float]]:
        """pass@k at the smallest and the largest k."""
        names = sorted(self.passes, key=lambda name: int(name.removeprefix("pass@")))
        return {name: self.passes[name] for name in names[:1] + names[1:][-1:]}


def of_file(path: str | Path, measure: Measure, label: str | None = None, tokenizer: Any | None = None) -> Series:
    """The series of a trajectory file. Raises UserError for a broken file."""
    found = sources.read_trajectories(path)
    temperatures = {item.settings.get("temperature") for item in found}
    shared = temperatures.pop() if len(temperatures) == 1 else None
    return Series(
        label or Path(path).stem,
        found,
        measure(found),
        found[0].model,
        float(shared) if isinstance(shared, (int, float)) else None,
        tokenizer or tokenizer_of(found, path),
    )


def of_model(
    model: Model,
    prompts: Sequence[Prompt],
    measure: Measure,
    label: str,
    settings: Settings,
    samples: int = 1,
    batch_size: int = 8,
    on_done: Callable[[Trajectory], None] | None = None,
    names: Sequence[str] | None = None,
) -> Series:
    """Decode prompts with a model and measure the orders.

    Args:
        model: from `load`; an AR model measures 1.0 throughout.
        prompts: texts, chats, lists of ids, or prompts encoded before.
        measure: what to measure.
        label: the series' name.
        settings: of the sampler.
        samples: decodings of each prompt.
        batch_size: rows decoded together.
        on_done: called with each finished trajectory of this process.
        names: of the prompts; None: their places, from 0.
    """
    from dcoder_cli.decoding import spread
    from dcoder_cli.decoding.prompts import sample_names
    from dcoder_cli.decoding.requests import encode_prompt

    called = list(map(str, range(len(prompts)))) if names is None else names
    encoded = [encode_prompt(model, prompt, name) for name, prompt in zip(called, prompts, strict=True)]
    repeated = [prompt for prompt in encoded for _ in range(samples)]
    entropy = EntropyMap() if model.is_diffusion else None
    decoded = spread.decode(
        model, repeated, settings, ids=sample_names(called, samples), batch_size=batch_size,
        observer=entropy.observe if entropy is not None else None, on_done=on_done,
    )  # fmt: skip
    return of_decoded(model, decoded, measure, label, settings, entropy)


def _of_all(entropy: EntropyMap) -> EntropyMap:
    """What all processes have observed."""
    from dcoder_cli.decoding import ranks

    found = EntropyMap()
    for one in ranks.gathered(entropy):
        found.add(one)
    return found


def of_decoded(
    model: Model,
    decoded: Sequence[Trajectory],
    measure: Measure,
    label: str,
    settings: Settings,
    entropy: EntropyMap | None = None,
) -> Series:
    """The series of what a model here has decoded with `settings`; `entropy` is what this process has observed."""
    if entropy is not None:
        entropy = _of_all(entropy)
    ends = sorted(model.ids.stops)
    told = [replace(item, settings={**item.settings, "end_ids": ends}) for item in decoded]
    return Series(
        label,
        told,
        measure(told),
        model.name,
        settings.temperature,
        model.tokenizer,
        entropy,
        weights_id=model.weights_id,
    )


def profile_of(model: Model, prompts: Sequence[Prompt], length: int) -> dict[str, Any] | None:
    """The first-step profile of a diffusion model on prompts in any form that `generate` takes.

    Gaps, which have text behind them too, are left out; None where there is nothing else.
    """
    from dcoder_cli.decoding.requests import Settings, encode

    requests = encode(model, prompts, Settings(max_new_tokens=length), None, None)
    asked = [request.prefix for request in requests if not request.suffix]
    return first_step_profile(model, asked, length) if asked else None

"""loss_normaliser in the training loop and in the variance lab: completions of unequal lengths, spread over micro-batches."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_runs import make_place
from torch import Tensor

from dcoder_cli.base.config import build
from dcoder_cli.training import optimizers
from dcoder_cli.training.grpo import step, variance, variance_bench
from dcoder_cli.training.grpo import train as grpo_train
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.loss import grpo_loss

LENGTHS = [1, 5, 2, 6, 3, 4]  # scored tokens of the six completions: 21
CONFIG: dict[str, Any] = {
    "steps": 1, "prompts_per_step": 2, "group_size": 3, "micro_batch": 6, "precision": "fp32", "inner_iterations": 2,
    "rewards": {"reward:vowels": 1.0}, "rollout": {"max_new_tokens": 6}, "evaluate_prompts": 0, "samples_every": 0,
    "kl_coef": 0.1, "clip": 0.05, "optimizer": {"learning_rate": 3e-3, "warmup_steps": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("normaliser"))


@dataclass
class Seen:
    """What went into the loss, and the gradients that came out, one list of weights an update."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A step of training whose completions have LENGTHS: the random model's own are all of one length."""
    monkeypatch.syspath_prepend(place)
    roll_out, set_rate = step.roll_out, optimizers.set_learning_rate
    seen = Seen()

    def uneven(*arguments: Any, **named: Any) -> list[Any]:
        rollouts = roll_out(*arguments, **named)
        for item, length in zip(rollouts, LENGTHS, strict=True):
            object.__setattr__(item.completion, "scored", length)
        return rollouts

    def loss(*arguments: Any) -> Any:
        seen.calls.append(tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments))
        return grpo_loss(*arguments)

    def rate(optimizer: Any, value: float) -> None:
        seen.gradients.append([w.grad.clone() for group in optimizer.param_groups for w in group["params"]])
        set_rate(optimizer, value)

    monkeypatch.setattr(step, "roll_out", uneven)
    monkeypatch.setattr(step, "grpo_loss", loss)
    monkeypatch.setattr(optimizers, "set_learning_rate", rate)

    def once(**changes: Any) -> Seen:
        nonlocal seen
        seen = Seen()
        out = tmp_path / "-".join(map(str, changes.values()))
        config = build(GrpoConfig, CONFIG, changes)
        grpo_train.train(str(place / "model"), str(place / "data"), str(out), config, device="cpu", quiet=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        seen.metrics = next(line for line in lines if "reward" in line)
        return seen

    return once


def by_hand(calls: list[tuple[Any, ...]], normaliser: str) -> dict[str, float]:
    """The step's metrics as loops over tokens, from what went into the loss; per update, in float64."""
    total = dict.fromkeys(("loss", "kl", "clipped_low", "clipped_high", "ratio"), 0.0)
    for new_BN, old_BN, reference_BN, advantage_B, scored_BN, clip, kl_coef, _ in calls:
        for row in range(len(new_BN)):
            length = int(scored_BN[row].sum())
            weight = 1 / (len(LENGTHS) * length) if normaliser == "completion" else 1 / sum(LENGTHS)
            for place in range(length):
                new, old, reference = (float(values[row, place]) for values in (new_BN, old_BN, reference_BN))
                advantage, ratio = float(advantage_B[row]), torch.tensor(new - old, dtype=torch.float64).exp().item()
                gap = reference - new
                kl = torch.tensor(gap, dtype=torch.float64).exp().item() - gap - 1
                best = min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
                parts = (
                    -best + kl_coef * kl,
                    kl,
                    ratio < 1 - clip and advantage < 0,
                    ratio > 1 + clip and advantage > 0,
                    ratio,
                )
                for name, value in zip(total, parts, strict=True):
                    total[name] += weight * value / 2  # two updates
    return total


@pytest.mark.parametrize("normaliser", ["completion", "token"])
def test_micro_batches_make_the_same_update_and_metrics_are_the_loops(run: Any, normaliser: str) -> None:
    whole = run(loss_normaliser=normaliser, micro_batch=6)
    assert sum(int(call[4].sum()) for call in whole.calls) == 2 * 21 and len(whole.gradients) == 2
    expected = by_hand(whole.calls, normaliser)
    assert expected["clipped_low"] + expected["clipped_high"] > 0 and expected["kl"] > 0
    for name, value in expected.items():
        assert whole.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    for size in (1, 2, 3):
        parts = run(loss_normaliser=normaliser, micro_batch=size)
        assert len(parts.calls) == 2 * 6 / size
        for one, other in zip(whole.gradients[0], parts.gradients[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        for name in expected:
            assert parts.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-3, abs=1e-5), (size, name)


def test_the_setting_decides_the_update(run: Any) -> None:
    """The gradient is that of the named mean: token's weighs a completion by its length, 21 / 6 tokens on average."""
    gradients = {name: run(loss_normaliser=name).gradients[0] for name in ("completion", "token")}
    difference = max(float((a - b).abs().max()) for a, b in zip(*gradients.values(), strict=True))
    assert difference > 1e-3
    assert run(seed=0).calls[0][-1] == GrpoConfig().loss_normaliser == "completion"  # as the paper


@pytest.mark.parametrize("normaliser", ["completion", "token"])
def test_the_lab_measures_the_gradient_that_the_setting_names(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normaliser: str
) -> None:
    """One coupled estimate: its gradient is the mean's that a plain sum over its completions gives, in micro-batches of 2."""
    monkeypatch.syspath_prepend(place)
    made: list[Any] = []

    class Kept(variance_bench.Bench):
        def __init__(self, model: Any, rollouts: Any, advantage_C: Any, config: Any) -> None:
            for item, length in zip(rollouts, LENGTHS, strict=True):
                object.__setattr__(item.completion, "scored", length)
            super().__init__(model, rollouts, advantage_C, config)
            made.append(self)

    monkeypatch.setattr(variance, "Bench", Kept)
    config = build(GrpoConfig, CONFIG, {"loss_normaliser": normaliser, "micro_batch": 2})
    variance.measure(str(place / "model"), str(place / "data"), config, draws=2, prompts=2, pairs=(1,), device="cpu")
    bench = made[0]
    gradient_W = bench._once("coupled", 1, ("test", 0), True).gradient_W
    log_probabilities, losses = variance_bench.log_probabilities, []

    def keep(*arguments: Any) -> Tensor:
        losses.append(log_probabilities(*arguments))
        return losses[-1]

    monkeypatch.setattr(variance_bench, "log_probabilities", keep)
    with monkeypatch.context() as plain:
        plain.setattr(torch.Tensor, "backward", lambda *_: None)
        bench._once("coupled", 1, ("test", 0), True)
    total = torch.zeros(())
    for number, length in enumerate(LENGTHS):
        tokens = losses[number // 2][number % 2, :length]
        weight = 1 / (6 * length) if normaliser == "completion" else 1 / 21
        total = total - weight * bench.advantage_C[number] * tokens.sum()  # the ratio's gradient where it is 1
    bench.module.zero_grad(set_to_none=True)
    torch.autograd.backward(total)
    expected_W = torch.cat(
        [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in bench.weights]
    )
    assert expected_W.abs().max() > 1e-3
    torch.testing.assert_close(gradient_W, expected_W, rtol=1e-4, atol=1e-6)

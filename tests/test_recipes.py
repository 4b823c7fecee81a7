"""What the two recipes of stage 4 differ in: how the reference follows, what the loss is averaged over, the presets' numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grpo_runs import make_place
from helpers import refused

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.training import optimizers
from dcoder_cli.training.grpo import step
from dcoder_cli.training.grpo import train as grpo_train
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.reference import move_reference

SMALL: dict[str, Any] = {
    "steps": 6, "prompts_per_step": 2, "group_size": 2, "micro_batch": 4, "precision": "fp32", "inner_iterations": 2,
    "rewards": {"reward:vowels": 1.0}, "rollout": {"max_new_tokens": 4}, "evaluate_prompts": 1, "samples_every": 0,
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("recipes"))


def train(place: Path, out: Path, changes: dict[str, Any], resume: bool = False) -> None:
    config = build(GrpoConfig, SMALL, changes)
    grpo_train.train(
        str(place / "model"), str(place / "data"), str(out), config, resume=resume, device="cpu", quiet=True
    )


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, place: Path) -> tuple[list[int], list[dict[str, torch.Tensor]]]:
    """The number of updates so far at each move of the reference, and the policy that it moved to."""
    moves: list[int] = []
    policies: list[dict[str, torch.Tensor]] = []
    updates = 0
    set_rate = optimizers.set_learning_rate

    def count(optimizer: Any, rate: float) -> None:
        nonlocal updates
        updates += 1
        set_rate(optimizer, rate)

    def move(reference: Any, policy: Any, alpha: float) -> None:
        moves.append(updates)
        policies.append({name: weight.detach().clone() for name, weight in policy.named_parameters()})
        move_reference(reference, policy, alpha)

    monkeypatch.setattr(optimizers, "set_learning_rate", count)
    monkeypatch.setattr(step, "move_reference", move)
    monkeypatch.syspath_prepend(place)
    return moves, policies


def reference_of(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last" / "training" / "reference.pt", weights_only=True)
    return {name.removeprefix("model."): value for name, value in state.items()}


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_the_reference_moves_by_updates_and_as_far_as_alpha_says(
    place: Path, tmp_path: Path, watched: tuple[list[int], list[dict[str, torch.Tensor]]], alpha: float
) -> None:
    """6 rollouts of 2 updates, a move every 3 updates: in the middle of rollouts 2 and 5, at the end of 3 and 6."""
    moves, policies = watched
    train(place, tmp_path / "run", {"reference_sync": 3, "reference_alpha": alpha})
    assert moves == [3, 6, 9, 12]
    expected = {name: weight.detach() for name, weight in load(place / "model", device="cpu").named_parameters()}
    first = dict(expected)
    for policy in policies:
        expected = {name: alpha * policy[name] + (1 - alpha) * expected[name] for name in expected}
    found = reference_of(tmp_path / "run")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-7, msg=name)
    if alpha == 1:
        assert all(torch.equal(found[name], policies[-1][name]) for name in expected), "a copy, to the bit"
    assert any((found[name] - first[name]).abs().max() > 1e-3 for name in expected)


def test_updates_are_counted_on_when_resuming(
    place: Path, tmp_path: Path, watched: tuple[list[int], list[dict[str, torch.Tensor]]]
) -> None:
    """Stopped after 4 of 12 updates, 1 past a move; and gone on with other inner iterations: 4 + 1 + 1 is the sixth."""
    moves, _ = watched
    changes = {"reference_sync": 3, "reference_alpha": 0.6, "checkpoint_every": 1, "keep_checkpoints": 9}
    train(place, tmp_path / "whole", changes)
    whole = reference_of(tmp_path / "whole")
    before = 12  # updates made by the runs so far
    for name, more, later in (("same", {}, [2, 5, 8]), ("other", {"inner_iterations": 1}, [2, 5])):
        run = tmp_path / name
        run.mkdir()
        for file in ("metrics.jsonl", "config.yaml"):
            (run / file).write_bytes((tmp_path / "whole" / file).read_bytes())
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "step-2").symlink_to(tmp_path / "whole" / "checkpoints" / "step-2")
        (run / "checkpoints" / "last").symlink_to("step-2")
        train(place, run, {**changes, **more, "steps": 6 if name == "same" else 7}, resume=True)
        assert [move - before for move in moves[-len(later) :]] == later, (name, moves)
        before += 8
    same = reference_of(tmp_path / "same")
    assert all(torch.equal(same[name], whole[name]) for name in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "same")]
    assert lines[0] == lines[1]


def test_the_mix_is_elementwise() -> None:
    reference, policy = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = [weight.detach().clone() for weight in reference.parameters()]
    move_reference(SimpleNamespace(model=reference), policy, 0.25)  # type: ignore[arg-type]
    for own, old, new in zip(reference.parameters(), before, policy.parameters(), strict=True):
        torch.testing.assert_close(own.detach(), 0.75 * old + 0.25 * new.detach())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_alpha": 0.0}, "reference_alpha = 0.0 must be above 0"),
        ({"reference_alpha": 1.5}, "at most 1"),
        ({"reference_alpha": 0.6, "reference_sync": 0}, "reference_sync, and that is 0"),
        ({"lora": {}, "reference_alpha": 0.6}, "use --set reference_sync=0 --set reference_alpha=1$"),
        ({"lora": {}}, "use --set reference_sync=0$"),
        ({"lora": {}, "reference_alpha": 0.6, "reference_sync": 0}, "reference_alpha = 0.6 mixes at"),
    ],
)
def test_a_reference_that_cannot_move_so_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(GrpoConfig, changes)


@pytest.mark.parametrize("tie_break", [None, "left", "topk"])
def test_the_tie_break_of_rollouts_reaches_the_sampler(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tie_break: str | None
) -> None:
    """In a run: what `decode` is called with, and what the trajectories then say; null is the model's own order."""
    from dcoder_cli.training.grpo import rollouts

    monkeypatch.syspath_prepend(place)
    asked: list[tuple[str | None, float | None]] = []
    made: list[str] = []
    decode = rollouts.decode

    def recorded(model: Any, prompts: Any, settings: Any, **options: Any) -> Any:
        asked.append((settings.tie_break, settings.top_p, settings.logits_mib))
        trajectories = decode(model, prompts, settings, **options)
        made.extend(str(item.settings["tie_break"]) for item in trajectories)
        return trajectories

    monkeypatch.setattr(rollouts, "decode", recorded)
    rollout = {"max_new_tokens": 4, "tie_break": tie_break, "top_p": 0.95, "logits_mib": 3}
    train(place, tmp_path / "run", {"steps": 1, "evaluate_prompts": 0, "rollout": rollout})
    assert set(asked) == {(tie_break or "model", 0.95, 3)} and set(made) == {tie_break or "model"}
    assert GrpoConfig().rollout.tie_break is None


def test_a_wrong_tie_break_is_one_line_before_the_model_loads(place: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()  # whoever loads it says something else
    message = refused(
        "grpo", "--model", tmp_path / "model", "--data", place / "data", "--out", tmp_path / "run", "--device", "cpu",
        "--set", "rollout.tie_break=middle",
    )  # fmt: skip
    assert "rollout.tie_break" in message and "middle" in message and "topk" in message
    assert not (tmp_path / "run").exists()


def test_the_loss_over_tokens_and_over_completions_against_a_plain_loop() -> None:
    """Completions of 3, 1 and 4 tokens in micro-batches of 1, 2 and 3: value and gradient, in float64."""
    from dcoder_cli.training.grpo.loss import grpo_loss, units

    source = torch.Generator().manual_seed(0)
    lengths, advantages = [3, 1, 4], torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    start_BN, old_BN, reference_BN = (-torch.rand(3, 4, generator=source, dtype=torch.float64) for _ in range(3))
    for normaliser in ("completion", "token"):
        plain_BN = start_BN.clone().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for row, length in enumerate(lengths):
            for place in range(length):
                ratio = torch.exp(plain_BN[row, place] - old_BN[row, place])
                best = torch.minimum(ratio * advantages[row], ratio.clamp(0.8, 1.2) * advantages[row])
                gap = reference_BN[row, place] - plain_BN[row, place]
                value = -best + 0.1 * (torch.exp(gap) - gap - 1)
                total = total + value / (3 * length if normaliser == "completion" else 8)
        total.backward()
        for size in (1, 2, 3):
            new_BN = start_BN.clone().requires_grad_()
            found = 0.0
            for at in range(0, 3, size):
                part = slice(at, at + size)
                scored_BN = torch.arange(4)[None] < torch.tensor(lengths[part])[:, None]
                loss = grpo_loss(
                    new_BN[part], old_BN[part], reference_BN[part], advantages[part], scored_BN, 0.2, 0.1, normaliser
                )
                one = loss.loss / units(lengths, normaliser)
                one.backward()
                found += float(one.detach())
            assert found == pytest.approx(float(total.detach()), abs=1e-12)
            torch.testing.assert_close(new_BN.grad, plain_BN.grad, rtol=0, atol=1e-12)

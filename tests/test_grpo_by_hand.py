"""A run of stage 4 against the same run written down token by token: prompts, masks, estimates, loss, KL, updates, reference.

Of the loop, its plan of rows and its loss nothing is used. What was sampled is taken from the run; all that follows from it is
computed again. Metrics and weights are compared elementwise.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adamw import AdamW, cosine
from grpo_runs import make_place
from torch import Tensor

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.training.grpo import step
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.train import train

SEED, STEPS, PROMPTS, GROUP, INNER, NEW = 3, 3, 2, 3, 2, 7
PEAK, FLOOR, BETAS, EPS, DECAY, MOST = 4e-3, 0.1, (0.9, 0.99), 1e-6, 0.1, 0.5
LOW, HIGH, CLIP, KL, SYNC, ALPHA = 0.3, 0.7, 0.02, 0.3, 3, 0.6
CONFIG = {
    "seed": SEED, "steps": STEPS, "prompts_per_step": PROMPTS, "group_size": GROUP, "micro_batch": 4, "inner_iterations": INNER,
    "precision": "fp32", "rewards": {"sums:reward": 1.0}, "rollout": {"max_new_tokens": NEW}, "evaluate_prompts": 0,
    "samples_every": 0, "t_range": [LOW, HIGH], "clip": CLIP, "kl_coef": KL, "reference_sync": SYNC, "reference_alpha": ALPHA,
    "optimizer": {"learning_rate": PEAK, "warmup_steps": 0, "floor": FLOOR, "betas": list(BETAS), "eps": EPS,
                  "weight_decay": DECAY, "max_grad_norm": MOST},
}  # fmt: skip
REWARD = "def reward(prompt, text):\n    return sum(map(ord, text)) % 97 / 97\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("grpo-by-hand"))
    (folder / "sums.py").write_text(REWARD)
    return folder


def estimate(model: Any, item: Any, number: int, inner: int) -> Tensor:
    """Log-probability of each scored token: (all masked, a half, the other half), weighed by how many are masked."""
    draw = generator(SEED, "masks", number, inner, item.place)
    t = LOW + (HIGH - LOW) * float(torch.rand((), generator=draw))
    half = torch.rand(NEW, generator=draw) < t
    prompt, tokens = torch.tensor(item.completion.prompt), torch.tensor(item.completion.tokens)
    found = torch.zeros(NEW)
    for masked, weight in ((torch.ones(NEW, dtype=torch.bool), 1.0), (half, 1 / t), (~half, 1 / (1 - t))):
        row = torch.cat([prompt, tokens.masked_fill(masked, model.ids.mask)])
        logits_NV = model.logits(row[None])[0, len(prompt) :]
        found = found + masked * weight / 2 * torch.log_softmax(logits_NV, -1)[torch.arange(NEW), tokens]
    return found[: item.completion.scored]


def token_losses(new: Tensor, old: Tensor, reference: Tensor, advantage: float) -> tuple[Tensor, Tensor]:
    """Loss and KL of each token."""
    ratio = torch.exp(new - old)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    kl = torch.exp(reference - new) - (reference - new) - 1
    return KL * kl - surrogate, kl


def by_hand(model: Any, rollouts: list[list[Any]], normaliser: str) -> list[tuple[float, float, float]]:
    """Loss, KL and norm of each step, means over its updates; the model is trained."""
    reference = copy.deepcopy(model)
    optimizer = AdamW(list(model.parameters()), BETAS, EPS, DECAY, MOST)
    told = []
    for number, items in enumerate(rollouts):
        rewards = [sum(map(ord, item.trajectory.text)) % 97 / 97 for item in items]
        groups = [rewards[first : first + GROUP] for first in range(0, len(rewards), GROUP)]
        advantages = [reward - sum(group) / GROUP for group in groups for reward in group]
        with torch.no_grad():  # policy and reference as they are now, for both updates
            old, kept = (
                [[estimate(one, item, number, inner) for item in items] for inner in range(INNER)]
                for one in (model, reference)
            )
        seen = np.zeros(3)
        for inner in range(INNER):
            total, kl_total = torch.zeros(()), 0.0
            for index, item in enumerate(items):
                new = estimate(model, item, number, inner)
                loss, kl = token_losses(new, old[inner][index], kept[inner][index], advantages[index])
                tokens = sum(one.completion.scored for one in items)
                weight = 1 / tokens if normaliser == "token" else 1 / (item.completion.scored * len(items))
                total, kl_total = total + weight * loss.sum(), kl_total + weight * float(kl.detach().sum())
            norm = optimizer.update(total, cosine(number, STEPS, PEAK, 0, FLOOR))
            seen += np.array([float(total.detach()), kl_total, norm]) / INNER
            if optimizer.updates % SYNC == 0:
                with torch.no_grad():
                    for theirs, own in zip(reference.parameters(), model.parameters(), strict=True):
                        theirs.copy_(ALPHA * own + (1 - ALPHA) * theirs)
        told.append(tuple(seen.tolist()))
    return told


@pytest.mark.parametrize("normaliser", ["completion", "token"])
def test_a_run_of_stage_4_is_what_it_is_by_hand(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normaliser: str
) -> None:
    monkeypatch.syspath_prepend(place)
    rollouts: list[list[Any]] = []
    roll_out = step.roll_out

    def uneven(*arguments: Any, **named: Any) -> list[Any]:
        sampled = roll_out(*arguments, **named)
        for index, item in enumerate(sampled):  # the random model's own are all of one length
            object.__setattr__(item.completion, "scored", 1 + (2 * index + len(rollouts)) % NEW)
        rollouts.append(sampled)
        return sampled

    monkeypatch.setattr(step, "roll_out", uneven)
    config = build(GrpoConfig, CONFIG, {"loss_normaliser": normaliser})
    done = train(str(place / "model"), str(place / "data"), str(tmp_path / "run"), config, device="cpu", quiet=True)
    model = load(place / "model", device="cpu")

    written = [json.loads(line)["messages"] for line in (place / "data" / "prompts.jsonl").read_text().splitlines()]
    asked = [written[index] for index in np.random.default_rng([SEED, 0]).permutation(len(written))]
    for place_of, messages in enumerate(asked[: STEPS * PROMPTS]):
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        number, group = divmod(place_of, PROMPTS)
        members = rollouts[number][group * GROUP : (group + 1) * GROUP]
        assert {item.completion.prompt for item in members} == {ids}
        assert [item.place for item in members] == list(range(group * GROUP, (group + 1) * GROUP))

    expected = by_hand(model, rollouts, normaliser)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["loss"], line["kl"], line["grad_norm"]) for line in lines if "reward" in line]
    assert np.allclose(seen, expected, rtol=1e-3, atol=1e-6), (seen, expected)
    theirs = load(done.checkpoint, device="cpu").network.state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.allclose(theirs[name], value, rtol=1e-3, atol=1e-3), (name, (theirs[name] - value).abs().max())
    assert any(line["clipped_low"] + line["clipped_high"] > 0 for line in lines if "reward" in line)
    assert any(norm > MOST for _, _, norm in expected), "some gradients are clipped"

"""Stage 4's masks, estimates, loss and advantages against slow plain references."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dcoder_cli import load
from dcoder_cli.diffusion.coupled import MaskSettings, Passes
from dcoder_cli.diffusion.estimators import ESTIMATORS, make_passes
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo.estimate import (
    Completion,
    EntryLogProbs,
    completion_of,
    log_probabilities,
    plan_rows,
    scored_mask,
)
from dcoder_cli.training.grpo.loss import advantages, grpo_loss

GOLDEN = Path(__file__).parent / "fixtures" / "golden"


def completions(ragged: bool = True) -> list[Completion]:
    """Two prompts, several completions of each: ragged prompts, completions and ends."""
    source = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 290, (count,), generator=source).tolist())

    first, second = ids(5), ids(9 if ragged else 5)
    scored = [10, 4, 1, 10, 7] if ragged else [10] * 5
    lengths = [10, 10, 10, 10, 8] if ragged else [10] * 5
    return [Completion(first if i < 3 else second, ids(lengths[i]), min(scored[i], lengths[i])) for i in range(5)]


def draw(estimator: str, items: list[Completion], pairs: int = 1, seed: int = 0) -> list[Passes]:
    return [
        make_passes(estimator, len(c.tokens), len(c.prompt), generator(seed, "m", i), MaskSettings(pairs))
        for i, c in enumerate(items)
    ]


def reference(model: Model, items: list[Completion], passes: list[Passes]) -> list[list[torch.Tensor]]:
    """Loops over completions, passes and tokens, one row at a time, full logits, in the model's own (float64) precision."""
    result = []
    for item, own in zip(items, passes, strict=True):
        values = [torch.zeros((), dtype=torch.float64) for _ in item.tokens]
        for p in range(own.masked_PN.shape[0]):
            row = [model.ids.mask if own.prompt_masked_PM[p, m] else token for m, token in enumerate(item.prompt)]
            row += [model.ids.mask if own.masked_PN[p, k] else token for k, token in enumerate(item.tokens)]
            log_LV = torch.log_softmax(model.logits(torch.tensor([row]))[0], dim=-1)
            for k in range(item.scored):
                if own.masked_PN[p, k]:
                    values[k] = values[k] + own.weight_PN[p, k].double() * log_LV[len(item.prompt) + k, item.tokens[k]]
        result.append(values)
    return result


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimates_loss_and_gradients_equal_the_plain_reference(estimator: str, pairs: int, ragged: bool) -> None:
    model = load(GOLDEN / "dream", device="cpu")
    model.double()
    items = completions(ragged)
    passes = draw(estimator, items, pairs)
    plan = plan_rows(items, passes, model.ids.mask, model.ids.pad)
    new_BN = log_probabilities(EntryLogProbs(model, rows=7), plan, torch.device("cpu"))
    slow = reference(model, items, passes)
    for b, values in enumerate(slow):
        for k, value in enumerate(values):
            expected = value if k < items[b].scored else torch.zeros((), dtype=torch.float64)
            torch.testing.assert_close(new_BN[b, k], expected, rtol=1e-9, atol=1e-9)

    source = torch.Generator().manual_seed(1)
    old_BN = new_BN.detach() + 0.7 * torch.randn(new_BN.shape, generator=source, dtype=torch.float64)
    reference_BN = new_BN.detach() + 0.3 * torch.randn(new_BN.shape, generator=source, dtype=torch.float64)
    advantage_B = torch.randn(len(items), generator=source, dtype=torch.float64)
    ours = grpo_loss(new_BN, old_BN, reference_BN, advantage_B, scored_mask(items), clip=0.5, kl_coef=0.01).loss
    total = torch.zeros((), dtype=torch.float64)
    for b, item in enumerate(items):
        mean = torch.zeros((), dtype=torch.float64)
        for k in range(item.scored):
            new, old, ref = slow[b][k], old_BN[b, k], reference_BN[b, k]
            ratio = torch.exp(new - old)
            clipped = torch.clamp(ratio, 0.5, 1.5)
            kl = torch.exp(ref - new) - (ref - new) - 1
            mean = mean - torch.minimum(ratio * advantage_B[b], clipped * advantage_B[b]) + 0.01 * kl
        total = total + mean / item.scored
    torch.testing.assert_close(ours, total, rtol=1e-9, atol=1e-9)
    parameters = [model.network.lm_head.weight, model.network.model.layers[0].self_attn.q_proj.weight]
    for got, want in zip(
        torch.autograd.grad(ours, parameters, retain_graph=True), torch.autograd.grad(total, parameters), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)  # the norms of transformers compute in float32


def test_the_blank_pass_is_run_once_for_a_group() -> None:
    items = completions(ragged=False)
    rows = plan_rows(items, draw("coupled", items), 299, 297).ids_RL.shape[0]
    assert rows == 2 + 2 * len(items)  # two prompts' blank rows, and a pair for each completion
    assert plan_rows(items, draw("full-mask", items), 299, 297).ids_RL.shape[0] == 2
    assert plan_rows(items, draw("d1", items), 299, 297).ids_RL.shape[0] == len(items)


def test_pairs_are_complements_and_prompts_stay_clean() -> None:
    for seed in range(50):
        own = make_passes("coupled", 64, 9, generator(seed, "m"), MaskSettings(3))
        assert own.masked_PN[0].all() and not own.prompt_masked_PM.any()
        for first, second in ((1, 2), (3, 4), (5, 6)):
            assert torch.equal(own.masked_PN[first] ^ own.masked_PN[second], torch.ones(64, dtype=torch.bool))
        factor = own.weight_PN * 4
        t = 1 / factor[1].max() if own.masked_PN[1].any() else 1 - 1 / factor[2].max()
        assert 0.2 <= float(t) <= 0.8
        assert torch.equal(own.weight_PN > 0, own.masked_PN)


def test_coupled_and_decoupled_have_one_expectation_and_coupled_the_smaller_variance() -> None:
    """Unit log-probabilities: the estimate is the sum of a token's factors; its mean must agree within 3 standard errors."""
    draws = 4000
    sums = {
        kind: torch.stack(
            [make_passes(kind, 16, 1, generator(seed, kind), MaskSettings()).weight_PN.sum(0) for seed in range(draws)]
        )
        for kind in ("coupled", "decoupled")
    }
    means = {kind: values.mean() for kind, values in sums.items()}
    errors = {kind: values.mean(dim=1).std() / math.sqrt(draws) for kind, values in sums.items()}
    spread = math.sqrt(float(errors["coupled"] ** 2 + errors["decoupled"] ** 2))
    assert abs(float(means["coupled"] - means["decoupled"])) < 3 * spread
    assert float(means["coupled"]) == pytest.approx(1.5, abs=3 * float(errors["coupled"]))  # (1 + 1 + 1) / (1 + 1)
    assert float(sums["coupled"].var(dim=0).mean()) < 0.7 * float(sums["decoupled"].var(dim=0).mean())


def test_left_padding_and_neighbours_change_nothing() -> None:
    model = load(GOLDEN / "dream", device="cpu")
    items = completions()
    passes = draw("coupled", items)
    together = log_probabilities(
        EntryLogProbs(model), plan_rows(items, passes, model.ids.mask, model.ids.pad), torch.device("cpu")
    )
    for b, (item, own) in enumerate(zip(items, passes, strict=True)):
        alone = log_probabilities(
            EntryLogProbs(model), plan_rows([item], [own], model.ids.mask, model.ids.pad), torch.device("cpu")
        )
        torch.testing.assert_close(together[b, : len(item.tokens)], alone[0], rtol=1e-4, atol=1e-5)


def test_ratio_is_one_and_kl_zero_at_the_first_inner_step() -> None:
    model = load(GOLDEN / "dream", device="cpu")
    items = completions()
    plan = plan_rows(items, draw("coupled", items), model.ids.mask, model.ids.pad)
    with torch.no_grad():
        reference_BN = log_probabilities(EntryLogProbs(model), plan, torch.device("cpu"))
    new_BN = log_probabilities(EntryLogProbs(model), plan, torch.device("cpu"))
    loss = grpo_loss(new_BN, new_BN.detach(), reference_BN, torch.ones(len(items)), scored_mask(items))
    assert float(loss.ratio) == len(items) and float(loss.kl) == 0.0
    assert float(loss.clipped_low) == float(loss.clipped_high) == 0.0


def test_advantages_by_hand() -> None:
    assert advantages([1.0, 0.0, 0.0, 3.0]) == [0.0, -1.0, -1.0, 2.0]
    assert advantages([1.0, 0.0, 2.0], "leave-one-out") == [0.0, -1.5, 1.5]
    assert advantages([1.0, math.nan, 3.0]) == [-1.0, 0.0, 1.0]
    assert advantages([math.nan, 2.0]) == [0.0, 0.0]
    assert advantages([0.0, 2.0], scale=True) == pytest.approx([-1.0, 1.0], abs=1e-3)


def test_a_completion_ends_at_its_first_end_token() -> None:
    assert completion_of([1], [5, 6, 2, 7, 2], frozenset({2})).scored == 3
    assert completion_of([1], [5, 6, 7], frozenset({2})).scored == 3


PROMPT = {
    "entry_point": "f",
    "task_id": "t",
    "tests": {"shown": [], "hidden": [f"assert f({i}) == {i + 1}" for i in range(5)]},
}


@pytest.mark.parametrize(
    ("text", "code", "form"),
    [
        ("```python\ndef f(x):\n    return x + 1\n```", 1.0, 1.0),
        ("```python\ndef f(x):\n    return 1\n```", 0.2, 1.0),
        ("```python\ndef f(x)\n    return x + 1\n```", 0.0, 0.5),
        ("def f(x):\n    return x + 1\n", 0.0, 0.0),
        ("```python\nimport sys\ndef f(x):\n    sys.exit(0)\n```", 0.0, 1.0),
        ("```python\nimport os\ndef f(x):\n    os._exit(0)\n```", 0.0, 1.0),
        ("```python\nclass E:\n    def __eq__(self, o): return True\ndef f(x):\n    return E()\n```", 0.0, 1.0),
        ("```python\nimport builtins\ndef f(x):\n    builtins.AssertionError = Warning\n    return 0\n```", 0.0, 1.0),
    ],
)
def test_rewards_gate_and_cheats(text: str, code: float, form: float) -> None:
    from dcoder_cli.execution.judge import Judge
    from dcoder_cli.training.grpo.rewards import Rewarder

    with Judge(workers=1) as judge:
        rewarder = Rewarder({"code": 2.0, "format": 0.5}, judge)
        reward = rewarder.result(rewarder.submit(PROMPT, text))
    assert reward.parts == {"code": pytest.approx(code), "format": form}
    assert reward.total == pytest.approx(2.0 * code + 0.5 * form)

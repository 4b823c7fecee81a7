"""The denoising loss by hand, and its noise. test_vocabulary.py has its gradients."""

from __future__ import annotations

import math

import pytest
import torch

from dcoder_cli.diffusion import loss as losses
from dcoder_cli.diffusion.noise import add_noise, sample_t, uniforms
from dcoder_cli.diffusion.vocabulary import Head, weighted_cross_entropy

LN2, LN4 = math.log(2), math.log(4)


@pytest.mark.parametrize(
    ("normalizer", "weighting", "expected"),
    [
        ("eligible", "elbo", (2 * LN2 + 2 * LN4 + 4 * LN4) / 5),
        ("masked", "elbo", (2 * LN2 + 2 * LN4 + 4 * LN4) / 3),
        ("positions", "elbo", (2 * LN2 + 2 * LN4 + 4 * LN4) / 6),
        ("answer", "elbo", ((2 * LN2 + 2 * LN4) / 3 + 4 * LN4 / 2) / 2),
        ("eligible", "uniform", (LN2 + LN4 + LN4) / 5),
        ("masked", "uniform", (LN2 + LN4 + LN4) / 3),
        ("positions", "uniform", (LN2 + LN4 + LN4) / 6),
        ("answer", "uniform", ((LN2 + LN4) / 3 + LN4 / 2) / 2),
    ],
)
def test_every_normalizer_by_hand(normalizer: str, weighting: str, expected: float) -> None:
    """Two rows of three tokens, vocabulary of 4.

    Row 0: all eligible, t = 1/2, tokens 0 and 2 masked. Row 1: tokens 1 and 2 eligible (token 0 is a prompt), t = 1/4,
    token 2 masked. The model gives the true token probability 1/2 at (0, 0) and 1/4 at (0, 2) and (1, 2), so the
    cross-entropies are ln 2, ln 4, ln 4 and the 1/t weights 2, 2, 4. Eligible tokens 3 + 2 = 5, masked 3, positions 6,
    rows 2 with answers of 3 and 2 tokens.
    """
    masked_BL = torch.tensor([[True, False, True], [False, False, True]])
    eligible_BL = torch.tensor([[True, True, True], [False, True, True]])
    t_B = torch.tensor([0.5, 0.25])
    half = torch.log(torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]))
    quarter = torch.zeros(4)
    logits_NV = torch.stack([half, quarter, quarter])
    weights_N = losses.token_weights(masked_BL, eligible_BL, t_B, weighting, normalizer)[masked_BL]
    targets_N = torch.tensor([0, 3, 1])
    weighted, ce_N = weighted_cross_entropy(Head(lambda rows: rows), logits_NV, targets_N, weights_N, 64)
    torch.testing.assert_close(ce_N, torch.tensor([LN2, LN4, LN4]))
    assert float(weighted / losses.denominator(masked_BL, eligible_BL, normalizer)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_cart_is_its_definition(p: float) -> None:
    torch.manual_seed(1)
    masked_BL = torch.rand(2, 9) < 0.5
    real_BL = torch.ones(2, 9, dtype=torch.bool)
    real_BL[1, 6:] = False  # pads are no context
    weights_BL = losses.token_weights(masked_BL, real_BL, torch.tensor([0.3, 0.7]), "cart", "eligible", real_BL, p)
    for row in range(2):
        for n in range(9):
            expected = 0.0
            for i in range(9):
                if not masked_BL[row, i] and real_BL[row, i] and i != n:
                    expected += 0.5 * p * (1 - p) ** (abs(n - i) - 1)
            assert float(weights_BL[row, n]) == pytest.approx(expected * bool(masked_BL[row, n]), abs=1e-6)


def test_noise_masks_eligible_tokens_with_probability_t() -> None:
    ids_BL = torch.arange(4000).repeat(3, 1) % 100
    eligible_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    eligible_BL[:, :1000] = False
    t_B = torch.tensor([0.1, 0.5, 1.0])
    noised_BL, masked_BL = add_noise(ids_BL, eligible_BL, t_B, uniforms(range(3), 4000, 0, 0), mask_id=100)
    assert not masked_BL[:, :1000].any()
    assert (noised_BL[masked_BL] == 100).all() and (noised_BL[~masked_BL] == ids_BL[~masked_BL]).all()
    share_B = masked_BL[:, 1000:].float().mean(dim=1)
    standard_error_B = (t_B * (1 - t_B) / 3000).sqrt()
    assert ((share_B - t_B).abs() <= 4 * standard_error_B).all()  # t = 1 masks everything


def test_a_row_keeps_its_noise_whatever_stands_beside_it() -> None:
    together = uniforms(range(8), 16, seed=3, step=7)
    torch.testing.assert_close(together[5:], uniforms(range(5, 8), 16, seed=3, step=7), rtol=0, atol=0)
    t_B = sample_t(range(8), 8, seed=3, step=7)
    torch.testing.assert_close(t_B[2:4], sample_t(range(2, 4), 8, seed=3, step=7), rtol=0, atol=0)
    assert not torch.equal(t_B, sample_t(range(8), 8, seed=3, step=8))


def test_t_is_uniform_and_stratified_t_covers_every_band() -> None:
    t_B = torch.cat([sample_t(range(8), 8, seed=0, step=step, t_min=0.01) for step in range(500)])
    assert t_B.min() >= 0.01 and t_B.max() <= 1.0
    assert abs(float(t_B.mean()) - 0.505) < 3 * 0.2858 / math.sqrt(len(t_B))
    for step in range(20):
        even_B = sample_t(range(8), 8, seed=0, step=step, t_min=1e-6, stratified=True)
        assert sorted((even_B * 8).long().tolist()) == list(range(8))
        torch.testing.assert_close(even_B[3:5], sample_t(range(3, 5), 8, 0, step, 1e-6, True), rtol=0, atol=0)


def test_the_elbo_estimate_is_unbiased() -> None:
    """With cross-entropy c at every masked token, E[sum over masked of c/t] = c * L: the mean weight of a token is 1."""
    count, length = 4000, 8
    t_B = sample_t(range(count), count, seed=5, step=0, t_min=0.05)
    eligible_BL = torch.ones(count, length, dtype=torch.bool)
    _, masked_BL = add_noise(
        torch.zeros(count, length, dtype=torch.long), eligible_BL, t_B, uniforms(range(count), length, 5, 0), 1
    )
    weights_BL = losses.token_weights(masked_BL, eligible_BL, t_B)
    mean_B = weights_BL.mean(dim=1)
    assert abs(float(mean_B.mean()) - 1.0) < 3 * float(mean_B.std()) / math.sqrt(count)

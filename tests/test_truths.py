"""The variance lab's truths against enumeration of all masks, and its errors against their definition."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from helpers import make_model

from dcoder_cli import generate, load
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import truths
from dcoder_cli.training.estimate import Completion, EntryLogProbs

PROMPT = (5, 6, 7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model in float64, sharp enough that contexts matter."""
    model = load(make_model(tmp_path_factory.mktemp("truths") / "model"), device="cpu")
    with torch.no_grad():
        model.network.double()
        model.network.lm_head.weight.mul_(20)
    return model


@torch.no_grad()
def log_probability(model: Model, tokens: tuple[int, ...], masked: set[int], place: int) -> float:
    """log P of the token at `place` of the answer where the places in `masked` are masks, one row at a time."""
    row = [model.ids.mask if place in masked else token for place, token in enumerate(tokens)]
    logits_V = model.logits(torch.tensor([[*PROMPT, *row]]))[0, len(PROMPT) + place]
    return float(torch.log_softmax(logits_V.double(), dim=-1)[tokens[place]])


def test_the_decoding_path_equals_the_chain_of_its_steps(model: Model) -> None:
    """Six answers, one of them with two commits in a step, one that counts only its first four tokens."""
    made = generate(model, [PROMPT] * 4, max_new_tokens=5, temperature=1.0, seed=3)
    cases = [(tuple(item.tokens), item.reveal_step, 5) for item in made]
    cases += [((9, 8, 7, 6, 5), [1, 0, 1, 2, 3], 5), ((9, 8, 7, 6, 5), [4, 3, 0, 1, 2], 4)]
    completions = [Completion(PROMPT, tokens, scored) for tokens, _, scored in cases]
    found_CN = truths.path(EntryLogProbs(model), completions, [steps for _, steps, _ in cases])
    for found_N, (tokens, steps, scored) in zip(found_CN.tolist(), cases, strict=True):
        for place in range(5):
            masked = {other for other in range(5) if steps[other] >= steps[place]}
            wanted = log_probability(model, tokens, masked, place) if place < scored else 0.0
            assert found_N[place] == pytest.approx(wanted, abs=1e-5)  # the head gives float32


def test_a_sampled_path_has_the_confidences_of_its_trajectory(model: Model) -> None:
    made = generate(model, [PROMPT] * 3, max_new_tokens=6, temperature=1.0, seed=1)
    completions = [Completion(PROMPT, tuple(item.tokens), 6) for item in made]
    found_CN = truths.path(EntryLogProbs(model), completions, [item.reveal_step for item in made])
    for found_N, item in zip(found_CN, made, strict=True):
        assert found_N.exp().tolist() == pytest.approx(item.confidence, abs=1e-5)


def test_the_mean_over_masks_equals_its_enumeration(model: Model) -> None:
    """t uniform given that a token is masked: the other n - 1 tokens are masked by a subset of size j with chance
    1 / (n C(n - 1, j)). All 2^(n-1) subsets for n = 4; the last token does not count."""
    tokens, length, scored = (9, 8, 7, 6), 4, 3
    source = generator(0, "test")
    mean_CN, error_CN = truths.masks(EntryLogProbs(model), [Completion(PROMPT, tokens, scored)], 3000, [source])
    for place in range(scored):
        others = [other for other in range(length) if other != place]
        wanted = 0.0
        for size in range(length):
            subsets = list(itertools.combinations(others, size))
            values = [log_probability(model, tokens, {place, *subset}, place) for subset in subsets]
            wanted += sum(values) / len(values) / length
        error = float(error_CN[0, place])
        assert 0 < error < 0.2
        assert abs(float(mean_CN[0, place]) - wanted) < 4 * error
        alone = log_probability(model, tokens, {place}, place)
        everything = log_probability(model, tokens, set(range(length)), place)
        assert abs(alone - wanted) > 5 * error or abs(everything - wanted) > 5 * error  # the masks do matter
    assert mean_CN[0, scored:].tolist() == [0.0] and error_CN[0, scored:].tolist() == [0.0]


def test_errors_are_distance_and_variance_without_the_noise(model: Model, tmp_path: Path) -> None:
    """Two tokens, estimates -1 +- and -2 +-: means (-1, -2), variances 0.5 and 0.3 over 10 draws; path (-1.5, -2),
    masks (-1, -4) known to 0.1: path 0.125 - 0.04 + 0.4, masks 2 - 0.04 - 0.01 + 0.4."""
    from dcoder_cli.training.variance import _Bench, _Drawn

    bench = object.__new__(_Bench)
    bench.scored_CN = torch.tensor([[True, True, False]])
    bench.path_CN = torch.tensor([[-1.5, -2.0, 0.0]]).double()
    bench.masks_CN = torch.tensor([[-1.0, -4.0, 0.0]]).double()
    bench.masks_error_CN = torch.tensor([[0.1, 0.1, 0.0]]).double()
    drawn = _Drawn(
        10, torch.tensor([[-1.0, -2.0, 0.0]]).double(), torch.tensor([[0.5, 0.3, 0.0]]).double(), 0, None, 0.0, []
    )
    found = bench._errors(drawn)
    assert found == pytest.approx({"own": 0.4, "path": 0.125 - 0.04 + 0.4, "masks": 2 - 0.04 - 0.01 + 0.4})

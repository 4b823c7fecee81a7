"""The variance lab's truths against enumeration of all masks, and its errors against their definition."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from helpers import make_model

from dcoder_cli import generate, load
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo import truths
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import Completion, EntryLogProbs
from dcoder_cli.training.grpo.rewards import Reward
from dcoder_cli.training.grpo.rollouts import Rollout
from dcoder_cli.training.grpo.variance import TRUTHS, Lab, Row, _row, _truths
from dcoder_cli.training.grpo.variance_bench import Bench

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


def test_errors_are_distance_and_variance_without_the_noise() -> None:
    """Two tokens, estimates -1 +- and -2 +-: means (-1, -2), variances 0.5 and 0.3 over 10 draws; path (-1.5, -2),
    masks (-1, -4) known to 0.1: path 0.125 - 0.04 + 0.4, masks 2 - 0.04 - 0.01 + 0.4."""
    scored_CN = torch.tensor([[True, True, False]])
    path_CN, masks_CN, error_CN, mean_CN, variance_CN = torch.tensor(
        [[[-1.5, -2, 0]], [[-1, -4, 0]], [[0.1, 0.1, 0]], [[-1, -2, 0]], [[0.5, 0.3, 0]]], dtype=torch.float64
    )
    known = truths.Truths(scored_CN, path_CN, masks_CN, error_CN)
    found = known.errors(mean_CN, variance_CN, 10)
    assert found == pytest.approx({"own": 0.4, "path": 0.125 - 0.04 + 0.4, "masks": 2 - 0.04 - 0.01 + 0.4})
    assert known.masks_standard_error() == pytest.approx(0.1)


# One rollout of four tokens, all scored, committed in an order that is not left to right, two of them in one step.
TOKENS, STEPS = (9, 8, 7, 6), [2, 0, 1, 1]
CONFIG = GrpoConfig(seed=4)
DRAWS = 3000  # so many that a swap of two truths stands out in both estimators


@pytest.fixture(scope="module")
def bench(model: Model) -> Bench:
    trajectory = Trajectory("0", "", list(TOKENS), "", STEPS, [], [], len(PROMPT))
    rollout = Rollout(0, Completion(PROMPT, TOKENS, 4), trajectory, Reward(1.0, {}, "passed"))
    return Bench(model, [rollout], torch.tensor([1.0]), CONFIG)


@pytest.fixture(scope="module")
def enumerated(model: Model) -> list[dict[tuple[int, ...], float]]:
    """For each place log P of its token under every mask of the four tokens that masks it: 4 x 8 rows."""
    subsets = [own for size in range(1, 5) for own in itertools.combinations(range(4), size)]
    return [
        {own: log_probability(model, TOKENS, set(own), place) for own in subsets if place in own} for place in range(4)
    ]


def enumerated_path(table: list[dict[tuple[int, ...], float]]) -> list[float]:
    return [
        values[tuple(other for other in range(4) if STEPS[other] >= STEPS[place])] for place, values in enumerate(table)
    ]


def enumerated_masks(table: list[dict[tuple[int, ...], float]]) -> list[float]:
    return [sum(value / (4 * math.comb(3, len(own) - 1)) for own, value in values.items()) for values in table]


def enumerated_pair(values: dict[tuple[int, ...], float], coupled: bool) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment of a token's estimate, (full + what a pair gives) / 3, over the masks of
    one pair and t uniform in t_range (quadrature; the integrand is smooth there)."""
    low, high = CONFIG.t_range
    points, weights = numpy.polynomial.legendre.leggauss(40)
    full, cases = values[0, 1, 2, 3], []
    for t, share in zip(low + (high - low) * (points + 1) / 2, weights / 2, strict=True):
        # (chance, contribution) of one pass at ratio r: masks that hold the token, and all those that do not.
        sides = []
        for ratio in (t, 1 - t):
            held = [(ratio ** len(own) * (1 - ratio) ** (4 - len(own)), value / ratio) for own, value in values.items()]
            sides.append((held, (1 - ratio, 0.0)))
        (first, first_none), (second, second_none) = sides
        if coupled:  # the token is in exactly one of the two
            cases += [(share * chance, value) for chance, value in first + second]
        else:
            pairs = itertools.product([*first, first_none], [*second, second_none])
            cases += [(share * left * right, one + two) for (left, one), (right, two) in pairs]
    chance, value = numpy.array(cases).T
    assert chance.sum() == pytest.approx(1)
    estimate = (full + value) / 3
    mean = (chance * estimate).sum()
    return mean, (chance * (estimate - mean) ** 2).sum(), (chance * (estimate - mean) ** 4).sum()


def test_the_labs_truths_are_those_of_its_rollouts(
    bench: Bench, enumerated: list[dict[tuple[int, ...], float]]
) -> None:
    known = _truths(bench, 3000)
    path, masks = enumerated_path(enumerated), enumerated_masks(enumerated)
    assert known.path_CN[0].tolist() == pytest.approx(path, abs=1e-5)  # the head gives float32
    for place in range(4):
        error = float(known.masks_error_CN[0, place])
        assert 0 < error < 0.2 and abs(float(known.masks_CN[0, place]) - masks[place]) < 4 * error
    assert max(abs(one - two) for one, two in zip(path, masks, strict=True)) > 1, "nothing could be told apart"


@pytest.mark.parametrize("estimator", ["coupled", pytest.param("decoupled", marks=pytest.mark.slow)])
def test_errors_of_a_pair_equal_their_enumeration(
    bench: Bench, enumerated: list[dict[tuple[int, ...], float]], estimator: str
) -> None:
    """Means and variances of the draws by token, and the three errors of the row, within 4 standard errors."""
    known = _truths(bench, 3000)
    drawn = bench.draw(estimator, 1, DRAWS, "test", False)
    moments = [enumerated_pair(values, estimator == "coupled") for values in enumerated]
    for place, (mean, variance, fourth) in enumerate(moments):
        assert abs(float(drawn.mean_CN[0, place]) - mean) < 4 * math.sqrt(variance / DRAWS)
        spread = math.sqrt((fourth - variance**2) / DRAWS)
        assert abs(float(drawn.variance_CN[0, place]) - variance) < 4 * spread
    row = _row(estimator, 1, drawn, drawn, drawn.mean_CN, known)
    assert tuple(row.error) == TRUTHS and row.error["own"] == row.variance
    own = sum(variance for _, variance, _ in moments) / 4
    # Tokens of one draw move together, so standard errors are added, not their squares.
    own_error = sum(math.sqrt((fourth - variance**2) / DRAWS) for _, variance, fourth in moments) / 4
    assert abs(row.error["own"] - own) < 4 * own_error
    wanted, allowed = {}, {}
    for truth, values in (("path", enumerated_path(enumerated)), ("masks", enumerated_masks(enumerated))):
        gaps = [mean - value for (mean, _, _), value in zip(moments, values, strict=True)]
        noise = [variance / DRAWS for _, variance, _ in moments]
        if truth == "masks":
            noise = [one + float(error) ** 2 for one, error in zip(noise, known.masks_error_CN[0], strict=True)]
        # (gap + e)^2 - var e, with e normal, has the variance 4 gap^2 var e + 2 (var e)^2.
        spreads = [math.sqrt(4 * gap**2 * one + 2 * one**2) for gap, one in zip(gaps, noise, strict=True)]
        wanted[truth], allowed[truth] = sum(gap**2 for gap in gaps) / 4, 4 * sum(spreads) / 4
        assert abs(row.error[truth] - row.variance - wanted[truth]) < allowed[truth]
    assert abs(wanted["path"] - wanted["masks"]) > sum(allowed.values()), "a swap would not be seen"


def test_the_full_mask_has_its_distances_only(bench: Bench, enumerated: list[dict[tuple[int, ...], float]]) -> None:
    full = bench.draw("full-mask", 1, 1, "test", False)
    path_CN = torch.tensor([enumerated_path(enumerated)], dtype=torch.float64)
    known = replace(_truths(bench, 3000), path_CN=path_CN)
    row = _row("full-mask", 0, full, full, full.mean_CN, known)
    distances = [values[0, 1, 2, 3] - value for values, value in zip(enumerated, path_CN[0].tolist(), strict=True)]
    assert row.error["own"] == row.bias == 0
    assert row.error["path"] == pytest.approx(sum(gap**2 for gap in distances) / 4, rel=1e-5)


def test_every_truth_is_named_where_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table, JSON and picture of a made lab: each number under its own name."""
    from dcoder_cli.analysis.variance_plot import estimator_variance
    from dcoder_cli.main import main

    full = Row("full-mask", 0, 1, 0.0, 0.0, 1.0, error={"own": 0.0, "path": 1.25, "masks": 3.5})
    pairs = [
        Row("coupled", count, 1 + 2 * count, 0.0, 0.0, 0.0, error={"own": own, "path": own + 1, "masks": own + 5})
        for count, own in ((1, 0.5), (2, 0.25))
    ]
    lab = Lab([full, *pairs], 8, 4, 0.0, 32, 128, 1.0, 0.0625)
    monkeypatch.setattr("dcoder_cli.training.grpo.variance.measure", lambda *_, **__: lab)

    def printed(*more: str) -> str:
        out = io.StringIO()
        command = ["dcoder", "grpo", "--measure-variance", "--preset", "cpu-tiny", "--model", "m", "--data", "d", *more]
        monkeypatch.setattr("sys.argv", command)
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main()
        return out.getvalue()

    table = printed("--out", str(tmp_path / "table"))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0][:5] == ["estimator", "passes", *TRUTHS]
    assert lines[1][:5] == ["full-mask", "1", "0.0000", "1.2500", "3.5000"]
    assert lines[3][:5] == ["coupled", "5", "0.2500", "1.2500", "5.2500"]
    assert "(known to 0.062 nats)" in table and "one step committed share its context" in table
    record = json.loads(printed("--json", "--out", str(tmp_path / "json")))
    assert record["masks_standard_error"] == 0.0625
    assert [row["error"] for row in record["rows"]] == [row.error for row in lab.rows]
    figure = estimator_variance(lab.rows)
    assert len(figure.axes) == len(TRUTHS)
    for axis, truth in zip(figure.axes, TRUTHS, strict=True):
        assert axis.get_title("left").startswith(f"{truth}: ")
        drawn = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
        assert drawn["coupled"] == [row.error[truth] for row in pairs]
        assert set(drawn["full-mask"]) == {full.error[truth]}

"""Ties: which of equal scores is committed, that a row in a batch gives what it gives alone, and what is recorded."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import thinned
from test_sampler import GOLDEN, RAGGED, reference, sharpened

from dcoder_cli import generate, load
from dcoder_cli.analysis.arness import arness, global_curve, local_curve
from dcoder_cli.analysis.ties import open_orders, tied_share
from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding import selection, trajectory
from dcoder_cli.decoding.proposal import Candidates, propose
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.diffusion import unmasking
from dcoder_cli.model.backbone import Model

ONE_TOKEN = 1e-6  # a top-p that leaves every place one token: entropy 0, confidence 1, margin 1 everywhere
RULES = ("entropy", "confidence", "margin")


def _fake(mask: int) -> Any:
    """What `propose` asks of a model whose logits are given."""
    ids = SimpleNamespace(mask=mask, stops=frozenset(), tokens=None)
    return SimpleNamespace(ids=ids, device=torch.device("cpu"), dtype=torch.float32, vocab_size=mask + 1)


def _copied(logits_NV: torch.Tensor, some: slice | torch.Tensor) -> torch.Tensor:
    return logits_NV[some].clone()


@pytest.fixture(scope="module")
def model() -> Model:
    return sharpened(load(GOLDEN / "dream", device="cpu"))


@pytest.mark.parametrize("rule", RULES)
def test_two_candidates_with_equal_filtered_scores(rule: str) -> None:
    """Three masks at columns 4, 5, 6 of 8. The first is unsure. The other two keep one token each at top-p 0.6, so they
    are equal (entropy 0, confidence 1, margin 1); unfiltered the right one is surer, 0.88 against 0.67."""
    raw_NV = torch.tensor([[1.0, 1.0, 1.0, -9.0], [1.5, 0.0, 0.0, -9.0], [0.0, 2.7, 0.0, -9.0]])
    fake = _fake(mask=3)
    table = selection.Ragged([3], torch.device("cpu"))
    waiting = Candidates([3], torch.arange(3), ties_N=torch.tensor([0.1, 0.9, 0.4]))
    by_topk = dataclasses.replace(waiting, columns=[torch.tensor([4, 5, 6])], widths=[8])
    expected = {"model": 2, "left": 1, "right": 2, "random": 1, "topk": None}
    for tie_break, wanted in expected.items():
        settings = Settings(max_new_tokens=3, rule=rule, top_p=0.6, tie_break=tie_break)  # type: ignore[arg-type]
        candidates = by_topk if wanted is None else waiting
        proposal = propose(fake, settings, rule, partial(_copied, raw_NV), candidates)
        assert proposal.scores_N[1] == proposal.scores_N[2] > proposal.scores_N[0]
        if wanted is None:
            row_L = torch.full((8,), -torch.inf)
            row_L[4:7] = proposal.scores_N
            wanted = int(torch.topk(row_L, 1).indices) - 4
        one, _ = selection.choose(settings, proposal, candidates, table, [1])
        assert one.at_K.tolist() == [wanted], tie_break
        assert one.tied_N.tolist() == [False, True, True]
        assert not selection.choose(settings, proposal, candidates, table, [2])[0].tied_N.any()  # both are taken


def test_the_default_is_the_models_order_and_topk_in_compat() -> None:
    assert Settings().tie_break == "model"
    assert Settings(compat="dream").tie_break == Settings(compat="llada").tie_break == "topk"
    with pytest.raises(UserError, match="tie_break 'middle' is unknown; use model, left, right, random, topk"):
        Settings(tie_break="middle")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="tie_break left with compat dream"):
        Settings(compat="dream", tie_break="left")


@pytest.mark.parametrize(
    ("options", "rule", "tie_break"),
    thinned(
        itertools.product([{}, {"steps": 4}, {"block_length": 6}, {"temperature": 0.8}], RULES, unmasking.TIE_BREAKS), 3
    ),
)
def test_every_tie_break_equals_a_plain_sampler(model: Model, tie_break: str, rule: str, options: dict) -> None:
    options = {"max_new_tokens": 12, "rule": rule, "top_p": ONE_TOKEN, "tie_break": tie_break, "seed": 2, **options}
    ours = generate(model, [[5, 6, 7]], **options)[0]
    assert [ours.tokens, ours.reveal_step] == reference(model, [5, 6, 7], [], options)
    fast = {"mode": "fast", "cache": "none", "commit": "schedule", "early_stop": False}
    same = generate(model, [[5, 6, 7]], **options, **fast)[0]  # the fast mode without anything approximate
    assert (same.tokens, same.reveal_step, same.tied) == (ours.tokens, ours.reveal_step, ours.tied)


@pytest.mark.parametrize("tie_break", unmasking.TIE_BREAKS)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_batch_gives_what_its_rows_give_alone(model: Model, tie_break: str, mode: str) -> None:
    """Ragged rows: topk's row, too, is the one that stands alone (in compat it is the public code's, with pads)."""
    prompts = RAGGED
    options: dict[str, Any] = {"max_new_tokens": 16, "top_p": 0.3, "temperature": 0.4, "tie_break": tie_break}
    options |= {"mode": mode, "seed": 5}
    seeds = [11 + row for row in range(len(prompts))]
    together = generate(model, prompts, seeds=seeds, **options)
    assert any(any(one.tied) for one in together)
    for row, one in enumerate(together):
        alone = generate(model, [prompts[row]], seeds=[seeds[row]], **options)[0]
        assert (one.tokens, one.reveal_step, one.tied, one.tied_from) == (
            alone.tokens, alone.reveal_step, alone.tied, alone.tied_from,
        )  # fmt: skip


def test_the_orders_of_tied_decodings(model: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "top_p": ONE_TOKEN}
    orders = {kind: generate(model, [[5, 6]], tie_break=kind, **options)[0] for kind in ("left", "right", "random")}
    assert orders["left"].reveal_step == list(range(8))
    assert orders["right"].reveal_step == list(range(7, -1, -1))
    assert orders["random"].reveal_step not in (list(range(8)), list(range(7, -1, -1)))
    again = generate(model, [[1], [5, 6]], tie_break="random", **options)[1]  # a row's own numbers, by its seed
    other = generate(model, [[5, 6]], seeds=[1], tie_break="random", **options)[0]
    assert again.reveal_step == other.reveal_step != orders["random"].reveal_step
    for one in orders.values():  # the last commit had no choice left
        assert [by for by, step in zip(one.tied, one.reveal_step, strict=True) if step < 7] == [True] * 7
        assert one.tied[one.reveal_step.index(7)] is False
        assert one.tied_from == [0] * 8  # each could have come first
        assert one.settings["tie_break"] in orders


def test_without_filters_nothing_is_tied(model: Model) -> None:
    for options in ({}, {"rule": "random", "top_p": ONE_TOKEN}, {"rule": "left-to-right", "top_p": ONE_TOKEN},
                    {"alg_temperature": 0.3, "top_p": ONE_TOKEN}):  # fmt: skip
        one = generate(model, [[5, 6]], max_new_tokens=8, **options)[0]
        assert one.tied == [False] * 8 and one.tied_from == one.reveal_step


def test_a_bfloat16_model_is_scored_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 some scores of these 40 candidates would coincide; in float32 none does."""
    model = sharpened(load(GOLDEN / "dream", device="cpu", dtype="bfloat16"), 12.0)
    seen: list[torch.Tensor] = []
    score = unmasking.score
    monkeypatch.setattr(unmasking, "score", lambda *given: seen.append(score(*given)) or seen[-1])
    generate(model, [[5, 6]], max_new_tokens=40, rule="confidence")
    assert {scores_N.dtype for scores_N in seen} == {torch.float32}
    assert len(seen[0].bfloat16().unique()) < len(seen[0].unique()) == 40


def test_the_fast_modes_commit_rules_say_when_a_tie_decided() -> None:
    """Scores of four candidates; the rule's order decides only where nothing is above the threshold."""
    logits_NV = torch.tensor([[4.0, 0.0, -9.0], [4.0, 0.0, -9.0], [0.5, 0.0, -9.0], [0.0, 0.5, -9.0]])
    for settings, chosen, tied in (
        ({"threshold": 0.9}, [0, 1], []),  # both are above: no order was asked
        ({"threshold": 0.99}, [0], [0, 1]),  # none is: the first of two equals
        ({"factor": 0.04}, [0], [0, 1]),  # 2 (1 - 0.982) = 0.036 allows one, 3 (1 - 0.982) = 0.054 not both
        ({"entropy_bound": 0.0}, [0], [0, 1]),
        ({"entropy_bound": 0.1}, [0, 1], []),  # 0.09 nats beside the largest
    ):
        asked = Settings(max_new_tokens=4, mode="fast", tie_break="left", **settings)  # type: ignore[arg-type]
        waiting, table = Candidates([4], torch.arange(4)), selection.Ragged([4], torch.device("cpu"))
        proposal = propose(_fake(mask=2), asked, "entropy", partial(_copied, logits_NV), waiting, measured=True)
        taken, _ = selection.choose(asked, proposal, waiting, table, None)
        assert taken.taken_K is not None and taken.taken_K.nonzero()[:, 0].tolist() == chosen, settings
        assert taken.tied_N.nonzero()[:, 0].tolist() == tied, settings


def test_trajectory_files_keep_ties(model: Model, tmp_path: Path) -> None:
    made = generate(model, [[5, 6]], max_new_tokens=6, top_p=ONE_TOKEN)
    trajectory.write(tmp_path / "t.jsonl", made)
    back = trajectory.read(tmp_path / "t.jsonl")[0]
    assert (back.tied, back.tied_from) == (made[0].tied, made[0].tied_from) and any(made[0].tied)
    (tmp_path / "foreign.jsonl").write_text('{"reveal_step": [0, 1]}\n')
    assert trajectory.read(tmp_path / "foreign.jsonl")[0].tied is None
    for record, message in (
        ({"tied": [True]}, r"tied has 1 entries but reveal_step has 2"),
        ({"tied": [True, 1]}, r"tied\[1\] is 1; it must be true or false"),
        ({"tied_from": [0, 2]}, r"tied_from\[1\] is 2; it must be a step from 0 to its commit"),
    ):
        (tmp_path / "bad.jsonl").write_text(json.dumps({"reveal_step": [0, 1], **record}) + "\n")
        with pytest.raises(UserError, match=message):
            trajectory.read(tmp_path / "bad.jsonl")


# What ties decided, in numbers.


def _sample(steps: list[int], **ties: Any) -> Trajectory:
    nothing = [0.0] * len(steps)
    return Trajectory("s", "", [0] * len(steps), "", steps, nothing, nothing, 0, **ties)


def _allowed(tied_from: list[int]) -> list[list[int]]:
    """Every order, one token a step, in which no token comes before it could: steps by token."""
    return [
        list(steps)
        for steps in itertools.permutations(range(len(tied_from)))
        if all(step >= first for step, first in zip(steps, tied_from, strict=True))
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_lowest_and_highest_arness_lie_within_what_every_allowed_order_gives(seed: int) -> None:
    source = random.Random(seed)
    steps = source.sample(range(6), 6)
    tied_from = [source.randint(0, step) for step in steps]
    orders = _allowed(tied_from)
    for order in open_orders(steps, tied_from).values():
        assert order in orders
    found = arness([_sample(steps, tied=[False] * 6, tied_from=tied_from)], local_k=2, global_k=2)
    for kind, curve in (("local", local_curve), ("global", global_curve)):
        for k in (1, 2):
            every = [curve(np.asarray(order), 2)[k - 1] for order in orders]
            low, high = (found[kind][name][k - 1] for name in ("tie_low", "tie_high"))
            assert min(every) - 1e-9 <= low <= found[kind]["mean"][k - 1] <= high <= max(every) + 1e-9


def test_where_all_was_tied_the_ends_are_those_of_every_order() -> None:
    steps = [3, 0, 4, 1, 2]
    found = arness([_sample(steps, tied=[True, True, False, True, True], tied_from=[0] * 5)], local_k=2, global_k=3)
    orders = [np.asarray(order) for order in itertools.permutations(range(5))]
    for kind, curve, longest in (("local", local_curve, 2), ("global", global_curve, 3)):
        every = np.stack([curve(order, longest) for order in orders])
        assert found[kind]["tie_low"] == pytest.approx(every.min(axis=0))
        assert found[kind]["tie_high"] == pytest.approx(every.max(axis=0))


def test_the_share_of_tied_steps() -> None:
    """Four steps, the first of two tokens; a tie decided steps 0 and 2: one half. Up to the end of turn two of three."""
    one = _sample([0, 0, 1, 2, 3], tied=[True, False, False, True, False])
    assert tied_share(one) == 0.5
    untold = _sample([0, 1])
    found = arness([one, untold], local_k=1, global_k=1)
    assert (found["tied_share"], found["ties_known"]) == (0.5, 1)
    assert found["global"]["tie_low"] == [None]  # not of these two alone: the second does not tell
    assert arness([untold])["tied_share"] is None
    ended = _sample([0, 0, 1, 2, 3], tied=[True, False, False, True, False], settings={"end_ids": [7]})
    ended = dataclasses.replace(ended, tokens=[1, 1, 1, 7, 7])
    assert arness([ended], until="end")["tied_share"] == pytest.approx(2 / 3)


def test_nothing_tied_leaves_one_value() -> None:
    found = arness([_sample([2, 0, 1, 3], tied=[False] * 4, tied_from=[2, 0, 1, 3])], local_k=1, global_k=1)
    for kind in ("local", "global"):
        assert found[kind]["tie_low"] == found[kind]["mean"] == found[kind]["tie_high"]
    assert found["tied_share"] == 0.0

"""The engine: whatever shares the pool with a row, its tokens, steps and ties are those of the plain loop on the row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import make_model, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dcoder_cli.decoding.engine import Engine
from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.decoding.rows import Decoded, Ticket
from dcoder_cli.model import attention
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import load
from dcoder_cli.timing.plain_rows import decode as plain

# Rows of other lengths round logits otherwise; in float64 no decision is that near.
_FLOATS = ("confidence", "entropy")


@pytest.fixture(scope="module", params=[True, False], ids=["shifted", "unshifted"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = make_model(tmp_path_factory.mktemp("engine") / "model", tokenizer=make_tokenizer(), initializer_range=0.3)
    made = load(folder, "cpu", "float32")
    made.network.double()
    made.shift = request.param
    return made


def test_float64(model: Model) -> None:
    assert model.dtype == torch.float64 and model.ids.mask is not None and model.ids.stops


def same(decoded: Decoded, model: Model, pads: int = 0) -> None:
    """What the engine made of a row is what the plain loop makes of it alone."""
    expected = plain(model, decoded.ticket.request, decoded.ticket.settings, pads)
    wanted = expected.columns()
    for name, values in wanted.items():
        found = decoded.columns[name]
        if name in _FLOATS:
            assert found == pytest.approx(values, rel=1e-7, abs=1e-9), name
        else:
            assert found == values, name
    assert decoded.forwards == expected.forwards


def exact_settings() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "rule": st.sampled_from(["entropy", "confidence", "margin", "random", "left-to-right"]),
            "temperature": st.sampled_from([0.0, 0.0, 0.7, 1.5]),
            "top_p": st.sampled_from([None, None, 0.02, 0.9]),
            "top_k": st.sampled_from([None, None, 1, 5]),
            "alg_temperature": st.sampled_from([0.0, 0.0, 0.5]),
            "tie_break": st.sampled_from(["model", "left", "right", "random", "topk"]),
            "cfg_scale": st.sampled_from([0.0, 0.0, 0.0, 1.5]),
            "stop_penalty": st.sampled_from([0.0, 2.0]),
            "min_new_tokens": st.sampled_from([0, 2]),
            "logits_mib": st.sampled_from([None, None, 1]),
        }
    )


def lengths() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(
        [
            {"max_new_tokens": 8}, {"max_new_tokens": 8, "steps": 3}, {"max_new_tokens": 12, "block_length": 4},
            {"max_new_tokens": 12, "block_length": 4, "steps": 6}, {"max_new_tokens": 3}, {"max_new_tokens": 17},
            {"max_new_tokens": 2, "steps": 1},
        ]
    )  # fmt: skip


def fast_settings() -> st.SearchStrategy[dict[str, Any]]:
    how = st.sampled_from(
        [
            {"threshold": 0.9}, {"threshold": 0.05}, {"threshold": 0.0}, {"factor": 1.0}, {"factor": 2.5},
            {"factor": 40.0}, {"entropy_bound": 0.0}, {"entropy_bound": 6.0}, {"commit": "schedule"},
        ]
    )  # fmt: skip
    caches = st.sampled_from(
        [{"cache": "none"}, {"cache": "prefix"}, {"cache": "dual"}, {"cache": "dual", "cache_refresh": 2}]
    )
    plainly = exact_settings().map(lambda one: {**one, "cfg_scale": 0.0, "mode": "fast"})
    early = st.sampled_from([{"early_stop": True}, {"early_stop": False}])
    return st.tuples(plainly, how, caches, early).map(lambda parts: {k: v for part in parts for k, v in part.items()})


def tickets() -> st.SearchStrategy[Ticket]:
    row = st.lists(st.integers(5, 250), max_size=9)

    def build(given: dict[str, Any], size: dict[str, Any], before: list[int], after: list[int], seed: int) -> Ticket:
        if "commit" not in given and given.get("mode") == "fast":
            size = {name: value for name, value in size.items() if name != "steps"}
        asked = Settings(**{**given, **size}, seed=seed % 3)
        return Ticket(Request(seed, str(seed), "", before, after, asked.max_new_tokens, seed), asked)

    suffix = st.one_of(st.just([]), st.just([]), st.lists(st.integers(5, 250), max_size=5))
    return st.builds(build, st.one_of(exact_settings(), fast_settings()), lengths(), row, suffix, st.integers(0, 10**6))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(tickets(), st.integers(0, 4)), min_size=1, max_size=7), st.integers(1, 5))
def test_rows_that_come_at_any_time_are_decoded_as_if_alone(
    model: Model, arrivals: list[tuple[Ticket, int]], slots: int
) -> None:
    """Each ticket arrives so many steps after the one before it, into a pool of any size."""
    engine, done = Engine(model, slots), []
    for ticket, later in arrivals:
        for _ in range(later):
            done += engine.step()
        engine.add(ticket)
    done += list(engine.run())
    assert {id(one.ticket) for one in done} == {id(ticket) for ticket, _ in arrivals} and len(done) == len(arrivals)
    assert not engine.waiting and not engine.decoding
    for one in done:
        same(one, model)


class _Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers, and sizes that depend on values."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count, tolist = 0, torch.Tensor.tolist

        def counted(tensor: torch.Tensor) -> Any:
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique")
        self.count += function.name().split(".")[0].startswith(waits)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "asked, most",
    [
        ({}, 0), ({"rule": "margin", "block_length": 4, "steps": 4}, 0), ({"cfg_scale": 1.0}, 0),
        ({"temperature": 0.7, "alg_temperature": 0.3, "tie_break": "left"}, 0), ({"mode": "fast"}, 1),
        ({"mode": "fast", "cache": "none", "factor": 2.0}, 1), ({"mode": "fast", "entropy_bound": 1.0, "early_stop": False}, 1),
        ({"mode": "fast", "commit": "schedule", "early_stop": False}, 0),
    ],
)  # fmt: skip
def test_how_often_the_host_reads(
    model: Model, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], most: int
) -> None:
    """At most once a step for all rows; never where nobody looks on and no row's course depends on what was committed."""
    engine = Engine(model, 4)
    for seed in range(4):
        engine.add(Ticket(Request(seed, "", "", [7] * (seed + 2), [], 8, seed), Settings(max_new_tokens=8, **asked)))
    engine.step()
    monkeypatch.setattr(attention, "has_pads", lambda _: True)  # as on an accelerator, where it does not look
    with _Reads(monkeypatch) as reads:
        engine.step()
    assert engine.decoding and reads.count <= most


def test_rows_leave_when_they_are_done_and_others_take_their_place(model: Model) -> None:
    """Results come as they are ready; a row that is dropped frees its slot; the longest wait is not for the slowest."""
    engine = Engine(model, 2)
    tickets = [
        Ticket(Request(seed, str(seed), "", [7, 8], [], new, seed), Settings(max_new_tokens=new))
        for seed, new in enumerate((9, 2, 2, 3, 5))
    ]
    for ticket in tickets:
        engine.add(ticket)
    assert engine.waiting == 5 and not engine.decoding
    engine.step()
    assert engine.waiting == 3 and engine.decoding == 2
    assert engine.drop(tickets[4]) and engine.waiting == 2  # one that waits
    assert engine.drop(tickets[1]) and engine.decoding == 1 and not engine.drop(tickets[1])  # one half way
    done = list(engine.run())
    assert [one.ticket.request.new_tokens for one in done] == [2, 3, 9]
    assert [one.forwards for one in done] == [2, 3, 9]
    for one in done:
        same(one, model)
    # 9 steps: the first beside one that was dropped, then 2 + 3 beside others, then alone.
    assert done[-1].batch == pytest.approx(9 / (1 / 2 + 5 / 2 + 3), abs=1e-3)


def test_observers_see_what_a_row_alone_would_show(model: Model) -> None:
    """Every candidate before the commit and every commit after it, the surest first, beside rows that nobody watches."""
    watched = {"mode": "fast", "threshold": 0.05, "cache": "dual", "early_stop": False}
    for asked in (watched, {"steps": 3}, {"temperature": 1.0, "top_p": 0.02}):
        seen: list[Any] = []
        told: list[Any] = []
        given = Settings(max_new_tokens=8, **asked)  # type: ignore[arg-type]
        ticket = Ticket(
            Request(3, "", "", [9, 8, 7], [6], 8, 3),
            given,
            lambda *one, seen=seen: seen.append(one),
            lambda *one, told=told: told.append(one),
        )
        engine = Engine(model, 3)
        engine.add(Ticket(Request(1, "", "", [5], [], 8, 1), given))
        engine.add(ticket)
        engine.add(Ticket(Request(2, "", "", [5] * 9, [], 6, 1), Settings(max_new_tokens=6)))
        list(engine.run())
        expected = plain(model, ticket.request, given)
        assert told == [(step, 3, places, tokens) for step, places, tokens in expected.told]
        assert [one[:3] for one in seen] == [(step, 3, places) for step, places, _, _ in expected.seen]
        for found, (_, _, best, entropy) in zip(seen, expected.seen, strict=True):
            assert found[3] == pytest.approx(best, rel=1e-7) and found[4] == pytest.approx(entropy, rel=1e-7)


@pytest.mark.parametrize("compat", ["dream", "llada"])
def test_batches_of_the_public_samplers_stay_together(model: Model, compat: Any) -> None:
    """Their topk sees a batch's pads, so nothing enters before all have left, and each row is the plain loop's with its pads."""
    engine = Engine(model, 2, together=True)
    sizes = [3, 9, 5, 5]
    for seed, size in enumerate(sizes):
        asked = Settings(max_new_tokens=8, compat=compat, top_p=1e-6 if compat == "dream" else None)
        engine.add(Ticket(Request(seed, "", "", [7] * size, [], 8, seed), asked))
    done = list(engine.run())
    for one, pads in zip(done, (6, 0, 0, 0), strict=True):
        same(one, model, pads)


def test_rows_of_very_different_length_are_evaluated_apart(model: Model) -> None:
    """An evaluation more where it saves enough padding; none for a few short rows."""
    for sizes, shapes in (([9, 30, 31], [(3, 35)]), ([40, 40, 600, 590], [(2, 604), (2, 44)])):
        engine = Engine(model, 4)
        for seed, size in enumerate(sizes):
            engine.add(Ticket(Request(seed, "", "", [7] * size, [], 4, seed), Settings(max_new_tokens=4)))
        seen: list[tuple[int, ...]] = []
        hook = model.network.model.embed_tokens.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(tuple(given[0].shape))
        )
        engine.step()
        hook.remove()
        assert seen == shapes

"""Memory of sampling: candidates judged in chunks give the tokens of all at once, within the bound that was asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model
from test_sampler import GOLDEN, RAGGED, sharpened

from dcoder_cli import generate, load
from dcoder_cli.decoding import proposal, room, sampler
from dcoder_cli.decoding.requests import Infill, Settings
from dcoder_cli.diffusion import unmasking
from dcoder_cli.model.backbone import Model

COMBINATIONS: list[dict[str, Any]] = [
    {},
    {"rule": "confidence", "temperature": 0.2, "top_p": 0.9},
    {"rule": "margin", "temperature": 1.0, "top_k": 7, "tie_break": "right"},
    {
        "rule": "entropy",
        "temperature": 0.05,
    },  # so cold that scores of 1 meet: ties without a filter, keys asked for after
    {"rule": "random", "temperature": 1.0, "stop_penalty": 2.0, "min_new_tokens": 5},
    {"rule": "entropy", "temperature": 0.2, "top_p": 1e-6, "tie_break": "random"},
    {"rule": "entropy", "temperature": 0.2, "top_p": 1e-6},
    {"rule": "confidence", "top_p": 0.5, "tie_break": "topk", "steps": 7},
    {"alg_temperature": 0.5, "temperature": 0.7, "steps": 6},
    {"cfg_scale": 0.8, "rule": "entropy", "temperature": 0.3},
    {"block_length": 4, "rule": "left-to-right"},
    {"compat": "dream", "steps": 5, "temperature": 0.0, "top_p": 0.9},
    {"compat": "llada", "rule": "confidence", "steps": 6, "block_length": 6, "temperature": 0.5},
    {"mode": "fast", "temperature": 1.0, "block_length": 6},
    {"mode": "fast", "factor": 2.0, "temperature": 0.2, "top_p": 0.8, "block_length": 6},
    {"mode": "fast", "entropy_bound": 0.4, "block_length": 6, "cache": "prefix"},
    {"mode": "fast", "steps": 6, "block_length": 6, "cache": "none", "early_stop": False},
]


@pytest.fixture(scope="module")
def model() -> Model:
    return sharpened(load(GOLDEN / "dream", device="cpu"))


@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()))
def test_any_chunk_gives_the_tokens_of_all_at_once(
    model: Model, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, steps and ties are equal; confidence and entropy to 1e-5 (sharp logits): a product of other rows may round otherwise."""
    seen: dict[int, list[Any]] = {}

    def decode(size: int) -> list[Any]:
        monkeypatch.setattr(proposal, "chunk_size", lambda *_: size)
        told = seen.setdefault(size, [])
        return generate(model, RAGGED, max_new_tokens=12, observer=lambda *given: told.append(given), **settings)

    whole = decode(10**9)
    for size in (1, 3, 16):
        for one, other in zip(whole, decode(size), strict=True):
            for name in ("tokens", "reveal_step", "tied", "tied_from"):
                assert getattr(one, name) == getattr(other, name), (size, name)
            assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
            assert one.entropy == pytest.approx(other.entropy, abs=1e-5)
        assert [given[:3] for given in seen[size]] == [given[:3] for given in seen[10**9]]
        for one, other in zip(seen[size], seen[10**9], strict=True):
            assert one[3] == pytest.approx(other[3], abs=1e-5) and one[4] == pytest.approx(other[4], abs=1e-5)


def test_equal_scores_in_different_chunks_are_ordered_by_the_models_own_distribution(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So cold that every score is 1: without keys over all chunks the leftmost would come first."""
    settings: dict[str, Any] = {"rule": "confidence", "temperature": 0.01, "max_new_tokens": 12}
    left = generate(model, RAGGED, tie_break="left", **settings)
    monkeypatch.setattr(proposal, "chunk_size", lambda *_: 1)
    own = generate(model, RAGGED, **settings)
    assert all(sum(one.tied) >= 9 for one in own) and [one.reveal_step for one in own] != [
        one.reveal_step for one in left
    ]
    monkeypatch.setattr(proposal, "chunk_size", lambda *_: 10**9)
    assert [one.reveal_step for one in own] == [one.reveal_step for one in generate(model, RAGGED, **settings)]


def test_infill_lengths_are_searched_in_chunks_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Infill([5, 6], [7, 8])]
    whole = generate(model, asked, infill_lengths=[3, 6])[0]
    monkeypatch.setattr(proposal, "chunk_size", lambda *_: 2)
    monkeypatch.setattr("dcoder_cli.decoding.infilling.chunk_size", lambda *_: 2)
    found = generate(model, asked, infill_lengths=[3, 6])[0]
    assert found.tokens == whole.tokens
    assert found.settings["infill_scores"] == pytest.approx(whole.settings["infill_scores"], abs=1e-5)


def test_top_p_sorts_whole_only_the_rows_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """63 sharp rows and a flat one over 5,000 tokens: one row is sorted, and every row keeps what it keeps alone."""
    source = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(64, 5000, generator=source) * 8
    logits_NV[17] /= 100
    alone = [unmasking.filter_logits(row[None], 1.0, 0.95, None)[0] for row in logits_NV]
    sizes: list[int] = []
    plain = torch.sort
    monkeypatch.setattr(torch, "sort", lambda given, **more: sizes.append(given.numel()) or plain(given, **more))
    together_NV = unmasking.filter_logits(logits_NV, 1.0, 0.95, None)
    assert sizes == [5000] and torch.equal(together_NV, torch.stack(alone))
    ordered_NV, index_NV = plain(torch.softmax(logits_NV, dim=-1), dim=-1, descending=True, stable=True)
    past_NV = ordered_NV.cumsum(dim=-1) - ordered_NV > 0.95 + 1e-6
    assert (
        bool(together_NV.gather(-1, index_NV)[past_NV].isinf().all())
        and int(torch.isfinite(together_NV[17]).sum()) > 4000
    )


# Peak of torch's allocations on the CPU while it decodes, in a process of its own: prints bytes and tokens.
CODE = """
import json, sys, tempfile
import torch
from torch.profiler import ProfilerActivity, profile
from dcoder_cli import generate, load
folder, rows, new, steps, settings = sys.argv[1], *map(int, sys.argv[2:5]), json.loads(sys.argv[5])
model = load(folder, device="cpu")
prompts = [[5 + row % 40, 6, 7] for row in range(rows)]
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
    made = generate(model, prompts, max_new_tokens=new, steps=steps, batch_size=rows, **settings)
with tempfile.NamedTemporaryFile(suffix=".json") as file:
    trace.export_chrome_trace(file.name)
    events = json.load(open(file.name))["traceEvents"]
totals = [e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
print(json.dumps([max(totals) - totals[0], [one.tokens for one in made]]))
"""


def _peak(folder: Path, rows: int, new: int, steps: int, **settings: Any) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, folder, *map(str, (rows, new, steps)), json.dumps(settings)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    peak, tokens = json.loads(done.stdout)
    return int(peak), tokens


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of few weights and 20,000 rows of vocabulary."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(folder / "model", vocab_size=20_000, max_position_embeddings=512)
    return folder / "model"


def test_memory_stays_within_the_bound(wide: Path) -> None:
    """8 rows of 128 masks over 20,000 tokens: 82 MB a copy of the logits; asked for 16 MiB, and what is no logits beside.

    Flat distributions, so every row is sorted whole under top-p: the dearest case.
    """
    settings: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95}
    whole, tokens = _peak(wide, 8, 128, 2, **settings, logits_mib=4096)
    bounded, again = _peak(wide, 8, 128, 2, **settings, logits_mib=16)
    assert again == tokens
    assert whole > 1.2 * 8 * 128 * 20_000 * 4 and bounded < 16 * 2**20 + 6e6, (whole, bounded)


def test_the_default_depends_on_the_device_and_the_number_format() -> None:
    class Fake:
        vocab_size, dtype, device = 152_064, torch.float32, torch.device("cpu")

    fake: Any = Fake()
    assert proposal.chunk_size(fake, Settings()) == 256 * 2**20 // (152_064 * 4 * room.CPU_COPIES) == 220
    fake.device = torch.device("cuda")
    assert proposal.chunk_size(fake, Settings()) == 706
    fake.dtype = torch.float64
    assert proposal.chunk_size(fake, Settings()) == 353
    assert proposal.chunk_size(fake, replace(Settings(), logits_mib=1)) == 1  # one at least


def test_a_recorded_setting_says_so_only_where_it_was_given(model: Model) -> None:
    plain, given = (
        sampler.decode(model, [[5, 6]], Settings(max_new_tokens=3, logits_mib=mib))[0].settings for mib in (None, 7)
    )
    assert "logits_mib" not in plain and given["logits_mib"] == 7

"""Rows made ahead: the same rows and the same run at any depth, an exception as itself, and no thread left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_model, make_shards, make_tokenizer, refused

from dcoder_cli import load
from dcoder_cli.base.config import build
from dcoder_cli.base.errors import UserError
from dcoder_cli.data.batches import RowOrder, RowRules
from dcoder_cli.data.prefetch import ahead
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.training import feed
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.denoise import train
from dcoder_cli.training.objective import token_losses

SMALL = {
    "precision": "fp32", "global_batch": 8, "micro_batch": 3, "steps": 12, "evaluate_every": 5, "checkpoint_every": 4,
    "truncate_share": 0.3, "clean_prefix_share": 0.3, "conditional_phase_in": 1.0, "anneal_steps": 6,
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 3},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "rows ahead"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefetch")
    tokenizer = make_tokenizer()
    make_model(folder / "ar", ar=True, tokenizer=tokenizer)
    make_model(folder / "diffusion", tokenizer=tokenizer)
    make_shards(folder / "pretrain", tokenizer)
    make_shards(folder / "sft", load(folder / "diffusion").tokenizer, "sft")
    return folder


def run(place: Path, stage: int, out: Path, resume: bool = False, **changes: Any) -> Any:
    config = build(StageConfig, SMALL, changes)
    model, data = place / ("ar" if stage == 0 else "diffusion"), place / ("sft" if stage == 3 else "pretrain")
    return train(stage, str(model), str(data), str(out), config, resume, device="cpu", quiet=True)


def metrics(folder: Path) -> str:
    return (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_results_come_in_order_and_no_more_are_made_than_asked(depth: int) -> None:
    made: list[int] = []

    def work(item: int) -> int:
        made.append(item)
        return item * item

    with ahead(work, range(6), depth) as results:
        assert next(results) == 0
        limit = time.monotonic() + 10
        while len(made) < min(1 + depth, 6):
            assert time.monotonic() < limit
            time.sleep(0.001)
        time.sleep(0.02)
        assert made == list(range(min(1 + depth, 6))), "the one in use, and `depth` ahead of it"
        assert list(results) == [1, 4, 9, 16, 25]
    assert made == list(range(6))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_exception_comes_in_its_place_and_as_itself(depth: int) -> None:
    error = UserError("shard 'x' is truncated")

    def work(item: int) -> int:
        if item == 2:
            raise error
        return item

    with ahead(work, range(5), depth) as results:
        assert [next(results), next(results)] == [0, 1]
        time.sleep(0.02)  # it is known by now, and not yet due
        with pytest.raises(UserError) as raised:
            next(results)
    assert raised.value is error


def test_leaving_early_ends_the_thread_after_the_call_that_it_is_at() -> None:
    """With room for more and without, and with an exception on its way out."""
    made: list[int] = []
    for depth in (1, 1000):
        made.clear()
        with (
            pytest.raises(KeyboardInterrupt),
            ahead(lambda item: made.append(item) or item, range(10**9), depth) as results,
        ):  # type: ignore[func-returns-value]
            next(results)
            raise KeyboardInterrupt
        count = len(made)
        time.sleep(0.02)
        assert len(made) == count
    with ahead(lambda item: item, range(5), 2):
        pass  # nothing asked for


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_run_is_the_same_at_any_depth_and_resumes(place: Path, tmp_path: Path, stage: int) -> None:
    run(place, stage, tmp_path / "inline", prefetch=0)
    run(place, stage, tmp_path / "ahead", prefetch=3)
    assert metrics(tmp_path / "ahead") == metrics(tmp_path / "inline")
    run(place, stage, tmp_path / "resumed", prefetch=3, steps=12, stop_at_loss=99.0)  # stops at its first look, step 5
    assert json.loads(metrics(tmp_path / "resumed").splitlines()[-1])["step"] == 5
    run(place, stage, tmp_path / "resumed", resume=True, prefetch=2)
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "inline")


def test_the_rows_are_made_by_the_thread(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    real = feed.read_batch

    def told(*arguments: Any) -> Any:
        threads.add(threading.current_thread().name)
        return real(*arguments)

    monkeypatch.setattr(feed, "read_batch", told)
    run(place, 2, tmp_path / "ahead", prefetch=2, steps=2)
    assert threads == {"rows ahead"}
    threads.clear()
    run(place, 2, tmp_path / "default", steps=2)
    assert threads == {threading.main_thread().name}, "in line on a CPU, where it does not pay"
    assert feed.default_prefetch("cuda") == 2


def test_a_shard_that_breaks_in_the_thread_ends_the_run_with_its_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = feed.read_batch

    def breaks(shards: Any, indices: Any, rows: Any, step: int, *more: Any) -> Any:
        if step == 5:
            raise UserError("shard 'train-00000.safetensors' is truncated")
        return real(shards, indices, rows, step, *more)

    monkeypatch.setattr(feed, "read_batch", breaks)
    with pytest.raises(UserError, match=r"train-00000\.safetensors"):
        run(place, 2, tmp_path / "run", prefetch=4, evaluate_every=0)
    steps = [json.loads(line)["step"] for line in metrics(tmp_path / "run").splitlines()]
    assert steps == [1, 2, 3, 4, 5], "the steps before it were done"


def test_ctrl_c_ends_at_once_with_rows_ahead(place: Path, tmp_path: Path) -> None:
    """While the loop waits for rows, too: each step's take 0.2 s here."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom dcoder_cli.training import feed\nreal = feed.read_batch\n"
        "def slow(*arguments):\n    time.sleep(0.1)\n    return real(*arguments)\n"
        "feed.read_batch = slow\nfrom dcoder_cli.main import main\nmain()\n"
    )
    sets = [
        f"--set={key}={json.dumps(value)}"
        for key, value in {**SMALL, "steps": 5000, "prefetch": 3}.items()
        if key not in ("anneal_steps", "conditional_phase_in")  # of other stages
    ]
    command = [
        "train-stage",
        "2",
        "--model",
        place / "diffusion",
        "--data",
        place / "pretrain",
        "--device",
        "cpu",
        *sets,
    ]
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, command), "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    file, limit = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while not (file.is_file() and '"step": 2,' in file.read_text()):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert "--resume" in stderr.strip().splitlines()[-1]


def test_a_depth_below_0_is_refused(place: Path, tmp_path: Path) -> None:
    line = refused(
        "train-stage", "2", "--model", place / "diffusion", "--data", place / "pretrain", "--out", tmp_path / "run",
        "--set", "prefetch=-1",
    )  # fmt: skip
    assert "prefetch = -1 must lie between 0 and 1000" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_all_that_is_sent_to_a_gpu_is_page_locked(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Without a GPU: page-locked copies are told by their address. Accelerate gives one process a device without a number."""
    locked: dict[int, torch.Tensor] = {}
    chosen: list[torch.device] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        locked[copy.data_ptr()] = copy
        return copy

    def set_device(device: torch.device) -> None:
        assert device.index is not None, "torch.cuda.set_device refuses it"
        chosen.append(device)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    shards = ShardSet.open(place / "pretrain")
    config = build(StageConfig, SMALL, {"attention": "flash_attention_2", "isolate_documents": True})
    rules = RowRules(0, 0, True, truncate_share=1.0)
    device = torch.device(name)
    rows = feed.Feed(shards, rules, config, 1, 3, RowOrder(len(shards), 0), range(8), device).step(0)
    assert chosen == ([] if device.index is None else [device])
    travellers: list[torch.Tensor] = []

    class Module:
        def __call__(self, *arguments: Any) -> None:
            travellers.extend(one for one in arguments if isinstance(one, torch.Tensor))
            travellers.append(arguments[-1].starts_S)

    for example in rows.examples:
        token_losses(Module(), example, rows.pattern_LL, False, True, torch.device("cpu"))  # type: ignore[arg-type]
    assert len(travellers) == 8 * len(rows.examples)
    assert all(one.data_ptr() in locked for one in travellers)
    inline = feed.Feed(shards, rules, config, 1, 3, RowOrder(len(shards), 0), range(8), torch.device("cpu")).step(0)
    assert all(torch.equal(a.noised_BL, b.noised_BL) for a, b in zip(rows.examples, inline.examples, strict=True))


@pytest.mark.gpu
def test_rows_for_a_gpu_lie_in_page_locked_memory(place: Path) -> None:
    shards = ShardSet.open(place / "pretrain")
    config = build(StageConfig, SMALL)
    rules = RowRules(0, 0, True, 0.3, 0.3)
    maker = feed.Feed(shards, rules, config, 1, 3, RowOrder(len(shards), 0), range(8), torch.device("cuda", 0))
    with maker.steps(0, 2) as steps:
        rows = next(steps)
    assert rows.pattern_LL is not None and rows.pattern_LL.is_pinned()
    for example in rows.examples:
        assert all(
            one.is_pinned() for one in (example.noised_BL, example.places_N, example.targets_N, example.weights_N)
        )

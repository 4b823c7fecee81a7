"""Where the tests and benches of this folder run, and at what shape: a card at real sizes, the CPU at toy size.

A body is written once, as a function of a `Place`, and every body runs on the CPU too: what first runs on a card has run.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import make_model

from dcoder_cli.model import checkpoint, loading
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.sizes import config_of
from dcoder_cli.timing.weights import draw
from dcoder_cli.training import setup

_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_KEYS = (*_TINY, "vocab_size", "max_position_embeddings", "rope_theta", "tie_word_embeddings")


def _published(name: str, **changes: Any) -> dict[str, Any]:
    """The shape of a size of model/sizes.py."""
    return {key: value for key, value in config_of(name).items() if key in _KEYS} | changes


# What a test asks for, at both shapes. blocks: few layers of real width, which the CPU computes in a second too. half and
# seven: Qwen2.5-Coder-0.5B and 7B, as the public config.json have them. Heads are 64 and 128 wide, which all kernels take.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {
        "blocks": _published("qwen2.5-coder-0.5b", num_hidden_layers=4, vocab_size=8192),
        "half": _published("qwen2.5-coder-0.5b"),
        "seven": _published("qwen2.5-coder-7b"),
    },
    "tiny": {
        "blocks": {**_TINY, "tie_word_embeddings": True},
        "half": {**_TINY, "tie_word_embeddings": True},
        "seven": {**_TINY, "tie_word_embeddings": False},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Attributes: device: cuda or cpu; shape: full or tiny, a key of SIZES."""

    device: str
    shape: str

    @property
    def card(self) -> bool:
        """Whether it is a GPU."""
        return self.device == "cuda"

    @property
    def full(self) -> bool:
        """Whether sizes are real ones, at which memory and speed mean something."""
        return self.shape == "full"

    @property
    def torch(self) -> torch.device:
        """The device, with a number where it is a card."""
        return torch.device("cuda", 0) if self.card else torch.device("cpu")

    def size(self, name: str) -> dict[str, Any]:
        """The shape called blocks, half or seven here."""
        return SIZES[self.shape][name]

    def pick(self, full: Any, tiny: Any) -> Any:
        """A number for real sizes, or for toys."""
        return full if self.full else tiny

    def needs(self, gib: float) -> None:
        """Skip where a card at real sizes has less memory free."""
        if self.card and self.full:
            tidy()
            free = torch.cuda.mem_get_info()[0] / 2**30
            if free < gib:
                pytest.skip(f"needs {gib:g} GiB of the card, and {free:.1f} are free")

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.card:
            torch.cuda.synchronize()


CPU = Place("cpu", "tiny")
CARD = Place("cuda", os.environ.get("DCODER_GPU_SHAPE", "full"))


def cases(cpu: Iterable[tuple[Any, ...]], more: Iterable[tuple[Any, ...]] = (), slow: bool = False) -> list[Any]:
    """Parameters (place, *case): the cases `cpu` on both, `more` on a card alone, for what no CPU can run."""
    cpu = list(cpu)
    marks = [pytest.mark.slow] if slow else []
    return [
        *(pytest.param(CPU, *case, id="-".join(["cpu", *map(str, case)]), marks=marks) for case in cpu),
        *(
            pytest.param(CARD, *case, id="-".join(["card", *map(str, case)]), marks=pytest.mark.gpu)
            for case in [*cpu, *more]
        ),
    ]


BOTH, BOTH_SLOW = cases([()]), cases([()], slow=True)


def needs_attention(attention: str) -> None:
    """Skip where an attention's package is missing, or there is no card for it."""
    from dcoder_cli.model.attention import flash_attention_available

    if attention == "flash_attention_2" and not flash_attention_available():
        pytest.skip("needs the package flash-attn")


def tidy() -> None:
    """Give memory back: what a failed test's traceback held, and what the allocator keeps."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- models -------------------------------------------------------------------------------------------------------


def outline(folder: Path, size: dict[str, Any], kind: str = "dream") -> Path:
    """A checkpoint folder of a shape without its weights: config.json, and for `dream` and `ar` a small tokenizer."""
    if kind == "llada":
        golden = Path(__file__).parent.parent / "fixtures" / "golden" / "llada" / "config.json"
        config = json.loads(golden.read_text())
        heads, rows = size["num_attention_heads"], size.get("vocab_size", config["vocab_size"])
        config |= {
            "d_model": size["hidden_size"], "n_heads": heads, "n_kv_heads": heads, "n_layers": size["num_hidden_layers"],
            "mlp_hidden_size": size["intermediate_size"], "vocab_size": rows, "embedding_size": rows,
        }  # fmt: skip
        folder.mkdir(parents=True)
    else:
        make_model(folder, ar=kind == "ar", context=512)
        for file in folder.glob("*.safetensors"):
            file.unlink()
        config = json.loads((folder / "config.json").read_text()) | size
        if kind == "dream":
            config["dcoder"]["stage"] = "sft"  # or LoRA would not train it
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder


def drawn(
    folder: str | Path, on: torch.device, dtype: torch.dtype, held: torch.device | None = None, lively: bool = False
) -> Model:
    """The model of an outline with random weights; `lively`: it samples tokens that the tokenizer has (timing/weights.py)."""
    model = loading.skeleton(folder, held or on, stored=False)
    rows = len(model.tokenizer or range(model.vocab_size)) if lively else 0
    weights = draw(model.network, on, dtype, held, rows)
    loading.fill(model.network, weights, model.name)
    return model


@contextmanager
def drawing(place: Place, lively: bool = False) -> Iterator[None]:
    """Training reads an outline as a model with random weights; a checkpoint that has weights is read as it is."""
    real = setup.load

    def load(path: str | Path, device: Any = None, dtype: Any = None) -> Model:
        if any(checkpoint.find(str(path)).glob("*.safetensors")):
            return real(path, device, dtype)
        return drawn(path, place.torch, getattr(torch, str(dtype)), torch.device(device), lively)

    with mock.patch.object(setup, "load", load):
        yield


# --- measuring ----------------------------------------------------------------------------------------------------


class CardPeak:
    """The allocator's peak on the card between `start` and `stop`, beyond what was there before."""

    def start(self) -> None:
        tidy()
        torch.cuda.synchronize()
        self.before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def stop(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self.before


def peak_of(place: Place) -> Any:
    """Something with `start` and `stop`, which gives bytes. On the CPU: memory_runs.py's."""
    if place.card:
        return CardPeak()
    from memory_runs import Peak

    tidy()  # what an earlier test left behind would be given back meanwhile
    return Peak()


def timed(place: Place, work: Callable[[], Any], repeat: int, warm: int = 1) -> dict[str, float]:
    """Seconds of `work`, each run waited for: median, least and most of `repeat` runs after `warm` ones."""
    for _ in range(warm):
        work()
    seconds = []
    for _ in range(repeat):
        place.wait()
        if place.card:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000)
        else:
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "runs": repeat}


def note(name: str, **numbers: Any) -> None:
    """Numbers for the report of `run.py`, which names the file; nothing where a test runs alone."""
    file = os.environ.get("DCODER_GPU_LOG")
    if file:
        with open(file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"numbers": name, **numbers}) + "\n")

"""What runs on the device of pretend.py: `python tests/pretend_runs.py` fails where an operation mixes it with the CPU.

In a process of its own: PyTorch must know the device before its first backward pass, and keeps it. Sampling in all its modes
gives the CPU's tokens, stages 0 to 3 the CPU's losses; stage 4 runs. Then the bodies of tests/gpu, as they will run on a card.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "gpu")]

import pretend  # noqa: E402
import torch  # noqa: E402

DEVICE = pretend.device()

import benches  # noqa: E402
import ground  # noqa: E402
import places  # noqa: E402
import pytest  # noqa: E402
import test_gpu_kernels  # noqa: E402
import test_gpu_logits  # noqa: E402
import test_gpu_sampling  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from places import CPU, Place  # noqa: E402
from test_sampler import GOLDEN, RAGGED, sharpened  # noqa: E402
from test_sampling_memory import COMBINATIONS  # noqa: E402

from dcoder_cli import generate, load  # noqa: E402
from dcoder_cli.decoding import proposal  # noqa: E402
from dcoder_cli.decoding.sampler import Infill  # noqa: E402
from dcoder_cli.model import storing  # noqa: E402


@dataclass(frozen=True)
class Elsewhere(Place):
    """A place like a card, at toy sizes: its device is not the CPU."""

    @property
    def torch(self) -> torch.device:
        return DEVICE


PRETEND = Elsewhere("cpu", "tiny")
real_drawn, real_write, real_save = places.drawn, storing.write_into, torch.save


def drawn(folder: Any, on: Any, dtype: Any, held: Any = None, lively: bool = False) -> Any:
    """Random numbers come from the CPU: the device has no generator."""
    return real_drawn(folder, CPU.torch, dtype, CPU.torch, lively).to(held or on)


def loaded(path: Any, device: Any, dtype: Any = None, attention: str = "sdpa") -> Any:
    """safetensors does not know the device."""
    return load(path, "cpu", dtype, attention).to(device)


def write(folder: Any, config: Any, weights: Any, *more: Any) -> Any:
    """Its tensors have no storage that safetensors could read."""
    return real_write(folder, config, {key: value.cpu() for key, value in weights.items()}, *more)


def catches() -> None:
    """What a card would refuse, and what it would not."""
    here, there = torch.ones(3, device=DEVICE), torch.ones(3)
    for wrong in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: torch.where(there > 0, here, here),
        lambda: here.index_select(0, torch.tensor([0, 1])),
        lambda: here.uniform_(generator=torch.Generator()),
        lambda: here.index_put_((torch.tensor([0, 1]),), there[:2]),
    ):
        with pytest.raises(RuntimeError, match="expected"):
            wrong()
    assert (here + torch.tensor(1.0)).tolist() == [2.0] * 3 and here[torch.tensor([0])].tolist() == [1.0]


def sampling() -> None:
    """Every combination of settings, whole and in chunks, with an observer; infills and their lengths."""
    cpu, ours = (sharpened(load(GOLDEN / "dream", device="cpu")) for _ in range(2))
    ours.to(DEVICE)
    infill: dict[str, Any] = {"prompts": [Infill([5, 6], [7, 8]), Infill([5], [7])]}
    for size in (None, 3):
        with mock.patch.object(proposal, "chunk_size", lambda *_, size=size: size or 10**9):
            for asked in [*COMBINATIONS, infill, {**infill, "infill_lengths": [3, 6]}]:
                settings = {"prompts": RAGGED, "max_new_tokens": 12, "observer": lambda *_: None, **asked}
                one, other = (generate(model, **settings) for model in (ours, cpu))
                assert [item.tokens for item in one] == [item.tokens for item in other], (size, asked)
                assert [item.reveal_step for item in one] == [item.reveal_step for item in other], (size, asked)


STAGES: list[dict[str, Any]] = [
    {},
    {"activation_checkpointing": True, "isolate_documents": True},
    {"truncate_share": 0.5, "micro_batch": 2, "prefetch": 2, "clean_prefix_share": 0.5},
    {"lora": {"rank": 2}},
]
GRPO: list[dict[str, Any]] = [
    {"rollout": {"max_new_tokens": 8, "mode": "fast", "threshold": 0.3}, "reference_sync": 1, "reference_alpha": 0.5},
    {"lora": {"rank": 2}, "reference_sync": 0},
    {"estimator": "d1", "kl_coef": 0.0, "loss_normaliser": "token"},
    {"activation_checkpointing": True, "train_embeddings": False, "advantage": "leave-one-out"},
]  # fmt: skip


def training(folder: Path) -> None:
    """In float32: autocast has no rules for the device."""
    for place in (CPU, PRETEND):
        for stage in (0, 1, 2, 3):
            for number, changes in enumerate(STAGES):
                if "lora" in changes and stage < 2:
                    continue
                here = ground.Ground(place, folder / f"{place}-{stage}-{number}", "half")
                more = {"precision": "fp32", "anneal_steps": 3 if stage == 1 else 0, **changes}
                if stage == 3:
                    more.pop("isolate_documents", None)
                device = mock.patch.object(Accelerator, "device", place.torch)
                with device:
                    ran = here.stage(stage, folder / f"{place}-{stage}-{number}-run", 3, **more)
                losses = [line["loss"] for line in ran.steps]
                if place is CPU:
                    expected[stage, number] = losses
                else:
                    assert losses == pytest.approx(expected[stage, number], rel=1e-4), (stage, changes)
    for number, changes in enumerate(GRPO):
        here = ground.Ground(PRETEND, folder / f"grpo-{number}", "half")
        with mock.patch.object(Accelerator, "device", DEVICE):
            ran = here.grpo(folder / f"grpo-{number}-run", 2, precision="fp32", **changes)
        assert len(ran.steps) == 2 and all(math.isfinite(line["loss"]) for line in ran.steps), changes


expected: dict[tuple[int, int], list[float]] = {}


def timing() -> None:
    """The plain references of `dcoder bench`, which agree there with ours as they do on the CPU."""
    from dcoder_cli.timing import generate as decoding
    from dcoder_cli.timing import grpo, models, rate, train

    real, few = models.ModelChoice.load, {"dtype": "float32", "device": "cpu", "repeats": 1}
    with (
        mock.patch.object(models.ModelChoice, "load", lambda *arguments: real(*arguments).to(DEVICE)),
        mock.patch.object(rate, "measure", lambda *_: rate.MatrixRate(1, "float32", 1, 1.0, 1.0, 1.0)),
    ):
        asked = decoding.GenerateBench((3,), (32,), 5, settings={"temperature": 0.8, "top_p": 0.9}, **few)
        found = [
            decoding.bench(asked, print), train.bench(train.TrainBench((2,), (16,), **few), print),
            grpo.bench(grpo.GrpoBench((4,), (8,), 5, 2, **few), print),
        ]  # fmt: skip
    assert all(one["machine"]["device"] == DEVICE.type for one in found)
    assert all(case["agreement"]["agree"] for one in found for case in one["cases"]), found


def bodies(folder: Path) -> None:
    """Tests and benches of tests/gpu that need no CUDA kernel, autocast or memory."""
    for layout in test_gpu_logits.LAYOUTS:
        for attention in ("sdpa", "eager"):
            for dtype in ("float32", "bfloat16"):
                test_gpu_logits.test_logits_are_the_cpus(PRETEND, layout, attention, dtype, folder)
    for causal in (False, True):
        test_gpu_kernels.test_an_attention_gives_the_losses_and_gradients_of_sdpa(
            PRETEND, "eager", causal, folder / f"kernels-{causal}"
        )
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        test_gpu_sampling.test_the_same_call_gives_the_same_tokens(PRETEND, dtype, folder / f"same-{number}")
    for number, mode in enumerate(test_gpu_sampling.MODES):
        test_gpu_sampling.test_a_row_in_a_batch_is_the_row_alone(PRETEND, mode, folder / f"alone-{number}")
    for bench in (benches.ceilings, benches.sampling, benches.top_p, benches.plain_loop):
        print(json.dumps({"bench": bench.__name__, **bench(PRETEND, folder / bench.__name__)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    patched = [
        mock.patch.object(storing, "write_into", write),
        *(
            mock.patch.object(module, "drawn", drawn)
            for module in (places, benches, test_gpu_logits, test_gpu_sampling)
        ),
        *(mock.patch.object(module, "load", loaded) for module in (test_gpu_logits, test_gpu_kernels)),
    ]
    with tempfile.TemporaryDirectory() as name, pretend.pretending():
        for one in patched:
            one.start()
        catches()
        sampling()
        timing()
        training(Path(name))
        bodies(Path(name))

"""What each process of test_lora_sharded.py runs: LoRA on a model that FSDP2 shards, as PyTorch's own API does it.

Not a test: a program for torchrun. Without a process group it does the same on one process, unsharded.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dcoder_cli import load
from dcoder_cli.base.runs import RunFolder
from dcoder_cli.model.backbone import Model
from dcoder_cli.training import lora, optimizers, saving
from dcoder_cli.training.config import LoraConfig, OptimizerConfig

IDS_BL = torch.randint(5, 290, (12, 12), generator=torch.Generator().manual_seed(1))


class Loss(nn.Module):
    """Something with a gradient at every weight; the mean over rows is the mean of the processes' means."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        return self.model.logits(ids_BL).pow(2).mean()


def run(base: Path, out: Path, dtype: str, first: int, last: int) -> list[tuple[float, float]]:
    """Steps first + 1 to last of a run, from its checkpoint where it has begun; the losses with the adapter on and off."""
    count, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    model = load(base, "cpu", dtype)
    lora.add_adapter(model, LoraConfig(rank=3, alpha=8.0), 0, dtype)
    folder = RunFolder(out)
    if first:
        lora.load_adapter(model, folder.checkpoint(first))
    module = Loss(model)
    narrow = dtype == "bfloat16"
    if count > 1:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if narrow else MixedPrecisionPolicy()  # fmt: skip
        mesh = init_device_mesh("cpu", (count,))
        for part in (*model.network.model.layers, module):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    optimizer = optimizers.make_optimizer(module, OptimizerConfig(learning_rate=1e-2, fused=False))
    process: Any = SimpleNamespace(
        distributed_type="FSDP" if count > 1 else "NO", is_main_process=rank == 0,
        wait_for_everyone=dist.barrier if count > 1 else lambda: None,
    )  # fmt: skip
    if first:
        saving.load_training_state(folder.checkpoint(first), module, optimizer)
    mine_BL, losses = IDS_BL.chunk(count)[rank], []
    for _ in range(first, last):
        with torch.autocast("cpu", torch.bfloat16) if narrow else nullcontext():
            with torch.no_grad(), lora.adapter_off(model):  # the first forward of all: the reference's
                off = module(mine_BL)
            on = module(mine_BL)
        on.backward()
        optimizer.step()
        optimizer.zero_grad()
        both = torch.stack([on.detach().float(), off.float()])
        if count > 1:
            dist.all_reduce(both)
        losses.append((float(both[0] / count), float(both[1] / count)))
    saving.save_checkpoint(process, folder, last, module, model, optimizer, {}, "mid")
    return losses


if __name__ == "__main__":
    dist.init_process_group("gloo")
    base, out, dtype, first, last = sys.argv[1:]
    found = run(Path(base), Path(out), dtype, int(first), int(last))
    if dist.get_rank() == 0:
        (Path(out) / f"losses-{last}.txt").write_text("".join(f"{on} {off}\n" for on, off in found))
    dist.destroy_process_group()
    os._exit(0)  # as dcoder_cli.main.process, and for its reason

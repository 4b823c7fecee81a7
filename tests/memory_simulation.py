"""One training step of any size on many processes, simulated on one core: no number is computed, every allocation is counted.

PyTorch's fake process group stands for the other processes, FakeTensorMode for the numbers, and FSDPMemTracker
(torch.distributed._tools) counts what FSDP2, the blocks, the loss and the optimiser hold. The code that runs is the product's:
`TokenLoss` with its cross-entropy in chunks and activation checkpointing, transformers' blocks, `fully_shard`, AdamW. Other than
in the product, the masked places are given as indices: how many a boolean mask has is a number, and there are none here.

`python tests/memory_simulation.py '{"model": "qwen2.5-coder-7b", "gpus": 8, "rows": 4, "length": 4096}'`
"""

from __future__ import annotations

import json
import sys
from typing import Any


def simulate(model: str, gpus: int, rows: int, length: int, checkpointing: bool = True) -> dict[str, Any]:
    """Peak bytes of one process by category, and their total, over two micro-batches, Adam's moments being there."""
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from dcoder_cli.model import lean
    from dcoder_cli.model.backbone import Model
    from dcoder_cli.model.layouts import layout_of
    from dcoder_cli.model.loading import empty_network, fill
    from dcoder_cli.model.special_ids import SpecialIds
    from dcoder_cli.training import setup
    from dcoder_cli.training.memory.shape import read_config
    from dcoder_cli.training.objective import TokenLoss

    config = {**read_config(model), "model_type": "Dream", "mask_token_id": 3}
    layout = layout_of(config, model)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    try:
        network = empty_network(config, layout, "sdpa", torch.device("cpu"))
        mesh = init_device_mesh("cpu", (gpus,))
        with FakeTensorMode(allow_non_fake_inputs=True):
            fill(network, {key: torch.empty(value.shape) for key, value in network.state_dict().items()}, model)
            ids = SpecialIds(3, None, None, None, None, frozenset())
            lean.keep_less(network)
            module = TokenLoss(Model(network, config, layout, ids, [], None, model))
            if checkpointing:
                setup.recompute_activations(network)
            module.train()
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32)
            for block in network.model.layers:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(module, mesh=mesh, mp_policy=policy)
            moments = [torch.zeros_like(one.to_local()) for one in module.parameters() for _ in range(2)]
            tokens_BL = torch.zeros(rows, length, dtype=torch.int64)
            places_N, ones_N = torch.arange(rows * length), torch.ones(rows * length)
            tracker = FSDPMemTracker(module)
            tracker.track_external(tokens_BL, places_N, ones_N)
            with tracker:
                for _ in range(2):  # the second while the first one's gradients are there
                    with torch.autocast("cpu", torch.bfloat16):
                        weighted, _ = module(tokens_BL, places_N, places_N, ones_N, None, None, None, False)
                    (weighted / len(ones_N)).backward()
                    tracker.reset_mod_stats()
            peak = tracker.get_tracker_snapshot("peak")
    finally:
        dist.destroy_process_group()
    there = sum(
        one.numel() * one.element_size() for one in moments
    )  # the tracker counts only what FSDP and the step make
    parts = {str(getattr(kind, "value", kind)): value for kind, value in next(iter(peak.values())).items()}
    return {"total": parts.pop("Total") + there, "parts": {**parts, "Moments": there}}


if __name__ == "__main__":
    print(json.dumps(simulate(**json.loads(sys.argv[1])), indent=1))

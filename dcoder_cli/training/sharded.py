"""Weights spread over processes: FSDP2, PyTorch's `fully_shard`, in all stages.

Accelerate's launcher starts the processes and its configuration asks for it (`distributed_type: FSDP`, `fsdp_version: 2`);
which modules are sharded, and in which number formats, is decided here and is the same at every size:

    sharded, and updated      float32 weights, gradients and optimiser moments; gradients are reduced in float32
    gathered for computing    bfloat16 where `precision` is bf16
    what leaves the module    float32, so that no token's loss is rounded

Every block is a unit of its own; embeddings, head and what the head needs are the root's and stay gathered from forward to
backward, because the head is used once for each chunk of logits, and processes have different numbers of chunks. Every
forward of a sharded module is a collective: all processes must run the same number of them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.files import is_out_of_space
from dcoder_cli.model import checkpoint
from dcoder_cli.model.agreement import check_weights
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.gathered import part_of, whole

_CPU = torch.device("cpu")

_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"  # set by Accelerate's launcher


def asked() -> bool:
    """Whether the launcher was told to shard.

    Raises:
        UserError: in a way that is not ours.
    """
    if _on(_DEEPSPEED):
        raise UserError(
            "distributed_type DEEPSPEED is not supported; use FSDP with fsdp_version: 2, as `dcoder presets show 8x80gb --section launch` has it"
        )
    if not _on(_FSDP):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"fsdp_version {version} is not supported; set fsdp_version: 2 in the launch configuration (PyTorch's fully_shard)"
        )
    if _on("FSDP_OFFLOAD_PARAMS"):
        raise UserError(
            "fsdp_offload_params is not supported; leave it out, and use more GPUs or --set lora.rank=16 instead"
        )
    return True


def _on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def is_sharded(module: Any) -> bool:
    """Whether `shard` was called for it."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def shard(module: nn.Module, model: Model, precision: str, device: torch.device) -> None:
    """Spread the weights of a module over all processes, in place.

    Args:
        module: what is called: it holds the model, whose weights may be on the meta device.
        precision: bf16 or fp32, of the forward and backward pass.
        device: of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    low = torch.bfloat16 if precision == "bf16" else None
    inside = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    for block in model.network.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=inside, reshard_after_forward=_gives_back())
    outside = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, output_dtype=torch.float32)
    fully_shard(module, mesh=mesh, mp_policy=outside, reshard_after_forward=False)
    model.network.model.rotary_emb.to(device)  # computed, not stored


@torch.no_grad()
def receive(module: nn.Module, model: Model, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Give a sharded module the weights of a checkpoint: the first process reads, one at a time, and the others receive.

    Args:
        module: of `shard`; `model` lies in it.
        folder: the checkpoint.
        dtype: how the weights are held.

    Raises:
        UserError: on all processes, where the checkpoint is damaged or another model's.
    """
    shapes = checkpoint.weight_shapes(folder, model.layout)
    check_weights(model.network, shapes, model.name)
    sharded = model.network.state_dict()
    device = torch.device(torch.cuda.current_device()) if torch.cuda.is_available() and _is_cuda(sharded) else _CPU
    read = checkpoint.each_weight(folder, model.layout, _CPU, dtype) if dist.get_rank() == 0 else None
    given: dict[str, Tensor] = {}
    for key in shapes:
        value, problem = None, None
        if read is not None:
            try:
                _, value = next(read)
            except UserError as error:
                problem = str(error)
        told = [problem]
        dist.broadcast_object_list(told, src=0, device=device)
        if told[0] is not None:
            raise UserError(told[0])
        if key not in sharded:  # rotary angles of an old checkpoint
            continue
        if value is None:
            value = torch.empty(shapes[key], dtype=dtype)
        value = value.to(device).contiguous()
        dist.broadcast(value, src=0)
        given[key] = part_of(value, sharded[key])
    tied = model.network.config.tie_word_embeddings
    if tied:
        given["lm_head.weight"] = given["model.embed_tokens.weight"]
    model.network.load_state_dict(given, assign=True)
    if tied:  # each key was given a parameter of its own
        model.network.lm_head.weight = model.network.model.embed_tokens.weight


def _is_cuda(sharded: Mapping[str, Any]) -> bool:
    return any(value.device_mesh.device_type == "cuda" for value in sharded.values())


def clip_grad_norm(module: nn.Module, max_norm: float) -> Tensor:
    """Clip by the norm of all gradients on all processes; returns it as it was before."""
    norm = torch.nn.utils.clip_grad_norm_([one for one in module.parameters() if one.grad is not None], max_norm)
    return whole(norm)


def _units(module: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [one for one in module.modules() if isinstance(one, FSDPModule)]


@contextmanager
def gathered(module: nn.Module, warm: Mapping[str, Any] | None = None) -> Iterator[None]:
    """All weights whole on every process, in the number format of computing, until the end: no forward is a collective.

    Processes may then decode for different times. Nothing happens to a module that is not sharded. All processes must
    enter and leave.

    Args:
        module: of `shard`. It must have run once, which `warm`, the arguments of a small forward, does.
    """
    if not is_sharded(module):
        yield
        return
    if warm is not None:
        with torch.no_grad():
            module(**warm)
    units = _units(module)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not module and _gives_back(), recurse=False)


def _gives_back() -> bool:
    """Whether blocks give their weights back after the forward pass, and gather them again for the backward (full shard)."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("0", "false", "no")


def at_rest(module: nn.Module) -> None:
    """Give back what an evaluation left gathered: an update would move the parts and not what was gathered of them."""
    for unit in _units(module):
        unit.reshard()


def save_optimizer(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Each process's part of an optimiser's state, by the weights' names, as torch.distributed.checkpoint has it."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"optimizer": get_optimizer_state_dict(module, optimizer)}
    with _plain_errors():
        save(state, checkpoint_id=folder)


def load_optimizer(folder: Path, module: nn.Module, optimizer: Any) -> None:
    """What `save_optimizer` wrote, on as many processes as there are now, sharded or not."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
    plain = getattr(module, "module", module) if not is_sharded(module) else module  # DDP's
    state = {"optimizer": get_optimizer_state_dict(plain, inner)}
    _load(state, folder, is_sharded(module))
    set_optimizer_state_dict(plain, inner, state["optimizer"])


def _load(state: dict[str, Any], folder: Path, together: bool) -> None:
    """Fill `state` in place; by all processes `together`, or by this one alone."""
    from torch.distributed.checkpoint.state_dict_loader import load

    if not (folder / ".metadata").is_file():  # torch would print a traceback or two on its way to saying so
        raise FileNotFoundError(f"{folder / '.metadata'} is missing")
    with _plain_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is meant
        load(state, checkpoint_id=folder, no_dist=not together)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What went wrong on some process, a full disk before all else, in place of torch's CheckpointException.

    That one is no Exception, so nobody who reads a damaged file would catch it.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        cause = next((one for one in causes if is_out_of_space(one)), causes[0])
        raise cause if isinstance(cause, Exception) else RuntimeError(str(cause)) from None


def save_weights(folder: Path, module: nn.Module) -> None:
    """Each process's part of a sharded module's weights."""
    from torch.distributed.checkpoint.state_dict_saver import save

    with _plain_errors():
        save({"model": module.state_dict()}, checkpoint_id=folder)


def load_weights(folder: Path, module: nn.Module) -> None:
    """What `save_weights` wrote, into a module that is sharded or not."""
    state = {"model": module.state_dict()}
    _load(state, folder, is_sharded(module))
    module.load_state_dict(state["model"])


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """A `state_dict` that every process has, into a module that is sharded or not."""
    if is_sharded(module):
        state = {key: part_of(state[key], value) for key, value in module.state_dict().items()}
    module.load_state_dict(dict(state))

"""Whether a model's evaluations can be recorded as CUDA graphs: nothing in them may look at a number on the host."""

from __future__ import annotations

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.model.backbone import Model

# transformers changes these angles by the longest position of a call, which it reads from the device.
_ROPE_THAT_LOOKS = ("dynamic", "longrope")


def check(model: Model, device: torch.device) -> None:
    """Raises UserError where `--cuda-graphs` cannot be had; the weights need not be there."""
    check_device(device)
    if not model.is_diffusion:
        raise UserError(f"--cuda-graphs is for diffusion models and {model.name!r} is an AR model; leave it out")
    if model.implementation not in ("sdpa", "eager"):
        raise UserError(f"--cuda-graphs does not run with attention {model.implementation}; use sdpa or eager")
    kind = (model.network.config.rope_parameters or {}).get("rope_type")
    if kind in _ROPE_THAT_LOOKS:
        raise UserError(
            f"--cuda-graphs does not run with rotary angles of type {kind}, which follow a row's length; leave it out"
        )


def check_device(device: torch.device) -> None:
    """Raises UserError where a device has no CUDA graphs."""
    if device.type != "cuda":
        raise UserError(f"--cuda-graphs needs a CUDA device, not {device.type}; leave it out")

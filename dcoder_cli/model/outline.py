"""A checkpoint as far as it is known without reading a weight: what `--dry-run` looks at."""

from __future__ import annotations

from pathlib import Path

import torch

from dcoder_cli.model import checkpoint, identity, recordable
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import check_attention, choose_device, choose_dtype, skeleton


def outline(
    path: str | Path, device: str | None = None, dtype: str | torch.dtype | None = None, attention: str = "sdpa",
    cuda_graphs: bool = False,
) -> Model:  # fmt: skip
    """What `load` would load, on the meta device: that the weights are there is told by their files' headers alone.

    Raises:
        UserError: as `load`, but for damage within the weights.
    """
    place = choose_device(device)
    check_attention(attention, place)
    model = skeleton(path, torch.device("cpu"))
    model.implementation = attention
    if cuda_graphs:
        recordable.check(model, place)
    choose_dtype(dtype, model.config, place)
    folder = checkpoint.find(model.name)
    model.weights_id = identity.weights_id(folder)
    return model

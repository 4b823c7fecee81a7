"""Fused kernels of Liger (liger-kernel, arXiv 2410.10989) in a loaded model's blocks: RMSNorm, SwiGLU, rotary embedding.

Only the modules of the model given are changed, by Liger's public classes around the same weights. Rotary embedding is a
function of transformers' module: its place is taken by one that asks Liger on a GPU and transformers elsewhere. Liger's
cross-entropy is left out: ours (diffusion/vocabulary.py) has logits at masked places alone and takes weights, on any device.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.model.backbone import Model


def check(name: str, device: torch.device) -> None:
    """Raises UserError where `kernels: NAME` cannot run on a device, or its package is missing."""
    if name == "none":
        return
    if device.type != "cuda":
        raise UserError(f"kernels = {name} needs a CUDA device, not {device.type}; use --set kernels=none")
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            f"kernels = {name} needs the package liger-kernel; install it with `pip install 'dcoder[gpu]'`, or use --set kernels=none"
        )


def use_liger(model: Model) -> None:
    """Put Liger's kernels into a model's blocks, adapted by LoRA or not; its weights and their names stay.

    Raises:
        UserError: the blocks' activation is not SiLU, which is all that Liger has for them.
    """
    from liger_kernel.transformers import LigerRMSNorm, LigerSwiGLUMLP

    network = model.network
    if network.config.hidden_act not in ("silu", "swish"):
        raise UserError(
            f"kernels = liger has no kernel for the activation {network.config.hidden_act!r} of {model.name!r}; use --set kernels=none"
        )

    def norm(old: Any) -> Any:
        with torch.device("meta"):
            new = LigerRMSNorm(old.weight.shape[0], eps=old.variance_epsilon)
        new.weight = old.weight
        return new.train(old.training)

    def mlp(old: Any) -> Any:
        with torch.device("meta"):
            new = LigerSwiGLUMLP(network.config)
        new.gate_proj, new.up_proj, new.down_proj = old.gate_proj, old.up_proj, old.down_proj
        return new.train(old.training)

    network.model.norm = norm(network.model.norm)
    for block in network.model.layers:
        block.input_layernorm = norm(block.input_layernorm)
        block.post_attention_layernorm = norm(block.post_attention_layernorm)
        block.mlp = mlp(block.mlp)
    _rotate_with_liger(sys.modules[type(network).__module__])


def _rotate_with_liger(blocks: Any) -> None:
    """Take the place of a transformers module's `apply_rotary_pos_emb`, once in a process."""
    from liger_kernel.transformers import liger_rotary_pos_emb

    plain = blocks.apply_rotary_pos_emb
    if getattr(plain, "with_liger", False):
        return

    def rotate(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        if not q.is_cuda or unsqueeze_dim != 1:
            return plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return liger_rotary_pos_emb(q, k, cos, sin)

    rotate.with_liger = True  # type: ignore[attr-defined]
    blocks.apply_rotary_pos_emb = rotate

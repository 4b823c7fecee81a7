"""Training's mathematics as it is defined: whole rows, all logits, one row a pass. What the training benches time ours beside.

Shapes: B rows or completions, L columns, N tokens of the longest completion, P passes of one completion, M prompt tokens,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dcoder_cli.diffusion.coupled import Passes
from dcoder_cli.model import lean
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo.estimate import Completion


def token_losses(model: Model, noised_BL: Tensor, ids_BL: Tensor) -> Tensor:
    """Cross-entropy in nats of every token, masked or not, from all logits [B, L, V]. float32 [B, L]."""
    with lean.as_written(model.network):
        logits_BLV = model.logits(noised_BL)
    return F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL.flatten(), reduction="none").view(ids_BL.shape)


def estimate(model: Model, completions: Sequence[Completion], passes: Sequence[Passes]) -> Tensor:
    """The log-probability estimate of every completion token: each pass of each completion a row of its own. [B, N]."""
    mask, device = model.ids.mask, model.device
    assert mask is not None
    longest = max(len(one.prompt) + len(one.tokens) for one in completions)
    rows, truths, attention = [], [], []
    for completion, own in zip(completions, passes, strict=True):
        ids_L = torch.tensor([*completion.prompt, *completion.tokens])
        pads = longest - len(ids_L)
        for masked_N, masked_M in zip(own.masked_PN, own.prompt_masked_PM, strict=True):
            noised_L = ids_L.masked_fill(torch.cat([masked_M, masked_N]), mask)
            rows.append(F.pad(noised_L, (pads, 0), value=model.ids.pad or 0))
            truths.append(F.pad(ids_L, (pads, 0)))
            attention.append(F.pad(torch.ones_like(ids_L), (pads, 0)))
    attention_RL = torch.stack(attention).to(device)
    with lean.as_written(model.network):
        logits_RLV = model.logits(torch.stack(rows).to(device), None if bool(attention_RL.all()) else attention_RL)
    logs_RLV = torch.log_softmax(logits_RLV, dim=-1)
    logs_RL = logs_RLV.gather(-1, torch.stack(truths).to(device)[..., None])[..., 0]
    width = max(len(one.tokens) for one in completions)
    result, row = [], 0
    for completion, own in zip(completions, passes, strict=True):
        new = len(completion.tokens)
        logs_PN = logs_RL[row : row + len(own.masked_PN), longest - new :]
        row += len(own.masked_PN)
        total_N = (logs_PN * own.weight_PN.to(logs_PN)).sum(dim=0)
        total_N = total_N * (torch.arange(new, device=device) < completion.scored)
        result.append(F.pad(total_N, (0, width - new)))
    return torch.stack(result)


def grpo_loss(
    new_BN: Tensor, old_BN: Tensor, reference_BN: Tensor, advantages: Sequence[float], completions: Sequence[Completion],
    clip: float, kl_coef: float,
) -> Tensor:  # fmt: skip
    """Algorithm 1's loss, a completion after another: mean over completions of the mean over each one's tokens."""
    losses = []
    for row, (completion, advantage) in enumerate(zip(completions, advantages, strict=True)):
        new_n, old_n, reference_n = (one[row, : completion.scored] for one in (new_BN, old_BN, reference_BN))
        ratio_n = torch.exp(new_n - old_n)
        surrogate_n = torch.minimum(ratio_n * advantage, ratio_n.clamp(1 - clip, 1 + clip) * advantage)
        kl_n = torch.exp(reference_n - new_n) - (reference_n - new_n) - 1
        losses.append((kl_coef * kl_n - surrogate_n).mean())
    return torch.stack(losses).mean()

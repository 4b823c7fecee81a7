"""The reference policy of stage 4: what the KL term compares with, and how it follows the policy."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import EntryLogProbs


def make_reference(model: Model, config: GrpoConfig) -> EntryLogProbs | None:
    """A frozen copy of the policy, or with LoRA the policy itself, to be read with the adapter off; None without a KL term."""
    if config.kl_coef == 0:
        return None
    if config.lora is not None:
        return EntryLogProbs(model)
    return EntryLogProbs(copy.deepcopy(model)).requires_grad_(False).eval()


@torch.no_grad()
def move_reference(reference: Model, policy: Model, alpha: float) -> None:
    """reference = alpha * policy + (1 - alpha) * reference, weight by weight, as TRL's SyncRefModelCallback; 1 = a copy."""
    for own, theirs in zip(reference.parameters(), policy.parameters(), strict=True):
        own.mul_(1 - alpha).add_(theirs, alpha=alpha)


def load_reference(reference: EntryLogProbs, file: Path, kl_coef: float) -> None:
    """Put the reference of a checkpoint into `reference`. Raises UserError where there is none, or it is damaged."""
    if not file.is_file():
        raise UserError(
            f"kl_coef = {kl_coef} cannot be switched on when resuming: this run began without a reference, and its checkpoints "
            "hold none; keep kl_coef = 0 or start a new run"
        )
    try:
        reference.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        raise UserError(
            f"reference {str(file)!r} cannot be read ({type(error).__name__}); remove {str(file.parent.parent)!r} to resume from the checkpoint before"
        ) from None

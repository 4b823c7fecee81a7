"""The reference policy of stage 4: what the KL term compares with, and how it follows the policy."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from dcoder_cli.base.checksums import Damaged
from dcoder_cli.base.errors import UserError
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.loading import skeleton
from dcoder_cli.training import damage, sharded
from dcoder_cli.training.context import Context
from dcoder_cli.training.grpo.config import GrpoConfig
from dcoder_cli.training.grpo.estimate import EntryLogProbs

REFERENCE_FILE, REFERENCE_PARTS = "reference.pt", "reference"  # in a checkpoint's training/: whole, or in parts


def make_reference(context: Context, config: GrpoConfig) -> EntryLogProbs | None:
    """A frozen copy of the policy, or with LoRA the policy itself, to be read with the adapter off; None without a KL term.

    It is held in bfloat16 where that is computed in, and sharded where the policy is. An average that moves by small steps
    (`reference_alpha` below 1) keeps float32: in bfloat16 they would round away.
    """
    if config.kl_coef == 0:
        return None
    if config.lora is not None:
        return context.module if context.sharded else EntryLogProbs(context.model)
    low = config.precision == "bf16" and config.reference_alpha == 1
    held = torch.bfloat16 if low else torch.float32
    if not context.sharded:
        copied = copy.deepcopy(context.model)
        for parameter in copied.parameters():
            parameter.data = parameter.data.to(held)
        return EntryLogProbs(copied).requires_grad_(False).eval()
    model = skeleton(context.weights_from, torch.device("cpu"))
    model.implementation = context.model.implementation
    model.network.config._attn_implementation = context.model.network.config._attn_implementation
    reference = EntryLogProbs(model).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(held)
    sharded.shard(reference, model, config.precision, context.accelerator.device)
    sharded.receive(reference, model, context.weights_from, held)
    return reference


@torch.no_grad()
def move_reference(reference: EntryLogProbs, policy: Model, alpha: float) -> None:
    """reference = alpha * policy + (1 - alpha) * reference, weight by weight, as TRL's SyncRefModelCallback; 1 = a copy.

    Sharded weights move part by part, where they lie.
    """
    if sharded.is_sharded(reference):
        sharded.at_rest(reference)
    for own, theirs in zip(reference.model.parameters(), policy.parameters(), strict=True):
        own.mul_(1 - alpha).add_(theirs, alpha=alpha)


def load_reference(reference: EntryLogProbs, training: Path, kl_coef: float) -> None:
    """Put the reference of a checkpoint, by its folder `training`, into `reference`, sharded or not.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file, parts = training / REFERENCE_FILE, training / REFERENCE_PARTS
    if not file.is_file() and not parts.is_dir():
        raise UserError(
            f"kl_coef = {kl_coef} cannot be switched on when resuming: this run began without a reference, and its checkpoints "
            "hold none; keep kl_coef = 0 or start a new run"
        )
    damage.check_state(training.parent, [REFERENCE_FILE, REFERENCE_PARTS])
    try:
        if parts.is_dir():
            sharded.load_weights(parts, reference)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
            sharded.load_whole(reference, state)
    except Exception as error:
        raise Damaged(
            f"reference {str(file)!r} cannot be read ({type(error).__name__}); copy the checkpoint again", file
        ) from None

"""Loss on held-out rows: the ELBO per token, and cross-entropy per band of the mask ratio t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcoder_cli.data.batches import RowRules, read_batch
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.diffusion.noise import uniforms
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.objective import TokenLoss, make_example, noised, token_losses

BANDS = 10
_SEED = 1234  # of the evaluation's noise: the same in every run, so that runs compare


@torch.no_grad()
def evaluate(
    accelerator: Any, module: nn.Module, shards: ShardSet, config: StageConfig, rules: RowRules, mask_id: int | None
) -> dict[str, Any]:
    """The held-out loss, with the same noise every time.

    Row i of n is noised at t = (i + 1/2) / n: spread evenly, each with its own fixed mask, which keeps the variance of the
    1/t-weighted sum low. Attention is full (causal for the AR objective). Rows are shared out over the processes.

    Returns:
        `loss`: negative ELBO per maskable token in nats (AR: cross-entropy); `by_t`: for each tenth of t the mean
        cross-entropy of a masked token, null where none was masked; `rows`.
    """
    count = min(config.evaluate_rows, len(shards))
    plain = RowRules(rules.seed, rules.pad_id, rules.keep_first)
    was_training = module.training
    module.eval()
    total = torch.zeros(2 + 2 * BANDS, dtype=torch.float64)
    mine = range(accelerator.process_index, count, accelerator.num_processes)
    size = max(1, config.micro_batch)
    pieces = [list(mine)[start : start + size] for start in range(0, len(mine), size)]
    with accelerator.autocast():
        for piece in pieces:
            total += _piece(accelerator, module, shards, config, plain, mask_id, piece, count)
        for _ in range(-(-count // accelerator.num_processes // size) - len(pieces)):
            # Sharded modules gather weights together: every process runs the same number of forwards.
            _piece(accelerator, module, shards, config, plain, mask_id, [0], count)
    module.train(was_training)
    sums = (
        accelerator.reduce(total.float().to(accelerator.device), reduction="sum").cpu()
        if accelerator.num_processes > 1
        else total
    )
    by_t = [
        float(sums[2 + band] / sums[2 + BANDS + band]) if sums[2 + BANDS + band] > 0 else None for band in range(BANDS)
    ]
    result: dict[str, Any] = {"loss": float(sums[0] / sums[1].clamp(min=1)), "rows": count}
    return result if mask_id is None else {**result, "by_t": by_t}


def _piece(
    accelerator: Any,
    module: nn.Module,
    shards: ShardSet,
    config: StageConfig,
    rules: RowRules,
    mask_id: int | None,
    piece: list[int],
    count: int,
) -> Tensor:
    """[weighted loss, maskable tokens, loss by band of t, masked tokens by band of t] of a few rows."""
    batch = read_batch(shards, piece, range(piece[0], piece[0] + len(piece)), 0, float("inf"), rules)
    if mask_id is None:
        example = make_example(batch, config, 0, None)
    else:
        t_B = torch.tensor([(index + 0.5) / count for index in piece])
        uniform_BL = torch.cat([uniforms(range(index, index + 1), batch.ids_BL.shape[1], _SEED, 0) for index in piece])
        plain = StageConfig(weighting="elbo", normalizer="eligible")
        example = noised(batch, plain, t_B, uniform_BL, mask_id)
    losses_N = (
        token_losses(module, example, None, mask_id is None, config.isolate_documents, accelerator.device)
        .double()
        .cpu()
    )
    sums = torch.zeros(2 + 2 * BANDS, dtype=torch.float64)
    sums[0] = (losses_N * example.weights_BL[example.masked_BL].double()).sum()
    sums[1] = batch.eligible_BL.sum()
    row_N = example.masked_BL.nonzero()[:, 0]
    band_N = (example.t_B[row_N] * BANDS).long().clamp(max=BANDS - 1)
    sums[2 : 2 + BANDS].index_add_(0, band_N, losses_N)
    sums[2 + BANDS :].index_add_(0, band_N, torch.ones_like(losses_N))
    return sums


def heldout_loss(model: Model, data: str) -> float:
    """The held-out loss of a diffusion model on a pretraining shard folder, as `evaluate` measures it.

    Raises:
        UserError: the folder has no held-out rows.
    """
    from accelerate import Accelerator

    shards = ShardSet.open(data, "heldout")
    config = StageConfig(precision="fp32")
    accelerator = Accelerator()
    rules = RowRules(0, model.ids.pad if model.ids.pad is not None else 0, keep_first=model.shift)
    result = evaluate(accelerator, TokenLoss(model.to(accelerator.device)), shards, config, rules, model.ids.mask)
    return float(result["loss"])

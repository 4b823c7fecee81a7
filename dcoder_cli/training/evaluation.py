"""Loss on held-out rows: the ELBO per token as training's sources are mixed, of each source, and by bands of t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dcoder_cli.data.batches import RowRules, read_batch
from dcoder_cli.data.shards import ShardSet, SourceRows
from dcoder_cli.diffusion.noise import uniforms
from dcoder_cli.model.backbone import Model
from dcoder_cli.training.config import StageConfig
from dcoder_cli.training.objective import TokenLoss, make_example, noised, token_losses
from dcoder_cli.training.totals import total

BANDS = 10
_SEED = 1234  # of the evaluation's noise: the same in every run, so that runs compare


def _bands() -> Tensor:
    return torch.zeros(BANDS, dtype=torch.float64)


@dataclass
class HeldoutSums:
    """What an evaluation adds up over the rows of one source, float64; K bands of t.

    Attributes:
        loss: cross-entropy times its weight. eligible: tokens that may be masked.
        band_loss_K, band_masked_K: cross-entropy of the masked tokens, and their number.
    """

    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    eligible: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    band_loss_K: Tensor = field(default_factory=_bands)
    band_masked_K: Tensor = field(default_factory=_bands)

    def add(self, other: HeldoutSums) -> None:
        """Add the sums of more rows."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def over_processes(self, accelerator: Any) -> HeldoutSums:
        """The sums of all processes."""
        return HeldoutSums(**{name: total(accelerator, value) for name, value in vars(self).items()})

    def per_token(self) -> float:
        """The loss in nats per token that may be masked."""
        return float(self.loss / self.eligible.clamp(min=1))


@torch.no_grad()
def evaluate(
    accelerator: Any, module: nn.Module, shards: ShardSet, config: StageConfig, rules: RowRules, mask_id: int | None
) -> dict[str, Any]:
    """The held-out loss, with the same noise every time, of the mixture of sources that training reads.

    `evaluate_rows` are shared out evenly over the sources. Row i of a source's n is noised at t = (i + 1/2) / n: spread
    evenly, each with its own fixed mask, which keeps the variance of the 1/t-weighted sum low. Each source's loss counts
    as its share of what training teaches, so the number stands beside the training loss. Attention is full (causal for
    the AR objective). Rows are shared out over the processes.

    Returns:
        `loss`: negative ELBO per maskable token in nats (AR: cross-entropy); `mixture`: "as trained", or "unweighted"
        where the shards do not tell sources apart (made by an earlier release): then each held-out document counts
        once; `sources`: for each its `name`, `loss`, `share` and `rows`, where known; `by_t`: for each tenth of t the
        mean cross-entropy of a masked token, null where none was masked; `rows`.
    """
    sources = shards.sources or [SourceRows("", tuple(range(len(shards))), 1.0)]
    counts = _shared_out(config.evaluate_rows, [len(source.rows) for source in sources])
    plain = RowRules(rules.seed, rules.pad_id, rules.keep_first)
    was_training = module.training
    module.eval()
    sums = [HeldoutSums() for _ in sources]
    size = max(1, config.micro_batch)
    with accelerator.autocast():
        for place, (source, count) in enumerate(zip(sources, counts, strict=True)):
            mine = range(accelerator.process_index, count, accelerator.num_processes)
            pieces = [list(mine)[start : start + size] for start in range(0, len(mine), size)]
            # Sharded modules gather weights together: every process runs the same number of forwards, some for nothing.
            idle = -(-count // accelerator.num_processes // size) - len(pieces)
            for number, piece in enumerate([*pieces, *[[0]] * idle]):
                rows = [source.rows[index] for index in piece]
                times = [(index + 0.5) / count for index in piece]
                found = _piece(accelerator, module, shards, config, plain, mask_id, rows, times)
                if number < len(pieces):
                    sums[place].add(found)
    module.train(was_training)
    sums = [one.over_processes(accelerator) for one in sums]
    return _result(sums, sources, counts, bool(shards.sources), mask_id is not None)


def _shared_out(rows: int, available: Sequence[int]) -> list[int]:
    """`rows` shared out evenly over sources that have so many; what short ones leave goes to the others."""
    counts = [0] * len(available)
    for left, place in zip(
        range(len(available), 0, -1), sorted(range(len(available)), key=lambda one: available[one]), strict=True
    ):
        counts[place] = min(available[place], (rows - sum(counts)) // left)
    return counts


def _result(
    sums: Sequence[HeldoutSums], sources: Sequence[SourceRows], counts: Sequence[int], known: bool, noised: bool
) -> dict[str, Any]:
    """What `evaluate` returns, from the sums of each source."""
    asked = [place for place, count in enumerate(counts) if count]
    whole = sum(sources[place].share for place in asked)
    losses = [one.per_token() for one in sums]
    shares = [sources[place].share / whole if whole and counts[place] else 0.0 for place in range(len(sources))]
    result: dict[str, Any] = {
        "loss": sum(share * loss for share, loss in zip(shares, losses, strict=True)),
        "rows": sum(counts),
        "mixture": "as trained" if known else "unweighted",
    }
    if known:
        result["sources"] = [
            {"name": sources[place].name, "loss": losses[place], "share": shares[place], "rows": counts[place]}
            for place in asked
        ]
    if noised:
        loss_K, masked_K = _bands(), _bands()
        for share, one in zip(shares, sums, strict=True):
            weight = share / one.eligible.clamp(min=1)
            loss_K += weight * one.band_loss_K
            masked_K += weight * one.band_masked_K
        result["by_t"] = [
            float(loss / masked) if masked > 0 else None for loss, masked in zip(loss_K, masked_K, strict=True)
        ]
    return result


def told(heldout: Mapping[str, Any], digits: int = 2) -> str:
    """A held-out evaluation in words: its loss, which mixture that is, and each source's, where there are several."""
    loss = f"held-out {heldout['loss']:.{digits}f}"
    if heldout.get("mixture") == "unweighted":
        return f"{loss}, each document once, sources not told apart"
    sources = heldout.get("sources", [])
    if len(sources) < 2:
        return loss
    each = ", ".join(f"{one['name']} {one['loss']:.{digits}f}" for one in sources)
    return f"{loss} as mixed ({each})"


def _piece(
    accelerator: Any,
    module: nn.Module,
    shards: ShardSet,
    config: StageConfig,
    rules: RowRules,
    mask_id: int | None,
    piece: list[int],
    times: list[float],
) -> HeldoutSums:
    """The sums of a few rows at their t."""
    batch = read_batch(shards, piece, range(len(piece)), 0, float("inf"), rules)
    for place, index in enumerate(piece):
        if index in shards.padding:  # no text of any source
            batch.eligible_BL[place, -shards.padding[index] :] = False
    if mask_id is None:
        example = make_example(batch, config, 0, None)
    else:
        t_B = torch.tensor(times)
        uniform_BL = torch.cat([uniforms(range(index, index + 1), batch.ids_BL.shape[1], _SEED, 0) for index in piece])
        plain = StageConfig(weighting="elbo", normalizer="eligible")
        example = noised(batch, plain, t_B, uniform_BL, mask_id)
    _, found_N = token_losses(module, example, None, mask_id is None, config.isolate_documents, accelerator.device)
    losses_N = found_N.double().cpu()
    row_N = example.masked_BL.nonzero()[:, 0]
    band_N = (example.t_B[row_N] * BANDS).long().clamp(max=BANDS - 1)
    return HeldoutSums(
        (losses_N * example.weights_BL[example.masked_BL].double()).sum(),
        batch.eligible_BL.sum().double(),
        _bands().index_add_(0, band_N, losses_N),
        _bands().index_add_(0, band_N, torch.ones_like(losses_N)),
    )


def heldout(model: Model, data: str, rows: int = StageConfig.evaluate_rows) -> dict[str, Any]:
    """What `evaluate` says of a diffusion model on a pretraining shard folder, in float32, where the model is.

    Args:
        rows: held-out rows used.

    Raises:
        UserError: the folder has no held-out rows.
    """
    from accelerate import Accelerator

    shards = ShardSet.open(data, "heldout")
    config = StageConfig(precision="fp32", evaluate_rows=rows)
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    rules = RowRules(0, model.ids.pad if model.ids.pad is not None else 0, keep_first=model.shift)
    return evaluate(accelerator, TokenLoss(model.to(accelerator.device)), shards, config, rules, model.ids.mask)


def heldout_loss(model: Model, data: str) -> float:
    """The loss of `heldout`."""
    return float(heldout(model, data)["loss"])

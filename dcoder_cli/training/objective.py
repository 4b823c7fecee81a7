"""What a training step computes: noise, network, cross-entropy at the masked places, and its weights.

Shapes: B rows, L length, N masked positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dcoder_cli.data.batches import Batch
from dcoder_cli.diffusion import loss as losses
from dcoder_cli.diffusion import noise, vocabulary
from dcoder_cli.model import last_block
from dcoder_cli.model.attention import annealed
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.varlen import Varlen, varlen
from dcoder_cli.training.config import StageConfig


class TokenLoss(nn.Module):
    """Model and loss as one module, so that DDP and FSDP see every weight used inside one forward."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        noised_BL: Tensor,
        places_N: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        attention_mask_BL: Tensor | None,
        document_ids_BL: Tensor | None,
        pattern_LL: Tensor | None,
        causal: bool,
        segments: Varlen | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats of `targets_N` at `places_N` of the flattened rows.

        Returns:
            its sum, weighted, and each place's, float32 [N], which carries no gradient.
        """
        with last_block.read_for(self.model, places_N, noised_BL.shape[1], attention_mask_BL):
            hidden_BLD = self.model.hidden(
                noised_BL,
                attention_mask_BL,
                causal=causal,
                pattern_LL=pattern_LL,
                document_ids_BL=document_ids_BL,
                segments=segments,
            )
        if torch.is_grad_enabled():  # the blocks' weights in bf16 go before the head's gradient comes
            torch.clear_autocast_cache()
        hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, places_N)
        rows = vocabulary.chunk_rows(self.model.vocab_size, hidden_ND.device.type)
        return vocabulary.weighted_cross_entropy(vocabulary.head_of(self.model), hidden_ND, targets_N, weights_N, rows)


@dataclass(frozen=True)
class Example:
    """A noised batch with the weights of its masked tokens, ready for `TokenLoss`. All of it is on the CPU.

    Attributes:
        batch: the clean rows.
        noised_BL: what the network reads.
        masked_BL: where it is asked.
        weights_BL: float32, 0 outside `masked_BL`.
        denominator: this batch's share of the loss's denominator.
        t_B: mask ratio of each row.
        places_N: the masked places of the flattened rows, in order. They are found here: on a GPU the host would wait for
            all that is under way, to learn their number.
        targets_N, weights_N: the true tokens there, and their weights.
        segments: pads, and documents that are kept apart, for flash attention; None where every row is one, and for others.
    """

    batch: Batch
    noised_BL: Tensor
    masked_BL: Tensor
    weights_BL: Tensor
    denominator: Tensor
    t_B: Tensor
    places_N: Tensor
    targets_N: Tensor
    weights_N: Tensor
    segments: Varlen | None = None


def make_example(batch: Batch, config: StageConfig, step: int, mask_id: int | None) -> Example:
    """Noise a batch for a stage. `mask_id` None means the AR objective: every token is predicted from those before it."""
    if mask_id is None:
        ones_B = torch.ones(batch.ids_BL.shape[0])
        weights_BL, share = batch.eligible_BL.float(), batch.eligible_BL.sum().float()
        return _example(batch, config, batch.ids_BL, batch.eligible_BL, weights_BL, share, ones_B)
    t_B = noise.sample_t(batch.rows, config.global_batch, config.seed, step, config.t_min, config.stratified_t)
    uniform_BL = noise.uniforms(batch.rows, batch.ids_BL.shape[1], config.seed, step)
    return noised(batch, config, t_B, uniform_BL, mask_id)


def noised(batch: Batch, config: StageConfig, t_B: Tensor, uniform_BL: Tensor, mask_id: int) -> Example:
    """A batch noised with given mask ratios and uniform numbers."""
    noised_BL, masked_BL = noise.add_noise(batch.ids_BL, batch.eligible_BL, t_B, uniform_BL, mask_id)
    weights_BL = losses.token_weights(
        masked_BL, batch.eligible_BL, t_B, config.weighting, config.normalizer, batch.attention_mask_BL, config.cart_p
    )
    share = losses.denominator(masked_BL, batch.eligible_BL, config.normalizer)
    return _example(batch, config, noised_BL, masked_BL, weights_BL, share, t_B)


def _example(
    batch: Batch,
    config: StageConfig,
    noised_BL: Tensor,
    masked_BL: Tensor,
    weights_BL: Tensor,
    share: Tensor,
    t_B: Tensor,
) -> Example:
    places_N = masked_BL.flatten().nonzero()[:, 0]
    targets_N, weights_N = batch.ids_BL.flatten()[places_N], weights_BL.flatten()[places_N]
    documents_BL = batch.document_ids_BL if config.isolate_documents else None
    segments = None
    if config.attention == "flash_attention_2" and (batch.attention_mask_BL is not None or documents_BL is not None):
        segments = varlen(batch.attention_mask_BL, documents_BL)
    return Example(batch, noised_BL, masked_BL, weights_BL, share, t_B, places_N, targets_N, weights_N, segments)


def pinned(example: Example) -> Example:
    """An example whose tensors that are sent to the device lie in page-locked memory."""
    batch = example.batch
    attention_BL, documents_BL = (
        None if one is None else one.pin_memory() for one in (batch.attention_mask_BL, batch.document_ids_BL)
    )
    return replace(
        example,
        batch=replace(batch, attention_mask_BL=attention_BL, document_ids_BL=documents_BL),
        noised_BL=example.noised_BL.pin_memory(),
        places_N=example.places_N.pin_memory(),
        targets_N=example.targets_N.pin_memory(),
        weights_N=example.weights_N.pin_memory(),
        segments=None if example.segments is None else example.segments.pinned(),
    )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`. From page-locked memory to CUDA the host does not wait for it."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def token_losses(
    module: nn.Module, example: Example, pattern_LL: Tensor | None, causal: bool, isolate: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of an example's masked tokens on `device`: weighted and summed, and of each, float32 [N], no gradient."""
    batch = example.batch
    documents_BL = batch.document_ids_BL if isolate else None
    result: tuple[Tensor, Tensor] = module(
        sent(example.noised_BL, device),
        sent(example.places_N, device),
        sent(example.targets_N, device),
        sent(example.weights_N, device),
        None if batch.attention_mask_BL is None else sent(batch.attention_mask_BL, device),
        None if documents_BL is None else sent(documents_BL, device),
        None if pattern_LL is None else sent(pattern_LL, device),
        causal,
        None if example.segments is None else example.segments.to(device),
    )
    return result


def attention_pattern(config: StageConfig, step: int, length: int) -> Tensor | None:
    """Stage 1's annealed mask for a step; None once attention is full (DiffuCoder B.1; DiffuLLaMA)."""
    if config.anneal_steps == 0 or step + 1 >= config.anneal_steps:
        return None
    from dcoder_cli.diffusion.randomness import generator

    return annealed(length, (step + 1) / config.anneal_steps, generator(config.seed, "anneal", step))

"""A loaded checkpoint: any of the systems behind one interface, with the shift applied in one place.

Shapes: B batch, L length, D hidden size, V vocabulary, N number of positions.
Everywhere outside this file row i of hidden states and logits predicts token i.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcoder_cli.model import adapters, attention, key_values, storing
from dcoder_cli.model.layouts import Layout, shift_of
from dcoder_cli.model.special_ids import Finding, SpecialIds
from dcoder_cli.model.varlen import Varlen


class Model(nn.Module):
    """A diffusion or AR language model with its special ids and tokenizer.

    Attributes:
        network: the transformers causal-LM module (blocks and head).
        config: the checkpoint's config.json, as read.
        layout: how the checkpoint is stored.
        shift: whether hidden state i-1 predicts token i in the stored weights.
        ids: special ids; `findings`: conflicts about them.
        tokenizer: a transformers tokenizer, or None (the model then works with ids).
        name: the folder or hub id it came from; `implementation`: sdpa, flash_attention_2, flex or eager.
        answer_length: new tokens of the answers it was taught (generation_config.json's `max_new_tokens`), or None.
        adapter: what LoRA has put into its blocks, or None; set by training.
        weights_id: which weights `load` read (see `identity`), or None.
        cuda_graphs: whether evaluations of its decoding are recorded and played back; see decoding/graphs.py.
        recordings: what was recorded, by the slots of an engine.
    """

    def __init__(
        self,
        network: Any,
        config: dict[str, Any],
        layout: Layout,
        ids: SpecialIds,
        findings: list[Finding],
        tokenizer: Any | None,
        name: str,
        implementation: str = "sdpa",
        answer_length: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.layout = layout
        self.shift = shift_of(config, layout)
        self.ids = ids
        self.findings = findings
        self.tokenizer = tokenizer
        self.name = name
        self.implementation = implementation
        self.answer_length = answer_length
        self.adapter: adapters.Adapter | None = None
        self.weights_id: str | None = None
        self.cuda_graphs = False
        self.recordings: dict[int, Any] = {}
        # The blocks' name for their cache: newer transformers warn about `past_key_values` at every call.
        self._cache_name = "cache" if "cache" in signature(network.model.forward).parameters else "past_key_values"
        # The embedding row of the pad token must train: stage 3 supervises pads, and eos is often the pad.
        network.model.embed_tokens.padding_idx = None

    @property
    def is_diffusion(self) -> bool:
        """Masked diffusion (True) or AR (False)."""
        return self.layout.diffusion

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.lm_head.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""
        return self.network.lm_head.weight.dtype  # type: ignore[no-any-return]

    @property
    def vocab_size(self) -> int:
        """Rows of the head, V."""
        return int(self.network.config.vocab_size)

    @property
    def max_length(self) -> int:
        """The longest row the model was made for."""
        return int(self.network.config.max_position_embeddings)

    @property
    def default_rule(self) -> str:
        """The unmasking rule of the system's own evaluation."""
        return self.layout.rule

    def hidden(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        causal: bool | None = None,
        pattern_LL: Tensor | None = None,
        document_ids_BL: Tensor | None = None,
        segments: Varlen | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D]; row i predicts token i (the shift is applied here and nowhere else).

        Args:
            input_ids_BL: int64 tokens.
            attention_mask_BL: 1 on tokens, 0 on pads (left or right); None = no pads. On a GPU give None where there are
                none: to look, the host would wait.
            causal: attend to the left only; None = as the checkpoint does (AR: yes, diffusion: no).
            pattern_LL: an annealed mask, bool [L, L].
            document_ids_BL: packed rows: tokens attend within their own document only. Positions count on over documents.
            segments: for flash attention, the same pads and documents found before; see `varlen`.

        Row 0, and the first token after left padding, have no predecessor: a shifted model gives them
        their own hidden state, as Dream's public code does.
        """
        causal = not self.is_diffusion if causal is None else causal
        arguments = attention.backbone_arguments(
            self.implementation,
            input_ids_BL.shape[1],
            input_ids_BL.device,
            self.dtype,
            causal,
            pattern_LL,
            attention_mask_BL,
            document_ids_BL,
            segments,
        )
        if attention_mask_BL is not None:
            arguments["position_ids"] = attention.positions(attention_mask_BL)
        hidden_BLD = self.network.model(input_ids=input_ids_BL, use_cache=False, **arguments).last_hidden_state
        return self._shifted(hidden_BLD, attention_mask_BL) if self.shift else hidden_BLD

    def hidden_window(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        cache: key_values.KeyValues,
        first: Sequence[int] | None = None,
        end: Sequence[int] | None = None,
    ) -> Tensor:
        """Final hidden states [B, W, D] of a window, against cached keys and values; row j predicts token first + j.

        Args:
            input_ids_BL: the whole rows, int64.
            attention_mask_BL: 1 on tokens, 0 on left pads; None = no pads.
            cache: an empty one is filled from whole rows; in a filled one the window's columns are replaced.
            first, end: for each row the window's columns [first, end); None = whole rows, into an empty cache.

        A shifted model also evaluates the column before the window, whose hidden state predicts the first token.
        Shorter windows than the batch's longest are filled up at the right with rows that nobody reads.

        Raises:
            UserError: the attention implementation has no kernel for it.
        """
        assert (first is None) == (end is None) and (first is not None) == cache.filled
        window: slice | Tensor | None = None
        if first is not None and end is not None:
            window = key_values.columns([start - self.lead for start in first], end, self.device)
        hidden_BWD = self.hidden_columns(input_ids_BL, attention_mask_BL, cache, window)
        if not self.shift:
            return hidden_BWD
        if first is None:
            return self._shifted(hidden_BWD, attention_mask_BL)
        if attention_mask_BL is None:
            return hidden_BWD[:, :-1]
        # A first token after left padding has no predecessor: its own hidden state predicts it, as in `hidden`.
        before_B1 = torch.tensor([[max(start - 1, 0)] for start in first], device=self.device)
        alone_B1 = attention_mask_BL.gather(1, before_B1) == 0
        head_B1D = torch.where(alone_B1[..., None], hidden_BWD[:, 1:2], hidden_BWD[:, :1])
        return torch.cat([head_B1D, hidden_BWD[:, 1:-1]], dim=1)

    @property
    def lead(self) -> int:
        """Columns that a window begins before its first token: hidden state i - 1 of a shifted model predicts token i."""
        return 1 if self.shift else 0

    def hidden_columns(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        cache: key_values.KeyValues,
        window: slice | Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, W, D] of columns as the blocks leave them, without the shift; `hidden_window` has it.

        `window`: of `key_values.columns`, lead and all; None = whole rows, into an empty cache.
        """
        length = input_ids_BL.shape[1]
        positions_BL = torch.arange(length, device=self.device).expand_as(input_ids_BL)
        if attention_mask_BL is not None:
            positions_BL = attention.positions(attention_mask_BL)
        if window is not None:
            cache.window = window
        read = slice(0, length) if window is None else window
        hidden_BWD: Tensor = self.network.model(
            input_ids=key_values.take(read, input_ids_BL),
            attention_mask=key_values.mask(self.implementation, attention_mask_BL, length, self.dtype, self.device),
            position_ids=key_values.take(read, positions_BL),
            use_cache=False,
            is_causal=False,
            **{self._cache_name: cache},
        ).last_hidden_state
        if len(cache.keys) != len(self.network.model.layers):
            raise RuntimeError(
                "the blocks ignored the cache; call model.eval() before decoding with gradient checkpointing"
            )
        return hidden_BWD

    def sources(self, place_N: Tensor, length: int, attention_mask_BL: Tensor | None = None) -> Tensor:
        """Where the blocks leave the hidden states that predict tokens at places, both of the flattened rows of `length`.

        The shift of `hidden` for few of them: two places may have one source.
        """
        if not self.shift:
            return place_N
        before_N = (place_N - 1).clamp(min=0)
        alone_N = place_N % length == 0
        if attention_mask_BL is not None:
            alone_N |= attention_mask_BL.flatten()[before_N] == 0
        return torch.where(alone_N, place_N, before_N)

    @staticmethod
    def _shifted(hidden_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
        shifted_BLD = torch.cat([hidden_BLD[:, :1], hidden_BLD[:, :-1]], dim=1)
        if attention_mask_BL is None:
            return shifted_BLD
        real_BL = attention_mask_BL.to(torch.bool)
        first_BL = real_BL.clone()
        first_BL[:, 1:] &= ~real_BL[:, :-1]
        return torch.where(first_BL[..., None], hidden_BLD, shifted_BLD)

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], in float32 (a float64 model keeps float64)."""
        logits_NV: Tensor = self.network.lm_head(hidden_ND)
        return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()

    def logits(self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, **patterns: Any) -> Tensor:
        """Logits [B, L, V] in float32; row i is the distribution of token i. Rows of pads may hold anything."""
        return self.head(self.hidden(input_ids_BL, attention_mask_BL, **patterns))

    def save(self, folder: str | Path, weights: dict[str, Tensor] | None = None, **record: Any) -> None:
        """Write the model as a checkpoint folder; `record` is added to the config's `dcoder` section."""
        storing.write(
            Path(folder),
            self.stored_config(**record),
            weights or self.network.state_dict(),
            self.layout,
            self.tokenizer,
            self.answer_length,
        )

    def stored_config(self, **record: Any) -> dict[str, Any]:
        """config.json as it would be saved, with `record` in its `dcoder` section."""
        config = dict(self.config)
        if self.is_diffusion or record or "dcoder" in config:
            config["dcoder"] = {**config.get("dcoder", {}), "shift": self.shift, **record}
        config["dtype"] = config["torch_dtype"] = str(self.dtype).removeprefix("torch.")
        return config

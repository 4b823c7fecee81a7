"""From shards to training rows: a fixed order, the stage's cuts and prefixes, and what may be noised.

Which row comes at which place depends on (seed, place) alone: a run resumes by its step number, and any
number of processes sees the same global batches. Shapes: B rows, L length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError
from dcoder_cli.data.holes import ABSENT, TAUGHT
from dcoder_cli.data.shards import ShardSet
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.tokenizer import tokenizer_hash


@dataclass(frozen=True)
class Batch:
    """Clean rows of one forward pass.

    Attributes:
        ids_BL: int64 tokens.
        eligible_BL: bool, tokens that may be noised.
        attention_mask_BL: bool, False on what was cut off and behind a text with a gap; None where nothing is.
        document_ids_BL: int64; None for instruction data.
        rows: the rows' places within the global batch.
    """

    ids_BL: Tensor
    eligible_BL: Tensor
    attention_mask_BL: Tensor | None
    document_ids_BL: Tensor | None
    rows: range


class RowOrder:
    """Row indices by place in an endless sequence of epochs, each a new permutation."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, place: int) -> int:
        """The row at a place."""
        epoch, offset = divmod(place, self._rows)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
        return int(self._order[offset])


@dataclass(frozen=True)
class RowRules:
    """How a stage treats rows; see StageConfig for the meaning of the shares."""

    seed: int
    pad_id: int
    keep_first: bool
    truncate_share: float = 0.0
    clean_prefix_share: float = 0.0
    conditional_phase_in: float = 0.0


def read_batch(
    shards: ShardSet, indices: Sequence[int], rows: range, step: int, epoch: float, rules: RowRules
) -> Batch:
    """The rows `indices` of a shard set as places `rows` of step `step`'s global batch.

    Args:
        epoch: passes over the data so far; decides how far the conditional mask is phased in.
    """
    columns = shards.rows(indices)
    ids_BL = torch.from_numpy(columns["tokens"].astype(np.int64))
    length = ids_BL.shape[1]
    document_ids_BL = None
    if shards.kind == "sft":
        eligible_BL = torch.from_numpy(columns["eligible"] == TAUGHT)
        attention_BL = torch.from_numpy(columns["eligible"] != ABSENT)
        for place, row in enumerate(rows):
            if (
                epoch < rules.conditional_phase_in
                and _uniform(rules.seed, "phase", step, row) >= epoch / rules.conditional_phase_in
            ):
                eligible_BL[place] = attention_BL[place]
    else:
        eligible_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        attention_BL = torch.ones_like(eligible_BL)
        document_ids_BL = torch.from_numpy(columns["document_ids"].astype(np.int64))
    for place, row in enumerate(rows):
        if rules.truncate_share and _uniform(rules.seed, "truncate", step, row) < rules.truncate_share:
            cut = 1 + int(_uniform(rules.seed, "truncate length", step, row) * (length - 1))
            ids_BL[place, cut:] = rules.pad_id
            eligible_BL[place, cut:] = False
            attention_BL[place, cut:] = False
        if rules.clean_prefix_share and _uniform(rules.seed, "prefix", step, row) < rules.clean_prefix_share:
            eligible_BL[place, : int(_uniform(rules.seed, "prefix length", step, row) * length)] = False
    if rules.keep_first:
        eligible_BL[:, 0] = False  # a shifted model has no hidden state that predicts position 0
    return Batch(ids_BL, eligible_BL, None if bool(attention_BL.all()) else attention_BL, document_ids_BL, rows)


def _uniform(seed: int, purpose: str, step: int, row: int) -> float:
    return float(torch.rand((), generator=generator(seed, purpose, step, row)))


def answer_length(shards: ShardSet) -> int | None:
    """New tokens that instruction rows teach a model to write; None for rows without answers.

    The median, over 1,000 rows spread evenly, of the places after the prompt: the answer and the pads that teach it to
    end. Rows of gaps do not count, since a gap is told its length. At most 256 (DiffuCoder's completions, B.1): in rows of thousands nearly all places are pads.
    """
    if shards.kind != "sft":
        return None
    eligible_RL = shards.rows(range(0, len(shards), max(1, len(shards) // 1000)))["eligible"]
    chats_RL = eligible_RL[eligible_RL[:, -1] == TAUGHT]
    return max(1, min(256, int(np.median((chats_RL == TAUGHT).sum(axis=1))))) if len(chats_RL) else None


def check_fit(shards: ShardSet, model: Model, kind: str, stage: str) -> None:
    """Raises UserError if a shard set is of the wrong kind, from another tokenizer or too long for a model."""
    if shards.kind != kind:
        made = {"pretrain": "dcoder tokenize pretrain", "sft": "dcoder tokenize sft"}[kind]
        raise UserError(
            f"data {str(shards.folder)!r} is of kind {shards.kind!r} but stage {stage} needs {kind!r}; make it with `{made}`"
        )
    if shards.sequence_length > model.max_length:
        raise UserError(
            f"data {str(shards.folder)!r} has rows of {shards.sequence_length} tokens but the context of {model.name!r} is {model.max_length}; "
            "tokenize with a smaller --seq-len"
        )
    if shards.vocab_size > model.vocab_size:
        raise UserError(
            f"data {str(shards.folder)!r} has a vocabulary of {shards.vocab_size} but {model.name!r} only {model.vocab_size} rows; use its tokenizer"
        )
    if model.tokenizer is None:
        return
    if tokenizer_hash(model.tokenizer) != shards.tokenizer_hash:
        raise UserError(
            f"data {str(shards.folder)!r} was made with another tokenizer than that of {model.name!r}; tokenize again with --tokenizer {model.name}"
        )
    for name, entry in shards.manifest.get("special_tokens", {}).items():
        token = model.tokenizer.convert_ids_to_tokens(entry["id"]) if entry else None
        if entry and token != entry["token"]:
            raise UserError(
                f"data {str(shards.folder)!r} uses {entry['token']!r} (id {entry['id']}) as {name} but in {model.name!r} that id is {token!r}; "
                f"tokenize again with --tokenizer {model.name}"
            )

"""The log-likelihood of a text behind another: exact, of an AR model and of a diffusion model that writes from left to right.

A diffusion model is given the continuation as masks; the first one is read, filled with the token that stands there, and so
on: a forward pass a token. Its product is the probability with which the model writes this text from left to right, a token
a step, at temperature 1 with nothing filtered, in as many masks as it has tokens. That is a distribution over the texts of
one length, and another number than the bound which training minimises. LLaDA's and Dream's evaluations estimate that bound
with 128 random masks, so multiple-choice scores differ from theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.diffusion import vocabulary
from dcoder_cli.model.backbone import Model


@dataclass(frozen=True)
class _Row:
    """One row to evaluate: at `first` and the places after it `targets` are read, for the pair `number`."""

    ids: list[int]
    targets: list[int]
    first: int
    number: int


def score(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int = 8,
    told: Callable[[int], None] = lambda _: None,
) -> list[tuple[float, bool]]:
    """For contexts and continuations as ids: log P(continuation), and whether each of its tokens was the likeliest.

    A context that is too long loses its beginning.

    Args:
        batch_size: rows evaluated together.
        told: called with how many more pairs are done.

    Raises:
        UserError: a continuation that leaves no room for a token before it.
    """
    rows: list[_Row] = []
    for number, (context, targets) in enumerate(pairs):
        kept = [*context, *targets][-model.max_length :]
        first = len(kept) - len(targets)
        if first < 1:
            raise UserError(
                f"a continuation of {len(targets)} tokens has no room in the context of {model.max_length} with a token "
                "before it; take a model with a longer one"
            )
        rows += _rows(model, kept, list(targets), first, number)
    sums, likeliest = [0.0] * len(pairs), [True] * len(pairs)
    left = Counter(row.number for row in rows)
    told(len(pairs) - len(left))
    rows.sort(key=lambda row: -len(row.ids))  # like lengths together; the largest batch first
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        for row, (log, was) in zip(part, _read(model, part), strict=True):
            sums[row.number] += log
            likeliest[row.number] = likeliest[row.number] and was
            left[row.number] -= 1
            told(int(left[row.number] == 0))
    return list(zip(sums, likeliest, strict=True))


def _rows(model: Model, kept: list[int], targets: list[int], first: int, number: int) -> list[_Row]:
    if not targets:
        return []
    if not model.is_diffusion:
        return [_Row(kept, targets, first, number)]
    assert model.ids.mask is not None
    masks = [model.ids.mask] * len(targets)
    return [
        _Row([*kept[: first + place], *masks[place:]], [target], first + place, number)
        for place, target in enumerate(targets)
    ]


@torch.no_grad()
def _read(model: Model, rows: Sequence[_Row]) -> list[tuple[float, bool]]:
    """Each row's sum of its targets' log-probabilities, and whether all were the likeliest. Logits exist in chunks."""
    longest = max(len(row.ids) for row in rows)
    ids_BL = torch.full((len(rows), longest), model.ids.pad if model.ids.pad is not None else 0, dtype=torch.int64)
    attention_BL = torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids_BL[number, longest - len(row.ids) :] = torch.tensor(row.ids)
        attention_BL[number, longest - len(row.ids) :] = 1
    padded = None if bool(attention_BL.all()) else attention_BL.to(model.device)
    hidden_BLD = model.hidden(ids_BL.to(model.device), padded)
    size = vocabulary.chunk_rows(model.vocab_size, hidden_BLD.device.type)
    found = []
    for number, row in enumerate(rows):
        begin = longest - len(row.ids) + row.first
        total, likeliest = 0.0, True
        for start in range(0, len(row.targets), size):
            wanted_N = torch.tensor(row.targets[start : start + size], device=model.device)
            hidden_ND = hidden_BLD[number, begin + start : begin + start + len(wanted_N)]
            logs_NV = torch.log_softmax(model.head(hidden_ND), dim=-1)
            total += float(logs_NV.gather(-1, wanted_N[:, None]).double().sum())
            likeliest = likeliest and bool((logs_NV.argmax(dim=-1) == wanted_N).all())
        found.append((total, likeliest))
    return found

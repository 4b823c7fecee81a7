"""One step's proposal: a token and a score for every candidate, within a bound of memory for logits.

Logits of all candidates of a batch at a real vocabulary do not fit: 64 rows of 256 masks over 152,064 tokens are 10 GB,
and a step needs several copies. So candidates are judged a chunk at a time, and of a chunk only numbers are kept: its
tokens, scores, and what the trajectory records. Where one chunk holds all, its logits stay for what is asked later.

Shapes: R rows, N candidates of all rows, n of one chunk, K of them committed, P places of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.decoding.own import Own, joined, measure, measure_some
from dcoder_cli.decoding.requests import Request, Settings
from dcoder_cli.decoding.room import chunk_size, part_size, parts
from dcoder_cli.diffusion import unmasking
from dcoder_cli.diffusion.randomness import generator
from dcoder_cli.model.backbone import Model

# The model's logits [n, V] at some of the candidates, to change at will; they hold until the next call.
LogitsAt = Callable[[slice | Tensor], Tensor]


@dataclass(frozen=True)
class Draws:
    """A row's random numbers for one step, one for each new token: of tokens, of their order, of ties; empty where not needed."""

    tokens: Tensor
    order: Tensor
    ties: Tensor


class RowRandom:
    """A row's random numbers: its own generators, so that neither its neighbours nor the tie break move its other draws."""

    def __init__(self, request: Request, settings: Settings, rule: str) -> None:
        self.settings, self.rule, self.size = settings, rule, request.new_tokens
        self.source = generator(settings.seed, "sample", request.seed)
        self.tie_source = generator(settings.seed, "ties", request.seed)

    def draw(self) -> Draws:
        """The next step's numbers."""
        return Draws(
            self._numbers(self.settings.temperature > 0, self.source),
            self._numbers(needs_order(self.rule, self.settings), self.source),
            self._numbers(self.settings.tie_break == "random", self.tie_source),
        )

    def _numbers(self, wanted: bool, source: torch.Generator) -> Tensor:
        return torch.rand(self.size, generator=source) if wanted else torch.empty(0)


@dataclass(frozen=True)
class Candidates:
    """Where tokens may be committed in one step: rows one after another, each row's places ascending.

    Attributes:
        lengths: candidates of each row.
        place_N: among the row's new tokens.
        uniform_N, order_N, ties_N: random numbers of tokens, of their order and of ties; None where not needed.
        columns, widths: each row's columns and its width as topk sees it; None but for topk.
    """

    lengths: list[int]
    place_N: Tensor
    uniform_N: Tensor | None = None
    order_N: Tensor | None = None
    ties_N: Tensor | None = None
    columns: list[Tensor] | None = None
    widths: list[int] | None = None


@dataclass
class Proposal:
    """A token and a score for each of N candidates, rows one after another.

    Attributes:
        tokens_N: the token chosen for each.
        scores_N: how sure each is under the rule; the largest are committed first.
        keys_N: what orders equal scores, the largest first; None where the leftmost comes first, or topk decides.
        own: of all candidates, where it was asked for or logits were not kept.
        kept_NV: the model's logits, where one chunk holds them all.
    """

    tokens_N: Tensor
    scores_N: Tensor
    keys_N: Tensor | None
    own: Own | None
    kept_NV: Tensor | None

    def own_at(self, chosen_K: Tensor, taken_K: Tensor | None) -> tuple[Tensor, Tensor]:
        """Confidence and entropy of some candidates under the model's own distribution; 0 where not taken may stand for them."""
        own = self.own
        if own is not None and own.entropy_N is not None:
            return own.confidence_N[chosen_K], own.entropy_N[chosen_K]
        assert self.kept_NV is not None
        if own is None or taken_K is None:
            found = measure_some(self.kept_NV, self.tokens_N, chosen_K)
            assert found.entropy_N is not None
            return found.confidence_N, found.entropy_N
        entropy_K = torch.zeros_like(own.confidence_N[chosen_K])
        entropy_k = measure_some(self.kept_NV, self.tokens_N, chosen_K[taken_K]).entropy_N
        assert entropy_k is not None
        entropy_K[taken_K] = entropy_k
        return own.confidence_N[chosen_K], entropy_K


def propose(
    model: Model, settings: Settings, rule: str, logits_at: LogitsAt, candidates: Candidates, measured: bool = False,
    whole: bool = True,
) -> Proposal:  # fmt: skip
    """A token and a score for each candidate.

    Args:
        logits_at: the model's logits at candidates.
        measured: the proposal's `own` is wanted for all candidates.
        whole: all of it; else the confidence will do where logits are kept.
    """
    judge = _Judge(model, settings, rule, candidates)
    count, size = len(candidates.place_N), chunk_size(model, settings)
    if count <= size:
        raw_NV = logits_at(slice(0, count))
        tokens_N, scores_N, keys_N = judge(raw_NV, slice(0, count), keys=None)
        own = measure(raw_NV, tokens_N, whole) if measured else None
        kept_NV = None if measured and whole else raw_NV
    else:
        tokens_N, scores_N, keys_N, own = _in_chunks(judge, logits_at, candidates, size)
        kept_NV = None
    if settings.tie_break == "right":
        keys_N = candidates.place_N.to(scores_N)
    elif settings.tie_break == "random":
        keys_N = candidates.ties_N
    return Proposal(tokens_N, scores_N, keys_N, own, kept_NV)


def _in_chunks(
    judge: _Judge, logits_at: LogitsAt, candidates: Candidates, size: int
) -> tuple[Tensor, Tensor, Tensor | None, Own]:
    """Tokens, scores, keys and own numbers of all candidates, `size` at a time."""
    likely = judge.may_tie and judge.cuts  # a filter leaves equal scores behind; heat alone hardly does
    found, owns = [], []
    count = len(candidates.place_N)
    for start in range(0, count, size):
        here = slice(start, min(start + size, count))
        raw_nV = logits_at(here)
        found.append(judge(raw_nV, here, keys=likely))
        owns.append(measure(raw_nV, found[-1][0]))
        del raw_nV
    tokens_N, scores_N = torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])
    own = joined(owns)
    if likely:
        return tokens_N, scores_N, torch.cat([one[2] for one in found if one[2] is not None]), own
    if not judge.may_tie:
        return tokens_N, scores_N, None, own
    tied_N = torch.cat([_equal(part) for part in torch.split(scores_N, candidates.lengths)])
    tied = tied_N.nonzero()[:, 0]
    if not len(tied):
        return tokens_N, scores_N, None, own
    keys_N = torch.zeros_like(scores_N)
    for some in torch.split(tied, size):
        keys_N[some] = judge.keys(logits_at(some), some, tokens_N[some])
    return tokens_N, scores_N, keys_N, own


class _Judge:
    """Tokens, scores and keys of candidates from their logits; `here` tells which of the step's candidates they are."""

    def __init__(self, model: Model, settings: Settings, rule: str, candidates: Candidates) -> None:
        self.model, self.settings, self.rule, self.candidates = model, settings, rule, candidates
        top_p, top_k = settings.top_p, settings.top_k
        self.cuts = (top_p is not None and top_p < 1) or (top_k is not None and top_k < model.vocab_size)
        # The same rule on the model's own distribution orders equal scores: of use where that is another distribution.
        self.may_tie = settings.tie_break == "model" and (self.cuts or settings.temperature > 0)

    def __call__(self, raw_nV: Tensor, here: slice, keys: bool | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, scores and, where asked, keys [n]; `keys` None: where they may tie and any two scores are equal."""
        raw_nV = self._usable(raw_nV)
        with self._biased(raw_nV, here):
            found = [self._scored(part_mV, part) for part_mV, part in parts(raw_nV, here)]
            tokens_n, scores_n = (torch.cat(each) for each in zip(*found, strict=True))
            wanted = self.may_tie and _any_equal(scores_n) if keys is None else keys
            keys_n = self._own_scores(raw_nV, tokens_n, here) if wanted else None
        if self.settings.compat == "llada":  # it takes its confidence before temperature and filters, Dream after them
            scores_n = self._own_scores(raw_nV, tokens_n, here)
        return tokens_n, scores_n, keys_n

    def keys(self, raw_nV: Tensor, here: Tensor, tokens_n: Tensor) -> Tensor:
        """The rule's scores on the model's own distribution, which order candidates of equal scores."""
        raw_nV = self._usable(raw_nV)
        with self._biased(raw_nV, here):
            return self._own_scores(raw_nV, tokens_n, here)

    def _own_scores(self, raw_nV: Tensor, tokens_n: Tensor, here: slice | Tensor) -> Tensor:
        every = zip(parts(raw_nV, here), torch.split(tokens_n, part_size(raw_nV)), strict=True)
        return torch.cat([self._score(torch.softmax(raw_mV, dim=-1), some_m, part) for (raw_mV, part), some_m in every])

    def _scored(self, own_nV: Tensor, here: slice | Tensor) -> tuple[Tensor, Tensor]:
        if not self.cuts:
            return self._scored_whole(own_nV, here)
        settings, uniform_n = self.settings, self._uniform(here)
        kept = unmasking.kept_tokens(own_nV, settings.temperature, settings.top_p, settings.top_k)
        probabilities_nK = torch.softmax(kept.logits_NK, dim=-1)
        at_n = unmasking.choose_kept(kept, probabilities_nK, settings.temperature, uniform_n)
        scores_n = self._score(probabilities_nK, at_n, here)
        tokens_n = kept.ids_NK.gather(-1, at_n[:, None])[:, 0]
        flat = (~kept.enough_N).nonzero()[:, 0]
        if len(flat):  # more is left of these than was looked at
            every = torch.arange(here.start, here.stop, device=flat.device) if isinstance(here, slice) else here
            tokens_n[flat], scores_n[flat] = self._scored_whole(own_nV[flat], every[flat])
        return tokens_n, scores_n

    def _scored_whole(self, own_nV: Tensor, here: slice | Tensor) -> tuple[Tensor, Tensor]:
        settings = self.settings
        logits_nV = unmasking.filter_logits(own_nV, settings.temperature, settings.top_p, settings.top_k)
        probabilities_nV = torch.softmax(logits_nV, dim=-1)
        del logits_nV
        tokens_n = unmasking.choose(probabilities_nV, settings.temperature, self._uniform(here))
        return tokens_n, self._score(probabilities_nV, tokens_n, here)

    def _uniform(self, here: slice | Tensor) -> Tensor | None:
        uniform_N = self.candidates.uniform_N
        return None if uniform_N is None else uniform_N[here]

    def _score(self, probabilities_nV: Tensor, tokens_n: Tensor, here: slice | Tensor) -> Tensor:
        order_N = self.candidates.order_N
        order_n = None if order_N is None else order_N[here]
        return unmasking.score(self.rule, probabilities_nV, tokens_n, self.candidates.place_N[here], order_n)

    def _usable(self, raw_nV: Tensor) -> Tensor:
        """Logits of the rows that are tokens; the public samplers know of no others."""
        return raw_nV if self.settings.compat is not None else raw_nV[:, : self.model.ids.tokens]

    @contextmanager
    def _biased(self, raw_nV: Tensor, here: slice | Tensor) -> Iterator[None]:
        """Logits with the mask forbidden (but for the public samplers, which allow it) and end tokens held back, for a while."""
        settings, stops = self.settings, sorted(self.model.ids.stops)
        changed = [self.model.ids.mask] if settings.compat is None else []
        if stops and (settings.stop_penalty or settings.min_new_tokens):
            changed += [stop for stop in stops if stop not in changed]
        if not changed:
            yield
            return
        before_nC = raw_nV[:, changed]
        if settings.compat is None:
            raw_nV[:, self.model.ids.mask] = -torch.inf
        if settings.stop_penalty and stops:
            raw_nV[:, stops] -= settings.stop_penalty
        if settings.min_new_tokens and stops:
            early_n = self.candidates.place_N[here] < settings.min_new_tokens
            held_nS = raw_nV[:, stops]
            raw_nV[:, stops] = torch.where(early_n[:, None], torch.full_like(held_nS, -torch.inf), held_nS)
        try:
            yield
        finally:
            raw_nV[:, changed] = before_nC


def _any_equal(scores_n: Tensor) -> bool:
    return bool(_equal(scores_n).any())


def _equal(scores_n: Tensor) -> Tensor:
    """bool [n]: those with another of the same score."""
    sorted_n, index_n = torch.sort(scores_n)
    same = sorted_n[1:] == sorted_n[:-1]
    nothing = same.new_zeros(1)
    found_n = torch.empty_like(scores_n, dtype=torch.bool)
    found_n[index_n] = torch.cat([same, nothing]) | torch.cat([nothing, same])
    return found_n


def needs_order(rule: str, settings: Settings) -> bool:
    return rule == "random" or settings.alg_temperature > 0

"""One denoising step's decisions: a token for every candidate, and which candidates are committed.

Shapes: N candidates (masked positions in reach, of all rows), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcoder_cli.base.errors import UserError

# Dream's and LLaDA's names for the same rules.
ALIASES = {"maskgit_plus": "confidence", "low_confidence": "confidence", "topk_margin": "margin", "origin": "random"}
RULES = ("entropy", "confidence", "margin", "random", "left-to-right")
# Which of equal scores is committed first. The first is the default: top-p leaves most distributions one token, whose
# scores are all equal, and the leftmost of them would make the order left to right (95% of steps at temperature
# 0.2, top-p 0.95 on a small-scale model: docs/decoding-order.md). "topk" is what the public samplers do; see `pick_by_topk`.
TIE_BREAKS = ("model", "left", "right", "random", "topk")

_BLOCK = 32  # entries of a block (ours: measured on a CPU at 152,064 entries, 16 to 128 tried)
_ARGMAX, _ARGMAX_FROM = 256, 16  # entries of a block, and from so many blocks on (ours: 16 to 512 tried, likewise)
_TOP = 256  # ours: nearly all of a language model's nucleus; where it is not enough, the whole row is sorted


def canonical(rule: str) -> str:
    """The rule's own name. Raises UserError for an unknown one."""
    name = ALIASES.get(rule, rule)
    if name not in RULES:
        raise UserError(f"unmasking rule {rule!r} is unknown; use {', '.join([*RULES, *ALIASES])}")
    return name


def filter_logits(logits_NV: Tensor, temperature: float, top_p: float | None, top_k: int | None) -> Tensor:
    """Logits after temperature, then top-p, then top-k, dropped entries at -inf (Dream's order).

    Temperature 0 means argmax: the logits are not scaled. Top-p drops tokens where the probability before them
    already exceeds p, and always keeps the first.
    """
    given_NV = logits_NV
    if temperature > 0:
        logits_NV = logits_NV / temperature
    if top_p is not None and top_p < 1:
        logits_NV = _dropped(logits_NV, _beyond_nucleus(logits_NV, top_p), given_NV)
    if top_k is not None and top_k < logits_NV.shape[-1]:
        smallest_N1 = torch.topk(logits_NV, top_k).values[..., -1:]
        logits_NV = _dropped(logits_NV, logits_NV < smallest_N1, given_NV)
    return logits_NV


@dataclass(frozen=True)
class Kept:
    """What top-p and top-k leave of some distributions, as a few tokens of each. K tokens, ascending by id.

    Attributes:
        ids_NK: the tokens.
        logits_NK: after temperature, -inf where a filter drops a token after all.
        enough_N: whether these are all that is left; where not, `filter_logits` tells.
    """

    ids_NK: Tensor
    logits_NK: Tensor
    enough_N: Tensor


def kept_tokens(logits_NV: Tensor, temperature: float, top_p: float | None, top_k: int | None) -> Kept:
    """As `filter_logits`, which a filter makes nearly all -inf: only the largest entries are looked at."""
    vocabulary = logits_NV.shape[-1]
    scaled_NV = logits_NV / temperature if temperature > 0 else logits_NV
    nucleus = top_p is not None and top_p < 1
    top_NK, ids_NK = _largest(torch.softmax(scaled_NV, dim=-1) if nucleus else scaled_NV, min(_TOP, vocabulary))
    values_NK = scaled_NV.gather(-1, ids_NK)
    everything = ids_NK.shape[-1] == vocabulary
    enough_N = torch.full((len(logits_NV),), everything, device=logits_NV.device)
    if nucleus:
        assert top_p is not None
        values_NK = values_NK.masked_fill(_past(top_NK, top_p), -torch.inf)
        enough_N |= top_NK.sum(dim=-1) > top_p
    if top_k is not None and top_k < vocabulary:
        if top_k <= ids_NK.shape[-1]:
            smallest_N1 = values_NK[:, top_k - 1 : top_k]
            enough_N |= values_NK[:, -1] < smallest_N1[:, 0]  # also of a nucleus that goes on: its largest are here
            values_NK = values_NK.masked_fill(values_NK < smallest_N1, -torch.inf)
        elif not nucleus:
            enough_N &= everything
    ids_NK, order_NK = ids_NK.sort(dim=-1)
    return Kept(ids_NK, values_NK.gather(-1, order_NK), enough_N)


def _largest(values_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of each row in falling order, equal ones by their place, and where they are.

    They lie in the `count` blocks with the largest maxima, so most of a row is only looked at for those. Which of equal ones
    are among them where not all are is open, as for torch.topk.
    """
    rows, length = values_NV.shape
    if length < 4 * _BLOCK * count:
        return _in_order(*torch.topk(values_NV, count, dim=-1))
    blocks_NBW = torch.nn.functional.pad(values_NV, (0, -length % _BLOCK), value=-torch.inf).view(rows, -1, _BLOCK)
    best_NK = torch.topk(blocks_NBW.amax(dim=-1), count, dim=-1).indices
    inside_NC = blocks_NBW.gather(1, best_NK[..., None].expand(-1, -1, _BLOCK)).view(rows, -1)
    top_NK, at_NK = torch.topk(inside_NC, count, dim=-1)
    return _in_order(top_NK, best_NK.gather(-1, at_NK // _BLOCK) * _BLOCK + at_NK % _BLOCK)


def _in_order(values_NK: Tensor, places_NK: Tensor) -> tuple[Tensor, Tensor]:
    places_NK, first_NK = places_NK.sort(dim=-1)
    values_NK, order_NK = values_NK.gather(-1, first_NK).sort(dim=-1, descending=True, stable=True)
    return values_NK, places_NK.gather(-1, order_NK)


def _dropped(logits_NV: Tensor, drop_NV: Tensor, given_NV: Tensor) -> Tensor:
    """Logits with entries at -inf: in place, but for those that were given. There may be little room for one more copy."""
    if logits_NV is given_NV:
        return logits_NV.masked_fill(drop_NV, -torch.inf)
    return logits_NV.masked_fill_(drop_NV, -torch.inf)


def _beyond_nucleus(logits_NV: Tensor, top_p: float) -> Tensor:
    """bool [N, V]: outside the top-p nucleus. Sorts only the largest entries, and those rows whole where they are not enough."""
    vocabulary = logits_NV.shape[-1]
    probabilities_NV = torch.softmax(logits_NV, dim=-1)
    count = min(_TOP, vocabulary)
    top_NK, index_NK = _largest(probabilities_NV, count)
    beyond_NV = torch.ones_like(probabilities_NV, dtype=torch.bool)
    beyond_NV.scatter_(-1, index_NK, _past(top_NK, top_p))
    if count < vocabulary:
        flat = (top_NK.sum(dim=-1) <= top_p).nonzero()[:, 0]
        # A sort takes four more copies of what it sorts, values, indices and sums: an eighth of the rows at a time.
        for some in torch.split(flat, max(1, len(logits_NV) // 8)):
            sorted_nV, index_nV = torch.sort(probabilities_NV[some], dim=-1, descending=True, stable=True)
            beyond_NV[some] = torch.empty_like(index_nV, dtype=torch.bool).scatter_(
                -1, index_nV, _past(sorted_nV, top_p)
            )
    return beyond_NV


def _past(top_NK: Tensor, top_p: float) -> Tensor:
    """bool [N, K], of probabilities in falling order: those before which p is exceeded already."""
    drop_NK = top_NK.cumsum(dim=-1) > top_p
    return torch.cat([torch.zeros_like(drop_NK[..., :1]), drop_NK[..., :-1]], dim=-1)


def choose(probabilities_NV: Tensor, temperature: float, uniform_N: Tensor | None) -> Tensor:
    """A token for each candidate: argmax at temperature 0, else a draw by inverse cumulative probability.

    One uniform number a candidate decides, so a row's draw does not depend on its neighbours in the batch. int64 [N].
    """
    if temperature == 0 or uniform_N is None:
        return largest(probabilities_NV)
    cumulative_NV = probabilities_NV.cumsum(dim=-1)
    target_N1 = uniform_N.to(cumulative_NV)[:, None] * cumulative_NV[:, -1:]
    tokens_N = torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0].clamp(max=probabilities_NV.shape[-1] - 1)
    # Rounding may land on a token of probability 0 at the end of the row: take the last that has any.
    missed_N = probabilities_NV.gather(-1, tokens_N[:, None])[:, 0] == 0
    return torch.where(missed_N, probabilities_NV.argmax(dim=-1), tokens_N)


def largest(values_NV: Tensor) -> Tensor:
    """The first of each row's largest entries, as argmax gives it. int64 [N].

    On a CPU argmax is an entry at a time; the maximum, which is not, first tells the block of entries that holds it.
    """
    blocks = values_NV.shape[-1] // _ARGMAX
    if values_NV.device.type != "cpu" or blocks < _ARGMAX_FROM:
        return values_NV.argmax(dim=-1)
    blocks_NBW = values_NV[:, : blocks * _ARGMAX].view(len(values_NV), blocks, _ARGMAX)
    block_N = blocks_NBW.amax(dim=-1).argmax(dim=-1)
    inside_NW = blocks_NBW.gather(1, block_N[:, None, None].expand(-1, 1, _ARGMAX))[:, 0]
    at_N = inside_NW.argmax(dim=-1) + block_N * _ARGMAX
    rest_NW = values_NV[:, blocks * _ARGMAX :]
    if not rest_NW.shape[-1]:
        return at_N
    more_N = rest_NW.argmax(dim=-1) + blocks * _ARGMAX
    past_N = values_NV.gather(-1, more_N[:, None]) > values_NV.gather(-1, at_N[:, None])
    return torch.where(past_N[:, 0], more_N, at_N)


def choose_kept(kept: Kept, probabilities_NK: Tensor, temperature: float, uniform_N: Tensor | None) -> Tensor:
    """As `choose`, among kept tokens: which of the K. int64 [N]."""
    if temperature == 0 or uniform_N is None:
        return probabilities_NK.argmax(dim=-1)
    cumulative_NK = probabilities_NK.cumsum(dim=-1)
    target_N1 = uniform_N.to(cumulative_NK)[:, None] * cumulative_NK[:, -1:]
    at_N = torch.searchsorted(cumulative_NK, target_N1, right=True)[:, 0]
    beyond_N = at_N == probabilities_NK.shape[-1]
    at_N = at_N.clamp(max=probabilities_NK.shape[-1] - 1)
    missed_N = beyond_N | (probabilities_NK.gather(-1, at_N[:, None])[:, 0] == 0)
    return torch.where(missed_N, probabilities_NK.argmax(dim=-1), at_N)


def score(rule: str, probabilities_NV: Tensor, tokens_N: Tensor, places_N: Tensor, uniform_N: Tensor | None) -> Tensor:
    """How sure each candidate is; the largest are committed first. float [N].

    Args:
        rule: "entropy" (negative entropy), "confidence" (probability of the token), "margin" (best minus second best),
            "random", or "left-to-right".
        probabilities_NV: after temperature, top-p and top-k, as Dream's public code has it.
        tokens_N: the token chosen for each candidate.
        places_N: position of each candidate in its row.
        uniform_N: random numbers for the rule "random".
    """
    if rule == "entropy":
        return (probabilities_NV + 1e-10).log_().mul_(probabilities_NV).sum(dim=-1)  # in one buffer
    if rule == "confidence":
        return probabilities_NV.gather(-1, tokens_N[:, None])[:, 0]
    if rule == "margin":
        best_N2 = torch.topk(probabilities_NV, 2, dim=-1).values
        return best_N2[:, 0] - best_N2[:, 1]
    if rule == "random":
        assert uniform_N is not None
        return uniform_N.to(probabilities_NV)
    return -places_N.to(probabilities_NV)


def ranking(scores_RM: Tensor, keys_RM: Tensor | None = None) -> Tensor:
    """Each row's candidates, the largest score first; equal ones by the largest key, then the leftmost. int64 [R, M].

    Args:
        scores_RM: of each row's candidates in position order; -inf behind them, where a row has fewer than M.
        keys_RM: what orders equal scores; None where the leftmost comes first.
    """
    if keys_RM is None:
        return torch.sort(scores_RM, dim=-1, descending=True, stable=True).indices
    first_RM = torch.sort(keys_RM, dim=-1, descending=True, stable=True).indices
    by_score_RM = torch.sort(scores_RM.gather(-1, first_RM), dim=-1, descending=True, stable=True).indices
    return first_RM.gather(-1, by_score_RM)


def heated(scores_N: Tensor, alg_temperature: float, uniform_N: Tensor) -> Tensor:
    """Scores whose largest k are a draw of k without replacement from softmax(score / alg_temperature). float64 [N].

    Args:
        uniform_N: random numbers for the draw.
    """
    gumbel_N = -torch.log(-torch.log(uniform_N.to(scores_N.device, torch.float64).clamp(1e-12, 1 - 1e-12)))
    return scores_N.double() / alg_temperature + gumbel_N  # Gumbel top-k


def pick_by_topk(scores_n: Tensor, count: int, columns_n: Tensor, width: int) -> Tensor:
    """The `count` largest of one row's candidates, equal ones in the order of torch.topk over the row, as Dream's and LLaDA's code has it.

    That order is unspecified: it changes with the device, with `width` (prompt and pads included) and with `count`.

    Args:
        columns_n: int [n], each candidate's column in its row of the batch.
        width: columns of the row.
    """
    row_L = torch.full((width,), -torch.inf, dtype=scores_n.dtype, device=scores_n.device)
    row_L[columns_n] = scores_n
    taken_k = torch.topk(row_L, count).indices
    return torch.searchsorted(columns_n, taken_k)


def tied(scores_RM: Tensor, chosen_RM: Tensor) -> Tensor:
    """bool [R, M]: the candidates whose equal scores left it open which of a row's are chosen; none where all of them are.

    Those chosen have a row's k largest scores, so there is a tie where the least of the chosen equals the best of the
    others. A chosen candidate above that score was chosen without a tie. Behind a row's candidates scores are -inf.
    """
    least_R1 = scores_RM.masked_fill(~chosen_RM, torch.inf).amin(dim=-1, keepdim=True)
    equal_RM = scores_RM == least_R1
    return equal_RM & (equal_RM & ~chosen_RM).any(dim=-1, keepdim=True)

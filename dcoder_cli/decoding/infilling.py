"""Infilling with a searched span length: how many masks to put into the hole.

A masked model must be told the length of what it writes. Two ways to choose among candidate lengths:

    first-step   one evaluation of prefix, masks, suffix for each length; the length whose masks have the largest mean
                 log-probability of their best token. "Diffusion LMs Can Approximate Optimal Infilling Lengths
                 Implicitly" (arXiv 2602.00476) finds that this confidence peaks near the true length; its calibration
                 of the bias towards some lengths is not applied here.
    final        decode each length; the one whose committed tokens have the largest mean log-probability at the step
                 that committed them. Ours; costs a decoding for each length.

Both compare means over the span, so longer spans are not punished for their length as such; spans that can be filled
with a repetition are favoured. Choose candidates of one scale (8, 16, 32).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding.canvas import Canvas
from dcoder_cli.decoding.requests import Prompt, Request, Settings, encode, is_infill
from dcoder_cli.decoding.room import chunk_size
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.model.backbone import Model

METHODS = ("first-step", "final")

Decode = Callable[[list[Request], Settings], list[Trajectory]]


def search(
    model: Model,
    prompts: Sequence[Prompt],
    settings: Settings,
    lengths: Sequence[int],
    method: str,
    ids: Sequence[str] | None,
    seeds: Sequence[int] | None,
    batch_size: int,
    decode: Decode,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Trajectories of infills with the best of `lengths`, their settings telling every length's score.

    Args:
        lengths: candidate numbers of new tokens.
        method: "first-step" or "final".
        decode: decodes requests with settings.
        on_done: called with each chosen trajectory.

    Raises:
        UserError: no or broken lengths, a prompt that is no infill, settings that do not fit a length.
    """
    settings_of = _settings(settings, lengths)
    if method not in METHODS:
        raise UserError(f"infill_by {method!r} is unknown; use {' or '.join(METHODS)}")
    for index, prompt in enumerate(prompts):
        if not is_infill(prompt):
            raise UserError(f"prompt {index} is no infill, so infill_lengths has nothing to choose; leave it out")
    requests = {
        length: encode(model, prompts, one, ids, seeds, [length] * len(prompts)) for length, one in settings_of.items()
    }
    results: list[Trajectory] = []
    if method == "final":
        decoded = {length: decode(requests[length], settings_of[length]) for length in settings_of}
        scores = {length: [_mean_log(trajectory.confidence) for trajectory in decoded[length]] for length in decoded}
        for index in range(len(prompts)):
            best = _best(scores, index)
            results.append(_noted(decoded[best][index], scores, index, method))
    else:
        scores = {
            length: [score for at in range(0, len(asked), batch_size) for score in first_step(model, asked[at : at + batch_size], settings)]
            for length, asked in requests.items()
        }  # fmt: skip
        chosen = [_best(scores, index) for index in range(len(prompts))]
        found: dict[int, Trajectory] = {}
        for length, one in settings_of.items():
            asked = [request for request in requests[length] if chosen[request.index] == length]
            for request, trajectory in zip(asked, decode(asked, one) if asked else [], strict=True):
                found[request.index] = _noted(trajectory, scores, request.index, method)
        results = [found[index] for index in range(len(prompts))]
    if on_done is not None:
        for trajectory in results:
            on_done(trajectory)
    return results


def _settings(settings: Settings, lengths: Sequence[int]) -> dict[int, Settings]:
    if not lengths or len(set(lengths)) != len(lengths) or min(lengths) < 1:
        raise UserError(f"infill_lengths {list(lengths)} must be different numbers of tokens, each at least 1")
    return {length: replace(settings, max_new_tokens=length) for length in lengths}


@torch.no_grad()
def first_step(model: Model, requests: Sequence[Request], settings: Settings) -> list[float]:
    """For each request the mean log-probability of the best token over its masks, before any is committed."""
    canvas = Canvas(model, len(requests))
    for row, request in enumerate(requests):
        canvas.put(row, request)
    hidden_BLD = model.hidden(*canvas.rows(range(len(requests))))
    scores = []
    for row, request in enumerate(requests):
        best = []
        columns = torch.arange(len(request.prefix), len(request.prefix) + request.new_tokens, device=model.device)
        for some in torch.split(columns, chunk_size(model, settings)):
            logits_nV = model.head(hidden_BLD[row, some])
            model.ids.forbid(logits_nV)  # as the sampler
            best.append(torch.log_softmax(logits_nV, dim=-1).max(dim=-1).values)
        scores.append(float(torch.cat(best).mean()))
    return scores


def _mean_log(confidence: Sequence[float]) -> float:
    return sum(math.log(max(value, 1e-38)) for value in confidence) / len(confidence)


def _best(scores: dict[int, list[float]], index: int) -> int:
    """The length with the largest score; of equal ones the first given."""
    return max(scores, key=lambda length: scores[length][index])


def _noted(trajectory: Trajectory, scores: dict[int, list[float]], index: int, method: str) -> Trajectory:
    told = {str(length): round(scores[length][index], 5) for length in scores}
    return replace(trajectory, settings={**trajectory.settings, "infill_by": method, "infill_scores": told})

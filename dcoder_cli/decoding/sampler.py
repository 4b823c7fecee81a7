"""Prompts in, trajectories out, for every model and unmasking rule.

`decode` takes its `Settings` whole, as the commands, the benchmarks and stage 4 make them; `generate` is the same with the
settings as keywords, for Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding import autoregressive, infilling
from dcoder_cli.decoding.engine import Engine
from dcoder_cli.decoding.requests import Infill, Prompt, Request, Settings, encode
from dcoder_cli.decoding.rows import Decoded, Ticket
from dcoder_cli.decoding.trajectory import Trajectory
from dcoder_cli.decoding.watching import Observer, OnCommit
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.text import continuation

__all__ = ["Infill", "Settings", "decode", "generate"]


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 256,
    steps: int | None = None,
    rule: str = "entropy",
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    alg_temperature: float = 0.0,
    block_length: int | None = None,
    compat: Literal["dream", "llada"] | None = None,
    mode: Literal["exact", "fast"] = "exact",
    seed: int = 0,
    *,
    cfg_scale: float = 0.0,
    stop_penalty: float = 0.0,
    min_new_tokens: int = 0,
    tie_break: Literal["model", "left", "right", "random", "topk"] | None = None,
    logits_mib: int | None = None,
    cache: Literal["none", "prefix", "dual"] | None = None,
    commit: Literal["threshold", "factor", "entropy-bound", "schedule"] | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    entropy_bound: float | None = None,
    cache_refresh: int | None = None,
    early_stop: bool | None = None,
    infill_lengths: Sequence[int] | None = None,
    infill_by: Literal["first-step", "final"] = "first-step",
    ids: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    batch_size: int = 8,
    observer: Observer | None = None,
    on_commit: OnCommit | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Decode prompts with a diffusion or AR model.

    Args:
        model: from `load`.
        prompts: strings, chats (lists of role/content messages; a last assistant message is continued), lists of ids,
            `Infill(prefix, suffix)`, or what `requests.encode_prompt` made of one of these.
        max_new_tokens, steps, rule, temperature, top_p, top_k, alg_temperature, block_length, compat, cfg_scale,
        stop_penalty, min_new_tokens, tie_break, logits_mib, seed: see `Settings`.
        mode: "exact": the plain sampler's tokens. "fast": approximate, for diffusion models only; see engine.py.
        cache, commit, threshold, factor, entropy_bound, cache_refresh, early_stop: of the fast mode, see `Settings`.
        infill_lengths: for prompts that are infills, the span lengths to choose from; see infilling.py. Replaces
            max_new_tokens there.
        infill_by: how a length is chosen: "first-step" (one evaluation a length) or "final" (decode each).
        ids: names of the samples; default their index.
        seeds: each row's own number, mixed with `seed`; default its index. The same (seed, row seed, prompt) gives the
            same text in any batch.
        batch_size: rows decoded together. One that is done makes room for the next.
        observer: called at every step for every row with all its candidates; see watching.py.
        on_commit: called with the tokens that a row has just committed; see watching.py. AR models: one a step.
        on_done: called with each finished trajectory, as they finish.

    Returns:
        One Trajectory for each prompt, in order. Its settings report `forwards` (evaluations the row took part in),
        `tokens_per_forward` (new tokens of the row over those), `batch` (rows that shared one, on average), `seconds`
        (from its start to its end) and `tokens_per_second` (its own tokens in them, times `batch`).

    Raises:
        UserError: settings that do not fit together, or a prompt that does not fit the model.
    """
    given = locals()
    settings = Settings(**{field.name: given[field.name] for field in fields(Settings)})
    return decode(
        model, prompts, settings, ids=ids, seeds=seeds, batch_size=batch_size, infill_lengths=infill_lengths,
        infill_by=infill_by, observer=observer, on_commit=on_commit, on_done=on_done,
    )  # fmt: skip


def decode(
    model: Model,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    ids: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    batch_size: int = 8,
    infill_lengths: Sequence[int] | None = None,
    infill_by: Literal["first-step", "final"] = "first-step",
    observer: Observer | None = None,
    on_commit: OnCommit | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Decode prompts with settings; arguments, results and errors are those of `generate`.

    `lengths`: each prompt's new tokens, in place of the settings' one number. A prompt that is decoded several times is
    best given as `requests.encode_prompt` made it: its ids are made once.
    """
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size} must be at least 1")
    settings = settled(model, settings)
    if infill_lengths is not None:
        return infilling.search(
            model, prompts, settings, infill_lengths, infill_by, ids, seeds, batch_size,
            lambda requests, one: _run(model, requests, one, batch_size, observer, on_commit), on_done,
        )  # fmt: skip
    requests = encode(model, prompts, settings, ids, seeds, lengths)
    return _run(model, requests, settings, batch_size, observer, on_commit, on_done)


def _run(
    model: Model,
    requests: list[Request],
    settings: Settings,
    batch_size: int,
    observer: Observer | None = None,
    on_commit: OnCommit | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Decode requests; the trajectories in the requests' order."""
    finished: dict[int, Trajectory] = {}
    tickets = [Ticket(request, settings, observer, on_commit) for request in requests]
    for decoded in _decoded(model, tickets, settings, batch_size):
        trajectory = to_trajectory(model, decoded)
        finished[decoded.ticket.request.index] = trajectory
        if on_done is not None:
            on_done(trajectory)
    return [finished[request.index] for request in requests]


def _decoded(model: Model, tickets: list[Ticket], settings: Settings, batch_size: int) -> Iterator[Decoded]:
    """Rows as they are done. Rows of like length are decoded together, so that little is padded."""
    tickets = sorted(tickets, key=lambda ticket: ticket.request.length)
    if not model.is_diffusion:
        for start in range(0, len(tickets), batch_size):
            yield from autoregressive.decode(model, tickets[start : start + batch_size])
        return
    public = settings.compat is not None
    engine = Engine(model, min(batch_size, len(tickets)), together=public)
    for ticket in tickets if public else reversed(tickets):  # the longest first: short ones fill the end
        engine.add(ticket)
    yield from engine.run()


def settled(model: Model, settings: Settings) -> Settings:
    """Settings with what they take from the model. Raises UserError where they do not fit it."""
    if settings.mode == "fast" and not model.is_diffusion:
        raise UserError(f"mode fast is for diffusion models and {model.name!r} is an AR model; use mode exact")
    if settings.compat == "dream" and settings.top_k is None:
        return replace(settings, top_k=_dream_top_k(model))
    return settings


def _dream_top_k(model: Model) -> int | None:
    """The top-k that Dream's code runs with when none is given: config.json's (null: off), never generation_config.json's.

    It builds its settings from the model's config, where the transformers version it is pinned to has a default of 50;
    the recorded runs show that number.
    """
    top_k = model.config.get("top_k", 50)
    if top_k is not None and type(top_k) is not int:
        raise UserError(
            f"top_k = {top_k!r} in {model.name!r}'s config.json is no whole number; mend it or give --top-k"
        )
    return top_k


def to_trajectory(model: Model, decoded: Decoded) -> Trajectory:
    """What was decoded, with its text and how it came about. Raises UserError where its logits were not finite."""
    request, tokens = decoded.ticket.request, decoded.columns["tokens"]
    if any(map(math.isnan, decoded.columns["confidence"])):
        raise UserError(
            f"the logits of model {model.name!r} are not finite (NaN), so its tokens mean nothing: its weights are damaged, "
            f"or too large for {str(model.dtype).removeprefix('torch.')}; copy it again, or try --dtype float32"
        )
    text, finished = _text(model, request.prefix, tokens)
    counts = {
        "forwards": decoded.forwards,
        "tokens_per_forward": round(len(tokens) / decoded.forwards, 3),
        "batch": decoded.batch,
        "seconds": round(decoded.seconds, 4),
        "tokens_per_second": round(len(tokens) * decoded.batch / decoded.seconds, 2),
        "finished": finished,
        "end_ids": sorted(model.ids.stops),
    }
    return Trajectory(
        id=request.id,
        prompt=request.prompt,
        text=text,
        prompt_length=len(request.prefix) + len(request.suffix),
        model=model.name,
        settings={**_record(decoded.ticket.settings, request), **counts},
        suffix=request.suffix_text,
        **decoded.columns,
    )


def _record(settings: Settings, request: Request) -> dict[str, Any]:
    """The settings of one row, without what is off."""
    used = replace(settings, max_new_tokens=request.new_tokens, block_length=settings.block_for(request.new_tokens))
    return {
        key: value
        for key, value in asdict(used).items()
        if value is not None
        and (value != 0.0 or key in ("temperature", "seed", "threshold", "entropy_bound", "early_stop"))
    }


def _text(model: Model, before: list[int], tokens: list[int]) -> tuple[str, bool]:
    """The text behind `before` up to the first end of text, pad or end of turn, and whether there was one."""
    end = next((place for place, token in enumerate(tokens) if token in model.ids.stops), None)
    kept = tokens if end is None else tokens[:end]
    if model.tokenizer is None:
        return "", end is not None
    return continuation(model.tokenizer, before, kept), end is not None

"""Prompts in, trajectories out, for every model and unmasking rule.

`decode` takes its `Settings` whole, as the commands, the benchmarks and stage 4 make them; `generate` is the same with the
settings as keywords, for Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Literal

import torch

from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding import autoregressive, fast, infilling
from dcoder_cli.decoding.exact import Observer, OnCommit, denoise
from dcoder_cli.decoding.requests import Infill, Prompt, Request, Settings, encode
from dcoder_cli.decoding.trajectory import Trajectory
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
        mode: "exact": the plain sampler's tokens. "fast": approximate, for diffusion models only; see fast.py.
        cache, commit, threshold, factor, entropy_bound, cache_refresh, early_stop: of the fast mode, see `Settings`.
        infill_lengths: for prompts that are infills, the span lengths to choose from; see infilling.py. Replaces
            max_new_tokens there.
        infill_by: how a length is chosen: "first-step" (one evaluation a length) or "final" (decode each).
        ids: names of the samples; default their index.
        seeds: each row's own number, mixed with `seed`; default its index. The same (seed, row seed, prompt) gives the
            same text in any batch.
        batch_size: rows decoded together.
        observer: called at every step for every row with all its candidates; see denoise.py.
        on_commit: called with the tokens that a row has just committed; see denoise.py. AR models: one a step.
        on_done: called with each finished trajectory.

    Returns:
        One Trajectory for each prompt, in order. Its settings report `forwards` (evaluations the row took part in),
        `tokens_per_forward` (new tokens of the row over those), `seconds` and `tokens_per_second` (of its whole batch).

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
    batch_size: int = 8,
    infill_lengths: Sequence[int] | None = None,
    infill_by: Literal["first-step", "final"] = "first-step",
    observer: Observer | None = None,
    on_commit: OnCommit | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Decode prompts with settings; arguments, results and errors are those of `generate`.

    A prompt that is decoded several times is best given as `requests.encode_prompt` made it: its ids are made once.
    """
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size} must be at least 1")
    if settings.compat == "dream" and settings.top_k is None:
        settings = replace(settings, top_k=_dream_top_k(model))
    if settings.mode == "fast" and not model.is_diffusion:
        raise UserError(f"mode fast is for diffusion models and {model.name!r} is an AR model; use mode exact")
    if infill_lengths is not None:
        return infilling.search(
            model, prompts, settings, infill_lengths, infill_by, ids, seeds, batch_size,
            lambda requests, one: _run(model, requests, one, batch_size, observer, on_commit), on_done,
        )  # fmt: skip
    requests = encode(model, prompts, settings, ids, seeds)
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
    """Decode requests in batches; the trajectories in the requests' order."""
    finished: dict[int, Trajectory] = {}
    for batch in _batches(requests, batch_size):
        for request, trajectory in zip(batch, _decode_batch(model, batch, settings, observer, on_commit), strict=True):
            finished[request.index] = trajectory
            if on_done is not None:
                on_done(trajectory)
    return [finished[request.index] for request in requests]


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


def _batches(requests: list[Request], size: int) -> Iterator[list[Request]]:
    """Batches of rows of like length, so that little is padded."""
    ordered = sorted(requests, key=lambda request: request.length)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _decode_batch(
    model: Model, batch: list[Request], settings: Settings, observer: Observer | None, on_commit: OnCommit | None
) -> list[Trajectory]:
    began = _now(model)
    results: list[tuple[dict[str, list[Any]], int]] = []
    if model.is_diffusion:
        denoiser = fast.denoise if settings.mode == "fast" else denoise
        rows = denoiser(model, batch, settings, observer, on_commit)
        for row, kept in enumerate(rows.kept):
            tokens = rows.ids_BL[row, rows.places[row].to(rows.ids_BL.device)].tolist()
            columns = {
                "tokens": tokens,
                "reveal_step": rows.reveal[row],
                "confidence": rows.confidence[row],
                "entropy": rows.entropy[row],
                "tied": rows.tied[row],
                "tied_from": rows.tied_from[row],
            }
            results.append(({name: values[:kept] for name, values in columns.items()}, rows.forwards[row]))
    else:
        for tokens, confidence, entropy in autoregressive.decode(model, batch, settings, on_commit):
            steps = list(range(len(tokens)))
            columns = {"tokens": tokens, "reveal_step": steps, "confidence": confidence, "entropy": entropy}
            columns |= {"tied": [False] * len(tokens), "tied_from": steps}  # an AR model's order is no choice
            results.append((columns, len(tokens)))
    seconds = _now(model) - began
    produced = sum(len(columns["tokens"]) for columns, _ in results)
    trajectories = []
    for request, (columns, forwards) in zip(batch, results, strict=True):
        tokens = columns["tokens"]
        text, finished = _text(model, request.prefix, tokens)
        counts = {
            "forwards": forwards,
            "tokens_per_forward": round(len(tokens) / forwards, 3),
            "batch": len(batch),
            "seconds": round(seconds, 4),
            "tokens_per_second": round(produced / seconds, 2),
            "finished": finished,
            "end_ids": sorted(model.ids.stops),
        }
        trajectories.append(
            Trajectory(
                id=request.id,
                prompt=request.prompt,
                text=text,
                prompt_length=len(request.prefix) + len(request.suffix),
                model=model.name,
                settings={**_record(settings, request), **counts},
                suffix=request.suffix_text,
                **columns,
            )
        )
    return trajectories


def _now(model: Model) -> float:
    """The clock in seconds, once the device is done with what was asked of it."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


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

"""Settings that change nothing in a call, by what decides it: the kind of model, the rule, the temperature.

That each of these really changes nothing, and the others something, is tested by decoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from dcoder_cli.base import config
from dcoder_cli.base.errors import UserError
from dcoder_cli.base.options import Needs, refuse_unused
from dcoder_cli.decoding.requests import Settings
from dcoder_cli.diffusion import unmasking
from dcoder_cli.model import checkpoint, layouts

_OF_DENOISING = ("steps", "rule", "alg_temperature", "block_length", "compat", "cfg_scale", "tie_break", "logits_mib")


def _scored(values: Mapping[str, Any]) -> bool:
    """Whether the order comes from the distributions: of the other rules no two places score alike."""
    return unmasking.canonical(values["rule"]) not in ("random", "left-to-right")


def _drawn(values: Mapping[str, Any]) -> bool:
    if values["temperature"] > 0 or not values["diffusion"]:
        return bool(values["temperature"] > 0)
    return (
        values["alg_temperature"] > 0
        or unmasking.canonical(values["rule"]) == "random"
        or values["tie_break"] == "random"
    )


def _filtered(values: Mapping[str, Any]) -> bool:
    """Whether top-p and top-k show: in what is drawn, or in the scores, which compat llada takes before them."""
    return values["temperature"] > 0 or (values["diffusion"] and _scored(values) and values["compat"] != "llada")


_KIND = (
    Needs(
        _OF_DENOISING, lambda values: values["diffusion"],
        "an AR model has no denoising steps, it writes one token after another; leave it out",
    ),
)  # fmt: skip
NEEDS = (
    *_KIND,
    Needs(("seed",), _drawn, "nothing is drawn at temperature 0; give --temperature, or leave it out"),
    Needs(
        ("top_p", "top_k"), _filtered,
        "at temperature 0 the likeliest token stays, and no filtered score decides the order; give --temperature, or leave it out",
    ),
    Needs(
        ("tie_break",),
        lambda values: values["commit"] == "factor" or (_scored(values) and values["alg_temperature"] == 0),
        "the rule, or --alg-temperature, scores no two places alike, so there is no tie to break; leave it out",
    ),
)  # fmt: skip


def refuse_repeats(samples: int, settings: Mapping[str, Any], diffusion: Callable[[], bool]) -> None:
    """Raises UserError for several samples of a prompt of which nothing is drawn: all would be the same.

    Args:
        settings: by name, of the call; the coldest where it decodes at several temperatures.
        diffusion: tells whether the model is a diffusion model.
    """
    if samples > 1:
        whole = asdict(config.build(Settings, settings, where="the settings of this call"))
        if whole["temperature"] == 0 and not _drawn({**whole, "diffusion": diffusion()}):
            raise UserError(
                f"--n {samples} at temperature 0 would make each sample {samples} times; give a temperature above 0, such as "
                "0.2, or leave it out"
            )


def refuse(written: Mapping[str, str], settings: Mapping[str, Any], diffusion: Callable[[], bool]) -> None:
    """Raises UserError for a setting that was given (see `options.given`) and changes nothing.

    Args:
        settings: by name, of the call; the warmest where it decodes at several temperatures.
        diffusion: tells whether any model of the call is a diffusion model; asked only where that decides.

    Raises:
        UserError: also for settings that `Settings` refuses.
    """
    whole = asdict(config.build(Settings, settings, where="the settings of this call"))
    if any(name in written for needs in NEEDS for name in needs.names):
        by_set = {name: text for name, text in written.items() if text.startswith("--set ")}
        values = {**whole, "diffusion": diffusion()}
        refuse_unused(by_set, values, [needs._replace(why=_by_set(needs.why)) for needs in NEEDS])
        refuse_unused({name: text for name, text in written.items() if name not in by_set}, values, NEEDS)


def _by_set(why: str) -> str:
    """The options of a text as `--set` gives them: a command may have no others."""
    return re.sub(r"--([a-z-]+)", lambda found: f"--set {found[1].replace('-', '_')}=", why)


def refuse_for_kind(written: Mapping[str, str], model: str) -> None:
    """As `refuse`, by what the kind of a model alone decides."""
    if any(name in written for needs in _KIND for name in needs.names):
        refuse_unused(written, {"diffusion": any_diffusion([model])}, _KIND)


def any_diffusion(models: Iterable[str]) -> bool:
    """Whether one of these checkpoints is a diffusion model, by their configs; nothing is loaded."""
    return any(layouts.layout_of(checkpoint.read_config(checkpoint.find(name)), name).diffusion for name in models)

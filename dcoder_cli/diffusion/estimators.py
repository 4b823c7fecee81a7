"""The estimators of stage 4 by name, and the user's own: `--estimator my_module:function`. Loads no torch until one is drawn.

An estimator is one function, and ours one line in ESTIMATORS. It says what to mask in the forward passes that estimate the
log-probabilities of one completion's tokens:

    (tokens: int, prompt_tokens: int, generator: torch.Generator, settings: MaskSettings) -> Passes

tokens and prompt_tokens are lengths, N and M; the generator is the completion's own, on the CPU: all chance must come from it,
so that a resumed run is the same run. settings carries pairs, t_range and prompt_mask of the configuration. It is called afresh
for every completion and update; the new, the old and the reference log-probabilities of an update share what it returned. For
example, in mine.py, two random halves:

    def halves(tokens, prompt_tokens, generator, settings):
        first_N = torch.rand(tokens, generator=generator) < 0.5
        masked_PN = torch.stack([first_N, ~first_N])
        return Passes(masked_PN, masked_PN.float(), torch.zeros(2, prompt_tokens, dtype=torch.bool))

with `import torch` and `from dcoder_cli.diffusion.coupled import Passes` above it, and `--estimator mine:halves`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dcoder_cli.base.config import nearest
from dcoder_cli.base.errors import UserError, WorkFailed
from dcoder_cli.base.functions import import_function, short, told

if TYPE_CHECKING:
    import torch

    from dcoder_cli.diffusion.coupled import MaskSettings, Passes

    Estimator = Callable[[int, int, torch.Generator, MaskSettings], Passes]

ESTIMATORS = {
    "coupled": "dcoder_cli.diffusion.coupled:coupled",
    "full-mask": "dcoder_cli.diffusion.coupled:full_mask",
    "decoupled": "dcoder_cli.diffusion.coupled:decoupled",
    "d1": "dcoder_cli.diffusion.coupled:d1",
}
_ARGUMENTS = ("tokens", "prompt_tokens", "generator", "settings")


def check_name(name: str) -> None:
    """Raises UserError for a name that is neither registered nor written as module:function."""
    if name not in ESTIMATORS and ":" not in name:
        raise UserError(f"estimator {name!r} is unknown{nearest(name, list(ESTIMATORS))}; your own is module:function")


def is_own(name: str) -> bool:
    """Whether it is a function of the user's."""
    return name not in ESTIMATORS


def estimator_function(name: str) -> Estimator:
    """The function of a registered name, or of "module:function". Raises UserError."""
    check_name(name)
    return import_function("estimator", ESTIMATORS.get(name, name), _ARGUMENTS)


def make_passes(
    estimator: str, tokens: int, prompt_tokens: int, generator: torch.Generator, settings: MaskSettings
) -> Passes:
    """The passes of an estimator for a completion of `tokens` tokens after a prompt of `prompt_tokens`.

    Raises:
        UserError: there is no such estimator.
        WorkFailed: the user's own raised, or returned what cannot be passes.
    """
    function = estimator_function(estimator)
    if not is_own(estimator):
        return function(tokens, prompt_tokens, generator, settings)
    where = f"estimator {estimator!r}, asked about {tokens} tokens after a prompt of {prompt_tokens},"
    try:
        passes = function(tokens, prompt_tokens, generator, settings)
    except (Exception, SystemExit) as error:
        raise WorkFailed(f"{where} raised {told(error)}; mend it") from error
    problem = _problem(passes, tokens, prompt_tokens)
    if problem is not None:
        raise WorkFailed(f"{where} returned {problem}; mend it")
    return passes


def try_estimator(estimator: str, tokens: int, settings: MaskSettings) -> None:
    """Draw once, for one token and for `tokens`, before a run depends on it. Raises UserError."""
    import torch

    try:
        for length in (1, tokens):
            make_passes(estimator, length, 3, torch.Generator().manual_seed(0), settings)
    except WorkFailed as broken:
        raise UserError(str(broken)) from broken.__cause__


def _problem(passes: Any, tokens: int, prompt_tokens: int) -> str | None:
    """What is wrong with an estimator's answer, or None."""
    import torch

    from dcoder_cli.diffusion.coupled import Passes

    if not isinstance(passes, Passes):
        return f"{short(passes)}; it must return dcoder_cli.diffusion.coupled.Passes"
    count = len(passes.masked_PN) if isinstance(passes.masked_PN, torch.Tensor) and passes.masked_PN.dim() else 0
    if count == 0:
        return "no passes: masked_PN must have a row for each"
    wanted = {
        "masked_PN": (torch.bool, (count, tokens)),
        "weight_PN": (torch.float32, (count, tokens)),
        "prompt_masked_PM": (torch.bool, (count, prompt_tokens)),
    }
    for name, (dtype, shape) in wanted.items():
        value = getattr(passes, name)
        if not isinstance(value, torch.Tensor):
            return f"{name} = {short(value)}; it must be a tensor"
        if value.dtype != dtype or tuple(value.shape) != shape or value.device.type != "cpu":
            found = f"{value.dtype} {list(value.shape)} on {value.device.type}"
            return f"{name} as {found}; it must be {dtype} {list(shape)} on the CPU"
    if not bool(torch.isfinite(passes.weight_PN).all()):
        return "a weight_PN that is not finite"
    if bool((passes.weight_PN[~passes.masked_PN] != 0).any()):
        return "a weight_PN that is not 0 where its pass does not mask the token, which cannot be read there"
    for number in passes.blank:
        whole = 0 <= number < count and bool(passes.masked_PN[number].all())
        if not whole or bool(passes.prompt_masked_PM[number].any()):
            return f"blank = {passes.blank}; it names passes that mask all of the completion and nothing of the prompt"
    return None

"""What is asked of the sampler: prompts as rows of ids with masks to fill, and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dcoder_cli.base.errors import UserError
from dcoder_cli.base.ranges import Count, CountOrNone, Range, check
from dcoder_cli.diffusion import commits, schedules, unmasking
from dcoder_cli.model import chat
from dcoder_cli.model.backbone import Model
from dcoder_cli.model.chat import Chat
from dcoder_cli.model.text import decode, encode_after


@dataclass(frozen=True)
class Infill:
    """A prompt with a hole: the sampler writes the text between `prefix` and `suffix`."""

    prefix: str | Sequence[int]
    suffix: str | Sequence[int]


@dataclass(frozen=True)
class Encoded:
    """A prompt as ids, with its text: made once by `encode_prompt`, decoded as often as wanted.

    Attributes:
        text: what a trajectory records as its prompt.
        prefix, suffix: ids before and after the new tokens.
        after: the text of an infill's suffix; None for other prompts.
    """

    text: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()
    after: str | None = None

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.prefix) + len(self.suffix)


Prompt = str | Infill | Chat | Sequence[int] | Encoded


@dataclass(frozen=True)
class Settings:
    """How to decode. Defaults are the sampler's plainest; commands and protocols set their own.

    Attributes:
        max_new_tokens: masks after the prompt (256: DiffuCoder's RL completions, B.1).
        steps: denoising steps; None = one token a step.
        rule: unmasking rule or a public sampler's name for it (entropy: DiffuCoder B.2).
        temperature: 0 = argmax.
        top_p, top_k: None = off (compat dream: `generate` fills in config.json's top_k, else 50, as Dream's code runs).
        alg_temperature: randomness in which candidates are committed; 0 = the surest (Dream's alg_temp).
        block_length: semi-autoregressive blocks; None = one block (mode fast: blocks of 32 where they divide).
        compat: "dream" or "llada" reproduces that public sampler; None = ours.
        cfg_scale: LLaDA's classifier-free guidance, un + (c + 1)(cond - un); 0 = off.
        stop_penalty: subtracted from the logits of end and pad tokens, against empty answers.
        min_new_tokens: no end or pad token among the first so many new tokens.
        tie_break: which of equal scores is committed first. "model": the same rule on the model's own distribution,
            neither heated nor filtered, then the leftmost; "left", "right"; "random": by the row's own random numbers;
            "topk": as torch.topk over the whole row orders them, which is unspecified, and what the public samplers
            do (with compat on the padded row of the batch, as they do; else on the row alone). Default: model, and topk with compat. A trajectory tells which commits a tie decided.
        logits_mib: memory for logits and their copies, in MiB; candidates are judged in chunks that stay within it. It
            changes no token. None: 256 on a CPU, 2048 on an accelerator (room.py).
        seed: base seed; row i of the call draws from (seed, i), so its neighbours do not matter.
        mode: "exact" (the plain sampler's tokens) or "fast" (approximate). What follows applies to "fast" only, where
            None takes the default that is named.
        cache: "none", "prefix" or "dual" (caches.py). Default dual.
        commit: "threshold", "factor", "entropy-bound" (commits.py) or "schedule" (as many a step as in exact mode).
            Default: that of the one among threshold, factor, entropy_bound and steps that is given, else threshold.
        threshold: confidence above which tokens are committed together. Default 0.9.
        factor: of the factor rule. Default 1.0.
        entropy_bound: in nats, of the entropy-bound rule. Default 0.1.
        cache_refresh: evaluate whole rows every so many steps within a block; None = at the start of a block only.
        early_stop: end a row once a stop token and all before it are committed. Default yes.
    """

    max_new_tokens: Count = 256
    steps: Count | None = None
    rule: str = "entropy"
    temperature: Annotated[float, Range(0, also="; 0 is argmax")] = 0.0
    top_p: Annotated[float, Range(above=0, most=1)] | None = None
    top_k: Count | None = None
    alg_temperature: Annotated[float, Range(0)] = 0.0
    block_length: Count | None = None
    compat: Literal["dream", "llada"] | None = None
    cfg_scale: Annotated[float, Range(0, also="; 0 is off")] = 0.0
    stop_penalty: Annotated[float, Range(free="below 0 it favours the end")] = 0.0
    min_new_tokens: CountOrNone = 0
    tie_break: Literal["model", "left", "right", "random", "topk"] | None = None
    logits_mib: Count | None = None
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] = 0  # OpenAI's clients send negative ones too
    mode: Literal["exact", "fast"] = "exact"
    cache: Literal["none", "prefix", "dual"] | None = None
    commit: Literal["threshold", "factor", "entropy-bound", "schedule"] | None = None
    threshold: Annotated[float, Range(0, 1, also="; 0 commits all at once, 1 one a step")] | None = None
    factor: Annotated[float, Range(above=0, infinite=True)] | None = None
    entropy_bound: Annotated[float, Range(0, infinite=True)] | None = None
    cache_refresh: Count | None = None
    early_stop: bool | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.mode not in ("exact", "fast"):
            raise UserError(f"mode {self.mode!r} is unknown; use exact or fast")
        if self.mode == "fast":
            for name, value in _fast_defaults(self).items():
                object.__setattr__(self, name, value)
        if self.tie_break is None:
            object.__setattr__(self, "tie_break", "model" if self.compat is None else "topk")
        _check_mode(self)
        unmasking.canonical(self.rule)
        schedules.check(self.max_new_tokens, self.steps, self.block_for(self.max_new_tokens))
        checks = (
            (
                self.tie_break in unmasking.TIE_BREAKS,
                f"tie_break {self.tie_break!r} is unknown; use {', '.join(unmasking.TIE_BREAKS)}",
            ),
            (
                self.compat is None or self.tie_break == "topk",
                f"tie_break {self.tie_break} with compat {self.compat}: the public samplers break ties by topk; leave one of them out",
            ),
            (
                self.min_new_tokens <= self.max_new_tokens,
                f"min_new_tokens = {self.min_new_tokens} must lie between 0 and max_new_tokens = {self.max_new_tokens}",
            ),
        )
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    def block_for(self, new_tokens: int) -> int | None:
        """The length of the blocks of a row with so many new tokens; None = one block."""
        if self.mode == "fast" and self.block_length is None and new_tokens % BLOCK == 0:
            return BLOCK
        return self.block_length


FAST_ONLY = ("cache", "commit", "threshold", "factor", "entropy_bound", "cache_refresh", "early_stop")
_PARAMETER = {"threshold": "threshold", "factor": "factor", "entropy-bound": "entropy_bound", "schedule": "steps"}
BLOCK = 32  # the fast mode's blocks where they divide the new tokens (Fast-dLLM, arXiv 2505.22618)


def _fast_defaults(given: Settings) -> dict[str, Any]:
    """What the fast mode fills in where nothing was given."""
    commit = given.commit
    if commit is None:
        named = [rule for rule, name in _PARAMETER.items() if getattr(given, name) is not None]
        commit = named[0] if named else "threshold"  # type: ignore[assignment]
    values: dict[str, Any] = {
        "commit": commit,
        "cache": given.cache or "dual",  # Fast-dLLM's fastest
        "early_stop": given.early_stop is None or given.early_stop,
    }
    if commit == "threshold" and given.threshold is None:
        values["threshold"] = 0.9  # Fast-dLLM
    if commit == "factor" and given.factor is None:
        values["factor"] = 1.0  # Fast-dLLM: the bound under which parallel and sequential greedy decoding agree
    if commit == "entropy-bound" and given.entropy_bound is None:
        values["entropy_bound"] = 0.1  # the default of transformers' EntropyBoundSamplerConfig
    return values


def _check_mode(settings: Settings) -> None:
    """Raises UserError for settings that the mode does not know, or that lie out of range."""
    if settings.mode == "exact":
        for name in FAST_ONLY:
            if getattr(settings, name) is not None:
                raise UserError(
                    f"{name} = {getattr(settings, name)} applies to mode fast only; give mode fast or leave it"
                )
        return
    for name, choices in (("cache", ("none", "prefix", "dual")), ("commit", commits.COMMITS)):
        if getattr(settings, name) not in choices:
            raise UserError(f"{name} {getattr(settings, name)!r} is unknown; use {', '.join(choices)}")
    for rule, name in _PARAMETER.items():
        value = getattr(settings, name)
        if value is not None and settings.commit != rule:
            raise UserError(
                f"{name} = {value} applies to commit {rule} only, not {settings.commit}; give one commit rule"
            )
    checks = (
        (
            settings.compat is None,
            f"compat {settings.compat} reproduces a public sampler exactly; use it in mode exact",
        ),
        (settings.cfg_scale == 0, f"cfg_scale = {settings.cfg_scale} needs mode exact; leave it at 0 in mode fast"),
        (
            settings.cache_refresh is None or settings.cache != "none",
            "cache_refresh has nothing to refresh with cache none; choose prefix or dual",
        ),
    )
    for holds, message in checks:
        if not holds:
            raise UserError(message)


def with_length(given: Mapping[str, Any], answer_length: int | None) -> dict[str, Any]:
    """`given` settings, with a checkpoint's answer length as `max_new_tokens` where they say none, in whole blocks."""
    if answer_length is None or "max_new_tokens" in given:
        return dict(given)
    block = given.get("block_length")
    block = block if type(block) is int and block > 0 else 1
    return {**given, "max_new_tokens": -(-answer_length // block) * block}


@dataclass(frozen=True)
class Request:
    """One row to decode: prefix ids, masks, suffix ids. `suffix_text`: of an infill, the end of `prompt`."""

    index: int
    id: str
    prompt: str
    prefix: list[int]
    suffix: list[int]
    new_tokens: int
    seed: int
    suffix_text: str | None = None

    @property
    def length(self) -> int:
        """Tokens of the whole row."""
        return len(self.prefix) + self.new_tokens + len(self.suffix)


def encode(
    model: Model,
    prompts: Sequence[Prompt],
    settings: Settings,
    ids: Sequence[str] | None,
    seeds: Sequence[int] | None,
    lengths: Sequence[int] | None = None,
) -> list[Request]:
    """Requests of prompts (text, infill, chats or ids); `lengths`: each one's new tokens, default max_new_tokens.

    Raises:
        UserError: text without a tokenizer, a prompt that leaves no room, an infill for an AR model.
    """
    requests = []
    for index, prompt in enumerate(prompts):
        name = ids[index] if ids is not None else str(index)
        made = encode_prompt(model, prompt, name)
        prefix, suffix = list(made.prefix), list(made.suffix)
        seed = seeds[index] if seeds is not None else index
        new_tokens = lengths[index] if lengths is not None else settings.max_new_tokens
        request = Request(index, name, made.text, prefix, suffix, new_tokens, seed, made.after)
        if request.length > model.max_length:
            raise UserError(
                f"prompt {name!r} has {len(prefix) + len(suffix)} tokens, which with {new_tokens} new ones exceeds "
                f"the model's context of {model.max_length}; shorten it or lower max_new_tokens"
            )
        if not prefix and not model.is_diffusion:
            raise UserError(f"prompt {name!r} has no tokens, and an AR model goes on from one; give it some text")
        if suffix and not model.is_diffusion:
            raise UserError(f"prompt {name!r} is an infill, which an AR model cannot do; use a diffusion model")
        requests.append(request)
    return requests


def is_infill(prompt: Prompt) -> bool:
    """Whether there is text behind the new tokens, or there might be."""
    return isinstance(prompt, Infill) or (isinstance(prompt, Encoded) and prompt.after is not None)


def encode_prompt(model: Model, prompt: Prompt, name: str = "0") -> Encoded:
    """A prompt in any form as ids; `name` is its name in errors.

    Raises:
        UserError: text without a tokenizer, a chat without a template, an id outside the vocabulary.
    """
    if isinstance(prompt, Encoded):
        return prompt
    if isinstance(prompt, Infill):
        prefix_text, prefix = _tokens(model, prompt.prefix, name)
        suffix_text, suffix = _tokens(model, prompt.suffix, name, begins=False)
        return Encoded(prefix_text + suffix_text, tuple(prefix), tuple(suffix), suffix_text)
    if isinstance(prompt, str) or not prompt or not isinstance(prompt[0], Mapping):
        text, prefix = _tokens(model, prompt, name)  # type: ignore[arg-type]
        return Encoded(text, tuple(prefix))
    asked = chat.encode(model.tokenizer, prompt, model.name, f"prompt {name!r}")  # type: ignore[arg-type]
    return Encoded(asked.text, tuple(asked.ids))


def _tokens(model: Model, prompt: str | Sequence[int], name: str, begins: bool = True) -> tuple[str, list[int]]:
    """Text and ids of a prompt; `begins`: it begins a text, rather than going on after a gap."""
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise UserError(
                f"model {model.name!r} has no tokenizer, so prompt {name!r} must be a list of ids, not text"
            )
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:  # bytes of a command line or of stdin in another encoding
            raise UserError(f"prompt {name!r} is not UTF-8 (half of a surrogate pair); convert it") from None
        if begins:
            return prompt, list(model.tokenizer(prompt)["input_ids"])
        return prompt, encode_after(model.tokenizer, "\n", prompt)
    tokens = [int(token) for token in prompt]
    for token in tokens:
        if not 0 <= token < model.vocab_size:
            raise UserError(f"prompt {name!r} has the id {token}, outside the vocabulary of {model.vocab_size}")
    return decode(model.tokenizer, tokens) if model.tokenizer is not None else "", tokens

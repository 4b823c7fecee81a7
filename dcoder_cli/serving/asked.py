"""What clients ask for: the bodies of OpenAI's completions and chat completions, and decoding parameters of our own.

https://platform.openai.com/docs/api-reference. What this server cannot do is refused by name; `user`, `metadata` and `store`
are for the client's own books and change nothing there either.
"""

from __future__ import annotations

import secrets
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dcoder_cli.base.errors import UserError
from dcoder_cli.decoding import requests, sampler
from dcoder_cli.decoding.requests import Encoded, Infill, Prompt, Settings, encode_prompt, with_length
from dcoder_cli.decoding.rows import Ticket
from dcoder_cli.model.backbone import Model

MOST_PROMPTS, MOST_SAMPLES, MOST_STOPS = 64, 128, 16  # of one call (ours; OpenAI: 2048, 128 and 4)
_STANDARD = 256  # new tokens where neither the call nor the checkpoint says how many: dcoder generate's


class Body(BaseModel):
    """A part of a body: what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OwnFields(Body):
    """`dcoder`: settings of the sampler by their own names, and what is told of the decoding."""

    steps: int | None = None
    rule: str | None = None
    top_k: int | None = None
    alg_temperature: float | None = None
    block_length: int | None = None
    compat: Literal["dream", "llada"] | None = None
    cfg_scale: float | None = None
    stop_penalty: float | None = None
    min_new_tokens: int | None = None
    tie_break: str | None = None
    mode: Literal["exact", "fast"] | None = None
    cache: str | None = None
    commit: str | None = None
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    cache_refresh: int | None = None
    early_stop: bool | None = None
    trajectory: bool = False  # in the answer: when each token was committed, and how surely
    drafts: bool = False  # while streaming: all pieces as they stand after each step, null where nothing is committed


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False


Stop = Annotated[str, StringConstraints(min_length=1)]
_Nothing = Annotated[float, Field(ge=0, le=0)] | None


class Call(Body):
    """What both kinds of call have."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MOST_SAMPLES)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    dcoder: OwnFields | None = None
    # What is not done here, with the one value that means it is not asked for.
    presence_penalty: _Nothing = None
    frequency_penalty: _Nothing = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None

    @property
    def own(self) -> OwnFields:
        """Our own parameters."""
        return self.dcoder or OwnFields()

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def new_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_tokens

    def prompts(self) -> list[Prompt]:
        """What is to be answered."""
        raise NotImplementedError


class CompletionCall(Call):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None

    def prompts(self) -> list[Prompt]:
        """What is to be answered."""
        if self.best_of not in (None, self.samples):
            raise UserError(f"best_of = {self.best_of}: all answers are given back; leave it out, or give n")
        several: list[Any] = [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)
        if several and isinstance(several[0], int):
            several = [several]
        if not several or len(several) > MOST_PROMPTS:
            raise UserError(f"prompt: {len(several)} prompts; give 1 to {MOST_PROMPTS} in a call")
        if self.suffix is None:
            return several
        return [Infill(one, self.suffix) for one in several]


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One of `messages`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As the sampler takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ResponseFormat(Body):
    """`response_format`: text alone."""

    type: Literal["text"]


class ChatCall(Call):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    top_logprobs: Literal[0] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def new_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def prompts(self) -> list[Prompt]:
        """What is to be answered."""
        return [[message.plain() for message in self.messages]]


class WrongField(UserError):
    """A field that is wrong, and why."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field or 'the body'}{why}")
        self.field = field or None


def read(kind: type[Call], body: Any) -> Call:
    """A call of a body. Raises UserError."""
    if not isinstance(body, dict):
        raise UserError("the body must be a JSON object; see the API reference of OpenAI's completions")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise WrongField(where, ": no parameter of this server; leave it out (ours are under `dcoder`)") from None
        if first["type"] == "missing":
            raise WrongField(where, " is missing") from None
        shown = repr(first["input"])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise WrongField(where, f" = {shown}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def tickets(model: Model, call: Call, most_new_tokens: int | None) -> list[tuple[Encoded, Ticket]]:
    """The rows of a call, each prompt's samples one after another: those of `dcoder generate` with the same seed.

    Args:
        most_new_tokens: the server's own bound.

    Raises:
        UserError: settings that do not fit together, or a prompt that does not fit the model.
    """
    own = {
        field.name: value for field in fields(Settings) if (value := getattr(call.own, field.name, None)) is not None
    }
    seed = secrets.randbelow(2**31) if call.seed is None else call.seed
    given: dict[str, Any] = {"rule": model.default_rule, **own, "seed": seed}
    given |= {name: value for name in ("temperature", "top_p") if (value := getattr(call, name)) is not None}
    encoded = [encode_prompt(model, prompt, str(place)) for place, prompt in enumerate(call.prompts())]
    if call.new_tokens is not None:
        given["max_new_tokens"] = call.new_tokens
    given = with_length(given, model.answer_length)
    if "max_new_tokens" not in given:
        room = model.max_length - max(one.length for one in encoded)
        block = given.get("block_length") or 1
        given["max_new_tokens"] = max(1, min(_STANDARD, most_new_tokens or _STANDARD, room) // block * block)
    if most_new_tokens is not None and given["max_new_tokens"] > most_new_tokens:
        raise UserError(
            f"max_tokens = {given['max_new_tokens']} is more than this server's {most_new_tokens}; lower it"
        )
    settings = sampler.settled(model, Settings(**given))
    repeated = [one for one in encoded for _ in range(call.samples)]
    rows = requests.encode(model, repeated, settings, None, None)
    return [(one, Ticket(row, settings)) for one, row in zip(repeated, rows, strict=True)]

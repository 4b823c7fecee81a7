"""Answers in the form that OpenAI's clients read."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dcoder_cli.decoding.requests import Encoded
from dcoder_cli.serving.asked import Call, ChatCall


@dataclass
class OneAnswer:
    """One of a call's answers.

    Attributes:
        text: without what stands behind its end. tokens: how many were made for it.
        reason: "stop" or "length".
        trajectory: where it was asked for.
    """

    index: int
    text: str
    tokens: int
    reason: str
    trajectory: dict[str, Any] | None = None


@dataclass
class Reply:
    """What all parts of one answer to a call share."""

    call: Call
    model: str
    seed: int
    prompts: Sequence[Encoded]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chat(self) -> bool:
        """Whether it is one of /v1/chat/completions."""
        return isinstance(self.call, ChatCall)

    def usage(self, tokens: int) -> dict[str, int]:
        """`usage`: each prompt counts once, whatever its samples."""
        asked = sum(one.length for one in self.prompts[:: self.call.samples])
        return {"prompt_tokens": asked, "completion_tokens": tokens, "total_tokens": asked + tokens}

    def whole(self, answers: Sequence[OneAnswer]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for one in answers:
            text = self.echo(one.index) + one.text
            said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            more = {} if one.trajectory is None else {"dcoder": {"trajectory": one.trajectory}}
            choices.append({"index": one.index, **said, "logprobs": None, "finish_reason": one.reason, **more})
        usage = self.usage(sum(one.tokens for one in answers))
        return {**self._head(whole=True), "choices": choices, "usage": usage}

    def part(
        self, index: int, text: str, reason: str | None = None, first: bool = False, own: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One of a stream's chunks."""
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {
                "delta": {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
            }
        more = {"dcoder": own} if own else {}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason, **more}
        return {**self._head(whole=False), "choices": [choice]}

    def last(self, tokens: int) -> dict[str, Any]:
        """The chunk with the usage, where it is asked for."""
        return {**self._head(whole=False), "choices": [], "usage": self.usage(tokens)}

    def echo(self, index: int) -> str:
        """The prompt, where it is asked for before the answer."""
        return self.prompts[index].text if getattr(self.call, "echo", None) else ""

    def _head(self, whole: bool) -> dict[str, Any]:
        kind = "text_completion" if not self.chat else "chat.completion" if whole else "chat.completion.chunk"
        made = ("chatcmpl-" if self.chat else "cmpl-") + self.id
        own = {"seed": self.seed}
        return {"id": made, "object": kind, "created": self.created, "model": self.model, "dcoder": own}


def event(value: Any) -> str:
    """A server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"


def failure(message: str, status: int, code: str | None = None, field: str | None = None) -> dict[str, Any]:
    """The body of an error; `field`: the part of the body that it is about. https://platform.openai.com/docs/guides/error-codes"""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}

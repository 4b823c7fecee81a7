"""Instruction formats: rows of chat data as messages, and messages as prompt and answer tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dcoder_cli.base.errors import UserError, one_line
from dcoder_cli.data.dropped import BadRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

# Column names in use for one turn: (instruction, answer). The first is also OpenCoder's SFT sets' (opc-sft-stage1/2,
# whose further columns, such as code, entry_point and testcase, are not needed here) and Alpaca's (with `input`).
_PAIRS = (("instruction", "output"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def messages_of(row: dict[str, Any], where: str) -> list[Message]:
    """A row as a list of {"role", "content"}.

    Understands `messages` (role, content), `conversations` (from, value), and the pairs instruction/output (with an
    optional `input` and `system`), prompt/completion, prompt/response, question/answer.

    Raises:
        BadRow: none of these columns, or turns of another form; names the known columns.
    """
    for column, role_key, text_key in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = row.get(column)
        if turns is None:
            continue
        if not isinstance(turns, list) or not all(
            isinstance(t, dict) and {role_key, text_key} <= set(t) for t in turns
        ):
            raise BadRow(
                f"{where}: {column!r} must be a list of objects with {role_key!r} and {text_key!r}",
                "turns of another form",
            )
        if any(not isinstance(t[text_key], (str, type(None))) for t in turns):
            raise BadRow(
                f"{where}: {text_key!r} in {column!r} must be text, not parts of other kinds", "turns of another form"
            )
        return [{"role": _ROLES.get(t[role_key], str(t[role_key])), "content": t[text_key] or ""} for t in turns]
    for ask, reply in _PAIRS:
        if isinstance(row.get(ask), str) and isinstance(row.get(reply), str):
            extra = row.get("input")
            question = f"{row[ask]}\n\n{extra}" if isinstance(extra, str) and extra.strip() else row[ask]
            system = row.get("system")
            first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
            return [*first, {"role": "user", "content": question}, {"role": "assistant", "content": row[reply]}]
    pairs = ", ".join("/".join(pair) for pair in _PAIRS)
    known = ", ".join(map(str, row))
    raise BadRow(f"{where} has no messages, conversations or {pairs}; known: {known}", "no question and answer")


class Rendered(NamedTuple):
    """A sample's prompt and answer as text with special tokens, or the reason it cannot be used."""

    prompt: str
    answer: str
    reason: str | None = None


@dataclass(frozen=True)
class Turn:
    """The token that ends an answer."""

    id: int
    token: str


class ChatEncoder:
    """Messages to (prompt, answer) through the tokenizer's chat template.

    The prompt is everything up to and including the header of the last answer, tokenized alone, exactly as it is at
    generation. The answer ends with the end-of-turn token: what the template writes behind it is left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template; use an instruct model's tokenizer"
            )
        self._tokenizer, self._system = tokenizer, system
        self._special = re.compile("|".join(re.escape(token) for token in tokenizer.all_special_tokens))
        self.end_of_turn = self._find_end_of_turn()

    def _find_end_of_turn(self) -> Turn:
        probe = self._render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        if probe is None:
            raise UserError(
                f"the chat template of {self._tokenizer.name_or_path!r} rewrites the prompt once it is answered"
            )
        ends = self._special.findall(probe.answer)
        token = ends[0] if ends else str(self._tokenizer.eos_token)
        return Turn(int(self._tokenizer.convert_tokens_to_ids(token)), token)

    def _render(self, messages: list[Message]) -> Rendered | None:
        from jinja2 import TemplateError

        try:
            prompt = self._tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            whole = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, ValueError) as error:
            return Rendered("", "", f"refused by the chat template: {one_line(error)[:60]}")
        assert isinstance(prompt, str) and isinstance(whole, str)
        return Rendered(prompt, whole[len(prompt) :]) if whole.startswith(prompt) else None

    def with_system(self, messages: list[Message]) -> list[Message]:
        """`messages`, led by the system message that was asked for unless they have one of their own."""
        if not messages or self._system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self._system}, *messages]

    def prompt(self, messages: list[Message]) -> str:
        """The text that asks for an answer to `messages`, which end with the user's turn."""
        text = self._tokenizer.apply_chat_template(
            self.with_system(messages), tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        return text

    def render(self, messages: list[Message]) -> Rendered:
        """The prompt and the answer, ending with the end-of-turn token, or the reason to drop the sample."""
        messages = self.with_system(messages)
        if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            return Rendered("", "", "no answer")
        if any(self._special.search(message["content"]) for message in messages):
            return Rendered("", "", "special token in the text")
        rendered = self._render(messages)
        if rendered is None:
            return Rendered("", "", "chat template rewrites the prompt")
        if rendered.reason:
            return rendered
        answer, _, _ = rendered.answer.partition(self.end_of_turn.token)
        return Rendered(rendered.prompt, answer + self.end_of_turn.token)

    def encode(self, samples: list[Rendered]) -> Iterator[tuple[list[int], list[int]]]:
        """(prompt ids, answer ids) of each sample."""
        backend = self._tokenizer.backend_tokenizer
        texts = [text for sample in samples for text in (sample.prompt, sample.answer)]
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        for index in range(0, len(encoded), 2):
            yield encoded[index].ids, encoded[index + 1].ids

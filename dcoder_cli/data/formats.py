"""Instruction formats: rows of chat data as messages, and messages as prompt and answer tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dcoder_cli.base.errors import UserError
from dcoder_cli.data.dropped import BadRow
from dcoder_cli.data.holes import Gap
from dcoder_cli.model import chat
from dcoder_cli.model.text import encode_after, spaces_every_text

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
        try:
            turns = [{**t, text_key: chat.joined(t[text_key])} for t in turns]
        except chat.NotText as part:
            raise BadRow(f"{where}: {text_key!r} in {column!r} has {part}", "a part that is no text") from None
        if any(not isinstance(t[text_key], (str, type(None))) for t in turns):
            raise BadRow(
                f"{where}: {text_key!r} in {column!r} must be text, not parts of other kinds", "turns of another form"
            )
        if any(not isinstance(t[role_key], str) for t in turns):
            raise BadRow(f"{where}: {role_key!r} in {column!r} must be text", "turns of another form")
        if any(t[text_key] is None and _ROLES.get(t[role_key]) == "user" for t in turns):
            raise BadRow(f"{where}: a user's {text_key!r} in {column!r} is null", "a question without text")
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


def sample_of(row: dict[str, Any], where: str) -> list[Message] | Gap:
    """A row as a chat (`messages_of`), or, where it has a `hole`, as a text with a gap: `prefix`, `hole` and `suffix`.

    Raises:
        BadRow: as `messages_of`, or a hole without the text before it, or one of the three that is no text.
    """
    if row.get("hole") is None:
        return messages_of(row, where)
    parts = [row.get(name) for name in Gap._fields]
    if not all(isinstance(part, str) for part in parts):
        raise BadRow(f"{where}: a 'hole' needs 'prefix' and 'suffix', all three of text", "gap of another form")
    return Gap(*(str(part) for part in parts))


_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")


def _without_blank_ends(answer: str) -> str:
    """What a template must leave of an answer: not the blank lines and the white space around it, which are the template's to
    write, but the indentation of its first line, without which code is other code."""
    blank = _BLANK_LINES.match(answer)
    return answer[blank.end() if blank else 0 :].rstrip()


class Rendered(NamedTuple):
    """A sample's prompt and answer as text with special tokens, or the reason it cannot be used.

    `suffix`: what stands after a gap, None for a chat. `about`: the text by which near duplicates are told, "" for all of it.
    """

    prompt: str
    answer: str
    reason: str | None = None
    suffix: str | None = None
    about: str = ""


class ChatEncoder:
    """Messages to (prompt, answer) through the tokenizer's chat template.

    The prompt is everything up to and including the header of the last answer, tokenized alone, exactly as it is at
    generation. The answer ends with the end-of-turn token: what the template writes behind it is left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> None:
        """`system`: leads every chat that has no system message of its own.

        Raises:
            UserError: the tokenizer has no chat template, or one that takes no question with its answer; no end token.
        """
        self._tokenizer, self._name = tokenizer, str(tokenizer.name_or_path)
        self._system = chat.system_message(system)
        chat.check(tokenizer, self._name)
        self.end_of_turn = self._find_end_of_turn()
        known = {*tokenizer.all_special_tokens, self.end_of_turn.token}
        self._special = re.compile("|".join(re.escape(token) for token in sorted(known)))
        self._spaced = spaces_every_text(tokenizer)

    def _find_end_of_turn(self) -> chat.EndOfTurn:
        end = chat.end_of_turn(self._tokenizer, self._name)
        if end is not None:
            return end
        if self._tokenizer.eos_token is None:
            raise UserError(
                f"the chat template of {self._name!r} ends no answer, and there is no end-of-text token; add one"
            )
        return chat.EndOfTurn(int(self._tokenizer.eos_token_id), str(self._tokenizer.eos_token))

    def with_system(self, messages: list[Message]) -> list[Message]:
        """`messages`, led by the system message that was asked for unless they have one of their own."""
        return messages if not messages or messages[0]["role"] == "system" else [*self._system, *messages]

    def prompt(self, messages: list[Message]) -> str:
        """The text that asks for an answer to `messages`, which end with the user's turn.

        Raises:
            Refused: the template does not take them.
        """
        return chat.render(self._tokenizer, self.with_system(messages), self._name)

    def render(self, messages: list[Message]) -> Rendered:
        """The prompt and the answer, ending with the end-of-turn token, or the reason to drop the sample."""
        messages = self.with_system(messages)
        if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            return Rendered("", "", "no answer")
        if any(self._special.search(message["content"]) for message in messages):
            return Rendered("", "", "special token in the text")
        try:
            prompt, rest = chat.answered(self._tokenizer, messages, self._name)
        except chat.Refused as refused:
            return Rendered("", "", refused.reason)
        answer, _, _ = rest.partition(self.end_of_turn.token)
        if _without_blank_ends(messages[-1]["content"]) not in answer:
            return Rendered("", "", "chat template changes the answer")
        return Rendered(prompt, answer + self.end_of_turn.token)

    def render_gap(self, gap: Gap) -> Rendered:
        """A text with a gap: no template, and no end yet; or the reason to drop it."""
        if not gap.hole:
            return Rendered("", "", "no answer")
        if any(self._special.search(part) for part in gap):
            return Rendered("", "", "special token in the text")
        return Rendered(gap.prefix, gap.hole, suffix=gap.suffix)

    def encode_gap(self, sample: Rendered) -> tuple[list[int], list[int], list[int]]:
        """Ids of prefix, hole and suffix, each as decoding reads and writes it (`decoding.requests.encode_prompt`)."""
        prefix = list(self._tokenizer(sample.prompt)["input_ids"])
        after = encode_after(self._tokenizer, "\n", sample.suffix or "")
        return prefix, encode_after(self._tokenizer, sample.prompt or "\n", sample.answer), after

    def encode(self, samples: list[Rendered]) -> Iterator[tuple[list[int], list[int]]]:
        """(prompt ids, answer ids) of each chat."""
        if self._spaced:
            for sample in samples:
                prompt = self._tokenizer.backend_tokenizer.encode(sample.prompt, add_special_tokens=False).ids
                yield prompt, encode_after(self._tokenizer, sample.prompt, sample.answer)
            return
        backend = self._tokenizer.backend_tokenizer
        texts = [text for sample in samples for text in (sample.prompt, sample.answer)]
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        for index in range(0, len(encoded), 2):
            yield encoded[index].ids, encoded[index + 1].ids

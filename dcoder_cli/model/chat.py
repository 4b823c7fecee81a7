"""A chat becomes text and ids: the one place that renders a tokenizer's chat template.

A template is a program that came with a checkpoint. It may be missing, know no system role, refuse an order of roles,
leave out or change what was asked, need variables that nobody gives, or fail in any way a program can: here that is one line,
and a `reason` by which rows are counted. A system message that a template refuses or leaves out is put before the first
user's message. Answers of earlier turns may be shortened, as templates do that delete reasoning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dcoder_cli.base.errors import UserError, one_line

Message = Mapping[str, str]
Chat = Sequence[Message]


class Refused(UserError):
    """The template does not render a chat. `reason` says why without naming the chat."""

    def __init__(self, what: str, name: str, reason: str) -> None:
        super().__init__(f"{what} cannot be written with the chat template of {name!r}: {reason}")
        self.reason = reason


class ChatIds(NamedTuple):
    """A chat as the text of the template and its ids."""

    text: str
    ids: list[int]


class EndOfTurn(NamedTuple):
    """The token that ends an answer."""

    id: int
    token: str


def has_template(tokenizer: Any | None) -> bool:
    """Whether a chat can be written at all: there is one template, or one of several is called default."""
    return bool(tokenizer is not None and _template(tokenizer))


def check(tokenizer: Any | None, name: str) -> None:
    """Raises UserError where `has_template` is false; `name`: the model or tokenizer, for the message."""
    if tokenizer is None:
        raise UserError(f"{name!r} has no tokenizer, so it cannot take a chat; add one to its folder, or give ids")
    if _template(tokenizer):
        return
    named = _named(tokenizer)
    if named:
        raise UserError(
            f"the tokenizer of {name!r} has several chat templates ({', '.join(sorted(named))}) and none is called "
            "'default'; call one of them so"
        )
    raise UserError(f"the tokenizer of {name!r} has no chat template; give plain text, or use an instruct model's")


class NotText(ValueError):
    """A content has a part that is no text; says of which type."""


def joined(content: Any) -> Any:
    """A message's content as one text where it is a list of parts, `{"type": "text", "text": ".."}`; anything else as it is.

    Raises:
        NotText: a part of another type, such as an image.
    """
    if not (isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content)):
        return content
    for part in content:
        if part.get("type", "text") != "text":
            raise NotText(f"a part of type {str(part['type'])[:40]!r}, and a model here reads text alone; leave it out")
        if not isinstance(part.get("text"), str):
            return content
    return "".join(part["text"] for part in content)


def check_messages(messages: Any, what: str) -> None:
    """Raises UserError if `messages` are no chat; `what` they are begins the message."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{what} is no list of messages; give [{{'role': 'user', 'content': '..'}}]")
    for index, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise UserError(f"{what}: message {index} has no text {key!r}; a message is a role and its content")


def system_message(text: str | None) -> list[dict[str, str]]:
    """The system message that was asked for, as the beginning of a chat; empty for None.

    Raises:
        UserError: the text is blank, which templates read in different ways.
    """
    if text is None:
        return []
    if not text.strip():
        raise UserError(f"the system message {text!r} is empty; give some text, or leave it out")
    return [{"role": "system", "content": text}]


def encode(tokenizer: Any | None, messages: Chat, name: str, what: str = "this chat") -> ChatIds:
    """The text and ids that ask for an answer to `messages`; a last assistant's message is continued, not closed.

    Args:
        name: the model or tokenizer, for messages.
        what: the chat's name, for messages.

    Raises:
        UserError: no tokenizer, no template, no chat. Refused: the template does not take it.
    """
    text = render(tokenizer, messages, name, what)
    assert tokenizer is not None
    return ChatIds(text, list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def render(tokenizer: Any | None, messages: Chat, name: str, what: str = "this chat") -> str:
    """The text of `encode`."""
    check(tokenizer, name)
    check_messages(messages, what)
    goes_on = messages[-1]["role"] == "assistant"
    return _prompt(tokenizer, messages, name, what, goes_on)[0]


def answered(tokenizer: Any | None, messages: Chat, name: str, what: str = "this chat") -> tuple[str, str]:
    """The prompt, as at generation, and what the template writes behind it for the last message, the answer.

    Raises:
        UserError, Refused: as `encode`. Refused too: the prompt reads differently once it is answered.
    """
    check(tokenizer, name)
    check_messages(messages, what)
    prompt, used = _prompt(tokenizer, messages[:-1], name, what, goes_on=False)
    whole = _apply(tokenizer, [*used, messages[-1]], name, what)
    if not whole.startswith(prompt):
        raise Refused(what, name, "chat template rewrites the prompt")
    return prompt, whole[len(prompt) :]


def end_of_turn(tokenizer: Any | None, name: str = "") -> EndOfTurn | None:
    """The special token that the template puts behind an assistant's message; None without a template, or without one.

    Raises:
        Refused: the template takes no question with its answer, neither with a system message before them nor without.
    """
    if tokenizer is None or not _template(tokenizer):
        return None
    content = "dcoder"
    plain = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
    try:
        text = _apply(tokenizer, plain, name, "a question with its answer")
    except Refused as refused:
        try:
            text = _apply(tokenizer, [{"role": "system", "content": "!"}, *plain], name, "a question with its answer")
        except Refused:
            raise refused from None
    _, found, after = text.rpartition(content)
    if not found:
        return None
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    first = next((int(token) for token in ids if token in special), None)
    return None if first is None else EndOfTurn(first, str(tokenizer.convert_ids_to_tokens(first)))


def _named(tokenizer: Any) -> dict[str, str]:
    """Templates by name, where there are several: a mapping, or a list of names and templates as files hold it."""
    templates = getattr(tokenizer, "chat_template", None)
    if isinstance(templates, Mapping):
        return dict(templates)
    if isinstance(templates, (list, tuple)):
        whole = [one for one in templates if isinstance(one, Mapping) and {"name", "template"} <= set(one)]
        return {str(one["name"]): one["template"] for one in whole}
    return {}


def _template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    return template if isinstance(template, str) else _named(tokenizer).get("default")


def _prompt(tokenizer: Any, messages: Chat, name: str, what: str, goes_on: bool) -> tuple[str, Chat]:
    """The prompt's text and the messages that made it: `messages`, or with the system's text in the user's."""
    options = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
    folded = _folded(messages)
    try:
        text = _apply(tokenizer, messages, name, what, **options)
    except Refused:
        if folded is None:
            raise
        text = ""
    if folded is not None and messages[0]["content"].strip() not in text:  # refused, or left out without a word
        messages, text = folded, _apply(tokenizer, folded, name, what, **options)
    for message in messages:
        if message["role"] in ("system", "user") and message["content"].strip() not in text:
            raise Refused(what, name, f"chat template leaves out or changes the {message['role']}'s text")
    return text, messages


def _folded(messages: Chat) -> Chat | None:
    """A chat whose system text stands before the user's, a blank line between (ours); None where that does not apply."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return None
    system, user = messages[0]["content"], messages[1]["content"]
    return [{**messages[1], "content": f"{system}\n\n{user}" if system.strip() else user}, *messages[2:]]


def _apply(tokenizer: Any, messages: Chat, name: str, what: str, **options: bool) -> str:
    plain = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(plain, chat_template=_template(tokenizer), tokenize=False, **options)
    except Exception as error:  # the template is somebody else's program, and raises what it likes
        reason = one_line(error)[:200] or type(error).__name__
        raise Refused(what, name, f"refused by the chat template: {reason}") from None
    assert isinstance(text, str)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise Refused(what, name, "its text is not UTF-8 (half of a surrogate pair)") from None
    return text

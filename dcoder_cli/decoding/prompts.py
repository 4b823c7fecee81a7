"""Prompts as people give them: arguments, files, stdin, text with a hole. The one reader of prompt files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from dcoder_cli.base import jsonl
from dcoder_cli.base.errors import UserError
from dcoder_cli.model.chat import NotText, check_messages, joined, system_message

if TYPE_CHECKING:
    from dcoder_cli.decoding.requests import Prompt

HOLE = "<FILL>"
LONGEST = 2**24  # characters of a prompt (ours): beyond every context, and far below what fills a memory
_FORMS = ("prompt", "messages", "ids", "prefix")
_JSON = (".jsonl", ".json", ".ndjson")
_TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".arrow")  # whose lines, a header and commas, are no prompts
_PACKED = (".gz", ".zst")


def collect(texts: Sequence[str], file: Path | None) -> list[tuple[str, Prompt]]:
    """Names and prompts from arguments ("-" reads stdin), a file (see `read`) or, with neither, stdin.

    Raises:
        UserError: nothing to read, or a broken line (named).
    """
    if texts and file is not None:
        raise UserError("give prompts either as arguments or with --prompts, not both")
    if file is not None:
        return read(file)
    if texts and list(texts) != ["-"]:
        return [(str(index), text) for index, text in enumerate(texts)]
    if not texts and sys.stdin.isatty():
        raise UserError("no prompt; give one as an argument, with --prompts FILE, or on stdin")
    try:
        text = sys.stdin.read(LONGEST + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt on stdin is not UTF-8 ({error.reason}); convert it") from None
    text = text.removeprefix("\ufeff")  # a byte-order mark, as files may have
    if not text.strip():
        raise UserError("the prompt on stdin is empty; give some text")
    return [("0", text)]


def prepare(
    found: Sequence[tuple[str, Prompt]], chat: bool = False, system: str | None = None, infill: bool = False
) -> list[Prompt]:
    """Prompts as the options want them.

    Args:
        found: names and prompts, from `collect`.
        chat: wrap plain text as a user's message.
        system: a system message before it, and before chats that have none.
        infill: each text has one `<FILL>`, the hole to write.

    Raises:
        UserError: a text to infill without its marker, an infill without a text, or a system message that no prompt takes.
    """
    lead = system_message(system)
    if infill and not any(isinstance(prompt, str) for _, prompt in found):
        raise UserError(f"--infill has no effect: no prompt is plain text with {HOLE}; leave it out")
    for name, prompt in found:
        if isinstance(prompt, str) and len(prompt) > LONGEST:
            raise UserError(
                f"prompt {name!r} has more than {LONGEST:,} characters, which no model takes; give a shorter one"
            )
    asked = [_asked(name, prompt, chat, lead, infill) for name, prompt in found]
    chats = [prompt for prompt in asked if _is_chat(prompt)]
    if lead and not any(prompt[0] is lead[0] for prompt in chats):  # type: ignore[index]
        why = "every chat has one of its own" if chats else "no prompt is a chat; add --chat, or"
        raise UserError(f"--system {system!r} has no effect: {why}{';' if chats else ''} leave it out")
    return asked


def sample_names(names: Sequence[str], samples: int) -> list[str]:
    """Ids of so many samples of each prompt, those of a prompt together: `x`, or `x/0`, `x/1`."""
    return [f"{name}/{index}" if samples > 1 else name for name in names for index in range(samples)]


def read(path: str | Path) -> list[tuple[str, Prompt]]:
    """Names and prompts of a file, in order.

    A line of a .jsonl file (.json, .ndjson) is a text, or an object with one of

        {"prompt": "text"}                        {"prompt": [5, 6, 7]}, {"ids": [5, 6, 7]}: token ids
        {"prompt": [{"role", "content"}, ..]}, {"messages": [..]}: a chat; a last assistant's message is continued
        {"prefix": "text", "suffix": "text"}      text or ids around a gap; without `suffix` the gap ends the text

    and a name in `id` or `task_id`, else its place among the prompts, from 0 (`#0` where another has that name). Any other
    file is text, a prompt a line. Both may be packed (.gz, .zst).

    Raises:
        UserError: the file cannot be read or holds no prompt; a line is no prompt, holds a wrong type, or has another's
            name. Names the line.
    """
    name = str(path).lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    if name.endswith(_TABLES):
        raise UserError(f"prompt file {str(path)!r} is a table; write its rows as JSON lines with 'prompt' (.jsonl)")
    prompts: list[tuple[str, Prompt]]
    if name.endswith(_JSON):
        found: list[tuple[str | None, Prompt]] = []
        given: dict[str, int] = {}  # name -> line
        for number, where, value in _entries(path, name):
            own = _name(value, where)
            found.append((own, _prompt(value, where)))
            if own is not None and given.setdefault(own, number) != number:
                raise UserError(
                    f"prompt file {str(path)!r}: lines {given[own]} and {number} have the same name {own!r}; rename one of them"
                )
        prompts = [(_place(place, given) if own is None else own, prompt) for place, (own, prompt) in enumerate(found)]
    else:
        prompts = [(str(index), line) for index, (_, line) in enumerate(jsonl.texts(path, "prompt file"))]
    if not prompts:
        raise UserError(f"prompt file {str(path)!r} holds no prompt; write one a line, or JSON lines with 'prompt'")
    return prompts


def _entries(path: str | Path, name: str) -> Iterator[jsonl.Entry]:
    """The values of a file; a .json may also be one list of them."""
    if name.endswith(".json"):
        yield from jsonl.table(path, "prompt file")
        return
    for number, value in jsonl.lines(path, "prompt file"):
        yield jsonl.Entry(number, f"prompt file {str(path)!r} line {number}", value)


def _name(value: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return None
    for key in ("id", "task_id"):
        if value.get(key) is not None:
            if isinstance(value[key], bool) or not isinstance(value[key], (str, int)):
                raise UserError(f"{where}: {key!r} is {short(value[key])}; a name is text or a number")
            return str(value[key])
    return None


def _place(place: int, given: Mapping[str, int]) -> str:
    """The name of a prompt that was given none: no name that another was given."""
    name = str(place)
    while name in given:
        name = f"#{name}"
    return name


def _prompt(value: Any, where: str) -> Prompt:
    from dcoder_cli.decoding.requests import Infill

    if isinstance(value, str):
        return _text(value, "the text", where)
    if not isinstance(value, dict):
        raise UserError(
            f"{where} holds {short(value)}; a prompt is a text, or an object with one of {', '.join(_FORMS)}"
        )
    forms = [key for key in _FORMS if value.get(key) is not None]
    if len(forms) != 1:
        has = f"has {' and '.join(forms)}" if forms else f"has none of {', '.join(_FORMS)}"
        raise UserError(f"{where} {has}; a prompt needs one of them")
    (form,) = forms
    given = value[form]
    if form == "prefix":
        suffix = value.get("suffix")
        around = _side(given, "prefix", where), _side("" if suffix is None else suffix, "suffix", where)
        if not any(around):
            raise UserError(f"{where}: 'prefix' and 'suffix' are both empty; give what stands around the gap")
        return Infill(*around)
    if form == "messages":
        return _chat(given, form, where)
    if form == "ids":
        return _ids(given, form, where)
    if isinstance(given, str):
        return _text(given, "'prompt'", where)
    if isinstance(given, list) and given and isinstance(given[0], dict):
        return _chat(given, form, where)
    if isinstance(given, list):
        return _ids(given, form, where)
    raise UserError(f"{where}: 'prompt' is {short(given)}; it must be text, token ids or messages")


def _text(value: str, what: str, where: str) -> str:
    if not value:
        raise UserError(f"{where}: {what} is empty; give some text")
    return value


def _side(value: Any, key: str, where: str) -> str | list[int]:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _ids(value, key, where) if value else ""
    raise UserError(f"{where}: {key!r} is {short(value)}; it must be text or token ids")


def _ids(value: Any, key: str, where: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {key!r} is {short(value)}; it must be a list of token ids with one or more")
    for place, token in enumerate(value):
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise UserError(f"{where}: {key}[{place}] is {short(token)}; a token id is a whole number from 0")
    return value


def _chat(value: Any, key: str, where: str) -> list[dict[str, str]]:
    try:
        chat = (
            [
                {**one, "content": joined(one["content"])} if isinstance(one, dict) and "content" in one else one
                for one in value
            ]
            if isinstance(value, list)
            else value
        )
    except NotText as part:
        raise UserError(f"{where}: {key!r} has {part}") from None
    check_messages(chat, f"{where}: {key!r}")
    return chat


def _is_chat(prompt: Prompt) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def _asked(name: str, prompt: Any, chat: bool, lead: list[dict[str, str]], infill: bool) -> Prompt:
    """A prompt as the options want it: text as an infill or a chat, chats with the system message."""
    from dcoder_cli.decoding.requests import Infill

    if _is_chat(prompt):
        asked: Prompt = prompt if prompt[0]["role"] == "system" else [*lead, *prompt]
        return asked
    if not isinstance(prompt, str):
        given: Prompt = prompt
        return given
    if infill:
        before, hole, after = prompt.partition(HOLE)
        if not hole or HOLE in after:
            raise UserError(
                f"prompt {name!r} must have exactly one {HOLE} where text is to be written, and has {prompt.count(HOLE)}"
            )
        return Infill(before, after)
    return [*lead, {"role": "user", "content": prompt}] if chat else prompt

"""Prompts as people give them: arguments, files, stdin, text with a hole."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcoder_cli.base.errors import UserError

if TYPE_CHECKING:
    from dcoder_cli.decoding.requests import Prompt

HOLE = "<FILL>"


def gather(
    texts: Sequence[str], file: Path | None, chat: bool, system: str | None, infill: bool
) -> tuple[list[str], list[Prompt]]:
    """Names and prompts from arguments, a file (.jsonl, else one prompt a line) or, with neither, stdin.

    Args:
        texts: prompts given as arguments; "-" reads stdin.
        file: .jsonl with `prompt`, `messages`, `ids` or `prefix`/`suffix` and an optional `id` or `task_id`; or text.
        chat: wrap plain text as a user's message.
        system: a system message before it.
        infill: each text has one `<FILL>`, the hole to write.

    Raises:
        UserError: nothing to read, a broken line (named), an infill without its marker.
    """
    if texts and file is not None:
        raise UserError("give prompts either as arguments or with --prompts, not both")
    records: list[tuple[str, Any]]
    if file is not None:
        records = _read(file)
    elif texts and list(texts) != ["-"]:
        records = [(str(index), text) for index, text in enumerate(texts)]
    else:
        if not texts and sys.stdin.isatty():
            raise UserError("no prompt; give one as an argument, with --prompts FILE, or on stdin")
        text = sys.stdin.read()
        if not text.strip():
            raise UserError("the prompt on stdin is empty; give some text")
        records = [("0", text)]
    return [name for name, _ in records], [_prompt(name, value, chat, system, infill) for name, value in records]


def _read(file: Path) -> list[tuple[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt file {str(file)!r} cannot be read: {error}") from None
    records: list[tuple[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if file.suffix != ".jsonl":
            records.append((str(len(records)), line))
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file} line {number} is not JSON ({error})") from None
        keys = ("prompt", "messages", "ids", "prefix")
        if not isinstance(record, dict) or not any(key in record for key in keys):
            raise UserError(f"{file} line {number} has none of {', '.join(keys)}; a prompt needs one of them")
        records.append((str(record.get("id", record.get("task_id", len(records)))), record))
    if not records:
        raise UserError(f"prompt file {str(file)!r} holds no prompt")
    return records


def _prompt(name: str, value: Any, chat: bool, system: str | None, infill: bool) -> Prompt:
    from dcoder_cli.decoding.requests import Infill

    if isinstance(value, dict):
        if "prefix" in value:
            return Infill(value["prefix"], value.get("suffix", ""))
        for key in ("messages", "ids"):
            if key in value:
                prompt: Prompt = value[key]
                return prompt
        value = value["prompt"]
    text = str(value)
    if infill:
        before, hole, after = text.partition(HOLE)
        if not hole or HOLE in after:
            raise UserError(
                f"prompt {name!r} must have exactly one {HOLE} where text is to be written, and has {text.count(HOLE)}"
            )
        return Infill(before, after)
    if not chat:
        return text
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]

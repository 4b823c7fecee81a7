"""Ids become text in one place, and text that goes on after other text becomes ids.

A decoder may treat the beginning of a text as special (Llama-2's takes a space away), and a character may be split over
tokens. So new tokens are decoded behind the prompt's last ones, and what those alone give is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_TAIL = 8  # tokens of the prompt that are decoded with the new ones, at first (ours)


def decode(tokenizer: Any, ids: Sequence[int], skip_special: bool = False) -> str:
    """A whole text. No space is removed before punctuation, as some tokenizers' settings ask for: code needs them."""
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def continuation(tokenizer: Any, before: Sequence[int], ids: Sequence[int], skip_special: bool = True) -> str:
    """The text that `ids` add behind `before`.

    A character that begins in `before` and ends in `ids` belongs to the new text.

    Args:
        before: the tokens in front, all of them; empty at the beginning of a text.
        ids: the new tokens.
        skip_special: leave special tokens among `ids` out.
    """
    special = special_ids(tokenizer)
    new = [token for token in ids if token not in special] if skip_special else list(ids)
    if not new:
        return ""
    if not before or list(before) == _ids(tokenizer, "", opens=True):  # what every text begins with: one begins here
        return decode(tokenizer, new)
    tail = _tail(tokenizer, before)
    known, whole = decode(tokenizer, tail), decode(tokenizer, [*tail, *new])
    text = whole[_alike(known, whole) :]
    if text.startswith(" ") and before[-1] in special and _spaced(tokenizer, before[-1]):
        return text[1:]
    return text


def encode_after(tokenizer: Any, before: str, text: str) -> list[int]:
    """Ids of `text` behind `before`, whose own ids they follow: decoded there they give `text`.

    Tokenizers that put a space before every text (Llama-2's) would else begin `text` with one. All others give the ids
    of `text` alone.
    """
    alone = _ids(tokenizer, text)
    for lead in (before, "\n"):
        ids = _ids(tokenizer, lead)
        if continuation(tokenizer, ids, alone, skip_special=False) == text:
            return alone
        whole = _ids(tokenizer, lead + text)
        rest = whole[len(ids) :]
        if whole[: len(ids)] == ids and continuation(tokenizer, ids, rest, skip_special=False) == text:
            return rest
    return alone


def spaces_every_text(tokenizer: Any) -> bool:
    """Whether the ids of a text alone begin with a space that the text has not."""
    return continuation(tokenizer, _ids(tokenizer, "a"), _ids(tokenizer, "b")) != "b"


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that `skip_special` leaves out."""
    return frozenset(id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)


def _ids(tokenizer: Any, text: str, opens: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=opens)["input_ids"])


def _tail(tokenizer: Any, before: Sequence[int]) -> list[int]:
    """The last tokens of `before`, enough of them that they do not begin within a character."""
    length = _TAIL
    while length < len(before) and decode(tokenizer, before[-length:]).startswith("\ufffd"):
        length *= 2
    return list(before[-length:])


def _alike(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _spaced(tokenizer: Any, special: int) -> bool:
    """Whether the tokenizer puts a space between this special token and a text behind it, which decoding then shows."""
    token = str(tokenizer.convert_ids_to_tokens(special))
    ids = _ids(tokenizer, token + "a")
    return ids[:1] == [special] and decode(tokenizer, ids).startswith(token + " ")

"""Which characters two engines read alike: they bring Unicode tables of different versions.

How a text is cut into pieces depends, in every pattern that `byte_pairs` takes, on each character's kind alone: letter,
number, white space or other. So each character is tried once, between neighbours of all kinds, in both engines: where
it is cut off from them tells its kind.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from dcoder_cli.model.byte_pairs import BytePairs, NotUnderstood

_ASCII = re.compile(r"[\x00-\x7f]+")
# What stands between one occurrence and the next: two characters, so that each can be joined to its own, or none.
_AROUND = ("a", "a ", " !", "!1", "1'", "aa", "", "!")
_KINDS = ("é", "²", "\u00a0", "×")  # a letter, a number, white space, another, in every version of Unicode

Cuts = tuple[bool, ...]


class Characters:
    """The characters that `tokenizers` and tiktoken take for the same kind, found out as they are met."""

    def __init__(self, pairs: BytePairs, pre_tokenizer: Any) -> None:
        """`pre_tokenizer`: of the `tokenizers.Tokenizer`.

        Raises:
            NotUnderstood: it cuts otherwise than `pairs.cut`, or cuts that do not tell kinds apart.
        """
        from tiktoken import Encoding

        self._pre_tokenizer, self._normalizes = pre_tokenizer, pairs.normalizes
        self._bytes = pairs.single_bytes
        # tiktoken shows no pieces, but with these tokens what it joins: a character's last byte and its neighbour's first.
        ends, starts = [bytes([byte]) for byte in range(0x80, 0xC0)], [bytes([byte]) for byte in range(0xC2, 0xF5)]
        near = sorted({character.encode() for part in _AROUND for character in part})
        joined = [*(a + b for a in near for b in starts), *(a + b for a in ends for b in (*near, *starts))]
        ranks = {token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), *joined])}
        self._cutter = Encoding("cuts", pat_str=pairs.cut, mergeable_ranks=ranks, special_tokens={})
        known = [(self._by_tokenizers(kind), self._by_tiktoken(kind)) for kind in _KINDS]
        self._known = {first for first, second in known if first == second}
        if len(self._known) < len(_KINDS):
            raise NotUnderstood("a pre-tokenizer that cuts otherwise than its parts say")
        self._same: set[str] = set()
        self._other: set[str] = set()

    def are_same(self, text: str) -> bool:
        """Whether both engines read every character of `text` alike, and it needs no normalizing."""
        if text.isascii():
            return True
        for character in set(_ASCII.sub("", text)) - self._same:
            if character in self._other or not self._is_same(character):
                return False
        # Normal in Python's Unicode, of characters that it knows: so it is in every version (Unicode's stability policy).
        return not self._normalizes or unicodedata.is_normalized("NFC", text)

    def _is_same(self, character: str) -> bool:
        same = (
            unicodedata.category(character) not in ("Cn", "Cs")
            and self._bytes.issuperset(character.encode())
            and self._by_tokenizers(character) in self._known
            and self._by_tokenizers(character) == self._by_tiktoken(character)
        )
        (self._same if same else self._other).add(character)
        return same

    def _by_tokenizers(self, character: str) -> Cuts:
        pieces = self._pre_tokenizer.pre_tokenize_str(character.join(_AROUND))
        cuts = {end for _, (_, end) in pieces}
        return tuple(place in cuts for place in _places(1))

    def _by_tiktoken(self, character: str) -> Cuts:
        joins, place = set(), 0
        for rank in self._cutter.encode_ordinary(character.join(_AROUND)):
            if rank >= 256:
                joins.add(place + 1)
            place += 2 if rank >= 256 else 1
        return tuple(place not in joins for place in _places(len(character.encode())))


def _places(width: int) -> list[int]:
    """Where the occurrences of a character `width` long begin and end in the probe."""
    places: set[int] = set()
    place = 0
    for part in _AROUND[:-1]:
        place += len(part)
        places |= {place, place + width}
        place += width
    return sorted(places)

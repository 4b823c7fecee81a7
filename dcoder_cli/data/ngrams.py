"""Word n-grams as 64-bit numbers: what near-duplicate search and decontamination both compare.

Words are runs of letters and digits, in lower case; punctuation, white space and underscores only separate them.
"""

from __future__ import annotations

import re
from zlib import crc32

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_OTHERS = re.compile(r"[^\x00-\x7f]+")
_TO_SPACES = bytes(byte if byte > 127 or chr(byte).isalnum() else ord(" ") for byte in range(256))
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word is lost


def _words(text: str) -> list[bytes]:
    lowered = text.lower()
    if not lowered.isascii():
        lowered = _OTHERS.sub(lambda run: "".join(c if c.isalnum() else " " for c in run[0]), lowered)
    return lowered.encode().translate(_TO_SPACES).split()


def words(text: str) -> list[str]:
    """The words of `text`, in order."""
    return [word.decode() for word in _words(text)]


def word_codes(text: str) -> Hashes:
    """The words of `text`, each as a number: its crc32, the same on every machine, unlike Python's hash()."""
    found = _words(text)
    return np.fromiter(map(crc32, found), np.uint64, len(found))


def ngram_hashes(codes: Hashes, n: int) -> Hashes:
    """The hash of every run of `n` words, in order; empty where there are fewer than `n`."""
    count = len(codes) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(n):
        total *= _MULTIPLIER
        total += codes[place : place + count]
        total ^= total >> np.uint64(29)
    return total

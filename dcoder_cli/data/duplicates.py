"""Duplicates: exact ones by content hash, near ones by MinHash.

Near duplicates follow BigCode (StarCoder, arXiv 2305.06161, section 3; The Stack): word 5-grams, 256 permutations,
Jaccard similarity 0.7. OpenCoder (arXiv 2411.04905) also uses 5-grams. `copies.find` says which documents are whose copies.

Permutations and bands are those of datasketch 2 with seed 1, bit for bit; here because data must not change with the
version of a library, and because a batch of texts is sketched at once in an eighth of the time. Legend: N texts, P permutations, B bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.data.ngrams import Hashes, ngram_hashes

SHINGLE_WORDS = 5
PERMUTATIONS = 256
# Shorter texts have too few shingles for their overlap to mean anything (BigCode's near-dedup: 10 tokens).
SMALLEST_DOCUMENT = 10
_EMPTY = np.uint32(0xFFFFFFFF)

Signature = npt.NDArray[np.uint32]


def _permutations() -> tuple[Signature, Signature]:
    """Factors and offsets [P] of h -> factor * h + offset modulo 2**32; odd factors make it a permutation."""
    random = np.random.RandomState(1)  # numpy keeps this generator's stream for ever
    factors = random.randint(0, 2**31, PERMUTATIONS, np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, random.randint(0, 2**32, PERMUTATIONS, np.uint32)


def _mixed(hashes: Signature) -> Signature:
    """A bijection that spreads every bit over the others (MurmurHash3's finalizer), since the permutations are linear."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashes = (hashes ^ (hashes >> np.uint32(shift))) * np.uint32(factor)
    return hashes ^ (hashes >> np.uint32(16))


def signatures(texts: Sequence[Hashes]) -> Signature:
    """MinHash signatures [N, P] of texts given as `ngrams.word_codes`; of a very short text, all ones (`are_blank`)."""
    lowest_PN = np.full((PERMUTATIONS, len(texts)), _EMPTY)
    long = [index for index, codes in enumerate(texts) if len(codes) >= SMALLEST_DOCUMENT]
    if long:
        shingles = [(ngram_hashes(texts[index], SHINGLE_WORDS) >> np.uint64(32)).astype(np.uint32) for index in long]
        starts = np.cumsum([0, *map(len, shingles[:-1])])
        hashes = _mixed(np.concatenate(shingles))
        permuted = np.empty_like(hashes)
        for row, factor, offset in zip(lowest_PN, *_permutations(), strict=True):
            np.multiply(hashes, factor, out=permuted)
            np.add(permuted, offset, out=permuted)
            row[long] = np.minimum.reduceat(permuted, starts)
    return np.ascontiguousarray(lowest_PN.T)


def are_blank(signatures: Signature) -> npt.NDArray[np.bool_]:
    """[N] Whether a text was too short for its signature [N, P]."""
    return np.asarray((signatures == _EMPTY).all(1))


def whole_keys(signatures: Signature) -> npt.NDArray[np.uint64]:
    """128 bits [N, 2] that stand for a whole signature."""
    return np.stack([_key(signatures, salt) for salt in (1, 2)], 1)


def band_keys(signatures: Signature, number: int, rows: int) -> npt.NDArray[np.uint64]:
    """64 bits [N, B] that stand for each of `number` bands of `rows` places, and for which band it is."""
    return np.stack([_key(signatures[:, at * rows : (at + 1) * rows], 3 + at) for at in range(number)], 1)


def _key(columns: Signature, salt: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash [N] of rows, by splitmix64's constants."""
    mixed = np.full(len(columns), (salt * 0x9E3779B97F4A7C15) % 2**64, np.uint64)
    for column in columns.T:
        mixed ^= column
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(29))


def bands(threshold: float) -> tuple[int, int]:
    """Into how many bands of how many rows signatures are cut: two texts are compared if they agree in a whole band.

    Of all that fit, those for which the share of missed pairs above the threshold and of needless ones below, each
    averaged over similarities from 0 to 1, is smallest.
    """
    nodes, weights = np.polynomial.legendre.leggauss(256)
    choices = np.array([(b, r) for b in range(1, PERMUTATIONS + 1) for r in range(1, PERMUTATIONS // b + 1)])

    def integral(low: float, high: float, miss: bool) -> Any:
        similarity = (high - low) / 2 * nodes + (high + low) / 2
        missed = (1 - similarity ** choices[:, 1:]) ** choices[:, :1]
        return (high - low) / 2 * ((missed if miss else 1 - missed) @ weights)

    best = int(np.argmin(integral(0, threshold, False) + integral(threshold, 1, True)))
    return int(choices[best, 0]), int(choices[best, 1])

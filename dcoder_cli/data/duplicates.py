"""Duplicates: exact ones by content hash, near ones by MinHash.

Near duplicates follow BigCode (StarCoder, arXiv 2305.06161, section 3; The Stack): word 5-grams, 256 permutations,
Jaccard similarity 0.7. OpenCoder (arXiv 2411.04905) also uses 5-grams. The first document of a group is kept.

Permutations and bands are those of datasketch 2 with seed 1, bit for bit; here because data must not change with the
version of a library, and because a batch of texts is sketched at once in an eighth of the time. Legend: N texts, P permutations.
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
    """MinHash signatures [N, P] of texts given as `ngrams.word_codes`; of a very short text, all ones (`is_blank`)."""
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


def is_blank(signature: Signature) -> bool:
    """Whether a text was too short for a signature."""
    return bool((signature == _EMPTY).all())


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


class Duplicates:
    """Remembers the documents kept so far. Memory: 16 bytes a document, about 8 KB with near duplicates."""

    def __init__(self, exact: bool, threshold: float) -> None:
        self._exact, self._threshold = exact, threshold
        self._seen: dict[bytes, str] = {}
        self._kept: list[tuple[str, Signature]] = []
        if threshold:
            count, rows = bands(threshold)
            self._width = 4 * rows
            self._buckets: list[dict[bytes, list[int]]] = [{} for _ in range(count)]

    def check(self, name: str, content: bytes, signature: Signature | None) -> tuple[str, str] | None:
        """(reason, name of the first copy) where the document is to be dropped; None where it was kept and noted.

        Args:
            name: the document's name, unique in the run.
            content: hash of its content.
            signature: its MinHash signature [P], where near duplicates are looked for.
        """
        if self._exact:
            first = self._seen.setdefault(content, name)
            if first is not name:
                return "exact duplicate", first
        if self._threshold and signature is not None and not is_blank(signature):
            likest, most = self._likest(signature)
            if likest:
                return "near duplicate", f"{likest} ({most:.2f})"
            for bucket, key in zip(self._buckets, self._keys(signature), strict=True):
                bucket.setdefault(key, []).append(len(self._kept))
            self._kept.append((name, np.array(signature)))
        return None

    def _keys(self, signature: Signature) -> list[bytes]:
        raw = signature.tobytes()
        return [raw[at * self._width : (at + 1) * self._width] for at in range(len(self._buckets))]

    def _likest(self, signature: Signature) -> tuple[str, float]:
        """The kept document that is most similar, at least at the threshold, and how similar; the first by name of equals."""
        likest, most = "", 0.0
        near = {
            one for bucket, key in zip(self._buckets, self._keys(signature), strict=True) for one in bucket.get(key, ())
        }
        for other, of_other in sorted((self._kept[one] for one in near), key=lambda kept: kept[0]):
            similarity = float(np.count_nonzero(signature == of_other)) / PERMUTATIONS
            if similarity >= self._threshold and similarity > most:
                likest, most = other, similarity
        return likest, most

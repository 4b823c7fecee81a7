"""Duplicates: exact ones by content hash, near ones by MinHash.

Near duplicates follow BigCode (StarCoder, arXiv 2305.06161, section 3; The Stack): word 5-grams, 256 permutations,
Jaccard similarity 0.7. OpenCoder (arXiv 2411.04905) also uses 5-grams. The first document of a group is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.data.ngrams import Hashes, ngram_hashes

SHINGLE_WORDS = 5
PERMUTATIONS = 256
# Shorter texts have too few shingles for their overlap to mean anything (BigCode's near-dedup: 10 tokens).
SMALLEST_DOCUMENT = 10
_SHINGLES_AT_ONCE = 4096  # keeps the [shingles, permutations] table in the cache

Signature = npt.NDArray[Any]


class Signatures:
    """Makes MinHash signatures [256] uint32; needs `datasketch`."""

    def __init__(self) -> None:
        from datasketch import MinHash

        self._empty = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)

    def of(self, codes: Hashes) -> Signature:
        """The signature of a text given as `ngrams.word_codes`; of a very short text, all ones (`is_blank`)."""
        sketch = self._empty.copy()
        if len(codes) >= SMALLEST_DOCUMENT:
            shingles = np.unique(ngram_hashes(codes, SHINGLE_WORDS) >> np.uint64(32)).tolist()
            for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
                sketch.update_batch(shingles[start : start + _SHINGLES_AT_ONCE])
        return np.asarray(sketch.hashvalues).astype(np.uint32)

    def restore(self, signature: Signature) -> Any:
        """The `datasketch.MinHash` of a signature."""
        sketch = self._empty.copy()
        sketch.hashvalues = np.asarray(signature).astype(sketch.hashvalues.dtype)
        return sketch


def is_blank(signature: Signature) -> bool:
    """Whether a text was too short for a signature."""
    return bool((signature == np.uint32(0xFFFFFFFF)).all())


class Duplicates:
    """Remembers the documents kept so far. Memory: 16 bytes a document, about 5 KB with near duplicates."""

    def __init__(self, exact: bool, threshold: float) -> None:
        self._exact, self._threshold = exact, threshold
        self._seen: dict[bytes, str] = {}
        self._sketches: dict[str, Any] = {}
        if threshold:
            from datasketch import MinHashLSH

            self._signatures = Signatures()
            self._index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)

    def check(self, name: str, content: bytes, signature: Signature | None) -> tuple[str, str] | None:
        """(reason, name of the first copy) where the document is to be dropped; None where it was kept and noted.

        Args:
            name: the document's name, unique in the run.
            content: hash of its content.
            signature: its MinHash signature, where near duplicates are looked for.
        """
        if self._exact:
            first = self._seen.setdefault(content, name)
            if first is not name:
                return "exact duplicate", first
        if self._threshold and signature is not None and not is_blank(signature):
            sketch = self._signatures.restore(signature)
            likest, most = "", 0.0
            for other in sorted(self._index.query(sketch)):
                similarity = sketch.jaccard(self._sketches[other])
                if similarity >= self._threshold and similarity > most:
                    likest, most = other, similarity
            if likest:
                return "near duplicate", f"{likest} ({most:.2f})"
            self._index.insert(name, sketch)
            self._sketches[name] = sketch
        return None

"""Packing: documents, one after the other, cut into rows of equal length.

Every document ends with EOS. A document that does not fit goes on in the next row. The last row is filled up with EOS
as one more document, so nothing is lost and every row is full; the manifest counts these `padding_tokens`.
Legend: R rows, L row length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[Any]


class PackedRows(NamedTuple):
    """Some full rows: tokens [R, L], document_ids [R, L] uint16, and how many of the tokens only fill up."""

    tokens: Tokens
    document_ids: Tokens
    padding: int


def pack(documents: Iterable[Tokens], length: int, eos: int, dtype: Any, rows_at_once: int) -> Iterator[PackedRows]:
    """Pack token lists (without EOS) into rows, yielded `rows_at_once` at a time; the last yield may be shorter.

    `document_ids` count from 0 in each row. A document that goes on from the row before is 0 there.
    """
    capacity = rows_at_once * length
    stream = np.empty(capacity, dtype)
    owner = np.empty(capacity, np.int64)  # the running number of the document each token belongs to
    filled = 0
    number = -1
    end = np.array([eos], dtype)
    for number, document in enumerate(documents):
        for piece in (document, end):
            taken = 0
            while taken < len(piece):
                size = min(len(piece) - taken, capacity - filled)
                stream[filled : filled + size] = piece[taken : taken + size]
                owner[filled : filled + size] = number
                filled, taken = filled + size, taken + size
                if filled == capacity:
                    yield _rows(stream, owner, length, 0)
                    filled = 0
    if filled:
        padding = -filled % length
        stream[filled : filled + padding] = eos
        owner[filled : filled + padding] = number + 1
        yield _rows(stream[: filled + padding], owner[: filled + padding], length, padding)


def _rows(stream: Tokens, owner: Tokens, length: int, padding: int) -> PackedRows:
    owner_RL = owner.reshape(-1, length)
    document_ids_RL = (owner_RL - owner_RL[:, :1]).astype(np.uint16)
    return PackedRows(stream.reshape(-1, length).copy(), document_ids_RL, padding)


def unpack(rows: Iterable[Tokens], eos: int) -> Iterator[list[int]]:
    """The documents of packed rows, in order and without their EOS; the filling of the last row is left out.

    Works because the text of a document never becomes the EOS id: special tokens in it are read as plain text.
    """
    document: list[int] = []
    for row in rows:
        for token in row.tolist():
            if token != eos:
                document.append(token)
            elif document:
                yield document
                document = []
    if document:
        yield document

"""Packing: documents, one after the other, cut into rows of equal length.

Every document ends with EOS. A document that does not fit goes on in the next row. The last row is filled up with EOS
as one more document, so nothing is lost and every row is full; the manifest counts these `padding_tokens`. Rows may
begin with BOS, where a shifted model predicts nothing (as the paper has it; Dream's evaluation puts it there too).
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


def pack(
    documents: Iterable[Tokens], length: int, eos: int, dtype: Any, rows_at_once: int, bos: int | None = None
) -> Iterator[PackedRows]:
    """Pack token lists (without EOS) into rows, yielded `rows_at_once` at a time; the last yield may be shorter.

    `document_ids` count from 0 in each row. A document that goes on from the row before is 0 there. `bos` is put before
    each row and belongs to its first document.
    """
    if bos is not None:
        for rows in pack(documents, length - 1, eos, dtype, rows_at_once):
            yield PackedRows(_before(rows.tokens, bos), _before(rows.document_ids, 0), rows.padding)
        return
    capacity = rows_at_once * length
    end = np.array([eos], dtype)
    pieces: list[Tokens] = []
    owners: list[int] = []  # the running number of the document of each piece
    filled = 0
    number = -1
    for number, document in enumerate(documents):
        for piece in (document, end):
            while filled + len(piece) >= capacity:
                room = capacity - filled
                yield _rows([*pieces, piece[:room]], [*owners, number], length, 0, dtype)
                pieces, owners, filled, piece = [], [], 0, piece[room:]
            pieces.append(piece)
            owners.append(number)
            filled += len(piece)
    if filled:
        padding = -filled % length
        yield _rows([*pieces, np.full(padding, eos, dtype)], [*owners, number + 1], length, padding, dtype)


def _rows(pieces: list[Tokens], owners: list[int], length: int, padding: int, dtype: Any) -> PackedRows:
    tokens_RL = np.concatenate(pieces, dtype=dtype).reshape(-1, length)
    # A row of at most 65,536 tokens has as many documents, so differences of numbers modulo 65,536 are exact.
    numbers = (np.array(owners) % 2**16).astype(np.uint16)
    document_ids_RL = np.repeat(numbers, [len(piece) for piece in pieces]).reshape(-1, length)
    document_ids_RL -= document_ids_RL[:, :1].copy()
    return PackedRows(tokens_RL, document_ids_RL, padding)


def _before(columns_RL: Tokens, value: int) -> Tokens:
    return np.insert(columns_RL, 0, value, axis=1)


def unpack(rows: Iterable[Tokens], eos: int, bos: int | None = None) -> Iterator[list[int]]:
    """The documents of packed rows, in order and without their EOS; the filling of the last row is left out.

    Works because the text of a document never becomes the EOS id: special tokens in it are read as plain text.
    """
    document: list[int] = []
    for row in rows:
        for token in row.tolist()[bos is not None :]:
            if token != eos:
                document.append(token)
            elif document:
                yield document
                document = []
    if document:
        yield document

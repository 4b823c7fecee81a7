"""Safetensors files of whole numbers: the shards of a set, and the units of unfinished work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcoder_cli.base import checksums
from dcoder_cli.base.errors import UserError, one_line

_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I64": np.int64, "I32": np.int32}

Array = npt.NDArray[Any]


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest type that holds every id of a vocabulary."""
    return np.uint32 if vocab_size > 65_535 else np.uint16


def write_arrays(path: Path, arrays: Mapping[str, Array], note: Mapping[str, Any]) -> str:
    """As `write_hashed`; returns its sha256."""
    return write_hashed(path, arrays, note)["sha256"]


def write_hashed(path: Path, arrays: Mapping[str, Array], note: Mapping[str, Any]) -> dict[str, str]:
    """Write one safetensors file with `note` as its metadata. The same input gives the same bytes.

    Returns its `sha256`, and its `xxh3_128` where that can be computed here.

    Raises:
        OSError: with its errno, also where the disk is full.
    """
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"dcoder": json.dumps(note)})
    with open(path, "wb") as handle:  # Python's own write: numpy and safetensors lose the errno of a full disk
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    quick = checksums.fast()
    hashes = {"sha256": hashlib.sha256(data).hexdigest()}
    return hashes if quick is None else {**hashes, "xxh3_128": quick(data).hexdigest()}


@dataclass(frozen=True)
class ArrayPlace:
    """An array in a file: its type, its shape and the byte at which it begins."""

    dtype: type[Any]
    shape: tuple[int, ...]
    begin: int

    def map(self, path: str | Path) -> Array:
        """The array, not read before it is used. While it lives a file is open."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(path, self.dtype, "r", self.begin, self.shape)


@dataclass(frozen=True)
class ArrayFile:
    """The arrays of one safetensors file: where they stand, and mapped into memory. Nothing is read before it is used."""

    path: Path
    stored: dict[str, ArrayPlace]
    metadata: str

    @classmethod
    def open(cls, path: Path) -> ArrayFile:
        """Raises UserError, naming the file, where it is missing, truncated or not safetensors."""
        header, data_start = _read_header(path)
        metadata = header.pop("__metadata__", {}).get("dcoder", "{}")
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise UserError(
                    f"shard {str(path)!r} has {name} of type {entry['dtype']}; whole numbers are needed ({', '.join(_DTYPES)})"
                )
        stored = {
            name: ArrayPlace(_DTYPES[entry["dtype"]], tuple(entry["shape"]), data_start + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        return cls(path, stored, metadata)

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Each array, mapped."""
        return {name: stored.map(self.path) for name, stored in self.stored.items()}

    @property
    def note(self) -> dict[str, Any]:
        """What `write_arrays` was given, read anew."""
        loaded: dict[str, Any] = json.loads(self.metadata)
        return loaded


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                raise UserError(f"shard {str(path)!r} is truncated ({size} bytes); copy or make it again")
            header = json.loads(handle.read(length))
            end = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    except OSError as error:
        raise UserError(f"shard {str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"shard {str(path)!r} is not a safetensors file: {one_line(error)}") from None
    if size != end:
        raise UserError(
            f"shard {str(path)!r} is {'truncated' if size < end else 'longer than its header says'}: "
            f"{size} bytes, not {end}; copy or make it again"
        )
    return header, 8 + length

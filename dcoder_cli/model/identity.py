"""Which weights a checkpoint holds, told in milliseconds: what a measurement notes, and what a model card asks of it.

Not a checksum: two trainings, or two steps of one, differ in nearly every tensor, so a few kilobytes of each tell them apart.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dcoder_cli.model import adapters, checkpoint

_BYTES = 4096  # of each tensor; 1,024 float32 numbers


def weights_id(folder: Path) -> str:
    """SHA-256 (hex) over name, format, shape and first 4 KiB of every stored tensor; of an adapter alone over the adapter and what it lies on.

    The same however the tensors are spread over files; another after a training step or in another number format.

    Raises:
        UserError: a weights file is missing, truncated or not safetensors.
    """
    digest = hashlib.sha256()
    alone = adapters.stands_alone(folder)
    files = adapters.weight_files(folder) if alone else checkpoint.weight_files(folder)
    if alone:
        digest.update(adapters.base_of(folder).sha256.encode())
    for line in sorted(line for file in files for line in _tensors(file)):
        digest.update(line)
    return digest.hexdigest()


def _tensors(file: Path) -> list[bytes]:
    """A line a tensor: what it is, and the hash of its beginning."""
    lines = []
    try:
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header: dict[str, Any] = json.loads(handle.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    handle.seek(8 + length + begin)
                    start = handle.read(min(_BYTES, end - begin))
                    if len(start) < min(_BYTES, end - begin):
                        raise ValueError("the file ends early")
                    what = json.dumps([name, entry["dtype"], entry["shape"]]).encode()
                    lines.append(what + hashlib.sha256(start).digest())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        raise checkpoint.broken(file, error) from None
    return lines

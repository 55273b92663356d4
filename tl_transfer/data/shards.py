"""Files of a store: written whole or not at all, and mapped into memory when read.

A file gets its name only when all of it is on the disk, so a process may be killed at any moment.
Shards are safetensors; they are mapped here rather than loaded, so that single rows can be read
from files larger than memory, in their own dtype (numpy has no bfloat16).
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tl_transfer import sealed
from tl_transfer.errors import ArtefactError
from tl_transfer.files import write_atomic

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


def write_shard(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors as safetensors; returns the SHA-256 of the file.

    Raises:
        InputError: the disk is full or closed.
    """
    from safetensors.torch import save_file

    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return _publish(path, lambda temporary: save_file(plain, temporary))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with a checksum of itself.

    Raises:
        InputError: the disk is full or closed.
    """
    text = json.dumps(sealed.seal(value), allow_nan=False)
    _publish(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _publish(path: Path, write: Callable[[Path], object]) -> str:
    found = []

    def and_hash(temporary: Path) -> None:
        write(temporary)
        found.append(_to_disk(temporary))

    hint = "free some space and call capture again: it goes on after the last shard"
    write_atomic(path, and_hash, what="store", hint=hint)
    _folder_to_disk(path.parent)
    return found[0]


def _to_disk(path: Path) -> str:
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _folder_to_disk(path: Path) -> None:
    if os.name != "nt":  # a folder cannot be opened there
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        ArtefactError: no such file, no JSON object, or changed since it was written.
    """
    hint = "capture into another folder"
    return sealed.read_json(path, written_by="tl_transfer.capture (a store)", hint=hint)


def require_checksum(path: Path, sha256: str) -> None:
    """Refuse a file that is not what was written.

    Raises:
        ArtefactError: it is missing, shorter, or changed.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        found = str(error)
    if found != sha256:
        raise ArtefactError(
            f"{path}: contents changed since they were captured",
            got=found,
            valid=f"SHA-256 {sha256}",
            hint="delete the file and capture again: what is sound is kept",
        )


def map_shard(path: Path) -> dict[str, Tensor]:
    """Tensors of a shard, read from the disk when they are used. Do not write into them.

    Raises:
        ArtefactError: not such a file.
    """
    try:
        return _mapped(path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ArtefactError(
            f"{path}: not a readable shard of a store",
            got=f"{type(error).__name__}: {error}"[:200],
            valid="a file written by tl_transfer.capture",
            hint="delete the file and capture again: what is sound is kept",
        ) from error


def _mapped(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:  # before so much memory is asked for
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    # Copy on write: torch wants writable memory, and the file must never change.
    data = np.memmap(path, dtype=np.uint8, mode="c", offset=8 + length)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            flat = torch.from_numpy(data[start:end]).view(_DTYPES[entry["dtype"]])
            found[name] = flat.view(entry["shape"])
    return found

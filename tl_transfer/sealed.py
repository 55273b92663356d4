"""Sealed files: a SHA-256 over everything a file says, so that no changed byte is taken for truth.

A JSON value carries the hash of the rest of it. Tensors are kept as safetensors whose header is
such a value, and its hash covers names, dtypes, shapes and bytes of the tensors as well.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_transfer.errors import ArtefactError
from tl_transfer.files import write_atomic

#: Key of the hash.
SEAL = "sha256"
_HEADER = "tl_transfer"
#: What code meets in a file that parses and says something impossible.
MALFORMED = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError)


def seal(value: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object with the hash of itself and of tensors that belong to it.

    Args:
        value: JSON object; a hash that is in it is replaced.
        tensors: Name -> tensor.
    """
    bare = {key: part for key, part in value.items() if key != SEAL}
    return {**bare, SEAL: _hash(bare, tensors or {})}


def is_sound(value: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> bool:
    """Whether a value still is what was sealed; one without a hash is not."""
    return value.get(SEAL) == seal(value, tensors)[SEAL]


def write_json(path: Path, value: Mapping[str, Any], **style: Any) -> Path:
    """Write a sealed JSON object; `style` goes to `json.dumps`.

    Raises:
        InputError: the folder cannot be written.
    """
    text = json.dumps(seal(value), **style) + "\n"
    return write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path, *, written_by: str, hint: str) -> dict[str, Any]:
    """Read what `write_json` wrote, without its hash.

    Args:
        path: The file.
        written_by: What writes such files, for the message.
        hint: What to do about a damaged one.

    Raises:
        ArtefactError: no such file, no JSON object, or not what was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error, written_by, hint) from error
    return unsealed(path, value, written_by=written_by, hint=hint)


def unsealed(path: Path, value: Any, *, written_by: str, hint: str) -> dict[str, Any]:
    """A JSON object that was read, without its hash.

    One without a hash is taken as it is: earlier versions wrote none, and no single changed bit can
    hide a hash and change what it covers.

    Raises:
        ArtefactError: it is no object, or not what was written.
    """
    if not isinstance(value, dict):
        raise _unreadable(path, type(value).__name__, written_by, hint)
    if SEAL in value and not is_sound(value):
        raise changed(path, value[SEAL], hint)
    return {key: part for key, part in value.items() if key != SEAL}


def write_tensors(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Any]) -> Path:
    """Write tensors with a sealed header as safetensors.

    Raises:
        InputError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    plain: dict[str, Any] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses two names for one piece of memory; a reader gets a copy of each.
        shared = any(tensor.data_ptr() == other.data_ptr() for other in plain.values())
        plain[name] = tensor.clone() if shared else tensor
    text = json.dumps(seal(header, plain), sort_keys=True, allow_nan=False)
    return write_atomic(path, lambda part: save_file(plain, part, {_HEADER: text}))


def read_tensors(
    path: Path, *, written_by: str, hint: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header, with its hash, and tensors; compare them with `require_sound`.

    Args:
        path: The file.
        written_by: What writes such files, for the message.
        hint: What to do about a damaged one.

    Raises:
        ArtefactError: no such file, or not one of `write_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        while True:
            before = _require_plausible(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # safetensors opens a file twice: a writer may have put another one there in between.
            if _identity(path.stat()) == before:
                break
        header = json.loads(metadata[_HEADER])
        if not isinstance(header, dict):
            raise ValueError(f"a header that is {type(header).__name__}")
    except (SafetensorError, OSError, ValueError, KeyError, struct.error, RecursionError) as error:
        raise _unreadable(path, error, written_by, hint) from error
    return header, tensors


def require_sound(
    path: Path, header: Mapping[str, Any], tensors: Mapping[str, Any], *, hint: str
) -> None:
    """Refuse what is not what was sealed.

    Raises:
        ArtefactError: header or tensors differ from what was written.
    """
    if not is_sound(header, tensors):
        raise changed(path, header.get(SEAL), hint)


def changed(path: Path, expected: Any, hint: str) -> ArtefactError:
    """The error for contents that are not those of the hash."""
    return ArtefactError(
        f"{path}: contents changed since it was saved",
        got="checksum mismatch",
        valid=expected,
        hint=f"the file is damaged; {hint}",
    )


def _unreadable(path: Path, error: object, written_by: str, hint: str) -> ArtefactError:
    kind = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    return ArtefactError(
        f"{path}: not a readable file of {written_by}",
        got=kind[:400],
        valid=f"a complete file written by {written_by}",
        hint=f"it may be truncated or from another tool; {hint}",
    )


def _require_plausible(path: Path) -> tuple[int, int]:
    """Refuse a corrupt length field, which would ask for memory; the identity of the file."""
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        (length,) = struct.unpack("<Q", file.read(8))
    if length > about.st_size - 8:
        raise ValueError(f"header of {length} bytes in a file of {about.st_size}")
    return _identity(about)


def _identity(about: os.stat_result) -> tuple[int, int]:
    """A file that was put in the place of another has another one."""
    return about.st_ino, about.st_mtime_ns


def _hash(value: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, and over the value."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    if value:
        # Twice through JSON: what is compared is what a reader gets (lists, text as keys).
        plain = json.loads(json.dumps(value))
        digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()


def _bytes(tensor: Any) -> memoryview:
    import torch  # only here: reading a report needs none

    data: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data

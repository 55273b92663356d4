"""One file format for vectors and maps: safetensors with a JSON header; never a pickle.

The header names the kind, the format version and the spaces; tensors are checked by a SHA-256.
Files are written under a temporary name and renamed, so that a crash leaves the old file or none.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.features.map import FeatureMap, pack_features, unpack_features
from tl_transfer.files import write_atomic
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.packing import MAPS, pack_map, pack_sums, unpack_map, unpack_sums
from tl_transfer.mappers.sums import Sums
from tl_transfer.packing import KINDS, AnyVector, pack, unpack

FORMAT = 1
_KEY = "tl_transfer"

#: Everything that can be saved.
Artefact = AnyVector | Mapper | Sums | FeatureMap


def save(artefact: Artefact, path: str | Path) -> Path:
    """Write a vector of any kind, a map, sums, or a feature map.

    Args:
        artefact: `SteeringVector`, `VectorSet`, `Subspace`, `Probe`, `PositionVectors`, or
            a map (with its shuffled control and its way back), `Sums`, or a `FeatureMap`.
        path: File name, by convention ``*.safetensors``.

    Returns:
        The path.

    Raises:
        InputError: something that cannot be saved, or a folder that cannot be written to.
    """
    if isinstance(artefact, AnyVector):
        header, tensors = pack(artefact)
    elif isinstance(artefact, Mapper):
        header, tensors = pack_map(artefact)
    elif isinstance(artefact, Sums):
        header, tensors = pack_sums(artefact)
    elif isinstance(artefact, FeatureMap):
        header, tensors = pack_features(artefact)
    else:
        raise InputError(
            "artefact: cannot be saved",
            got=type(artefact).__name__,
            valid=", ".join(
                kind.__name__ for kind in (*KINDS.values(), *MAPS.values(), Sums, FeatureMap)
            ),
            hint="reports have save_json and save_html",
        )
    return write_artefact(path, header, tensors)


def write_artefact(path: str | Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write a header and tensors, with format version and checksum, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**header, "format": FORMAT, "sha256": _digest(tensors)}
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    return write_atomic(path, lambda temporary: save_file(tensors, temporary, {_KEY: text}))


def load(path: str | Path) -> Artefact:
    """Read what `save` wrote: a vector of any kind, a map, sums, or a feature map.

    Raises:
        ArtefactError: not ours, another format version, truncated, or changed since it was saved.
    """
    path = Path(path)
    header, tensors = read_artefact(path)
    kinds: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Artefact]]
    kinds = {**dict.fromkeys(KINDS, unpack), **dict.fromkeys(MAPS, unpack_map)}
    kinds |= {"sums": unpack_sums, "feature_map": unpack_features}
    read = kinds.get(str(header.get("kind")))
    if read is None:
        raise ArtefactError(
            f"{path}: unknown kind of artefact",
            got=repr(header.get("kind")),
            valid=", ".join(kinds),
            hint="was it saved by a newer version?",
        )
    try:
        return read(header, tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(
            f"{path}: the header does not describe its contents",
            got=repr(error),
            valid="a file written by tl_transfer.save",
            hint="make the artefact again",
        ) from error


def read_artefact(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Inverse of `write_artefact`.

    Raises:
        ArtefactError: not ours, another format version, truncated, or changed since it was saved.
    """
    if not path.is_file():
        raise ArtefactError(
            f"{path}: no such file",
            got="nothing",
            valid="a .safetensors file",
            hint="check the path",
        )
    from safetensors import SafetensorError, safe_open

    try:
        _require_plausible_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata[_KEY])
    except (SafetensorError, OSError, ValueError, KeyError, struct.error) as error:
        raise ArtefactError(
            f"{path}: not a readable artefact of tl_transfer",
            got=f"{type(error).__name__}: {error}",
            valid="a complete file written by tl_transfer.save",
            hint="it may be truncated or from another tool; make it again",
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise ArtefactError(
            f"{path}: another format version",
            got=found,
            valid=FORMAT,
            hint="read it with the version of tl_transfer that wrote it",
        )
    if header.get("sha256") != _digest(tensors):
        raise ArtefactError(
            f"{path}: contents changed since it was saved",
            got="checksum mismatch",
            valid=header.get("sha256"),
            hint="the file is damaged; make it again",
        )
    return header, tensors


def _require_plausible_header(path: Path) -> None:
    """A corrupt length field must not make anybody allocate memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise ValueError(f"header of {length} bytes in a file of {size}")


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data)
    return digest.hexdigest()

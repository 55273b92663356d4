"""One file format for vectors and maps: safetensors with a JSON header; never a pickle.

The header names the kind, the format version and the spaces; a SHA-256 covers it and the tensors.
Files are written in a private folder and renamed, so that a crash leaves the old file or none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from tl_transfer.errors import ArtefactError, InputError, TransferError
from tl_transfer.features.map import FeatureMap, pack_features, unpack_features
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.packing import MAPS, pack_map, pack_sums, unpack_map, unpack_sums
from tl_transfer.mappers.sums import Sums
from tl_transfer.packing import KINDS, AnyVector, pack, unpack
from tl_transfer.sealed import MALFORMED, SEAL, read_tensors, require_sound, write_tensors

#: In format 1 the checksum covered the tensors alone.
FORMAT = 2
_DAMAGED = "make it again"

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
    return write_tensors(Path(path), header | {"format": FORMAT}, tensors)


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
    except TransferError:
        raise
    except MALFORMED as error:
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
    header, tensors = read_tensors(path, written_by="tl_transfer.save", hint=_DAMAGED)
    number = header.get("format")
    if number not in (1, FORMAT):
        raise ArtefactError(
            f"{path}: another format version",
            got=number,
            valid=FORMAT,
            hint="read it with the version of tl_transfer that wrote it",
        )
    # No single changed bit makes a 1 of a 2.
    covered = {SEAL: header.get(SEAL)} if number == 1 else header
    require_sound(path, covered, tensors, hint=_DAMAGED)
    return header, tensors

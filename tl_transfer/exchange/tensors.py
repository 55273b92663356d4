"""Plain safetensors: one tensor a hook point, named after it, readable by anything.

Unlike `save`, which keeps everything in one checked file, this is for other people's tools. Our
files carry the spaces as metadata, which such tools ignore.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.exchange.identity import as_set, identified, scaled, without_empty
from tl_transfer.files import write_atomic
from tl_transfer.models.surface import Site
from tl_transfer.sealed import SEAL, changed, is_sound, seal
from tl_transfer.vectors import SteeringVector, VectorSet


def write_tensors(
    vectors: SteeringVector | VectorSet, path: str | Path, *, strength: float | None = None
) -> Path:
    """Write directions as safetensors: ``blocks.9.hook_resid_post`` -> [d_model], float32.

    Args:
        vectors: One or several.
        path: By convention ``*.safetensors``.
        strength: Write what ``Add(vector, strength)`` adds; None writes the vectors as they are.
    """
    from safetensors.torch import save_file

    chosen = as_set(vectors)
    tensors = {name: scaled(vector, strength).contiguous() for name, vector in chosen.items()}
    about = {
        name: {"median_norm": v.median_norm, **v.space.to_json()} for name, v in chosen.items()
    }
    metadata = {"format": "pt", "spaces": json.dumps(about, sort_keys=True)}
    metadata[SEAL] = seal({}, tensors)[SEAL]
    return write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def read_tensors(
    path: str | Path,
    sites: Site | Mapping[str, Site],
    *,
    median_norm: float | None = None,
    texts: Sequence[str] | None = None,
) -> VectorSet:
    """Read directions from any safetensors file.

    Args:
        path: The file.
        sites: Where each tensor lives, by its name: ``{"layer_9": model.at("resid_post@9")}``; or
            one site for the only tensor. Tensors that are not named are left alone.
        median_norm: Unit of strength, the same for all.
        texts: Otherwise: texts to measure it on.

    Raises:
        ArtefactError: not a readable safetensors file.
        InputError: a name that is not in it, or a tensor of another width.
    """
    path = Path(path)
    found = _read(path)
    if isinstance(sites, Site):
        if len(found) != 1:
            raise InputError(
                "sites: the file holds several tensors, and each needs its place",
                got=", ".join(found)[:120],
                valid="{name: model.at(...)}",
                hint="name those that you want",
            )
        sites = {next(iter(found)): sites}
    missing = [name for name in sites if name not in found]
    if missing:
        raise InputError(
            "sites: not in the file",
            got=", ".join(missing)[:120],
            valid=", ".join(found)[:400],
            hint="use the names of the tensors",
        )
    kept = without_empty({name: found[name] for name in sites})
    arrays = {sites[name]: tensor.squeeze() for name, tensor in kept.items()}
    return identified(
        arrays,
        median_norm=median_norm,
        texts=texts,
        method="imported tensor",
        provenance={"file": path.name},
    )


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in sorted(file.keys())}
            written = (file.metadata() or {}).get(SEAL)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ArtefactError(
            f"{path}: not a readable safetensors file",
            got=f"{type(error).__name__}: {error}"[:200],
            valid="a complete .safetensors file",
            hint="a pickle (.pt, .bin) is not opened here; convert it where you trust it",
        ) from error
    # Files of other tools have no checksum.
    if written is not None and not is_sound({SEAL: written}, found):
        raise changed(path, written, "write it again")
    return found

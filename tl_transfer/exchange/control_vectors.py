"""Control vectors in GGUF: the format of llama.cpp, and of repeng and others that write for it.

``direction.L`` is added to the output of block L, counted from 0: our ``resid_post@L``. repeng
reads its layer L from ``hidden_states[L + 1]``, which is the same place, except for the last layer,
where Hugging Face has applied the final norm to what repeng reads (it adds before the norm).
llama.cpp has no slot for layer 0 and refuses a file that holds ``direction.0``.

Both add at every token, the attention sink at position 0 included: `everywhere(sinks=True)`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tl_transfer.errors import ArtefactError, InputError, SpaceError
from tl_transfer.exchange import gguf_format
from tl_transfer.exchange.identity import as_set, identified, scaled, without_empty
from tl_transfer.files import write_atomic
from tl_transfer.models.surface import HookedModel
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors import SteeringVector, VectorSet

_ARCHITECTURE = "controlvector"
_OURS = "tl_transfer.vectors"


def write_control_vector(
    vectors: SteeringVector | VectorSet,
    path: str | Path,
    *,
    strength: float | None = None,
    model_hint: str | None = None,
) -> Path:
    """Write vectors as a control-vector GGUF file.

    The file also holds the spaces and units of the vectors, which other tools skip, so that
    `read_control_vector` gives the same vectors back. Offsets (`origin`) are not kept.

    Args:
        vectors: One or several, read at ``resid_post`` of layer 1 or later.
        path: By convention ``*.gguf``.
        strength: Scale 1 in llama.cpp then equals ``Add(vector, strength)``; None writes the
            vectors as they are.
        model_hint: Name of the architecture that tools show; default the model's name.

    Raises:
        InputError: a vector of another hook point.
    """
    from gguf import GGUFWriter

    chosen = as_set(vectors)
    layers = {_layer(vector.space.hook_point): vector for vector in chosen.values()}
    directions = {layer: scaled(vector, strength) for layer, vector in layers.items()}
    first = next(iter(chosen.values()))
    identity = {
        str(layer): {
            "space": vector.space.to_json(),
            "median_norm": vector.median_norm,
            "method": vector.method,
            "provenance": vector.provenance,
            "strength": strength,
        }
        for layer, vector in layers.items()
    }

    def write(temporary: Path) -> None:
        writer = GGUFWriter(temporary, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_hint or first.space.model)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(layers))
        writer.add_string(_OURS, json.dumps(identity, sort_keys=True, allow_nan=False))
        for layer, direction in directions.items():
            numbers = np.ascontiguousarray(direction.numpy(), dtype=np.float32)
            writer.add_tensor(f"direction.{layer}", numbers)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write_atomic(path, write)


def read_control_vector(
    path: str | Path,
    model: HookedModel | None = None,
    *,
    median_norm: float | None = None,
    texts: Sequence[str] | None = None,
) -> VectorSet:
    """Read a control-vector GGUF file.

    Args:
        path: A file of llama.cpp, repeng or another tool, or one of ours.
        model: The model that the vectors are for: they become directions of its ``resid_post``.
            A file of ours knows its spaces; then it may be left out, and is checked if given.
        median_norm: Unit of strength, the same for all layers; not for files of ours.
        texts: Otherwise: texts to measure it on, layer by layer.

    Returns:
        The vectors as they are in the file: ``Add(v, v.natural_strength)`` is scale 1. Layers whose
        direction is zero are left out.

    Raises:
        ArtefactError: not a readable control-vector file.
        InputError: no model for a file without identity, or a layer or width it does not have.
        SpaceError: a file of ours for another model.
    """
    path = Path(path)
    contents = gguf_format.read(path)
    architecture = contents.entries.get("general.architecture")
    if architecture != _ARCHITECTURE:
        raise ArtefactError(
            f"{path}: a GGUF file, but no control vector",
            got=f"architecture {architecture!r}",
            valid=repr(_ARCHITECTURE),
            hint="load_model reads models",
        )
    directions = _directions(path, contents.tensors)
    if _OURS in contents.entries:
        return _ours(path, contents.entries[_OURS], directions, model)
    if model is None:
        raise InputError(
            "model: the file does not say which model its vectors belong to",
            got=f"model_hint {contents.entries.get('controlvector.model_hint')!r}",
            valid="the HookedModel they were made on",
            hint="read_control_vector(path, model, texts=[...])",
        )
    sites = {}
    for layer, direction in without_empty({str(k): v for k, v in directions.items()}).items():
        site = model.at(f"resid_post@{layer}")
        if direction.shape != (model.d_model,):
            raise InputError(
                f"model: {path.name} was made on a model of another width",
                got=f"direction.{layer} of shape {tuple(direction.shape)}",
                valid=f"({model.d_model},) for {model.name}",
                hint="load the model that the vectors were made on",
            )
        sites[site] = direction
    hint = contents.entries.get("controlvector.model_hint")
    return identified(
        sites,
        median_norm=median_norm,
        texts=texts,
        method="imported control vector",
        provenance={"file": path.name, "model_hint": hint if isinstance(hint, str) else None},
    )


def _layer(hook_point: str) -> int:
    """Layer of a vector that llama.cpp can add."""
    _, layer, kind = hook_point.split(".")
    if kind != "hook_resid_post" or layer == "0":
        raise InputError(
            "vectors: llama.cpp adds to the output of blocks 1 and later, and to nothing else",
            got=hook_point,
            valid="blocks.L.hook_resid_post, L at least 1",
            hint="leave this one out: llama.cpp refuses a whole file for one direction of layer 0"
            if layer == "0"
            else "other places: write_tensors, or write_hook_recipe",
        )
    return int(layer)


def _directions(path: Path, tensors: dict[str, Tensor]) -> dict[int, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        prefix, _, number = name.partition(".")
        if (
            prefix != "direction"
            or not (number.isascii() and number.isdecimal())
            or tensor.ndim != 1
        ):
            raise ArtefactError(
                f"{path}: a tensor that is no direction",
                got=f"{name!r} {tuple(tensor.shape)}"[:120],
                valid="direction.0, direction.1, ..., one-dimensional",
                hint="is it a control vector?",
            )
        found[int(number)] = tensor
    if not found or len(found) < len(tensors):
        raise ArtefactError(
            f"{path}: no directions, or one layer twice",
            got=", ".join(tensors)[:120],
            valid="one tensor a layer",
            hint="export it again",
        )
    return dict(sorted(found.items()))


def _ours(
    path: Path, text: Any, directions: dict[int, Tensor], model: HookedModel | None
) -> VectorSet:
    """A file that says what it holds."""
    try:
        identity = json.loads(text)
        vectors = []
        for layer, direction in directions.items():
            about = identity[str(layer)]
            space = ActivationSpace.from_json(about["space"])
            if space.hook_point != f"blocks.{layer}.hook_resid_post":
                raise ValueError(f"direction.{layer} for {space.hook_point}")
            vectors.append(
                SteeringVector(
                    direction.clone(),
                    space,
                    float(about["median_norm"]),
                    about["method"],
                    about["provenance"],
                )
            )
        found = VectorSet.of(*vectors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, SpaceError):
            raise
        raise ArtefactError(
            f"{path}: what the file says of its vectors does not fit them",
            got=f"{type(error).__name__}: {error}"[:200],
            valid="a file written by write_control_vector",
            hint="export it again",
        ) from error
    if model is not None:
        for vector in found.values():
            model.at(vector.space.hook_point).space.require(vector.space, "vectors of this file")
    return found

"""A direction from elsewhere gets an identity here: a space, and a unit of strength.

Files of other tools hold numbers only. Which model, which layer and which processing they belong
to must be said by whoever imports them; nothing is guessed.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.models.contrast import read_texts
from tl_transfer.models.surface import Site
from tl_transfer.vectors import SteeringVector, VectorSet

#: Norms below this share of the largest are taken for "no vector at this layer".
_NOTHING = 1e-12


def from_array(
    array: Any,
    site: Site,
    *,
    median_norm: float | None = None,
    texts: Sequence[str] | None = None,
    method: str = "imported",
    provenance: dict[str, Any] | None = None,
) -> SteeringVector:
    """A steering vector from plain numbers.

    Args:
        array: As wide as the residual stream: a tensor, a numpy array, a list of numbers.
        site: Where it lives, ``model.at("resid_post@9")``.
        median_norm: Unit of strength at the site, if it is known.
        texts: Otherwise: texts to measure it on.
        method: How the direction was made, in a word.
        provenance: What is known of it (JSON).

    Raises:
        InputError: another width, numbers that are not finite, both or neither of `median_norm`
            and `texts`.
    """
    named = {site: array}
    unit = norms(list(named), median_norm, texts)
    return _vector(array, site, unit[site.point.name], method, provenance or {})


def identified(
    arrays: dict[Site, Any],
    *,
    median_norm: float | None,
    texts: Sequence[str] | None,
    method: str,
    provenance: dict[str, Any],
) -> VectorSet:
    """Several directions of one model as a set; the unit is measured in one pass over the texts."""
    unit = norms(list(arrays), median_norm, texts)
    return VectorSet.of(
        *(
            _vector(array, site, unit[site.point.name], method, provenance)
            for site, array in arrays.items()
        )
    )


def without_empty(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The directions that are not zero; tools pad layers they leave alone with zeros."""
    largest = max((float(array.norm()) for array in arrays.values()), default=0.0)
    kept = {name: a for name, a in arrays.items() if float(a.norm()) > _NOTHING * largest}
    if not kept:
        raise InputError(
            "vectors: every direction is zero",
            got=f"{len(arrays)} directions",
            valid="at least one that is not zero",
            hint="was the file written before the vectors were trained?",
        )
    return kept


def as_set(vectors: SteeringVector | VectorSet) -> VectorSet:
    """One vector is a set of one."""
    if isinstance(vectors, SteeringVector):
        return VectorSet.of(vectors)
    if isinstance(vectors, VectorSet):
        return vectors
    raise InputError(
        "vectors: not something that can be exported",
        got=type(vectors).__name__,
        valid="SteeringVector or VectorSet",
        hint="VectorSet.of(v1, v2) joins vectors of several layers",
    )


def scaled(vector: SteeringVector, strength: float | None) -> Tensor:
    """What a tool adds at its coefficient 1: the vector as it is, or at a strength of ours."""
    if strength is None:
        return vector.direction.detach().float().cpu()
    if not math.isfinite(strength) or strength == 0:
        raise InputError(
            "strength: must be finite and not zero",
            got=strength,
            valid="the strength that coefficient 1 of the other tool is to have",
            hint="leave it out to write the vector as it is",
        )
    return (strength * vector.median_norm * vector.unit).detach().float().cpu()


def _vector(
    array: Any, site: Site, median_norm: float, method: str, provenance: dict[str, Any]
) -> SteeringVector:
    try:
        direction = torch.as_tensor(array).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "array: not numbers",
            got=f"{type(array).__name__}: {error}",
            valid="a tensor, a numpy array or a list of numbers",
            hint="pass one direction",
        ) from error
    return SteeringVector(direction.clone(), site.space, median_norm, method, dict(provenance))


def norms(
    sites: list[Site], median_norm: float | None, texts: Sequence[str] | None
) -> dict[str, float]:
    """Hook point -> unit of strength."""
    if (median_norm is None) == (texts is None):
        raise InputError(
            "median_norm, texts: exactly one is needed for the unit of strength",
            got="both" if texts is not None else "neither",
            valid="texts=[...] to measure it on, or median_norm=...",
            hint="some twenty ordinary sentences are enough",
        )
    if texts is None:
        assert median_norm is not None
        return {site.point.name: float(median_norm) for site in sites}
    model = sites[0].model
    read = read_texts(model, [site.point for site in sites], texts)
    return {site.point.name: read[site.point.name].median_norm for site in sites}

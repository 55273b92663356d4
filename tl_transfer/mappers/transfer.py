"""transfer: a steering vector through a map, into the units of the target."""

import torch

from tl_transfer.errors import InputError
from tl_transfer.mappers.base import AffineMap
from tl_transfer.vectors import SteeringVector


def transfer(vector: SteeringVector, mapper: AffineMap) -> SteeringVector:
    """Push a direction through a map: v_t = v_s W, with no bias (it cancels in a difference).

    The length is matched in units of the median residual norm, ``|v_t| = |v_s| m_t / m_s``: least
    squares shrinks what it predicts badly, so the mapped length says how good the map is, not how
    strong the behaviour is. Sign and direction are the map's.

    Args:
        vector: A vector in the map's source space.
        mapper: A fitted map.

    Returns:
        A vector in the target space; provenance keeps the mapped length before matching
        (``gain``: mapped over matched) and, when the held-out rows are at hand, the share of
        variance the map explains along this direction (``direction_r2``).

    Raises:
        SpaceError: the vector does not live in the map's source space.
        InputError: contrast texts of the vector are among the texts the map was fitted on. Such a
            transfer is perfect for any labels, random ones included, and shows nothing.
    """
    mapper.source.require(vector.space, "steering vector through this map")
    shared = set(vector.provenance.get("texts", ())) & mapper.fit_texts
    if shared:
        raise InputError(
            "vector: its contrast texts are among the texts the map was fitted on",
            got=f"{len(shared)} shared texts",
            valid="no shared text: a map that saw them transfers any labels, even random ones",
            hint="fit the map on other texts, or extract the vector from other prompts",
        )
    mapped = mapper.map_direction(vector.direction)
    # Both medians over the same fitting texts, so that their ratio is that of the spaces.
    matched = float(vector.norm) * mapper.target_norm / mapper.source_norm
    length = float(mapped.norm())
    if not torch.isfinite(mapped).all() or length == 0.0:
        raise InputError(
            "vector: the map sends it to zero",
            got=f"mapped norm {length}",
            valid="a direction the map carries",
            hint="a mean-only or untrained map cannot transfer directions",
        )
    provenance = {
        **vector.provenance,
        "transferred_from": vector.space.to_json(),
        "extraction": vector.method,
        "mapper": mapper.method,
        "gain": length / matched,
        "direction_r2": mapper.direction_r2(mapped),
    }
    return SteeringVector(
        mapped * (matched / length), mapper.target, mapper.target_norm, "transferred", provenance
    )

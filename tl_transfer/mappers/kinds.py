"""How each kind of vector moves: what is written goes forward, what is read comes back."""

from dataclasses import replace

import torch

from tl_transfer.errors import InputError
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.push import Rules, provenance_of, push, push_point, require_fit
from tl_transfer.vectors import PositionVectors, Probe, SteeringVector, Subspace
from tl_transfer.vectors.subspace import orthonormal


def direction(vector: SteeringVector, mapper: Mapper, rules: Rules) -> SteeringVector:
    """v_t = T(v), with the length of the norm rule; the origin moves as a point."""
    require_fit(vector.space, vector.provenance, mapper, "steering vector")
    moved, record = push(vector.direction, mapper, rules, origin=vector.origin)
    provenance = provenance_of(vector.provenance, vector.space, vector.method, mapper) | record
    return SteeringVector(
        moved,
        mapper.target,
        mapper.target_norm,
        "transferred",
        provenance,
        push_point(vector.origin, mapper),
    )


def subspace(vectors: Subspace, mapper: Mapper, rules: Rules) -> Subspace:
    """Span of the mapped basis, orthonormal again in the same order.

    A map tilts directions towards each other; ``independence`` is the smallest share of a mapped
    basis direction that is not in the span of those before it (1: all still orthogonal).
    """
    require_fit(vectors.space, vectors.provenance, mapper, "subspace")
    pushed = [
        push(row * vectors.median_norm, mapper, rules, origin=vectors.origin, what="basis")
        for row in vectors.basis
    ]
    rows = torch.stack([torch.nn.functional.normalize(moved, dim=0) for moved, _ in pushed])
    basis, triangle = orthonormal(rows)
    independence = float(triangle.diagonal().abs().min())
    if independence < 1e-3:
        raise InputError(
            "subspace: the map sends its directions into fewer dimensions",
            got=f"{independence:.1e} of a direction is its own after mapping",
            valid="a map whose rank is well above that of the subspace",
            hint="map fewer directions, or use a map of higher rank",
        )
    provenance = provenance_of(vectors.provenance, vectors.space, vectors.method, mapper)
    provenance |= {
        "independence": independence,
        "rule": pushed[0][1]["rule"],
        "direction_r2": [record["direction_r2"] for _, record in pushed],
    }
    return Subspace(
        basis,
        mapper.target,
        mapper.target_norm,
        "transferred",
        provenance,
        push_point(vectors.origin, mapper),
    )


def probe(vector: Probe, mapper: Mapper, rules: Rules) -> Probe:
    """Read direction pulled back with the backward regression, write direction pushed forward.

    The moved probe scores the source activation predicted from the target's: on average it says
    what the source probe would say.
    """
    require_fit(vector.space, vector.provenance, mapper, "probe")
    write, record = push(vector.write, mapper, rules, origin=vector.origin, what="write")
    read = mapper.pull_back(vector.read)
    gain = float(read.double() @ write.double())
    if not gain > 0:
        raise InputError(
            "probe: behind this map, writing no longer raises what is read",
            got=f"read . write = {gain:.3g}, R^2 along write {record['direction_r2']}",
            valid="a map that carries the direction there and back",
            hint="transfer(probe.vector, mapper) moves the write direction alone; a map with a "
            "better score card moves both",
        )
    return Probe(
        read,
        vector.bias + float(mapper.pull_back_offset(vector.read)),
        write,
        mapper.target,
        mapper.target_norm,
        "transferred",
        provenance_of(vector.provenance, vector.space, vector.method, mapper) | record,
        vector.threshold,
        push_point(vector.origin, mapper),
    )


def positions(vectors: PositionVectors, mapper: Mapper, rules: Rules) -> PositionVectors:
    """Every token's direction by itself; they are placed by bytes, so any tokenizer can use them.

    The relative lengths of the tokens' directions are kept under ``norm="relative"``.
    """
    require_fit(vectors.space, vectors.provenance, mapper, "position vectors")
    # A token at which both prompts were equal has nothing to move.
    nothing = (
        torch.zeros(mapper.target.d_model),
        {"rule": None, "gain": None, "direction_r2": None},
    )
    pushed = [
        push(row, mapper, rules, what="directions") if row.any() else nothing
        for row in vectors.directions
    ]
    provenance = provenance_of(vectors.provenance, vectors.space, vectors.method, mapper)
    provenance |= {
        "rule": pushed[-1][1]["rule"],
        "norm": rules.norm,
        "gain": [record["gain"] for _, record in pushed],
        "direction_r2": [record["direction_r2"] for _, record in pushed],
    }
    return replace(
        vectors,
        directions=torch.stack([moved for moved, _ in pushed]),
        space=mapper.target,
        median_norm=mapper.target_norm,
        method="transferred",
        provenance=provenance,
    )

"""Maps of a matrix: named ways to fit one, and each vector moved through every map of its pair.

All maps of a pair see the same rows, and each brings its own control, the same fit on wrong pairs.
A map is fitted once for all behaviours that meet at the same two hook points, and is not kept:
what counts is the vectors it moved, and its held-out score beside the first map's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tl_transfer.data.store import ActivationStore
from tl_transfer.errors import InputError
from tl_transfer.experiments.kinds import Kind
from tl_transfer.mappers.base import AffineMap, Mapper
from tl_transfer.mappers.fit import fit
from tl_transfer.mappers.registry import METHODS
from tl_transfer.mappers.transfer import transfer
from tl_transfer.metrics import cosine
from tl_transfer.vectors import SteeringVector

#: Ways that are more than the name of a method.
NAMED = {
    # Without the number of updates a small set of texts would give it a few hundred.
    "paper_autoencoder": Kind(
        "the paper's autoencoder, 4,500 updates",
        "autoencoder",
        {"recipe": "paper", "updates": 4500, "batch_rows": 256},
    ),
}
_TITLES = {"ridge": "ridge", "procrustes": "Procrustes", "autoencoder": "our autoencoder"}


def kind(name: str) -> Kind:
    """The way of that name: one of `NAMED`, or any method that needs no model.

    Raises:
        InputError: unknown.
    """
    if name in NAMED:
        return NAMED[name]
    usable = {key for key, method in METHODS.items() if method.reads != "embeddings"}
    if name in usable:
        return Kind(_TITLES.get(name, name.replace("_", " ")), name)
    raise InputError(
        "mappers: unknown",
        got=repr(name),
        valid=", ".join([*NAMED, *sorted(usable)]),
        hint='"ridge" is the plain one',
    )


@dataclass(frozen=True)
class Moved:
    """A vector through one map, and through the same map of wrong pairs.

    Attributes:
        vector: The moved vector.
        wrong: The control.
        entry: What is known of the map and of the vector before anything is steered (JSON).
    """

    vector: SteeringVector
    wrong: SteeringVector
    entry: dict[str, Any]


def move(
    name: str,
    source: ActivationStore,
    target: ActivationStore,
    vectors: Sequence[tuple[SteeringVector, SteeringVector]],
    *,
    seed: int,
) -> Iterator[Moved]:
    """Fit one map between two hook points and move every vector that lives there.

    Args:
        name: Of the way to fit it.
        source: What the source has read.
        target: What the target has read.
        vectors: (vector of the source, the target's own); all at the same two hook points.
        seed: Of the split, the control, and whatever the method draws.
    """
    here, there = (vector.space.hook_point for vector in vectors[0])
    way = kind(name)
    mapper = fit(
        source.at(here),
        target.at(there),
        method=way.method,
        backward=False,
        seed=seed,
        progress=False,
        **way.options,
    )
    assert mapper.shuffled is not None  # fit makes it
    for vector, native in vectors:
        moved = transfer(vector, mapper)
        yield Moved(moved, transfer(vector, mapper.shuffled), _entry(mapper, moved, native))


def meeting(
    behaviours: Sequence[str], vectors: Sequence[tuple[SteeringVector, SteeringVector]]
) -> list[list[str]]:
    """Behaviours by the two hook points at which their vectors live."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for behaviour, both in zip(behaviours, vectors, strict=True):
        points = tuple(vector.space.hook_point for vector in both)
        groups.setdefault(points, []).append(behaviour)
    return list(groups.values())


def _entry(mapper: Mapper, moved: SteeringVector, native: SteeringVector) -> dict[str, Any]:
    card = mapper.scorecard
    return {
        "source_hook_point": mapper.source.hook_point,
        "target_hook_point": mapper.target.hook_point,
        "affine": isinstance(mapper, AffineMap),
        "options": mapper.settings["options"],
        "held_out_fvu": card["held_out"]["fvu"],
        "shuffled_fvu": card["shuffled"]["fvu"],
        "gap_to_ridge": card.get("gap_to_ridge"),
        "n_rows": card["n_tokens"],
        "rule": moved.provenance.get("rule"),
        "direction_r2": moved.provenance.get("direction_r2"),
        "gain": moved.provenance.get("gain"),
        "cosine_to_native": cosine(moved.unit, native.unit),
    }

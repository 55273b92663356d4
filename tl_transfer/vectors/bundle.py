"""VectorSet: one steering vector at each of several hook points of one model."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tl_transfer.errors import InputError, SpaceError
from tl_transfer.vectors.steering import SteeringVector

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class VectorSet(Mapping[str, SteeringVector]):
    """Hook point -> vector, all of one model; reads like a dictionary, ordered by layer.

    Attributes:
        vectors: Hook point (canonical name) -> vector.
        provenance: What is said of the set as a whole (JSON).
    """

    vectors: Mapping[str, SteeringVector]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.vectors:
            raise InputError(
                "vectors: a set needs at least one",
                got="no vector",
                valid="hook point -> SteeringVector",
                hint="VectorSet.of(v1, v2) makes the names from the vectors",
            )
        first = next(iter(self.vectors.values())).space
        for name, vector in self.vectors.items():
            if name != vector.space.hook_point:
                raise SpaceError(
                    "vectors: a name is not the hook point of its vector",
                    got=f"{name!r} for {vector.space}",
                    valid=f"{vector.space.hook_point!r}",
                    hint="VectorSet.of(v1, v2) makes the names from the vectors",
                )
            replace(first, hook_point=name).require(vector.space, "vector in a set of one model")
        ordered = dict(sorted(self.vectors.items(), key=lambda item: _order(item[0])))
        object.__setattr__(self, "vectors", ordered)

    @classmethod
    def of(cls, *vectors: SteeringVector, **provenance: Any) -> "VectorSet":
        """From vectors, each under its own hook point.

        Args:
            *vectors: Of one model, each of another hook point.
            **provenance: What is said of the set as a whole (JSON).

        Raises:
            InputError: two vectors of one hook point.
            SpaceError: vectors of different models.
        """
        named = {vector.space.hook_point: vector for vector in vectors}
        if len(named) < len(vectors):
            raise InputError(
                "vectors: two belong to one hook point",
                got=", ".join(vector.space.hook_point for vector in vectors),
                valid="one vector a hook point",
                hint="add them first: v1 + v2",
            )
        return cls(named, provenance)

    def __getitem__(self, hook_point: str) -> SteeringVector:
        """Vector at a hook point, by its canonical name."""
        return self.vectors[hook_point]

    def __iter__(self) -> Iterator[str]:
        return iter(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def map(self, change: Callable[[SteeringVector], SteeringVector]) -> "VectorSet":
        """The set with every vector changed by a function that stays in its space."""
        return replace(self, vectors={name: change(v) for name, v in self.vectors.items()})

    def __neg__(self) -> "VectorSet":
        return self.map(lambda vector: -vector)

    def __mul__(self, factor: float | int) -> "VectorSet":
        return self.map(lambda vector: vector * factor)

    __rmul__ = __mul__

    def __add__(self, other: "VectorSet") -> "VectorSet":
        """Sums at the hook points of both; the others are kept as they are."""
        return self._joined(other, lambda a, b: a + b, lambda b: b)

    def __sub__(self, other: "VectorSet") -> "VectorSet":
        """Differences at the hook points of both; the others are kept, or negated."""
        return self._joined(other, lambda a, b: a - b, lambda b: -b)

    def _joined(
        self,
        other: "VectorSet",
        both: Callable[[SteeringVector, SteeringVector], SteeringVector],
        alone: Callable[[SteeringVector], SteeringVector],
    ) -> "VectorSet":
        joined = dict(self.vectors)
        for name, vector in other.items():
            joined[name] = both(joined[name], vector) if name in joined else alone(vector)
        return VectorSet(joined, {"operands": [self.provenance, other.provenance]})

    def __repr__(self) -> str:
        space = next(iter(self.vectors.values())).space
        lines = [
            f"  {name}: {vector.method}, norm {vector.natural_strength:.3g} median norms"
            for name, vector in self.vectors.items()
        ]
        return "\n".join([f"VectorSet({len(self)} hook points of {space.model})", *lines])


def _order(hook_point: str) -> tuple[int, str]:
    layer = _LAYER.search(hook_point)
    return (int(layer[1]) if layer else -1, hook_point)

"""SteeringVector: one direction in one space, and where it came from; with its arithmetic.

Sums, differences, multiples, and the part along or across another direction are again steering
vectors of the same space, and keep a record of their operands and of all contrast texts.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors.checks import Spanning, operands, require_norm, require_origin, require_row


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction that can be added to, or ablated from, the activations of one space.

    Strength is not part of it: an intervention states it in multiples of `median_norm`.

    Attributes:
        direction: The raw direction, float32, not normalised.
        space: Where it lives.
        median_norm: Median residual norm of that space: the unit of strength.
        method: How it was made, e.g. ``"mean_difference"``.
        provenance: Counts, hashes, statistics (JSON).
        origin: The point the direction starts from, where there is one: the mean of the negative
            side, so that ``origin + direction`` is the mean of the positive side of a mean
            difference. Affine edits and clamps measure from it; it moves through a map as a point.
    """

    direction: Float[Tensor, " d_model"]
    space: ActivationSpace
    median_norm: float
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)
    origin: Float[Tensor, " d_model"] | None = None

    def __post_init__(self) -> None:
        require_norm(self.median_norm)
        require_row("direction", self.direction, self.space)
        require_origin(self.origin, self.space)

    @property
    def norm(self) -> Float[Tensor, ""]:
        """Length of the direction."""
        return self.direction.norm()

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """Direction of length one."""
        return self.direction / self.norm

    @property
    def span(self) -> Float[Tensor, "1 d_model"]:
        """The unit direction as the one row of a basis."""
        return self.unit[None]

    @property
    def natural_strength(self) -> float:
        """The strength at which an `Add` adds the vector exactly as it was extracted."""
        return float(self.norm) / self.median_norm

    def cosine(self, other: "SteeringVector") -> float:
        """Cosine to another vector of the same space."""
        self.space.require(other.space, "cosine of two steering vectors")
        return float(self.unit.double() @ other.unit.double())

    def __neg__(self) -> "SteeringVector":
        """The same arrow from head to tail: the two poles change places."""
        origin = None if self.origin is None else self.origin + self.direction
        provenance = {**self.provenance, "negated": not self.provenance.get("negated", False)}
        return replace(self, direction=-self.direction, origin=origin, provenance=provenance)

    def __mul__(self, factor: float | int) -> "SteeringVector":
        """Longer or shorter; a negative factor also changes the poles."""
        factor = float(factor)
        if not math.isfinite(factor) or factor == 0:
            raise InputError(
                "factor: must be finite and not zero",
                got=factor,
                valid="a number",
                hint="strength 0 of an intervention switches a vector off",
            )
        turned = self if factor > 0 else -self
        scale = abs(factor) * self.provenance.get("scale", 1.0)
        return replace(
            turned,
            direction=turned.direction * abs(factor),
            provenance={**turned.provenance, "scale": scale},
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | int) -> "SteeringVector":
        """``v / 2`` is ``v * 0.5``."""
        return self * (1.0 / divisor if divisor else math.inf)

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        """Sum; `median_norm` is that of the left operand."""
        return self._combined(other, 1.0, "+") if _is_vector(other) else NotImplemented

    def __radd__(self, other: Any) -> "SteeringVector":
        """Lets ``sum(vectors)`` start from 0."""
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        """Difference; `median_norm` is that of the left operand."""
        return self._combined(other, -1.0, "-") if _is_vector(other) else NotImplemented

    def with_norm(self, norm: float | int) -> "SteeringVector":
        """The same direction with another length; ``with_norm(v.median_norm)`` is one unit.

        Raises:
            InputError: a length that is not positive and finite.
        """
        if not (norm > 0 and math.isfinite(norm)):
            raise InputError(
                "norm: must be positive and finite",
                got=norm,
                valid="a length",
                hint="-vector turns a vector around",
            )
        return self * (norm / float(self.norm))

    def orthogonal_to(self, *others: Spanning) -> "SteeringVector":
        """What is left when the span of other vectors or subspaces is projected out.

        Raises:
            SpaceError: one of them lives elsewhere.
            InputError: nothing is left (less than a millionth of the length).
        """
        rest = self.direction.double() - self._along(others)
        if float(rest.norm()) <= 1e-6 * float(self.norm):
            raise InputError(
                "vector: lies in the span of the directions to project out",
                got=f"{float(rest.norm() / self.norm):.1e} of its length is left",
                valid="a vector with a part of its own",
                hint="look at vector.cosine(other)",
            )
        return self._derived(rest.float(), "without", others)

    def projected_on(self, *others: Spanning) -> "SteeringVector":
        """The part that lies in the span of other vectors or subspaces.

        Raises:
            SpaceError: one of them lives elsewhere.
            InputError: it is orthogonal to all of them.
        """
        along = self._along(others)
        if float(along.norm()) <= 1e-6 * float(self.norm):
            raise InputError(
                "vector: is orthogonal to the directions to project on",
                got=f"{float(along.norm() / self.norm):.1e} of its length lies in their span",
                valid="a vector with a part along them",
                hint="look at vector.cosine(other)",
            )
        return self._derived(along.float(), "along", others)

    def _along(self, others: tuple[Spanning, ...]) -> Float[Tensor, " d_model"]:
        if not others:
            raise InputError(
                "others: nothing to project on or out",
                got="no vector",
                valid="one or more vectors or subspaces of the same space",
                hint="pass them one after the other",
            )
        for other in others:
            self.space.require(other.space, "projection of a steering vector")
        rows = torch.cat([other.span.double() for other in others])
        # Several directions are seldom orthogonal to each other: project on their joint span.
        _, values, basis = torch.linalg.svd(rows, full_matrices=False)
        basis = basis[values > 1e-9 * values[0]]
        return basis.T @ (basis @ self.direction.double())

    def _combined(self, other: "SteeringVector", sign: float, symbol: str) -> "SteeringVector":
        self.space.require(other.space, f"steering vector {symbol} steering vector")
        direction = (self.direction.double() + sign * other.direction.double()).float()
        return SteeringVector(
            direction,
            self.space,
            self.median_norm,
            f"{self._term} {symbol} {other._term}",
            operands(self, other),
        )

    def _derived(
        self, direction: Tensor, word: str, others: tuple[Spanning, ...]
    ) -> "SteeringVector":
        names = ", ".join(str(getattr(other, "method", "span")) for other in others)
        return SteeringVector(
            direction,
            self.space,
            self.median_norm,
            f"{self._term} {word} ({names})",
            operands(self, *others),
        )

    @property
    def _term(self) -> str:
        """The method with its sign and factor, as part of an expression."""
        scale = self.provenance.get("scale", 1.0)
        factor = "" if scale == 1.0 else f"{scale:.3g} * "
        return ("-" if self.provenance.get("negated") else "") + factor + self.method

    def __repr__(self) -> str:
        method = self._term if len(self._term) <= 60 else self._term[:57] + "..."
        return (
            f"SteeringVector({method}, norm {float(self.norm):.3g} = "
            f"{self.natural_strength:.3g} median norms, {self.space.model} @ "
            f"{self.space.hook_point}{self._explained()})"
        )

    def _explained(self) -> str:
        """Held-out R^2 along a transferred direction: the score that the map's own card hides."""
        r2 = self.provenance.get("direction_r2") if self.method == "transferred" else None
        if not isinstance(r2, float):
            return ""
        bounds = self.provenance.get("direction_r2_ci95")
        interval = "" if bounds is None else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"
        return f", held-out R2 along it {r2:.2f}{interval}"


def _is_vector(other: Any) -> bool:
    return isinstance(other, SteeringVector)

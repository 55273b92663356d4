"""Subspace: a few orthonormal directions of one space, to be ablated or read together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors.checks import (
    Spanning,
    operands,
    require_norm,
    require_origin,
    require_rows,
)
from tl_transfer.vectors.steering import SteeringVector

#: Rows of a basis are orthonormal to this, in any entry of their Gram matrix.
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Subspace:
    """K orthonormal directions of one space, the most important first.

    Attributes:
        basis: Orthonormal rows, float32.
        space: Where it lives.
        median_norm: Median residual norm of that space.
        method: How it was made.
        provenance: Counts, hashes, statistics (JSON).
        origin: Point from which coordinates are counted in affine edits; None is zero.
    """

    basis: Float[Tensor, "k d_model"]
    space: ActivationSpace
    median_norm: float
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)
    origin: Float[Tensor, " d_model"] | None = None

    def __post_init__(self) -> None:
        require_norm(self.median_norm)
        require_rows("basis", self.basis, self.space)
        require_origin(self.origin, self.space)
        gram = self.basis.double() @ self.basis.double().T
        error = float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max())
        if error > _TOLERANCE:
            raise InputError(
                "basis: rows are not orthonormal",
                got=f"off by {error:.1e}",
                valid=f"at most {_TOLERANCE:.0e} from the identity in every product of two rows",
                hint="Subspace.spanned_by(vectors) makes an orthonormal basis",
            )

    @classmethod
    def spanned_by(cls, vectors: Sequence[SteeringVector]) -> "Subspace":
        """The span of some vectors, by Gram-Schmidt in their order: the first keeps its direction.

        Raises:
            SpaceError: they live in different spaces.
            InputError: no vectors, or one lies in the span of those before it.
        """
        if not vectors:
            raise InputError(
                "vectors: nothing to span",
                got="no vector",
                valid="one or more steering vectors",
                hint="pass a list",
            )
        first = vectors[0]
        for vector in vectors[1:]:
            first.space.require(vector.space, "vectors of one subspace")
        basis, triangle = orthonormal(torch.stack([vector.unit for vector in vectors]))
        smallest = float(triangle.diagonal().abs().min())
        if smallest < 1e-6:
            raise InputError(
                "vectors: one lies in the span of those before it",
                got=f"{smallest:.1e} of its length is left",
                valid="linearly independent vectors",
                hint="leave it out",
            )
        return cls(
            basis,
            first.space,
            first.median_norm,
            f"span of {', '.join(vector.method for vector in vectors)}",
            operands(*vectors),
        )

    def __len__(self) -> int:
        """Number of directions, k."""
        return len(self.basis)

    @property
    def span(self) -> Float[Tensor, "k d_model"]:
        """The basis."""
        return self.basis

    def coordinates(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row k"]:
        """Coordinates of activations along the basis, from zero."""
        return x.float() @ self.basis.to(x.device).T

    def project(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The part of activations that lies in the subspace, in their dtype."""
        return (self.coordinates(x) @ self.basis.to(x.device)).to(x.dtype)

    def vector(self, index: int = 0) -> SteeringVector:
        """One basis direction as a steering vector of length one median norm."""
        return SteeringVector(
            self.basis[index] * self.median_norm,
            self.space,
            self.median_norm,
            f"direction {index} of {self.method}",
            operands(self),
            self.origin,
        )

    def cosines(self, other: Spanning) -> list[float]:
        """Cosines of the principal angles to another subspace or vector, largest first."""
        self.space.require(other.space, "angles between two subspaces")
        return torch.linalg.svdvals(self.basis.double() @ other.span.double().T).tolist()

    def __repr__(self) -> str:
        return (
            f"Subspace({len(self)} directions, {self.method}, {self.space.model} @ "
            f"{self.space.hook_point})"
        )


def orthonormal(
    rows: Float[Tensor, "k d_model"],
) -> tuple[Float[Tensor, "k d_model"], Float[Tensor, "k k"]]:
    """Orthonormal rows with the same span, in order and with their signs, and the triangle."""
    basis, triangle = torch.linalg.qr(rows.double().T)
    sign = triangle.diagonal().sign()
    sign = torch.where(sign == 0, 1.0, sign)
    return (basis * sign).T.float(), sign[:, None] * triangle

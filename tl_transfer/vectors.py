"""SteeringVector: one direction in one space, and where it came from."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.space import ActivationSpace


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
    """

    direction: Float[Tensor, " d_model"]
    space: ActivationSpace
    median_norm: float
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.direction.shape != (self.space.d_model,):
            raise InputError(
                "direction: wrong shape for its space",
                got=tuple(self.direction.shape),
                valid=f"({self.space.d_model},) for {self.space}",
                hint="pass one vector as wide as the residual stream",
            )
        if not (self.median_norm > 0 and math.isfinite(self.median_norm)):
            raise InputError(
                "median_norm: must be positive and finite",
                got=self.median_norm,
                valid="the median residual norm of the space",
                hint="it is the unit of strength; mapper.target_norm has it",
            )
        if not bool(torch.isfinite(self.direction).all()) or float(self.norm) == 0.0:
            raise InputError(
                "direction: must be finite and not zero",
                got=f"norm {float(self.norm)}",
                valid="finite numbers, norm above zero",
                hint="look for NaN activations, or for identical positive and negative texts",
            )

    @property
    def norm(self) -> Float[Tensor, ""]:
        """Length of the direction."""
        return self.direction.norm()

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """Direction of length one."""
        return self.direction / self.norm

    @property
    def natural_strength(self) -> float:
        """The strength at which an `Add` adds the vector exactly as it was extracted."""
        return float(self.norm) / self.median_norm

    def __neg__(self) -> "SteeringVector":
        return replace(self, direction=-self.direction)

    def cosine(self, other: "SteeringVector") -> float:
        """Cosine to another vector of the same space."""
        self.space.require(other.space, "cosine of two steering vectors")
        return float(self.unit.double() @ other.unit.double())

    def __repr__(self) -> str:
        return (
            f"SteeringVector({self.method}, norm {float(self.norm):.3g} = "
            f"{self.natural_strength:.3g} median norms, {self.space.model} @ "
            f"{self.space.hook_point})"
        )

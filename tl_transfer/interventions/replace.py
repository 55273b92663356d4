"""Replacing activations: by a fixed point, or by those of another model, mapped.

`Replace`       x <- x + s (p - x)
`ReplaceFrom`   x <- x + s (f(x') - x), x' the other model's activation on the same text

(Oozeer et al. 2025 replace the whole stream of the target by the mapped stream of the source.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.interventions.base import REPLACE, Operator
from tl_transfer.interventions.from_model import FromModel, PointMap, on_device
from tl_transfer.interventions.protocol import Edit, Strength
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where, everywhere
from tl_transfer.space import ActivationSpace

if TYPE_CHECKING:
    from tl_transfer.interventions.passes import Passes


@dataclass(frozen=True, eq=False)
class Replace(Operator):
    """Put a fixed activation in place: x <- x + s (p - x).

    With the mean activation of some texts this is mean ablation of the whole stream.

    Args:
        point: The activation p.
        space: Where it lives, ``model.at("resid_post@9").space``.
        strength: The part of the way; 1 replaces.
        where: Positions; default everywhere but the attention sink.
    """

    stage: ClassVar[int] = REPLACE
    point: Float[Tensor, " d_model"]
    space: ActivationSpace
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = self.point.shape != (self.space.d_model,)
        if wrong or not bool(torch.isfinite(self.point).all()):
            raise InputError(
                "point: must be one finite activation of its space",
                got=tuple(self.point.shape),
                valid=f"({self.space.d_model},) for {self.space}",
                hint="for example the mean of model.residuals over texts",
            )

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """The one of the point."""
        return (self.space,)

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """One operation: the point takes the place of the activation."""
        value = self.point.to(like.device, like.dtype)
        return lambda x, strength: _towards(x, value, strength)


@dataclass(frozen=True, eq=False)
class ReplaceFrom(FromModel):
    """Put the mapped activation of another model, which reads the same text, in place.

    `FromModel` says which of its tokens stands for which of the target's; where there is none the
    target is left as it is.

    Args:
        source: The other model.
        mapper: A map from the source's space to the target's; it maps points.
        strength: The part of the way; 1 replaces.
        where: Positions; default everywhere but the attention sink.
    """

    stage: ClassVar[int] = REPLACE
    instead: ClassVar[str] = "Replace puts a fixed activation in place"
    source: HookedModel
    mapper: PointMap
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def _maker(self) -> Callable[[Tensor], Tensor]:
        """The map."""
        return on_device(self.mapper, self.source.device).map_points

    def _put(self, x: Tensor, values: Tensor, strength: float | Tensor) -> Tensor:
        """A part of the way there."""
        return _towards(x, values.to(x.dtype), strength)


def _towards(x: Tensor, value: Tensor, strength: float | Tensor) -> Tensor:
    if isinstance(strength, float) and strength == 1.0:
        return value.expand_as(x)
    return (x.float() + strength * (value.float() - x.float())).to(x.dtype)

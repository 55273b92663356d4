"""Adding a vector, as it is, with the norm kept, or another one to each row.

`Add`              x <- x + s m u          (Turner et al. 2023; Rimsky et al. 2024)
`NormKeepingAdd`   y = x + s m u;  x <- y |x| / |y|
`AddRows`          x_i <- x_i + s_i m_i u_i in row i

u is the unit direction, m the median residual norm of the space, s the strength.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.interventions.base import ADD, Operator, Vectors, by_point
from tl_transfer.interventions.protocol import Edit, Strength
from tl_transfer.positions import Where, everywhere
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors import SteeringVector

if TYPE_CHECKING:
    from tl_transfer.interventions.passes import Passes


@dataclass(frozen=True, eq=False)
class Add(Operator):
    """Add a steering vector: x <- x + s m u.

    Args:
        vector: Direction and unit; or one for each of several layers, ``{8: v, 9: w}``.
        strength: In multiples of the layer's median residual norm; negative turns it around.
            ``vector.natural_strength`` adds the vector as extracted.
        where: Positions; default everywhere but the attention sink.
    """

    stage: ClassVar[int] = ADD
    vector: Vectors
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """One for each layer."""
        return tuple(vector.space for vector in by_point(self.vector).values())

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """One addition; the scaled vector is kept until the strength changes."""
        step = _scaled(_step(by_point(self.vector)[point]), like)
        return lambda x, strength: x + step(strength)


@dataclass(frozen=True, eq=False)
class NormKeepingAdd(Operator):
    """Add a steering vector and give every position its norm back: y = x + s m u; x <- y |x| / |y|.

    Only the direction of x changes, which keeps the following norms and attention in range.

    Args:
        vector: As in `Add`.
        strength: As in `Add`.
        where: As in `Add`.
    """

    stage: ClassVar[int] = ADD
    vector: Vectors
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """One for each layer."""
        return tuple(vector.space for vector in by_point(self.vector).values())

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """In float32, for bfloat16 norms are off by a percent."""
        step = _scaled(_step(by_point(self.vector)[point]), like.float())

        def edit(x: Tensor, strength: float | Tensor) -> Tensor:
            before = x.float()
            after = before + step(strength)
            kept = torch.linalg.vector_norm(before, dim=-1, keepdim=True)
            now = torch.linalg.vector_norm(after, dim=-1, keepdim=True)
            return (after * (kept / now.clamp(min=1e-30))).to(x.dtype)

        return edit


@dataclass(frozen=True, eq=False)
class AddRows(Operator):
    """Another vector for each row of a batch: x_i <- x_i + s_i m_i u_i.

    Args:
        vectors: One for each prompt, all of one space.
        strength: As in `Add`, also one number a row.
        where: As in `Add`.
    """

    stage: ClassVar[int] = ADD
    vectors: Sequence[SteeringVector]
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.vectors:
            raise InputError(
                "vectors: none",
                got="0 vectors",
                valid="one SteeringVector for each prompt",
                hint="Add adds one vector to all rows",
            )
        for vector in self.vectors:
            self.vectors[0].space.require(vector.space, "vectors of one batch")

    @property
    def n_rows(self) -> int:
        """One vector a prompt."""
        return len(self.vectors)

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """The one they share."""
        return (self.vectors[0].space,)

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """One addition; the rows are gathered once a batch."""
        steps = torch.stack([_step(vector) for vector in self.vectors])[:, None]
        return row_edit(steps, like, passes)


def row_edit(steps: Float[Tensor, "row 1 d_model"], like: Tensor, passes: "Passes | None") -> Edit:
    """X_i + s_i step_i, with the steps of the rows that are in the batch."""
    layout: object = None
    scale = _scaled(steps, like)

    def edit(x: Tensor, strength: float | Tensor) -> Tensor:
        nonlocal layout, scale
        if passes is not None and passes.layout is not None and passes.layout is not layout:
            layout = passes.layout
            scale = _scaled(steps[passes.layout.rows.to(steps.device)], like)
        return x + scale(strength)

    return edit


def _step(vector: SteeringVector) -> Float[Tensor, " d_model"]:
    return vector.unit * vector.median_norm


def _scaled(step: Tensor, like: Tensor) -> Callable[[float | Tensor], Tensor]:
    """Strength times step in the dtype of `like`, computed anew only when the strength changes.

    Multiplied in float32 and rounded once, so that one strength for all rows and the same
    strength for each row add the same numbers.
    """
    step = step.to(like.device, torch.float32)
    last: float | Tensor | None = None
    scaled = step

    def scale(strength: float | Tensor) -> Tensor:
        nonlocal last, scaled
        # A schedule gives a tensor in one pass and a float in the next; these are never equal.
        both = isinstance(strength, float) and isinstance(last, float)
        same = strength is last or (both and strength == last)
        if not same:
            last, scaled = strength, (strength * step).to(like.dtype)
        return scaled

    return scale

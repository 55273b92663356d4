"""Replacing activations: by a fixed point, or by those of another model, mapped.

`Replace`       x <- x + s (p - x)
`ReplaceFrom`   x <- x + s (f(x') - x), x' the other model's activation on the same text

(Oozeer et al. 2025 replace the whole stream of the target by the mapped stream of the source.)
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import HookError, InputError
from tl_transfer.interventions.base import REPLACE, Operator
from tl_transfer.interventions.beside import Beside
from tl_transfer.interventions.protocol import Edit, Strength
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where, everywhere
from tl_transfer.positions.where import Need
from tl_transfer.space import ActivationSpace

if TYPE_CHECKING:
    from tl_transfer.interventions.passes import Passes


@runtime_checkable
class PointMap(Protocol):
    """Any map that carries activations from one space to another."""

    @property
    def source(self) -> ActivationSpace:
        """Where points come from."""
        ...

    @property
    def target(self) -> ActivationSpace:
        """Where they go."""
        ...

    def map_points(self, x: Float[Tensor, "*row d_source"]) -> Float[Tensor, "*row d_target"]:
        """Activations to activations."""
        ...


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
class ReplaceFrom(Operator):
    """Put the mapped activation of another model, which reads the same text, in place.

    The source runs beside the target: over the prompt, then token by token over what the target
    generates. Tokens are matched by the text they have read. With one tokenizer that is position
    by position. With two, a position of the target takes the last source token that has read no
    more of the prompt than it has; the source reads what is generated as a text of its own,
    appended to its own encoding of the prompt. Positions without such a token (BOS, template
    markup that only one of the chats has) are left as they are.

    Args:
        source: The other model.
        mapper: A map from the source's space to the target's; it maps points.
        strength: The part of the way; 1 replaces.
        where: Positions; default everywhere but the attention sink.
    """

    stage: ClassVar[int] = REPLACE
    source: HookedModel
    mapper: PointMap
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def __post_init__(self) -> None:
        super().__post_init__()
        here = self.source.at(self.mapper.source.hook_point).space
        self.mapper.source.require(here, "source model of this map")

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """The target space of the map."""
        return (self.mapper.target,)

    @property
    def needs(self) -> frozenset[Need]:
        """The text, and every token."""
        return frozenset({"text", "tokens"})

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """A pass of the source model over the new tokens, and the map.

        Raises:
            HookError: no `passes`, so the text is unknown.
        """
        if passes is None:
            raise HookError(
                "ReplaceFrom: the text that the source model must read is unknown here",
                got="an activation only",
                valid="attach(...).generate or .logits",
                hint="Replace puts a fixed activation in place",
            )
        point_ = self.source.hook_point(self.mapper.source.hook_point)
        beside = Beside(self.source, point_, self.mapper.map_points, self._same_tokens)

        def edit(x: Tensor, strength: float | Tensor) -> Tensor:
            values, known = beside.values(passes)
            values = values.to(x.device, x.dtype)
            return torch.where(known.to(x.device)[..., None], _towards(x, values, strength), x)

        return edit

    @property
    def _same_tokens(self) -> bool:
        return self.mapper.source.tokenizer == self.mapper.target.tokenizer


def _towards(x: Tensor, value: Tensor, strength: float | Tensor) -> Tensor:
    if isinstance(strength, float) and strength == 1.0:
        return value.expand_as(x)
    return (x.float() + strength * (value.float() - x.float())).to(x.dtype)

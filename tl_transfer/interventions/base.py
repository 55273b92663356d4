"""Operator: what all interventions share. A subclass adds its values and `prepare`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.interventions import hooks
from tl_transfer.interventions.protocol import Edit, Intervention, Strength, check_strength, rows_of
from tl_transfer.interventions.schedules import Schedule
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where
from tl_transfer.space import ActivationSpace
from tl_transfer.vectors import SteeringVector, VectorSet
from tl_transfer.vectors.checks import Spanning

if TYPE_CHECKING:
    from tl_transfer.interventions.passes import Passes

#: One vector, or one for each of several layers: ``{8: v, 9: w}``, or a `VectorSet`.
Vectors = SteeringVector | Mapping[int, SteeringVector] | VectorSet

# Stages: the order of interventions on one hook point.
REPLACE, REMOVE, SET, TURN, ADD = range(5)


class Operator:
    """A frozen edit of activations; see `Intervention` for what each method promises.

    Subclasses are frozen dataclasses with the fields `strength` and `where`.

    Attributes:
        stage: Place in the order of interventions on one hook point.
        strength: How much; 0 leaves the very same tensor.
        where: At which positions.
    """

    stage: ClassVar[int]
    strength: Strength
    where: Where

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not isinstance(self.where, Where):
            raise InputError(
                "where: not a rule",
                got=repr(self.where),
                valid="everywhere(), prompt(), generated(), last_prompt_token(), ...",
                hint="call the function; rules combine with & | ~",
            )

    @property
    def n_rows(self) -> int | None:
        """Of the strength, or of the rule."""
        n = rows_of(self.strength)
        return self.where.n_rows if n is None else n

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """The spaces of what it holds."""
        raise NotImplementedError

    def points(self, model: HookedModel) -> tuple[str, ...]:
        """The hook points of its spaces."""
        return tuple(point_of(space, model) for space in self.spaces())

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """The edit at one hook point, with everything it needs on the device of `like`.

        Args:
            point: One of `points`.
            like: An activation as the edit will get it (for device and dtype).
            passes: Which tokens run, for edits that depend on more than the activation.
        """
        raise NotImplementedError

    def merged(self, point: str, others: tuple[Intervention, ...]) -> Intervention | None:
        """A chain, unless a subclass knows better.

        Args:
            point: The hook point they share.
            others: Interventions of the same stage, rule and strength.
        """
        return None

    def edit(self, activation: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """The activation as it would be if every position were chosen, at the first hook point."""
        strength = self.strength
        if isinstance(strength, Schedule):
            strength = strength.strength
        if isinstance(strength, Tensor) and strength.ndim == 1:
            strength = strength.to(activation.device).float()[:, None, None]
        elif isinstance(strength, Tensor):
            strength = float(strength)
        return self.prepare(self.spaces()[0].hook_point, activation)(activation, strength)

    def fwd_hooks(self, model: Any, **options: Any) -> list[tuple[str, Callable]]:
        """Plain TransformerLens hooks; see `tl_transfer.interventions.hooks.fwd_hooks`."""
        return hooks.fwd_hooks(self, model, **options)


def point_of(space: ActivationSpace, model: HookedModel) -> str:
    """The canonical hook point of a space on this model.

    Raises:
        SpaceError: the space is that of another model, hook point, processing or tokenizer.
        InputError: the hook point does not write to the residual stream.
    """
    point = model.hook_point(space.hook_point)
    if point.kind == "resid_mid":
        raise InputError(
            "hook_point: resid_mid cannot be edited on every host",
            got=point.name,
            valid=f"blocks.{point.layer}.hook_attn_out (adding there moves the stream exactly)",
            hint="the bridge's resid_mid edit reaches the MLP branch only",
        )
    model.at(point.name).space.require(space, "steering vector on this model")
    return point.name


def by_point(vectors: Vectors) -> dict[str, SteeringVector]:
    """Vectors by the hook point they belong to.

    Raises:
        InputError: no vector, or a layer that is not the vector's own.
    """
    if isinstance(vectors, SteeringVector):
        return {vectors.space.hook_point: vectors}
    if isinstance(vectors, VectorSet):
        return dict(vectors)
    found: dict[str, SteeringVector] = {}
    if not hasattr(vectors, "items"):
        raise InputError(
            "vector: not a steering vector",
            got=type(vectors).__name__,
            valid="a SteeringVector, a VectorSet, or {layer: SteeringVector}",
            hint="probe.vector of a probe; exchange.from_array makes one of a tensor",
        )
    for layer, vector in vectors.items():
        require_layer(layer, vector, found)
        found[vector.space.hook_point] = vector
    if not found:
        raise InputError(
            "vector: none",
            got=repr(vectors),
            valid="a SteeringVector, or {layer: SteeringVector}",
            hint="extract one with mean_difference",
        )
    return found


def require_layer(layer: int, vector: Spanning, found: Mapping[str, object]) -> None:
    """Refuse a vector under a layer that is not its own, or a second one of a hook point."""
    point = vector.space.hook_point
    if f"blocks.{layer}." not in point or point in found:
        raise InputError(
            "vector: the layers must be those of the vectors, each once",
            got=f"{layer}: {vector!r}",
            valid="{layer: vector read at that layer}",
            hint="mean_differences gives one vector for each layer",
        )

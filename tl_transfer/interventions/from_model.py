"""FromModel: what edits share that take something from another model, which reads the same text."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import HookError
from tl_transfer.interventions.base import Operator
from tl_transfer.interventions.beside import Beside
from tl_transfer.interventions.protocol import Edit
from tl_transfer.models.surface import HookedModel
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


class FromModel(Operator):
    """An operator that another model beside the target has a part in.

    The source runs over the prompt, then token by token over what the target generates. Tokens are
    matched by the text they have read. With one tokenizer that is position by position. With two, a
    position of the target takes the last source token that has read no more of the prompt than it
    has; the source reads what is generated as a text of its own, appended to its own encoding of
    the prompt. Positions without such a token (BOS, template markup that only one of the chats has)
    are left as they are.

    Subclasses are frozen dataclasses which have these fields, too, and say what is made of an
    activation of the source (`_maker`) and what becomes of one of the target with it (`_put`).

    Attributes:
        source: The other model.
        mapper: A map of points from the source's space to the target's.
        instead: What to use where the text is unknown, for the error.
    """

    instead: ClassVar[str]
    source: HookedModel
    mapper: PointMap

    def __post_init__(self) -> None:
        super().__post_init__()
        here = self.source.at(self.mapper.source.hook_point).space
        self.mapper.source.require(here, "source model of this map")

    def _maker(self) -> Callable[[Tensor], Tensor]:
        """Makes of activations of the source, in float32, what `_put` gets; once for each token."""
        raise NotImplementedError

    def _put(self, x: Tensor, values: Tensor, strength: float | Tensor) -> Tensor:
        """The target's activations with those values, which are on their device."""
        raise NotImplementedError

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """The target space of the map."""
        return (self.mapper.target,)

    @property
    def needs(self) -> frozenset[Need]:
        """The text, and every token."""
        return frozenset({"text", "tokens"})

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """A pass of the source model over the new tokens, and what is made of it.

        Raises:
            HookError: no `passes`, so the text is unknown.
        """
        if passes is None:
            raise HookError(
                f"{type(self).__name__}: the text that the source model must read is unknown here",
                got="an activation only",
                valid="attach(...).generate or .logits",
                hint=self.instead,
            )
        point_ = self.source.hook_point(self.mapper.source.hook_point)
        same_tokens = self.mapper.source.tokenizer == self.mapper.target.tokenizer
        beside = Beside(self.source, point_, self._maker(), same_tokens)

        def edit(x: Tensor, strength: float | Tensor) -> Tensor:
            values, known = beside.values(passes)
            edited = self._put(x, values.to(x.device), strength)
            return torch.where(known.to(x.device)[..., None], edited, x)

        return edit


def on_device(thing: Any, device: torch.device) -> Any:
    """A map or a dictionary with its parameters there; what has no ``to`` moves its own tensors."""
    move = getattr(thing, "to", None)
    return move(device) if callable(move) else thing

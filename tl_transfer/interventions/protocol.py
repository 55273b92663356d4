"""Intervention: what `attach`, `fwd_hooks` and everything else need of an operator."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.interventions.schedules import Schedule, is_strength
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions.where import Where

if TYPE_CHECKING:
    from tl_transfer.interventions.passes import Passes

#: One number, one for each row of the batch, or a schedule over generated tokens.
Strength = float | Tensor | Schedule

#: (activation [batch, pos, d_model], strength) -> edited activation, out of place, same dtype and
#: device. The strength is a float, or a float32 tensor that broadcasts: [batch or 1, pos or 1, 1].
Edit = Callable[[Tensor, float | Tensor], Tensor]


@runtime_checkable
class Intervention(Protocol):
    """An edit of activations: where in the model, at which tokens, how strongly, and what.

    Subclass `Operator` to make one; it has everything but `prepare`.
    """

    @property
    def strength(self) -> Strength:
        """How much; 0 is off."""
        ...

    @property
    def where(self) -> Where:
        """At which positions."""
        ...

    @property
    def stage(self) -> int:
        """Interventions on one hook point run by rising stage, then in the order given."""
        ...

    @property
    def n_rows(self) -> int | None:
        """For how many prompts it is made, if it speaks of single rows."""
        ...

    def points(self, model: HookedModel) -> tuple[str, ...]:
        """Canonical names of the hook points it acts on.

        Raises:
            SpaceError: what it holds belongs to another model, processing or tokenizer.
        """
        ...

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """The edit at one hook point, with everything it needs on the device of `like`.

        Called once for each hook point, so that the edit itself costs one or two operations.

        Args:
            point: One of `points`.
            like: An activation as the edit will get it (for device and dtype).
            passes: Which tokens run, for edits that depend on more than the activation.
        """
        ...

    def merged(self, point: str, others: "tuple[Intervention, ...]") -> "Intervention | None":
        """One intervention that does this one's work and the others', where that is not a chain.

        Asked of interventions of one stage that share hook point, rule and strength; only
        `prepare` of the answer is used. None for a chain.
        """
        ...

    def edit(self, activation: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """The activation as it would be if every position were chosen."""
        ...


def check_strength(strength: Strength) -> None:
    """Refuse what cannot be a strength.

    Raises:
        InputError: not a number, not finite, or a tensor of more than one axis.
    """
    if isinstance(strength, Schedule):
        return
    if not is_strength(strength):
        raise InputError(
            "strength: must be finite, one number or one a row",
            got=repr(strength)[:80],
            valid="a float, a 1-d tensor with one number a row, or a schedule",
            hint="torch.tensor([...]) for a list; adding 0.02 to 0.3 median norms steers most "
            "models, find yours with a damage budget (evaluate)",
        )


def rows_of(strength: Strength) -> int | None:
    """For how many rows a strength is made; None for any number."""
    base = strength.strength if isinstance(strength, Schedule) else strength
    return len(base) if isinstance(base, Tensor) and base.ndim == 1 else None

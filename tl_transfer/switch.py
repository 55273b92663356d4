"""SafetySwitch: a fine-tuned model behaves like its base while the switch is on.

A map from the stream of the fine-tuned model to that of its base is put into one layer of the
fine-tuned model: x <- f(x) (Oozeer et al. 2025, section 4.4). It is far smaller than a second
model, and it can be turned on and off while text is generated, for each row of a batch.

What turning it does to the past is a choice. Keys and values that were cached keep what they were
computed with (``on_toggle="keep"``, one cheap pass a token), or every step runs the whole sequence
as the switch stands now (``"recompute"``: as if it had never stood otherwise, and slower).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tl_transfer.errors import ArtefactError, InputError
from tl_transfer.interventions.base import REPLACE, Operator
from tl_transfer.interventions.protocol import Edit, Strength
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.fit import fit
from tl_transfer.models.attach import Live, attach
from tl_transfer.models.surface import HookedModel, Site
from tl_transfer.persistence import load, save
from tl_transfer.positions import Where, everywhere
from tl_transfer.space import ActivationSpace

if TYPE_CHECKING:
    from tl_transfer.interventions.passes import Passes


@dataclass(frozen=True, eq=False)
class MapOwn(Operator):
    """Put the mapped activation in place of the model's own: x <- x + s (f(x) - x).

    Args:
        mapper: Its source is the space of the model that is edited; its target may be any space
            of the same width.
        strength: The part of the way; 1 replaces; also one number a row.
        where: Positions; default everywhere but the attention sink, which no map is fitted on.
    """

    stage: ClassVar[int] = REPLACE
    mapper: Mapper
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """The source space of the map."""
        return (self.mapper.source,)

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """The map, on the device of the activation."""
        mapper = self.mapper.to(like.device)

        def edit(x: Tensor, strength: float | Tensor) -> Tensor:
            there = mapper.map_points(x.float())
            if isinstance(strength, float) and strength == 1.0:
                return there.to(x.dtype)
            return (x.float() + strength * (there - x.float())).to(x.dtype)

        return edit


@dataclass(frozen=True, eq=False)
class SafetySwitch:
    """A map from a fine-tuned model's stream to its base's, at one layer.

    Attributes:
        mapper: From the fine-tuned model's space to the base's.
    """

    mapper: Mapper

    def __post_init__(self) -> None:
        here, there = self.mapper.source, self.mapper.target
        if here.d_model != there.d_model or here.hook_point != there.hook_point:
            raise InputError(
                "mapper: not between two versions of one model",
                got=f"{here} and {there}",
                valid="one hook point and one width",
                hint="a switch joins a model and its fine-tuned version",
            )

    @classmethod
    def fit(
        cls,
        tuned: Site,
        base: Site,
        *,
        texts: Sequence[Any],
        method: str = "ridge_to_identity",
        **options: Any,
    ) -> "SafetySwitch":
        """Fit a switch.

        Args:
            tuned: The fine-tuned model at a hook point.
            base: Its base at the same hook point.
            texts: What both read. Texts on which they differ (with the trigger) must be among
                them, or the map learns that there is nothing to change.
            method: ``"ridge_to_identity"`` (one plus a small change), ``"reduced_rank"``,
                ``"ridge"``, or ``"autoencoder"`` where the change is conditional.
            **options: Of `tl_transfer.fit`.

        Raises:
            InputError: not one hook point and width, or see `tl_transfer.fit`.
        """
        return cls(fit(tuned, base, texts=texts, method=method, **options))

    @property
    def n_parameters(self) -> int:
        """Numbers that the switch adds to the model."""
        return sum(tensor.numel() for tensor in self.mapper.tensors().values())

    def edit(self, on: bool | Sequence[bool] = True) -> MapOwn:
        """The switch as an intervention, for `attach` and `fwd_hooks`.

        Args:
            on: For all rows, or for each row.
        """
        return MapOwn(self.mapper, strength=_strength(on))

    @contextmanager
    def attach(
        self, model: HookedModel, *, on: bool | Sequence[bool] = True, on_toggle: str = "keep"
    ) -> Iterator["Switched"]:
        """Put the switch into the fine-tuned model for the length of a `with` block.

        Args:
            model: The fine-tuned model.
            on: How it stands at first.
            on_toggle: What turning it does to the cached past: ``"keep"`` or ``"recompute"``.

        Yields:
            `Switched`, with ``on``, ``off`` and ``generate``.

        Raises:
            SpaceError: another model than the switch was fitted on.
            InputError: an unknown `on_toggle`.
        """
        if on_toggle not in ("keep", "recompute"):
            raise InputError(
                "on_toggle: unknown choice", got=repr(on_toggle), valid='"keep" or "recompute"'
            )
        with attach(model, self.edit(on)) as live:
            yield Switched(live, on_toggle)

    def save(self, path: str | Path) -> Path:
        """Write it to one file."""
        save(self.mapper, path)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "SafetySwitch":
        """Read what `save` wrote.

        Raises:
            ArtefactError: not a map, or damaged.
            InputError: a map between different models.
        """
        found = load(path)
        if not isinstance(found, Mapper):
            raise ArtefactError(
                f"{path}: not a switch",
                got=type(found).__name__,
                valid="a file written by SafetySwitch.save",
            )
        return cls(found)

    def __repr__(self) -> str:
        return f"SafetySwitch({self.n_parameters:,} parameters, {self.mapper!r})"


class Switched:
    """A fine-tuned model with a switch in it; made by `SafetySwitch.attach`."""

    def __init__(self, live: Live, on_toggle: str) -> None:
        self._live = live
        self.on_toggle = on_toggle

    def on(self, rows: Sequence[bool] | None = None) -> None:
        """Turn it on, for all rows or for those marked True (the others: off); also mid-text."""
        self._live.set_strength(0, _strength(True if rows is None else rows))

    def off(self) -> None:
        """Turn it off for all rows: from the next pass on, the very same model as without it."""
        self._live.set_strength(0, 0.0)

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: int = 64,
        on_token: Callable[[Tensor], None] | None = None,
        **options: Any,
    ) -> Any:
        """Continue prompts; see `Live.generate`.

        Args:
            prompts: One or several.
            max_new_tokens: Tokens to add at most.
            on_token: Called with the new ids of each row after every step; may turn the switch.
            **options: Of `Live.generate`; the cache follows `on_toggle`.
        """
        return self._live.generate(
            prompts,
            max_new_tokens=max_new_tokens,
            use_cache=self.on_toggle == "keep",
            on_token=on_token,
            **options,
        )

    def logits(self, tokens: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        """Logits of whole sequences as the switch stands; see `Live.logits`."""
        return self._live.logits(tokens, mask, **options)


def _strength(on: bool | Sequence[bool]) -> float | Tensor:
    if isinstance(on, bool):
        return float(on)
    return torch.tensor([float(row) for row in on])

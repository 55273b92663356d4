"""Setting a feature to a value: of the model that runs, or of another one that reads beside it.

`SetFeature`    x <- x + s (a - z(x)) d
`FeatureFrom`   y <- y + s (f(x' + (a - z(x')) d) - f(x')), x' the other model's activation

z is the code of the feature, d its direction, a the value, f the map. Both are differences: what
the dictionary does not explain of an activation (its error term) stays where it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.features.codes import Coder, space_of
from tl_transfer.interventions.base import ADD, SET, Operator
from tl_transfer.interventions.from_model import FromModel, PointMap, on_device
from tl_transfer.interventions.protocol import Edit, Strength
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where, everywhere
from tl_transfer.space import ActivationSpace

if TYPE_CHECKING:
    from tl_transfer.interventions.passes import Passes


@dataclass(frozen=True, eq=False)
class SetFeature(Operator):
    """Set a feature of the model's own dictionary: x <- x + s (a - z(x)) d.

    Args:
        sae: The dictionary.
        feature: Which feature.
        value: Its activation a afterwards (in the direction d; others are left as they are).
        strength: The part of the way; 1 sets it.
        where: Positions; default everywhere but the attention sink.
    """

    stage: ClassVar[int] = SET
    sae: Coder
    feature: int
    value: float
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_feature(self.sae, self.feature)
        _require_value(self.value)

    def spaces(self) -> tuple[ActivationSpace, ...]:
        """That of the dictionary."""
        return (space_of(self.sae),)

    def prepare(self, point: str, like: Tensor, passes: "Passes | None" = None) -> Edit:
        """One pass of the encoder for each activation."""
        sae = on_device(self.sae, like.device)

        def edit(x: Tensor, strength: float | Tensor) -> Tensor:
            step = step_of(sae, self.feature, self.value, x)
            return (x.float() + strength * step).to(x.dtype)

        return edit


@dataclass(frozen=True, eq=False)
class FeatureFrom(FromModel):
    """Set a feature in another model that reads the same text, and add what the map makes of it.

    The route of Oozeer et al. 2025 (appendix on sparse autoencoders), as a difference: they put
    f(decode(edited codes)) in place of the target's activation, which alone, without any edit,
    gave most of their effect. Tokens are matched as by `ReplaceFrom`; positions of the target that
    correspond to none of the source are left as they are.

    Args:
        source: The other model.
        sae: Its dictionary.
        feature: Which feature.
        value: Its activation a afterwards.
        mapper: A map of points from the dictionary's space to the target's.
        strength: Factor on the difference.
        where: Positions; default everywhere but the attention sink.
    """

    stage: ClassVar[int] = ADD
    instead: ClassVar[str] = "SetFeature edits the model's own feature, Add a fixed direction"
    source: HookedModel
    sae: Coder
    feature: int
    value: float
    mapper: PointMap
    strength: Strength = 1.0
    where: Where = field(default_factory=everywhere)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_feature(self.sae, self.feature)
        _require_value(self.value)
        self.sae.require_space(self.mapper.source, "dictionary and source of this map")

    def _maker(self) -> Callable[[Tensor], Tensor]:
        """What the edit of a source activation is in the target: its encoder, and the map twice."""
        sae, mapper = (on_device(part, self.source.device) for part in (self.sae, self.mapper))

        def difference(x: Tensor) -> Tensor:
            step = step_of(sae, self.feature, self.value, x)
            return mapper.map_points(x + step) - mapper.map_points(x)

        return difference

    def _put(self, x: Tensor, values: Tensor, strength: float | Tensor) -> Tensor:
        """The difference added."""
        return (x.float() + strength * values).to(x.dtype)


@dataclass(frozen=True)
class Reconstruction:
    """A map of points that goes through the source's dictionary first: f(decode(encode(x))).

    In place of the map in a `ReplaceFrom` it shows what reconstruction and map do with no edit.
    """

    sae: Coder
    mapper: PointMap

    @property
    def source(self) -> ActivationSpace:
        """Space of the dictionary."""
        return space_of(self.sae)

    @property
    def target(self) -> ActivationSpace:
        """Where the map goes."""
        return self.mapper.target

    def to(self, device: torch.device) -> "Reconstruction":
        """With the parameters of both there."""
        return Reconstruction(on_device(self.sae, device), on_device(self.mapper, device))

    def map_points(self, x: Tensor) -> Tensor:
        """Activations to activations."""
        return self.mapper.map_points(self.sae.reconstruct(x).to(x.dtype))


@torch.no_grad()
def step_of(sae: Coder, feature: int, value: float, x: Tensor) -> Tensor:
    """What it takes at every position to bring a feature to a value, in float32."""
    rows = x.reshape(-1, x.shape[-1]).float()
    codes = sae.encode(rows)
    if sae.row_norm == "none":
        missing = value - codes[:, feature, None]
        step = missing * sae.directions[feature].to(x.device, torch.float32)
    else:  # one unit of a feature is then another length in each row
        edited = codes.clone()
        edited[:, feature] = value
        step = sae.decode(edited, at=rows) - sae.decode(codes, at=rows)
    return step.reshape(x.shape)


def require_feature(sae: Coder, feature: int) -> None:
    """Refuse a feature that is not there."""
    if not 0 <= feature < sae.d_sae:
        raise InputError(
            "feature: out of range",
            got=feature,
            valid=f"0 to {sae.d_sae - 1}",
            hint="features are counted from 0",
        )


def _require_value(value: float) -> None:
    if not math.isfinite(value):
        raise InputError(
            "value: must be finite",
            got=value,
            valid="an activation of the feature",
            hint="MovedFeature.edit(quantile) takes it from where the feature is active",
        )

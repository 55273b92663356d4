"""MovedFeature: a feature of one model as a vector, or an edit, of another; with its card."""

from dataclasses import dataclass, field
from typing import Any

from tl_transfer.errors import InputError
from tl_transfer.features.codes import Coder
from tl_transfer.features.edit import FeatureFrom, SetFeature
from tl_transfer.interventions.add import Add
from tl_transfer.interventions.base import Operator
from tl_transfer.interventions.coordinate import Clamp
from tl_transfer.interventions.from_model import PointMap
from tl_transfer.models.surface import HookedModel
from tl_transfer.positions import Where, everywhere
from tl_transfer.vectors import SteeringVector

#: Quantiles of an activation that are kept; those between are interpolated.
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class MovedFeature:
    """A feature of the source in the target, by one of the routes of `FeatureRoutes`.

    Attributes:
        route: ``"live"``, ``"direction"``, ``"match"`` or ``"fold"``.
        feature: The feature of the source.
        vector: Its direction in the target; as long as what its 0.9 quantile adds there, so
            ``Add(vector, vector.natural_strength)`` steers with that.
        activation: Quantiles of the source feature where it is active.
        step: The same quantiles in the target: what is added along the direction, in units of
            the target's activations.
        base: Mean coordinate of the target along the direction where the feature is silent.
        card: How it was moved, how well the target shows it, and the floors of that (JSON).
        coder: Dictionary of the target that the feature was found in, or of the source (live).
        of_coder: The feature's number there.
        beside: For the live route: the source model and the map.
    """

    route: str
    feature: int
    vector: SteeringVector
    activation: dict[float, float]
    step: dict[float, float]
    base: float
    card: dict[str, Any] = field(default_factory=dict)
    coder: Coder | None = None
    of_coder: int | None = None
    beside: tuple[HookedModel, PointMap] | None = None

    def strength(self, quantile: float = 0.9) -> float:
        """Strength of an `Add` of the vector that is worth a quantile of the activation.

        Args:
            quantile: From 0.1 to 1 (the largest activation seen), over rows where it is active.
        """
        return _at(self.step, quantile) / self.vector.median_norm

    def steer(self, quantile: float = 0.9, *, where: Where | None = None) -> Operator:
        """Add the feature everywhere, as strongly as that quantile of its activation.

        The live route sets it in the source instead, which reads along: `FeatureFrom`.
        """
        where = where or everywhere()
        if self.beside is not None:
            return self._live(quantile, where)
        return Add(self.vector, self.strength(quantile), where)

    def hold(self, quantile: float = 0.9, *, where: Where | None = None) -> Operator:
        """Set the feature to that quantile: where it is active already, little is added.

        In a dictionary of the target its code is set; of a mere direction the coordinate is.
        """
        where = where or everywhere()
        if self.beside is not None:
            return self._live(quantile, where)
        if self.coder is not None and self.of_coder is not None:
            length = float(self.coder.directions[self.of_coder].float().norm())
            value = _at(self.step, quantile) / length
            return SetFeature(self.coder, self.of_coder, value, where=where)
        return Clamp(self.vector, self.base + _at(self.step, quantile), where=where)

    def _live(self, quantile: float, where: Where) -> FeatureFrom:
        assert self.beside is not None and self.coder is not None
        model, mapper = self.beside
        value = _at(self.activation, quantile)
        return FeatureFrom(model, self.coder, self.feature, value, mapper, where=where)

    def __repr__(self) -> str:
        reading = self.card["reading"]
        lines = [
            f"MovedFeature({self.feature} by {self.route}, {self.vector.space.model} @ "
            f"{self.vector.space.hook_point})",
            f"  strength {self.strength():.3g} median norms at its 0.9 quantile",
            f"  the target shows it: held-out r {reading['r']:.2f} {_interval(reading['ci95'])}; "
            f"floors: shuffled rows {reading['shuffled']:.2f}, random features "
            f"{reading['random']:.2f}",
            f"  active in {self.card['n_active']} of {self.card['n_rows']} rows",
        ]
        if self.card.get("target_feature") is not None:
            lines[0] = lines[0].replace(" by ", f" as {self.card['target_feature']} by ")
        return "\n".join(lines)


def _at(quantiles: dict[float, float], q: float) -> float:
    """Linear between the quantiles that are kept."""
    keys = sorted(quantiles)
    if not keys[0] <= q <= keys[-1]:
        raise InputError(
            "quantile: outside what is kept",
            got=q,
            valid=f"{keys[0]:g} to {keys[-1]:g}",
            hint="0.9 is a strong but usual activation; 1 the largest one seen",
        )
    high = next(key for key in keys if key >= q)
    low = max((key for key in keys if key <= q), default=high)
    part = 0.0 if high == low else (q - low) / (high - low)
    return quantiles[low] + part * (quantiles[high] - quantiles[low])


def _interval(ci: list[float] | None) -> str:
    return "" if ci is None else f"[{ci[0]:.2f}, {ci[1]:.2f}]"

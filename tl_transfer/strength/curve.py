"""StrengthCurve and Calibration: what was measured at each strength, and which one was chosen."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tl_transfer.interventions import Intervention

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Measure = Literal["kl", "loss"]


@dataclass(frozen=True)
class StrengthPoint:
    """Measurements at one strength; intervals are 95 % bootstrap intervals of the mean.

    Attributes:
        strength: Factor on the strengths of the interventions.
        kl: Mean KL(unsteered || steered) over the neutral passages, nats a token.
        kl_ci95: Its interval, over passages.
        loss: Mean rise of the cross-entropy, nats a token.
        loss_ci95: Its interval, over passages.
        effect: Mean effect over the prompts; None without a measure of it.
        effect_ci95: Its interval, over prompts.
    """

    strength: float
    kl: float
    kl_ci95: list[float]
    loss: float
    loss_ci95: list[float]
    effect: float | None = None
    effect_ci95: list[float] | None = None

    def damage(self, measure: Measure) -> float:
        """KL or rise of the loss."""
        return self.kl if measure == "kl" else self.loss


@dataclass(frozen=True)
class StrengthCurve:
    """Damage and effect at several strengths, of the same interventions on the same texts.

    Attributes:
        points: By rising strength.
        n_passages: Neutral passages.
        n_tokens: Tokens of them on which damage was measured.
        n_prompts: Prompts on which the effect was measured; 0 without.
    """

    points: tuple[StrengthPoint, ...]
    n_passages: int
    n_tokens: int
    n_prompts: int

    def at(self, strength: float) -> StrengthPoint:
        """The point measured nearest to a strength."""
        return min(self.points, key=lambda point: abs(point.strength - strength))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        return asdict(self)

    def plot(self) -> "Figure":
        """Effect and damage against strength, as a plotly figure."""
        from tl_transfer.plots import strength_curve

        return strength_curve(self.to_json())

    def __repr__(self) -> str:
        head = (
            f"StrengthCurve({len(self.points)} strengths; KL on {self.n_passages} passages, "
            f"{self.n_tokens} tokens"
        )
        head += f"; effect on {self.n_prompts} prompts)" if self.n_prompts else ")"
        rows = ["  strength   KL (nats/token)              effect"]
        return "\n".join([head, *(rows + [_row(point) for point in self.points])])


@dataclass(frozen=True)
class Calibration:
    """A strength that was chosen, what was measured at it, and whether the wish was met.

    Attributes:
        strength: Factor on the strengths of the interventions; None when no strength will do.
        point: Measurements at that strength (none of them interpolated); None without a strength.
        reached: Whether budget and target were met.
        reason: Why this strength, or why none.
        budget: Most damage allowed, nats a token.
        measure: ``"kl"`` or ``"loss"``.
        target: Effect wanted; None for the budget alone.
        interventions: With their strengths set; empty without a strength.
        curve: Everything that was measured on the way.
    """

    strength: float | None
    point: StrengthPoint | None
    reached: bool
    reason: str
    budget: float | None
    measure: Measure
    target: float | None
    interventions: tuple[Intervention, ...] = field(repr=False)
    curve: StrengthCurve = field(repr=False)

    @property
    def intervention(self) -> Intervention:
        """The one intervention, ready to attach.

        Raises:
            ValueError: none or several.
        """
        (only,) = self.interventions
        return only

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the interventions."""
        kept = {"strength", "reached", "reason", "budget", "measure", "target"}
        return {
            **{name: getattr(self, name) for name in sorted(kept)},
            "point": None if self.point is None else asdict(self.point),
            "curve": self.curve.to_json(),
        }

    def __repr__(self) -> str:
        strength = "none" if self.strength is None else f"{self.strength:.4g}"
        head = f"Calibration(strength {strength}, {'reached' if self.reached else 'NOT REACHED'}: "
        lines = [head + self.reason + ")"]
        if self.point is not None:
            lines.append(_row(self.point))
        return "\n".join([*lines, f"  measured on {_sizes(self.curve)}"])


def _row(point: StrengthPoint) -> str:
    text = f"  {point.strength:>8.4g}   {_number(point.kl, point.kl_ci95):<28}"
    if point.effect is None:
        return text.rstrip()
    return f"{text} {_number(point.effect, point.effect_ci95)}"


def _number(value: float, interval: list[float] | None) -> str:
    if interval is None:
        return f"{value:.3g}"
    return f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"


def _sizes(curve: StrengthCurve) -> str:
    text = f"{curve.n_passages} passages ({curve.n_tokens} tokens)"
    return f"{text} and {curve.n_prompts} prompts" if curve.n_prompts else text

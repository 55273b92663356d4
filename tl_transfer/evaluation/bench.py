"""Measuring one direction: strength for a budget, effect and damage at that strength."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_transfer.evaluation.behaviour import PromptEffect
from tl_transfer.evaluation.calibrate import strengths_for_budgets
from tl_transfer.evaluation.damage import DamageResult, NeutralDamage
from tl_transfer.models.surface import Site
from tl_transfer.tasks.base import Task

SIGNS = (("plus", 1.0), ("minus", -1.0))


class Bench:
    """The measuring instruments of one split at one site, shared by all arms."""

    def __init__(
        self, site: Site, task: Task, prompts: Sequence[str], neutral: Sequence[str]
    ) -> None:
        self.effect = PromptEffect(site, prompts, task.positive_words, task.negative_words)
        self.damage = NeutralDamage(site, neutral)


def step(direction: Float[Tensor, " d_model"], strength: float, norm: float) -> Tensor:
    """What is added: strength times the median residual norm, along the direction."""
    return direction * (strength * norm)


def calibrate(
    direction: Tensor,
    damage: NeutralDamage,
    norm: float,
    budgets: Sequence[float],
    *,
    start: float = 0.3,
    tolerance: float = 0.03,
) -> dict[str, dict[float, float | None]]:
    """Strength of either sign that reaches each KL budget."""
    found: dict[str, dict[float, float | None]] = {}
    for name, sign in SIGNS:

        def measured(strength: float, sign: float = sign) -> float:
            return damage.measure(step(direction, sign * strength, norm)).mean_kl

        found[name] = strengths_for_budgets(measured, budgets, start=start, tolerance=tolerance)
        start = found[name][min(budgets)] or start
    return found


def calibrate_control(
    direction: Tensor,
    damage: NeutralDamage,
    norm: float,
    budgets: Sequence[float],
    main: float,
    *,
    start: float,
) -> dict[str, dict[float, float | None]]:
    """Strength of one of many random directions: searched at the main budget, one sign.

    To second order KL is even and quadratic in the strength, so the other sign and the other
    budgets follow; the damage on test text is measured for both signs and reported.
    """

    def measured(strength: float) -> float:
        return damage.measure(step(direction, strength, norm)).mean_kl

    at_main = strengths_for_budgets(measured, [main], start=start, tolerance=0.1)[main]
    scaled: dict[float, float | None] = {
        budget: None if at_main is None else at_main * (budget / main) ** 0.5 for budget in budgets
    }
    return {name: dict(scaled) for name, _ in SIGNS}


@dataclass
class Measured:
    """One direction at one budget: shifts per prompt and sign, strengths, damage."""

    strength: dict[str, float | None]
    shift: dict[str, Tensor]
    damage: dict[str, DamageResult | None]

    @property
    def odd(self) -> Tensor:
        """Half the difference of both signs: what the direction does that any push does not."""
        return (self.shift["plus"] - self.shift["minus"]) / 2


def measure_at(
    direction: Tensor,
    strengths: dict[str, float | None],
    bench: Bench,
    norm: float,
    *,
    with_damage: bool,
) -> Measured | None:
    """Effect (and damage) of a direction at its calibrated strengths; None when unreachable."""
    if any(value is None for value in strengths.values()):
        return None
    shift, damage = {}, {}
    for name, sign in SIGNS:
        edit = step(direction, sign * (strengths[name] or 0.0), norm)
        shift[name] = bench.effect.shift(edit)
        damage[name] = bench.damage.measure(edit) if with_damage else None
    return Measured(dict(strengths), shift, damage)

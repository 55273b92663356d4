"""StrengthBench: sweeps and calibrations of any intervention, all on the same texts.

Arms of a comparison (native, transferred, random) are set to equal dose with one sweep, or to equal
damage with one calibration each; they share the bench, so what differs is the arm alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tl_transfer.edited import scaled
from tl_transfer.errors import InputError
from tl_transfer.intervals import mean_ci
from tl_transfer.interventions import Intervention
from tl_transfer.interventions.base import ADD
from tl_transfer.models.load import load_model
from tl_transfer.strength.curve import Calibration, Measure, StrengthCurve, StrengthPoint
from tl_transfer.strength.effect import Effect
from tl_transfer.strength.passages import Passages
from tl_transfer.strength.search import HIGHEST, LOWEST, run_together, search

#: One intervention, or several that are scaled together.
Interventions = Intervention | Sequence[Intervention]

#: In median residual norms; from hardly anything to a wreck in most models.
STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


class StrengthBench:
    """Instruments that several interventions are measured with.

    Args:
        model: Who is steered: `HookedModel` or a live TransformerLens host.
        neutral: Validation texts that the interventions should leave alone; damage is measured on
            them. Keep the texts of the final report apart.
        effect: Measure of the behaviour, a `NextTokenEffect` or your own; None for damage alone.
    """

    def __init__(self, model: Any, *, neutral: Sequence[str], effect: Effect | None = None) -> None:
        self.model = load_model(model)
        self._passages = Passages(self.model, neutral)
        self._effect = effect
        self._n_prompts = 0

    def sweep(
        self, interventions: Interventions, strengths: Sequence[float] = STRENGTHS
    ) -> StrengthCurve:
        """Damage and effect at each strength.

        Args:
            interventions: One or several; a strength multiplies theirs (which is 1 if not given).
            strengths: Factors, also negative ones.

        Raises:
            InputError: no strengths, or one that is not finite.
        """
        if not strengths or not all(math.isfinite(s) for s in strengths):
            raise InputError(
                "strengths: one or more finite numbers",
                got=list(strengths),
                valid="e.g. (0.05, 0.1, 0.2), in median residual norms for Add",
                hint="leave it out for 0.02 to 0.5",
            )
        items = _sequence(interventions)
        points = [self._point(items, float(s)) for s in sorted(set(strengths))]
        return self._curve(points)

    def calibrate(
        self,
        interventions: Interventions,
        *,
        budget: float | None = 0.05,
        measure: Measure = "kl",
        target: float | None = None,
        start: float = 0.3,
        highest: float | None = None,
        tolerance: float = 0.05,
    ) -> Calibration:
        """Strength for a damage budget, or the least one for an effect within the budget.

        Args:
            interventions: One or several, scaled together.
            budget: Damage in nats a token that is spent (without a target) or not exceeded (with
                one); None: no limit, for a target alone.
            measure: ``"kl"`` to the unsteered model, or rise of the ``"loss"``.
            target: Mean effect wanted, positive; turn a vector around with a minus sign.
            start: First strength tried.
            highest: Largest strength tried; default 64 for additions, and 1 for everything that
                removes or sets a component, where 1 is all of it.
            tolerance: Relative distance from budget or target that is near enough.

        Returns:
            The strength with what was measured at it. ``reached`` is False, and ``reason`` says
            why, when the budget cannot be spent or the target cannot be had within it.
        """
        items = _sequence(interventions)
        highest = _highest(items) if highest is None else highest
        _require_wishes(budget, target, measure, highest, has_effect=self._effect is not None)
        seen: dict[float, StrengthPoint] = {}

        def at(strength: float) -> StrengthPoint:
            if strength not in seen:
                seen[strength] = self._point(items, strength)
            return seen[strength]

        if target is None:
            assert budget is not None
            chosen, reached, reason = _spend(at, budget, measure, start, highest, tolerance)
        else:
            chosen, reached, reason = _least(at, budget, measure, target, start, highest, tolerance)
        return Calibration(
            strength=chosen,
            point=None if chosen is None else at(chosen),
            reached=reached,
            reason=reason,
            budget=budget,
            measure=measure,
            target=target,
            interventions=() if chosen is None else scaled(items, chosen),
            curve=self._curve(list(seen.values())),
        )

    def _point(self, items: Sequence[Intervention], strength: float) -> StrengthPoint:
        steered = scaled(items, strength)
        damage, baseline = self._passages.measure(steered), self._passages.baseline
        rise = damage.loss - baseline.loss
        effect = None if self._effect is None else self._effect.measure(steered)
        self._n_prompts = 0 if effect is None else len(effect)
        return StrengthPoint(
            strength=strength,
            kl=float(damage.kl.mean()),
            kl_ci95=mean_ci(damage.kl),
            loss=float(rise.mean()),
            loss_ci95=mean_ci(rise),
            effect=None if effect is None else float(effect.mean()),
            effect_ci95=None if effect is None else mean_ci(effect),
        )

    def _curve(self, points: Sequence[StrengthPoint]) -> StrengthCurve:
        ordered = tuple(sorted(points, key=lambda point: point.strength))
        return StrengthCurve(ordered, self._passages.n, self._passages.n_tokens, self._n_prompts)


def strength_sweep(
    model: Any,
    interventions: Interventions,
    strengths: Sequence[float] = STRENGTHS,
    *,
    neutral: Sequence[str],
    effect: Effect | None = None,
) -> StrengthCurve:
    """Damage to neutral text, and effect on prompts, at each of several strengths.

    One call of `StrengthBench.sweep`; make the bench yourself to measure several interventions.

    Args:
        model: Who is steered.
        interventions: One or several; a strength multiplies theirs.
        strengths: Factors, also negative ones.
        neutral: Passages on which damage is measured.
        effect: Measure of the behaviour; None: damage alone.
    """
    return StrengthBench(model, neutral=neutral, effect=effect).sweep(interventions, strengths)


def calibrate(
    model: Any,
    interventions: Interventions,
    *,
    neutral: Sequence[str],
    effect: Effect | None = None,
    **wishes: Any,
) -> Calibration:
    """Strength for a damage budget, or for a target effect within it.

    One call of `StrengthBench.calibrate`; make the bench yourself to calibrate several arms.

    Args:
        model: Who is steered.
        interventions: One or several, scaled together.
        neutral: Passages on which damage is measured.
        effect: Measure of the behaviour; needed for a target effect.
        **wishes: ``budget=``, ``target=`` and the others of `StrengthBench.calibrate`.
    """
    return StrengthBench(model, neutral=neutral, effect=effect).calibrate(interventions, **wishes)


Found = tuple[float | None, bool, str]


def _spend(
    at: Callable[[float], StrengthPoint],
    budget: float,
    measure: Measure,
    start: float,
    highest: float,
    tolerance: float,
) -> Found:
    """The strength at which damage is the budget."""
    tried: list[float] = []

    def damages(asked: list[tuple[int, float]]) -> list[float]:
        tried.extend(strength for _, strength in asked)
        return [at(strength).damage(measure) for _, strength in asked]

    one = search([budget], start=min(start, highest), tolerance=tolerance, highest=highest)
    chosen = run_together([one], damages)[0][budget]
    if chosen is not None:
        damage = at(chosen).damage(measure)
        # The search interpolates; what counts is what is measured there.
        if abs(damage / budget - 1) <= max(2 * tolerance, 0.1):
            return chosen, True, f"{measure} {damage:.3g} for a budget of {budget:g}"
    top, low = at(max(tried)), at(min(tried))
    if top.damage(measure) < budget:
        return (
            None,
            False,
            f"at strength {top.strength:.3g}, the largest tried, the {measure} is only "
            f"{top.damage(measure):.3g} of a budget of {budget:g}",
        )
    return (
        None,
        False,
        f"no strength was found at which the {measure} is near {budget:g}; it is "
        f"{low.damage(measure):.3g} at {low.strength:.3g} and {top.damage(measure):.3g} at "
        f"{top.strength:.3g}",
    )


def _least(
    at: Callable[[float], StrengthPoint],
    budget: float | None,
    measure: Measure,
    target: float,
    start: float,
    highest: float,
    tolerance: float,
) -> Found:
    """The least strength that has the target effect, if the budget allows it."""
    limit, note = highest, "the largest strength tried"
    if budget is not None:
        spent, reached, reason = _spend(at, budget, measure, start, highest, tolerance)
        if reached and spent is not None:
            limit, note = spent, f"the budget of {budget:g} ({measure})"
        elif at(highest).damage(measure) > budget:
            return None, False, reason
    # From below: broken text has no behaviour, so an effect can turn back well before the limit.
    tried = [min(start, limit / 4)]
    while _effect(at(tried[-1])) < target and tried[-1] < limit:
        tried.append(min(2 * tried[-1], limit))
    if _effect(at(tried[-1])) < target:
        best = max(tried, key=lambda strength: _effect(at(strength)))
        return (
            best,
            False,
            f"up to {note} the largest effect found is {_effect(at(best)):.3g}, short of "
            f"{target:g}",
        )
    low, high = ([0.0, *tried])[-2:]
    for _ in range(12):
        if _effect(at(high)) <= target * (1 + tolerance):
            break
        middle = high / 2 if low == 0.0 else math.sqrt(low * high)
        if middle < LOWEST:
            break
        low, high = (low, middle) if _effect(at(middle)) >= target else (middle, high)
    found = at(high)
    return high, True, f"effect {_effect(found):.3g} for a target of {target:g}, within {note}"


def _effect(point: StrengthPoint) -> float:
    assert point.effect is not None
    return point.effect


def _sequence(interventions: Interventions) -> tuple[Intervention, ...]:
    items = tuple(interventions) if isinstance(interventions, list | tuple) else (interventions,)
    if not items or not all(isinstance(item, Intervention) for item in items):
        raise InputError(
            "interventions: one or several",
            got=repr(interventions)[:120],
            valid="Add(vector), Ablate(vector), ... or a list of them",
            hint="a vector alone is not an intervention: Add(vector)",
        )
    return items


def _highest(items: Sequence[Intervention]) -> float:
    """Additions have no natural end; everything else has done all it can at strength 1."""
    return HIGHEST if all(item.stage == ADD for item in items) else 1.0


def _require_wishes(
    budget: float | None,
    target: float | None,
    measure: str,
    highest: float,
    *,
    has_effect: bool,
) -> None:
    problems = {
        "budget": budget is not None and not budget > 0,
        "target": target is not None and not (target > 0 and has_effect),
        "budget, target": budget is None and target is None,
        "measure": measure not in ("kl", "loss"),
        "highest": not highest > LOWEST,
    }
    for name, wrong in problems.items():
        if wrong:
            raise InputError(
                f"{name}: cannot be calibrated to",
                got=f"budget={budget}, target={target}, measure={measure!r}, highest={highest}",
                valid="a positive budget, or a positive target with an effect to measure it, or "
                'both; measure "kl" or "loss"; highest above 0.001',
                hint="turn the vector around for a negative effect: Add(-vector)",
            )

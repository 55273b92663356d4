"""evaluate: every arm beside its controls, at matched damage and at matched norm.

What a good result does not prove: that another behaviour, layer or model pair would transfer, or
that the direction is the only way the target represents the behaviour.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.errors import InputError
from tl_transfer.evaluation.arms import build
from tl_transfer.evaluation.bench import (
    SIGNS,
    Bench,
    Measured,
    calibrate,
    calibrate_controls,
    measure_at,
    step,
)
from tl_transfer.evaluation.damage import NeutralDamage
from tl_transfer.evaluation.generation import continue_prompts, score
from tl_transfer.evaluation.sections import (
    efficiency,
    examples,
    generation_arm,
    many_directions,
    one_direction,
    sweep_point,
)
from tl_transfer.extract import mean_difference
from tl_transfer.mappers.base import Mapper
from tl_transfer.mappers.transfer import transfer
from tl_transfer.models.surface import Site
from tl_transfer.tasks.base import Task
from tl_transfer.vectors import SteeringVector

BUDGETS = (0.02, 0.05, 0.1)
#: Directions of each random kind whose damage is measured along the sweep; all have their effect
#: measured there, and their damage at the main budget.
SWEEP_DAMAGE = 3


@dataclass(frozen=True)
class Settings:
    """How an evaluation is run.

    Attributes:
        budgets: KL budgets in nats per neutral token.
        main_budget: The budget of the verdict and of the generations.
        strengths: Sweep, in median residual norms; both signs are run. Empty: a third, one and
            three times the strength at which the native vector reaches the main budget.
        n_random: Directions of each random kind.
        n_generate: Generation prompts used.
        max_new_tokens: Length of a continuation; 0 leaves generation out.
        seed: Of controls and bootstraps.
    """

    budgets: tuple[float, ...] = BUDGETS
    main_budget: float = 0.05
    strengths: tuple[float, ...] = ()
    n_random: int = 20
    n_generate: int = 16
    max_new_tokens: int = 14
    seed: int = 0

    def __post_init__(self) -> None:
        problems = {
            "budgets": not self.budgets or min(self.budgets) <= 0,
            "main_budget": self.main_budget not in self.budgets,
            "strengths": bool(self.strengths) and min(self.strengths) <= 0,
            "n_random": self.n_random < 2,
            "n_generate": self.n_generate < 1,
            "max_new_tokens": self.max_new_tokens < 0,
        }
        for name, wrong in problems.items():
            if wrong:
                raise InputError(
                    f"settings.{name}: out of range",
                    got=getattr(self, name),
                    valid="positive budgets that contain main_budget, positive strengths, at "
                    "least 2 random directions and 1 prompt, max_new_tokens 0 or more",
                    hint="leave it out for the default",
                )


class Evaluation:
    """One run: arms, calibration on validation, everything reported on test."""

    def __init__(
        self,
        task: Task,
        vector: SteeringVector,
        mapper: Mapper,
        target: Site,
        *,
        native: SteeringVector | None,
        settings: Settings,
        progress: bool,
    ) -> None:
        self.task, self.mapper, self.target, self.settings = task, mapper, target, settings
        self.vector = vector
        self.native = native or mean_difference(
            target, positive=task.positive, negative=task.negative
        )
        self.moved = transfer(vector, mapper)
        self.arms = build(
            vector, self.native, mapper, n_random=settings.n_random, seed=settings.seed
        )
        self.norm = mapper.target_norm
        self.progress = progress
        self.timings: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """All sections of the report that an evaluation fills."""
        settings = self.settings
        calibration = NeutralDamage(self.target, self.task.neutral_validation)
        test = Bench(self.target, self.task, self.task.test_prompts, self.task.neutral_test)
        strengths = self._timed("calibrate", lambda: self._calibrate(calibration))
        measured = self._timed("matched damage", lambda: self._matched(strengths, test))
        self._strengths = self.settings.strengths or _around(strengths["native"][0], settings)
        sweep = self._timed("sweep", lambda: self._sweep(test))
        generation = None
        if self.settings.max_new_tokens > 0:
            generation = self._timed("generation", lambda: self._generate(measured))
        return {
            "strength_unit": "median residual norm of the target layer",
            "median_norm": self.norm,
            "effect_unit": "shift of log-odds of positive against negative next words, in nats",
            "words": test.effect.words,
            "n_neutral_tokens": test.damage.n_tokens,
            "arms": sweep,
            "matched": self._matched_section(measured),
            "transfer_efficiency": self._efficiency(measured, sweep),
            "generation": generation,
        }

    def _timed(self, name: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        self.timings[name] = time.perf_counter() - start
        return result

    def _calibrate(self, damage: NeutralDamage) -> dict[str, list[dict[str, dict[float, Any]]]]:
        """Arm -> one {sign: {budget: strength}} a direction; on validation text only."""
        settings = self.settings
        real = [arm for arm in self.arms if not arm.is_control_family]
        directions = torch.cat([arm.directions for arm in real])
        with self._bar("calibrate", "direction", sum(len(a.directions) for a in self.arms)) as bar:
            rows = iter(calibrate(directions, damage, self.norm, settings.budgets))
            found = {arm.name: [next(rows) for _ in arm.directions] for arm in real}
            bar.update(len(directions))
            start = found["native"][0]["plus"][settings.main_budget] or 0.3
            for arm in self.arms:
                if arm.is_control_family:
                    found[arm.name] = calibrate_controls(
                        arm.directions,
                        damage,
                        self.norm,
                        settings.budgets,
                        settings.main_budget,
                        start=start,
                    )
                    bar.update(len(arm.directions))
        return found

    def _matched(
        self, strengths: dict[str, list], bench: Bench
    ) -> dict[float, dict[str, list[Measured | None]]]:
        """Every direction of every arm at every budget, on test."""
        settings = self.settings
        measured: dict[float, dict[str, list[Measured | None]]] = {}
        total = len(settings.budgets) * sum(len(arm.directions) for arm in self.arms)
        with self._bar("effect at matched damage", "direction", total) as bar:
            for budget in settings.budgets:
                measured[budget] = {}
                for arm in self.arms:
                    at = [{s: found[s][budget] for s, _ in SIGNS} for found in strengths[arm.name]]
                    measured[budget][arm.name] = measure_at(
                        arm.directions,
                        at,
                        bench,
                        self.norm,
                        # Damage on test text: always of a real arm, of the others where it counts.
                        with_damage=not arm.is_control_family or budget == settings.main_budget,
                    )
                    bar.update(len(arm.directions))
        return measured

    def _bar(self, what: str, unit: str, total: int) -> tqdm:
        return tqdm(total=total, desc=what, unit=unit, disable=not self.progress)

    def _matched_section(self, measured: dict[float, dict[str, list]]) -> dict[str, Any]:
        section: dict[str, Any] = {}
        for budget, arms in measured.items():
            section[f"{budget:g}"] = {
                name: (
                    one_direction(rows[0], self.settings.seed, self.task.test_factors)
                    if len(rows) == 1
                    else many_directions(rows)
                )
                for name, rows in arms.items()
            }
        return section

    def _efficiency(self, measured: dict, sweep: dict) -> dict[str, Any]:
        matched = {}
        for budget, arms in measured.items():
            matched[f"{budget:g}"] = efficiency(
                arms["transferred"][0],
                arms["native"][0],
                seed=self.settings.seed,
                factors=self.task.test_factors,
            )
        norm = {}
        for strength in self._strengths:
            key = f"{strength:.3g}"
            parts = {}
            for arm in ("transferred", "native"):
                shifts = self._sweep_shifts[arm]
                parts[arm] = Measured(
                    {"plus": strength, "minus": strength},
                    {"plus": shifts[strength], "minus": shifts[-strength]},
                    {},
                )
            norm[key] = efficiency(
                parts["transferred"],
                parts["native"],
                seed=self.settings.seed,
                factors=self.task.test_factors,
            )
        return {"matched_damage": matched, "matched_norm": norm}

    def _sweep(self, bench: Bench) -> dict[str, Any]:
        """Every arm at the same signed strengths (matched norm)."""
        signed = [sign * s for s in self._strengths for _, sign in SIGNS]
        self._sweep_shifts: dict[str, dict[float, Tensor]] = {}
        zero = sweep_point(
            0.0,
            torch.zeros_like(bench.effect.baseline)[None],
            [bench.damage.baseline],
            self.settings.seed,
        )
        section: dict[str, Any] = {"unsteered": {"0": zero}}
        total = len(signed) * sum(len(arm.directions) for arm in self.arms)
        with self._bar("sweep", "point", total) as bar:
            for arm in self.arms:
                section[arm.name] = {}
                self._sweep_shifts[arm.name] = {}
                for strength in signed:
                    edits = arm.directions * (strength * self.norm)
                    shifts = bench.effect.shifts(edits)
                    damages = bench.damage.measures(edits[:SWEEP_DAMAGE])
                    self._sweep_shifts[arm.name][strength] = shifts[0]
                    section[arm.name][f"{strength:+.3g}"] = sweep_point(
                        strength, shifts, damages, self.settings.seed, self.task.test_factors
                    )
                    bar.update(len(edits))
        return section

    def _generate(self, measured: dict[float, dict[str, list]]) -> dict[str, Any]:
        budget = self.settings.main_budget
        prompts = _spread(self.task.generation_prompts, self.settings.n_generate)
        labels: list[tuple[str, str, int]] = [("unsteered", "zero", 0)]
        steps = [torch.zeros(self.target.model.d_model)]
        for arm in self.arms:
            for i, row in enumerate(measured[budget][arm.name]):
                if row is None:
                    continue
                for name, sign in SIGNS:
                    labels.append((arm.name, name, i))
                    steps.append(step(arm.directions[i], sign * row.strength[name], self.norm))
        texts = continue_prompts(
            self.target.model,
            self.native,
            prompts,
            torch.stack(steps),
            max_new_tokens=self.settings.max_new_tokens,
            progress=self.progress,
        )
        scores: dict[str, dict[str, list]] = {}
        for (name, sign_name, _), generations in zip(labels, texts, strict=True):
            scores.setdefault(name, {}).setdefault(sign_name, []).append(
                score(generations, self.task.scorer, seed=self.settings.seed)
            )
        return {
            "budget": budget,
            "n": len(prompts),
            "max_new_tokens": self.settings.max_new_tokens,
            "scorer": self.task.scorer_name,
            "arms": {arm: generation_arm(signs) for arm, signs in scores.items()},
            "examples": examples(prompts, labels, texts),
        }


def _spread(items: Sequence[str], n: int) -> list[str]:
    """N items evenly spread over the list, so that every frame is used."""
    n = min(n, len(items))
    return [items[int(i * len(items) / n)] for i in range(n)]


def _around(native: dict[str, dict[float, float | None]], settings: Settings) -> tuple[float, ...]:
    """A third, one and three times the native vector's strength at the main budget."""
    reached = [found[settings.main_budget] for found in native.values()]
    known = [strength for strength in reached if strength is not None]
    middle = float(f"{sum(known) / len(known):.2g}") if known else 0.3
    return tuple(float(f"{middle * factor:.3g}") for factor in (1 / 3, 1.0, 3.0))

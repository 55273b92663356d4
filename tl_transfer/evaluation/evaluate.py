"""evaluate: every arm beside its controls, at matched damage and at matched norm.

What a good result does not prove: that another behaviour, layer or model pair would transfer, or
that the direction is the only way the target represents the behaviour.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_transfer.evaluation.arms import build
from tl_transfer.evaluation.behaviour import PromptEffect
from tl_transfer.evaluation.calibrate import strengths_for_budgets
from tl_transfer.evaluation.damage import DamageResult, NeutralDamage
from tl_transfer.evaluation.generation import continue_prompts, score
from tl_transfer.extract import mean_difference
from tl_transfer.intervals import mean_ci, ratio_ci
from tl_transfer.mappers.base import AffineMap
from tl_transfer.models.surface import Site
from tl_transfer.tasks.base import Task
from tl_transfer.mappers.transfer import transfer
from tl_transfer.vectors import SteeringVector

BUDGETS = (0.02, 0.05, 0.1)
STRENGTHS = (0.1, 0.2, 0.4, 0.8)
SIGNS = (("plus", 1.0), ("minus", -1.0))


@dataclass(frozen=True)
class Settings:
    """How an evaluation is run.

    Attributes:
        budgets: KL budgets in nats per neutral token.
        main_budget: The budget of the verdict and of the generations.
        strengths: Sweep, in median residual norms; both signs are run.
        n_random: Directions of each random kind.
        n_random_sweep: Of these, how many also run the whole sweep.
        n_random_damage: Of these, how many have their damage on test text measured.
        n_generate: Generation prompts used.
        max_new_tokens: Length of a continuation; 0 leaves generation out.
        seed: Of controls and bootstraps.
    """

    budgets: tuple[float, ...] = BUDGETS
    main_budget: float = 0.05
    strengths: tuple[float, ...] = STRENGTHS
    n_random: int = 20
    n_random_sweep: int = 1
    n_random_damage: int = 6
    n_generate: int = 16
    max_new_tokens: int = 16
    seed: int = 0


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

    at_main = strengths_for_budgets(measured, [main], start=start, tolerance=0.15)[main]
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
        """Half the difference of both signs: what the direction does, without what any push does."""
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


class Evaluation:
    """One run: arms, calibration on validation, everything reported on test."""

    def __init__(
        self,
        task: Task,
        vector: SteeringVector,
        mapper: AffineMap,
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
        calibration = NeutralDamage(self.target, self.task.neutral_validation)
        test = Bench(self.target, self.task, self.task.test_prompts, self.task.neutral_test)
        strengths = self._timed("calibrate", lambda: self._calibrate(calibration))
        measured = self._timed("matched damage", lambda: self._matched(strengths, test))
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
        found: dict[str, list] = {}
        start = 0.3
        settings = self.settings
        bar = tqdm(
            total=sum(len(arm.directions) for arm in self.arms),
            desc="calibrate",
            unit="direction",
            disable=not self.progress,
        )
        with bar:
            for arm in self.arms:
                found[arm.name] = []
                for direction in arm.directions:
                    if arm.is_control_family:
                        result = calibrate_control(
                            direction,
                            damage,
                            self.norm,
                            settings.budgets,
                            settings.main_budget,
                            start=start,
                        )
                    else:
                        result = calibrate(
                            direction, damage, self.norm, settings.budgets, start=start
                        )
                    start = result["plus"][settings.main_budget] or start
                    found[arm.name].append(result)
                    bar.update(1)
        return found

    def _matched(self, strengths: dict, bench: Bench) -> dict[float, dict[str, list]]:
        measured: dict[float, dict[str, list]] = {}
        bar = tqdm(
            total=len(self.settings.budgets) * sum(len(arm.directions) for arm in self.arms),
            desc="effect at matched damage",
            unit="direction",
            disable=not self.progress,
        )
        with bar:
            for budget in self.settings.budgets:
                measured[budget] = {}
                for arm in self.arms:
                    rows = []
                    for direction, found in zip(arm.directions, strengths[arm.name], strict=True):
                        at = {name: found[name][budget] for name, _ in SIGNS}
                        # Damage on test text: of every real arm, and of some random ones.
                        check = not arm.is_control_family or (
                            budget == self.settings.main_budget
                            and len(rows) < self.settings.n_random_damage
                        )
                        rows.append(measure_at(direction, at, bench, self.norm, with_damage=check))
                        bar.update(1)
                    measured[budget][arm.name] = rows
        return measured

    def _matched_section(self, measured: dict[float, dict[str, list]]) -> dict[str, Any]:
        section: dict[str, Any] = {}
        for budget, arms in measured.items():
            section[f"{budget:g}"] = {
                name: (_single(rows[0], self.settings.seed) if len(rows) == 1 else _many(rows))
                for name, rows in arms.items()
            }
        return section

    def _efficiency(self, measured: dict, sweep: dict) -> dict[str, Any]:
        matched = {}
        for budget, arms in measured.items():
            matched[f"{budget:g}"] = efficiency(
                arms["transferred"][0], arms["native"][0], seed=self.settings.seed
            )
        norm = {}
        for strength in self.settings.strengths:
            key = f"{strength:.3f}"
            parts = {}
            for arm in ("transferred", "native"):
                shifts = self._sweep_shifts[arm]
                parts[arm] = Measured(
                    {"plus": strength, "minus": strength},
                    {"plus": shifts[strength], "minus": shifts[-strength]},
                    {},
                )
            norm[key] = efficiency(parts["transferred"], parts["native"], seed=self.settings.seed)
        return {"matched_damage": matched, "matched_norm": norm}

    def _sweep(self, bench: Bench) -> dict[str, Any]:
        """Every arm at the same signed strengths (matched norm)."""
        signed = [sign * s for s in self.settings.strengths for _, sign in SIGNS]
        self._sweep_shifts: dict[str, dict[float, Tensor]] = {}
        zero = _entry(
            0.0,
            torch.zeros_like(bench.effect.baseline)[None],
            [bench.damage.baseline],
            self.settings.seed,
        )
        section: dict[str, Any] = {"unsteered": {"0": zero}}
        bar = tqdm(
            desc="sweep",
            unit="point",
            disable=not self.progress,
            total=len(signed) * (3 + 2 * self.settings.n_random_sweep),
        )
        with bar:
            for arm in self.arms:
                directions = arm.directions[: self.settings.n_random_sweep]
                section[arm.name] = {}
                self._sweep_shifts[arm.name] = {}
                for strength in signed:
                    edits = [step(direction, strength, self.norm) for direction in directions]
                    shifts = torch.stack([bench.effect.shift(edit) for edit in edits])
                    damages = [bench.damage.measure(edit) for edit in edits]
                    self._sweep_shifts[arm.name][strength] = shifts[0]
                    section[arm.name][f"{strength:+.3f}"] = _entry(
                        strength, shifts, damages, self.settings.seed
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
                # A random direction and its opposite are equally likely: one sign is enough.
                for name, sign in SIGNS[:1] if arm.is_control_family else SIGNS:
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
        for (arm, sign, _), generations in zip(labels, texts, strict=True):
            scores.setdefault(arm, {}).setdefault(sign, []).append(
                score(generations, self.task.scorer, seed=self.settings.seed)
            )
        return {
            "budget": budget,
            "n": len(prompts),
            "max_new_tokens": self.settings.max_new_tokens,
            "scorer": self.task.scorer_name,
            "arms": {arm: _generation_arm(signs) for arm, signs in scores.items()},
            "examples": _examples(prompts, labels, texts),
        }


def efficiency(moved: Measured | None, native: Measured | None, *, seed: int) -> dict[str, Any]:
    """Transferred odd effect over native odd effect, with a paired interval over prompts.

    Undefined (value None, with the reason) where the native effect's interval contains zero.
    """
    if moved is None or native is None:
        return {"value": None, "ci95": None, "reason": "a damage budget could not be reached"}
    low, high = mean_ci(native.odd, seed=seed)
    if low <= 0 <= high:
        return {"value": None, "ci95": None, "reason": "native not steerable"}
    value = float(moved.odd.mean() / native.odd.mean())
    return {"value": value, "ci95": ratio_ci(moved.odd, native.odd, seed=seed)}


def _damage_entry(damages: Sequence[DamageResult], seed: int) -> dict[str, Any]:
    kl = torch.stack([item.kl for item in damages]).mean(0)
    loss = torch.stack([item.loss for item in damages]).mean(0)
    return {
        "kl": float(kl.mean()),
        "kl_ci95": mean_ci(kl, seed=seed),
        "loss": float(loss.mean()),
        "n": len(kl),
    }


def _entry(
    strength: float, shifts: Float[Tensor, "arm prompt"], damages: Sequence[DamageResult], seed: int
) -> dict[str, Any]:
    """One point of the sweep."""
    mean = shifts.mean(0)
    means = shifts.mean(1)
    wrong = (shifts * (1.0 if strength >= 0 else -1.0) < 0).float().mean()
    entry: dict[str, Any] = {
        "strength": strength,
        "effect": float(mean.mean()),
        "ci95": mean_ci(mean, seed=seed),
        "n": shifts.shape[1],
        "damage": _damage_entry(damages, seed),
        "wrong_way": float(wrong),
    }
    if len(shifts) > 1:
        entry |= {
            "n_directions": len(shifts),
            "effect_sd": float(means.std()),
            "effect_range": [float(means.min()), float(means.max())],
        }
    return entry


def _single(row: Measured | None, seed: int) -> dict[str, Any]:
    """A real arm at matched damage."""
    if row is None:
        return {"reached": False, "n": 0}
    section: dict[str, Any] = {"reached": True, "n": len(row.odd)}
    for name, _ in SIGNS:
        damage = row.damage[name]
        section[name] = {
            "strength": row.strength[name],
            "effect": float(row.shift[name].mean()),
            "ci95": mean_ci(row.shift[name], seed=seed),
            "damage": None if damage is None else damage.mean_kl,
            "loss": None if damage is None else float(damage.loss.mean()),
        }
    section["odd"] = {"effect": float(row.odd.mean()), "ci95": mean_ci(row.odd, seed=seed)}
    section["wrong_way"] = float((row.odd < 0).float().mean())
    return section


def _many(rows: Sequence[Measured | None]) -> dict[str, Any]:
    """A random arm at matched damage: its whole range, not its mean alone."""
    reached = [row for row in rows if row is not None]
    if not reached:
        return {"reached": False, "n_directions": 0, "n": 0}
    section: dict[str, Any] = {
        "reached": True,
        "n_directions": len(reached),
        "n_unreached": len(rows) - len(reached),
        "n": len(reached[0].odd),
    }
    values = {
        "plus": torch.stack([row.shift["plus"].mean() for row in reached]),
        "minus": torch.stack([row.shift["minus"].mean() for row in reached]),
        "odd": torch.stack([row.odd.mean() for row in reached]),
    }
    for name, means in values.items():
        section[name] = {
            "effect": float(means.mean()),
            "sd": float(means.std()) if len(means) > 1 else 0.0,
            "range": [float(means.min()), float(means.max())],
        }
    for name, _ in SIGNS:
        damages = [row.damage[name].mean_kl for row in reached if row.damage[name] is not None]
        section[name]["damage"] = sum(damages) / len(damages) if damages else None
    return section


def _generation_arm(signs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    section: dict[str, Any] = {}
    for sign, entries in signs.items():
        if len(entries) == 1:
            section[sign] = entries[0]
            continue
        values = [entry["score"] for entry in entries]
        section["n_directions"] = len(values)
        section[sign] = {
            "mean": sum(values) / len(values),
            "range": [min(values), max(values)],
            "n": entries[0]["n"],
            "distinct_tokens": sum(e["distinct_tokens"] for e in entries) / len(entries),
        }
    return section


def _examples(prompts: Sequence[str], labels: Sequence[tuple], texts: Sequence) -> list[dict]:
    """Three prompts continued by each arm (the first direction of random ones); not picked."""
    mark = {"plus": " +", "minus": " -", "zero": ""}
    examples = []
    for p in range(min(3, len(prompts))):
        continuations = {
            arm + mark[sign]: generations[p].text
            for (arm, sign, i), generations in zip(labels, texts, strict=True)
            if i == 0
        }
        examples.append({"prompt": prompts[p], "continuations": continuations})
    return examples


def _spread(items: Sequence[str], n: int) -> list[str]:
    """n items evenly spread over the list, so that every frame is used."""
    n = min(n, len(items))
    return [items[int(i * len(items) / n)] for i in range(n)]

"""One target against several sources: what belongs to the target is measured once.

The target's own direction and the random ones do not depend on where a vector comes from; each
source adds its moved vector and that of its shuffled map. What was measured is kept a prompt at a
time, as plain lists, so that intervals can be taken later and a run can stop anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.evaluation.arms import RANDOM
from tl_transfer.evaluation.bench import (
    SIGNS,
    Bench,
    Measured,
    calibrate,
    calibrate_controls,
    measure_at,
    step,
)
from tl_transfer.evaluation.damage import DamageResult, NeutralDamage
from tl_transfer.evaluation.generation import continue_prompts
from tl_transfer.evaluation.sections import efficiency, many_directions, one_direction
from tl_transfer.evaluation.verdict import log_odds_checks
from tl_transfer.extract.features import random_covariance, random_isotropic
from tl_transfer.intervals import Factors, mean_ci
from tl_transfer.models.surface import Site
from tl_transfer.tasks.base import Task
from tl_transfer.vectors import SteeringVector

#: What a pair can be, best first.
TRANSFERS, WEAKER, FAILS, NOT_STEERABLE = (
    "transfers",
    "weaker than native",
    "no better than controls",
    "native not steerable",
)
STATUSES = (TRANSFERS, WEAKER, FAILS, NOT_STEERABLE)
#: Names of the arms of a pair.
PAIR_ARMS = ("transferred", "shuffled_map")

Raw = dict[str, Any] | None


@dataclass(frozen=True)
class MatrixSettings:
    """How every target is measured.

    Attributes:
        budget: KL in nats a token of neutral prose at which all arms are compared.
        n_random: Directions of each random kind.
        seed: Of random directions and bootstraps.
    """

    budget: float = 0.05
    n_random: int = 6
    seed: int = 0


class TargetBench:
    """The instruments of one target and one task: strengths on validation, effects on test.

    Args:
        site: Where the target is steered.
        task: The behaviour.
        native: The target's own vector there.
        settings: Budget, controls, seed.
    """

    def __init__(
        self, site: Site, task: Task, native: SteeringVector, settings: MatrixSettings
    ) -> None:
        site.space.require(native.space, "native vector of the target")
        self._site, self._task, self._native, self._settings = site, task, native, settings
        self._validation = NeutralDamage(site, task.neutral_validation)
        self._test = Bench(site, task, task.test_prompts, task.neutral_test)
        self.words = self._test.effect.words
        self.n_neutral_tokens = self._test.damage.n_tokens

    def home(self, covariance: Float[Tensor, "d_model d_model"]) -> dict[str, list[Raw]]:
        """The native direction and both kinds of random ones.

        Args:
            covariance: Of the target's activations, for random directions that look like them.
        """
        (native,) = self._calibrate(self._native.unit[None])
        found = {"native": self._at(self._native.unit[None], [native])}
        n, seed = self._settings.n_random, self._settings.seed
        budget = self._settings.budget
        for name, directions in zip(
            RANDOM,
            (
                random_isotropic(len(covariance), n, seed=seed),
                random_covariance(covariance, n, seed=seed + 1),
            ),
            strict=True,
        ):
            strengths = calibrate_controls(
                directions,
                self._validation,
                self._native.median_norm,
                [budget],
                budget,
                start=native["plus"] or 0.3,
            )
            found[name] = self._at(directions, [_at(s, budget) for s in strengths])
        return found

    def pair(
        self, moved: Mapping[str, tuple[SteeringVector, SteeringVector]]
    ) -> dict[str, dict[str, list[Raw]]]:
        """A vector from elsewhere through each map, and through that map of shuffled pairs.

        Args:
            moved: Map -> (moved vector, the same through the map of shuffled pairs).
        """
        directions = torch.stack([vector.unit for both in moved.values() for vector in both])
        rows = iter(self._at(directions, self._calibrate(directions)))
        return {name: {arm: [next(rows)] for arm in PAIR_ARMS} for name in moved}

    def words_of(
        self, arms: dict[str, tuple[SteeringVector, Raw]], n_prompts: int, max_new_tokens: int
    ) -> list[dict[str, Any]]:
        """What the model writes under each arm, in both signs, on evenly spread prompts."""
        prompts = self._task.generation_prompts
        n = min(n_prompts, len(prompts))
        prompts = tuple(prompts[int(i * len(prompts) / n)] for i in range(n))
        labels, steps = ["unsteered"], [torch.zeros(self._site.model.d_model)]
        for name, (vector, raw) in arms.items():
            for sign, factor in SIGNS if raw is not None else ():
                labels.append(f"{name} {'+' if factor > 0 else '-'}")
                strength = factor * (raw or {})["strength"][sign]
                steps.append(step(vector.unit, strength, self._native.median_norm))
        texts = continue_prompts(
            self._site.model,
            self._native,
            prompts,
            torch.stack(steps),
            max_new_tokens=max_new_tokens,
            progress=False,
        )
        return [
            {
                "prompt": prompt,
                "continuations": {
                    label: {"text": row[i].text, "score": self._task.scorer(row[i].text)}
                    for label, row in zip(labels, texts, strict=True)
                },
            }
            for i, prompt in enumerate(prompts)
        ]

    def _calibrate(self, directions: Float[Tensor, "arm d_model"]) -> list[dict[str, float | None]]:
        budget = self._settings.budget
        found = calibrate(directions, self._validation, self._native.median_norm, [budget])
        return [_at(strengths, budget) for strengths in found]

    def _at(
        self,
        directions: Float[Tensor, "arm d_model"],
        strengths: Sequence[dict[str, float | None]],
    ) -> list[Raw]:
        rows = measure_at(
            directions, strengths, self._test, self._native.median_norm, with_damage=True
        )
        return [to_plain(row) for row in rows]


def cell(
    home: dict[str, list[Raw]],
    pair: dict[str, list[Raw]],
    *,
    settings: MatrixSettings,
    factors: Factors | None = None,
) -> dict[str, Any]:
    """Effects of all arms of one pair with intervals, transfer efficiency and status.

    Args:
        home: From `TargetBench.home`.
        pair: One map's part of `TargetBench.pair`.
        settings: As for the bench.
        factors: Levels of the factors the test prompts were built from.
    """
    rows = {name: [from_plain(raw) for raw in raws] for name, raws in (home | pair).items()}
    matched = {
        name: many_directions(found)
        if name in RANDOM
        else one_direction(found[0], settings.seed, factors)
        for name, found in rows.items()
    }
    reason = _native_failure(matched)
    share = efficiency(
        rows["transferred"][0], rows["native"][0], seed=settings.seed, factors=factors
    )
    if reason is not None:
        share = {"value": None, "ci95": None, "reason": f"{NOT_STEERABLE}: {reason}"}
    checks = log_odds_checks(matched, share, settings.budget)
    return {
        "status": _status(matched, share, checks, native_failed=reason is not None),
        "efficiency": share,
        "matched": matched,
        "checks": checks,
    }


def odd_limit(matched: dict[str, Any], controls: Sequence[str]) -> float:
    """Largest size of the odd effect of any direction of the controls; infinite without any."""
    values = []
    for name in controls:
        odd = matched[name].get("odd")
        if odd is None:
            continue
        values += [abs(v) for v in odd.get("range", [odd["effect"]])]
    return max(values, default=float("inf"))


def _native_failure(matched: dict[str, Any]) -> str | None:
    """Why there is nothing that could be transferred, or None."""
    native = matched["native"]
    if not native["reached"]:
        return "the damage budget is not reached"
    low, _ = native["odd"]["ci95"]
    if low <= 0:
        return "the interval of its effect reaches zero"
    limit = odd_limit(matched, RANDOM)
    if native["odd"]["effect"] <= limit:
        return f"its effect is that of a random direction ({limit:.2f})"
    return None


def _status(
    matched: dict[str, Any],
    share: dict[str, Any],
    checks: Sequence[dict[str, Any]],
    *,
    native_failed: bool,
) -> str:
    if native_failed:
        return NOT_STEERABLE
    if all(check["passed"] for check in checks):
        return TRANSFERS
    moved = matched["transferred"]
    beyond = moved["reached"] and moved["odd"]["effect"] > odd_limit(
        matched, ("shuffled_map", *RANDOM)
    )
    if beyond and share["ci95"] is not None and share["ci95"][0] > 0:
        return WEAKER
    return FAILS


def native_summary(home: dict[str, list[Raw]], *, seed: int, factors: Factors | None) -> Any:
    """Odd effect of the native vector with its interval, and the range of random ones."""
    row = from_plain(home["native"][0])
    random = [from_plain(raw) for name in RANDOM for raw in home[name]]
    odds = [float(found.odd.mean()) for found in random if found is not None]
    return {
        "effect": None if row is None else float(row.odd.mean()),
        "ci95": None if row is None else mean_ci(row.odd, seed=seed, factors=factors),
        "n": 0 if row is None else len(row.odd),
        "random_range": [min(odds), max(odds)] if odds else None,
        "n_random": len(odds),
    }


def to_plain(row: Measured | None) -> Raw:
    """Lists that JSON can hold; nothing is lost."""
    if row is None:
        return None
    return {
        "strength": row.strength,
        "shift": {sign: values.tolist() for sign, values in row.shift.items()},
        "damage": {
            sign: None if found is None else {"kl": found.kl.tolist(), "loss": found.loss.tolist()}
            for sign, found in row.damage.items()
        },
    }


def from_plain(raw: Raw) -> Measured | None:
    """What `to_plain` was given."""
    if raw is None:
        return None
    return Measured(
        raw["strength"],
        {sign: torch.tensor(values) for sign, values in raw["shift"].items()},
        {
            sign: found and DamageResult(torch.tensor(found["kl"]), torch.tensor(found["loss"]))
            for sign, found in raw["damage"].items()
        },
    )


def _at(strengths: dict[str, dict[float, float | None]], budget: float) -> dict[str, float | None]:
    return {sign: found[budget] for sign, found in strengths.items()}

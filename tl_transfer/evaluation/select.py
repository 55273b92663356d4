"""Choosing the layer pair, on validation prompts and validation text only."""

from collections.abc import Sequence
from typing import Any

from tl_transfer.errors import InputError
from tl_transfer.evaluation.bench import Bench, Measured, calibrate, measure_at
from tl_transfer.mappers.base import AffineMap
from tl_transfer.mappers.transfer import transfer
from tl_transfer.models.surface import Site
from tl_transfer.tasks.base import Task
from tl_transfer.vectors import SteeringVector

CRITERION = (
    "largest odd effect of the transferred vector on the validation prompts at the main KL budget, "
    "calibrated on the validation passages; the native vector is shown but does not choose"
)


def select_layers(
    task: Task,
    vectors: dict[str, SteeringVector],
    natives: dict[str, SteeringVector],
    targets: Sequence[Site],
    mappers: dict[tuple[str, str], AffineMap],
    *,
    budget: float,
) -> tuple[tuple[str, str], dict[str, Any]]:
    """Try every pair of hook points and keep the best.

    Args:
        task: Its validation prompts and passages are used, nothing else.
        vectors: Source hook point -> vector extracted there.
        natives: Target hook point -> the target's own vector, for comparison only.
        targets: Target sites.
        mappers: (source, target) -> map, from `fit_grid`.
        budget: KL budget in nats per neutral token.

    Returns:
        The chosen pair, and the `selection` section of the report.

    Raises:
        InputError: no candidate reaches the damage budget.
    """
    candidates = []
    norms = {target: mapper.target_norm for (_, target), mapper in mappers.items()}
    for site in targets:
        bench = Bench(site, task, task.validation_prompts, task.neutral_validation)
        native = natives[site.point.name]
        theirs, start = _odd(native, bench, norms[site.point.name], budget, start=0.3)
        for name, vector in vectors.items():
            mapper = mappers[name, site.point.name]
            moved = transfer(vector, mapper)
            ours, _ = _odd(moved, bench, mapper.target_norm, budget, start=start)
            held_out = mapper.scorecard["held_out"]
            candidates.append(
                {
                    "source": name,
                    "target": site.point.name,
                    "held_out_fvu": held_out["fvu"],
                    "direction_r2": moved.provenance["direction_r2"],
                    "cosine_to_native": moved.cosine(native),
                    "source_auroc": vector.provenance["auroc"],
                    "validation_effect": {"native": theirs, "transferred": ours},
                    "score": ours,
                }
            )
    usable = [c for c in candidates if c["score"] is not None]
    if not usable:
        raise InputError(
            "layers: no candidate pair reaches the damage budget",
            got=f"{len(candidates)} pairs, budget {budget}",
            valid="a budget that steering these layers can reach",
            hint="raise the budget, or try earlier target layers",
        )
    best = max(usable, key=lambda c: c["score"])
    section = {
        "criterion": CRITERION,
        "split": "validation",
        "budget": budget,
        "n_prompts": len(task.validation_prompts),
        "chosen": {"source": best["source"], "target": best["target"]},
        "candidates": candidates,
    }
    return (best["source"], best["target"]), section


def _odd(
    vector: SteeringVector, bench: Bench, norm: float, budget: float, *, start: float
) -> tuple[float | None, float]:
    """Odd validation effect at the budget, and a strength to start the next search from."""
    found = calibrate(vector.unit, bench.damage, norm, [budget], start=start, tolerance=0.1)
    at = {name: values[budget] for name, values in found.items()}
    row: Measured | None = measure_at(vector.unit, at, bench, norm, with_damage=False)
    return None if row is None else float(row.odd.mean()), at["plus"] or start

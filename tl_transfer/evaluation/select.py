"""Choosing the layer pair, on validation prompts and validation text only."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.evaluation.bench import Bench, calibrate, measure_at
from tl_transfer.mappers.base import Mapper
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
    vectors: Mapping[str, SteeringVector],
    natives: Mapping[str, SteeringVector],
    targets: Sequence[Site],
    mappers: dict[tuple[str, str], Mapper],
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
        native, norm = natives[site.point.name], norms[site.point.name]
        moved = {
            name: transfer(vector, mappers[name, site.point.name])
            for name, vector in vectors.items()
        }
        directions = torch.stack([native.unit, *(vector.unit for vector in moved.values())])
        theirs, *ours = odd_effects(directions, bench, norm, budget)
        for (name, vector), effect in zip(moved.items(), ours, strict=True):
            held_out = mappers[name, site.point.name].scorecard["held_out"]
            candidates.append(
                {
                    "source": name,
                    "target": site.point.name,
                    "held_out_fvu": held_out["fvu"],
                    "direction_r2": vector.provenance["direction_r2"],
                    "cosine_to_native": vector.cosine(native),
                    "source_auroc": vectors[name].provenance["auroc"],
                    "validation_effect": {"native": theirs, "transferred": effect},
                    "score": effect,
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


def odd_effects(
    directions: Float[Tensor, "arm d_model"], bench: Bench, norm: float, budget: float
) -> list[float | None]:
    """Odd validation effect of each direction at the budget."""
    found = calibrate(directions, bench.damage, norm, [budget], tolerance=0.1)
    at = [{name: values[budget] for name, values in one.items()} for one in found]
    rows = measure_at(directions, at, bench, norm, with_damage=False)
    return [None if row is None else float(row.odd.mean()) for row in rows]

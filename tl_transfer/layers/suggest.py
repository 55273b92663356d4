"""suggest_layers: which pairs of hook points to try first for one vector, and why.

A shortlist, not a verdict: the last word belongs to an effect measured on validation prompts
(`evaluation.select`). Best layer for mapping is not best layer for steering, so the rank is a
product of what can be known before any steering: R^2 along the image of the vector (the global
FVU is carried by other directions), how well the source vector separates held-out contrast texts,
and a mild preference for equal relative depth. All numbers are from the training folds of the
grid; the held-out part of the texts stays unread.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tl_transfer.data.texts import as_texts, documents_of, text_hash
from tl_transfer.errors import InputError
from tl_transfer.layers.grid import LayerGrid
from tl_transfer.mappers.fit import fit
from tl_transfer.mappers.split import split_documents
from tl_transfer.models.surface import HookedModel
from tl_transfer.splicing import splice

#: Difference of relative depth at which the preference has fallen to 0.61.
BAND = 0.25


@dataclass(frozen=True)
class LayerSuggestions:
    """Pairs of hook points, best first.

    Attributes:
        rows: Each: ``source``, ``target``, ``score``, ``direction_r2`` (None without a vector),
            ``fvu``, ``cka``, ``auroc`` (of the source vector; None if unknown), ``depth_gap``
            (target minus source relative depth), ``p`` (of the score that ranks, by the grid's
            null), ``splice_recovered`` and its ``splice_ci95`` (None where not spliced), ``why``.
        criterion: What `score` is.
        n_pairs: Pairs that were ranked.
    """

    rows: tuple[dict[str, Any], ...]
    criterion: str
    n_pairs: int

    @property
    def best(self) -> tuple[str, str]:
        """Hook points of the first row."""
        return self.rows[0]["source"], self.rows[0]["target"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {"rows": list(self.rows), "criterion": self.criterion, "n_pairs": self.n_pairs}

    def __repr__(self) -> str:
        lines = [f"{len(self.rows)} of {self.n_pairs} pairs, by {self.criterion}"]
        lines += [
            f"  {i}. {row['source']} -> {row['target']}  score {row['score']:.3f}: {row['why']}"
            for i, row in enumerate(self.rows, start=1)
        ]
        return "\n".join(lines)


def suggest_layers(
    grid: LayerGrid,
    *,
    top: int = 8,
    band: float = BAND,
    models: tuple[HookedModel, HookedModel] | None = None,
    texts: Sequence[Any] | None = None,
    documents: Sequence[str] | None = None,
    progress: bool = True,
) -> LayerSuggestions:
    """Rank the pairs of a grid for transferring the vector it was made with.

    Args:
        grid: From `layer_grid`, best with ``vector=``; without, pairs are ranked by 1 - FVU.
        top: How many pairs to return.
        band: Width of the preference for equal relative depth (see `BAND`).
        models: Source and target: the pairs returned are then also spliced.
        texts: The texts of the grid; for splicing, maps are fitted on its training documents and
            spliced on its validation documents.
        documents: Document id of each text, as for the grid.
        progress: Show progress bars.

    Raises:
        InputError: `models` without `texts` or the other way round, no pair with a score, or
            `top` below 1.
    """
    if top < 1:
        raise InputError(
            "top: how many pairs to return",
            got=repr(top),
            valid="a whole number from 1",
            hint="leave it out for 8",
        )
    if (models is None) != (texts is None):
        raise InputError(
            "models, texts: splicing needs both",
            got="one of them",
            valid="models=(source, target) and the texts of the grid, or neither",
            hint="leave both out to rank by the grid alone",
        )
    known = _rows(grid, band)
    ranked = sorted(known, key=lambda row: -row["score"])[:top]
    if not ranked:
        raise InputError(
            "grid: no pair has a score to rank by",
            got=f"{len(grid.fvu)} x {len(grid.fvu[0])} pairs",
            valid="a vector at one of the grid's source hook points, or no vector",
            hint="make the grid again with vector= of the layers you want",
        )
    if models is not None and texts is not None:
        ranked = _spliced(ranked, grid, models, texts, documents, progress)
    rows = tuple({**row, "why": _why(row)} for row in ranked)
    return LayerSuggestions(rows, _criterion(grid), len(known))


def _criterion(grid: LayerGrid) -> str:
    if grid.direction_r2 is None:
        return "(1 - FVU) x depth preference (no vector was given)"
    return "R2 along the vector's image x (2 AUROC - 1) x depth preference"


def _rows(grid: LayerGrid, band: float) -> list[dict[str, Any]]:
    measure = "explained" if grid.direction_r2 is None else "direction_r2"
    p_values = (grid.null or {}).get("measures", {}).get(measure, {}).get("p")
    rows = []
    for i, source in enumerate(grid.source["hook_points"]):
        auroc = grid.vectors.get(source, {}).get("auroc")
        for j, target in enumerate(grid.target["hook_points"]):
            r2 = None if grid.direction_r2 is None else grid.direction_r2[i][j]
            fvu = grid.fvu[i][j]
            strength = r2 if grid.direction_r2 is not None else None if fvu is None else 1.0 - fvu
            if strength is None:
                continue
            gap = _depth(grid.target, j) - _depth(grid.source, i)
            separation = 1.0 if auroc is None else max(0.0, 2.0 * auroc - 1.0)
            preference = math.exp(-0.5 * (gap / band) ** 2)
            rows.append(
                {
                    "source": source,
                    "target": target,
                    "score": max(strength, 0.0) * separation * preference,
                    "direction_r2": r2,
                    "fvu": fvu,
                    "cka": grid.cka[i][j],
                    "auroc": auroc,
                    "depth_gap": gap,
                    "p": None if p_values is None else p_values[i][j],
                    "splice_recovered": None,
                    "splice_ci95": None,
                }
            )
    return rows


def _depth(side: dict[str, Any], place: int) -> float:
    return (int(side["layers"][place]) + 1) / int(side["n_layers"])


def _spliced(
    rows: list[dict[str, Any]],
    grid: LayerGrid,
    models: tuple[HookedModel, HookedModel],
    texts: Sequence[Any],
    documents: Sequence[str] | None,
    progress: bool,
) -> list[dict[str, Any]]:
    """Loss recovered on the grid's validation documents, by maps that did not see them."""
    given = as_texts(texts)
    names = documents_of([text_hash(text) for text in given], documents)
    split = split_documents(names, seed=grid.settings["seed"])
    parts: dict[bool, tuple[list[Any], list[str]]] = {}
    for validation in (False, True):
        index = [
            i
            for i, fold in enumerate(split.fold)
            if fold < split.n_folds and (fold == split.n_folds - 1) == validation
        ]
        parts[validation] = [given[i] for i in index], [names[i] for i in index]
    found = []
    for row in rows:
        if not row["target"].endswith("hook_resid_post"):
            found.append(row)  # a model can only be continued after a block
            continue
        sites = models[0].at(row["source"]), models[1].at(row["target"])
        fitted, fitted_documents = parts[False]
        mapper = fit(
            *sites, texts=fitted, documents=fitted_documents, backward=False, progress=progress
        )
        measured = splice(
            mapper, *models, parts[True][0], documents=parts[True][1], progress=progress
        ).arms["mapped"]
        spliced = {
            "splice_recovered": measured["recovered"],
            "splice_ci95": measured["recovered_ci95"],
        }
        found.append({**row, **spliced})
    return found


def _why(row: dict[str, Any]) -> str:
    """The row in words."""
    parts = []
    if row["direction_r2"] is not None:
        parts.append(f"the map explains {row['direction_r2']:.0%} of the variance along the vector")
    parts.append(f"{1 - row['fvu']:.0%} of all variance")
    if row["auroc"] is not None:
        parts.append(f"the vector separates held-out contrast texts with AUROC {row['auroc']:.2f}")
    gap = row["depth_gap"]
    place = "at the same relative depth" if abs(gap) < 0.05 else "later" if gap > 0 else "earlier"
    parts.append(
        f"the target layer is {place}"
        + ("" if abs(gap) < 0.05 else f" by {abs(gap):.0%} of the depth")
    )
    if row["splice_recovered"] is not None:
        parts.append(f"spliced, it recovers {row['splice_recovered']:.0%} of the loss")
    if row["p"] is not None and row["p"] > 0.05:
        parts.append(f"but chance would do as well (p = {row['p']:.2f})")
    return "; ".join(parts)

"""Several maps of one pair: each against the first, paired over the same prompts.

Every map moves the same vector into the same target, at the same damage, on the same prompts. So
the difference of two maps is taken prompt by prompt, and in shares of the native effect: what
makes a prompt hard, and what the native vector does, cancel.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tl_transfer.evaluation.bench import Measured
from tl_transfer.evaluation.matrix import TRANSFERS, MatrixSettings, Raw, cell, from_plain
from tl_transfer.intervals import Factors, ratio_ci

#: Strengths are matched by a search that stops near the budget: a smaller difference than this may
#: be its doing, however small the interval over prompts.
RESOLVED = 0.01
#: Share of the native effect under which a difference changes no decision. Fixed before any run.
MATTERS = 0.05
BETTER, WORSE, NEITHER, UNKNOWN = "better", "worse", "no difference shown", "not comparable"


def cells_of(
    home: dict[str, list[Raw]],
    pair: Mapping[str, dict[str, list[Raw]]],
    *,
    settings: MatrixSettings,
    factors: Factors | None = None,
) -> dict[str, dict[str, Any]]:
    """The cell of every map of one pair; those after the first also hold ``against_first``.

    Args:
        home: From `TargetBench.home`.
        pair: From `TargetBench.pair`.
        settings: As for the bench.
        factors: Levels of the factors the test prompts were built from.
    """
    found: dict[str, dict[str, Any]] = {}
    native = from_plain(home["native"][0])
    moved = {name: from_plain(arms["transferred"][0]) for name, arms in pair.items()}
    first = next(iter(pair))
    for name, arms in pair.items():
        found[name] = cell(home, arms, settings=settings, factors=factors)
        if name != first:
            gap = difference(moved[name], moved[first], native, seed=settings.seed, factors=factors)
            if found[first]["efficiency"]["value"] is None:
                gap = _unknown(found[first]["efficiency"]["reason"])
            found[name]["against_first"] = gap
    return found


def difference(
    this: Measured | None,
    first: Measured | None,
    native: Measured | None,
    *,
    seed: int,
    factors: Factors | None = None,
) -> dict[str, Any]:
    """Transfer efficiency of one map minus that of another one.

    Returns:
        ``value`` (shares of the native effect; above 0 this one is better), ``ci95`` (paired
        bootstrap over prompts), ``verdict`` (better or worse beyond the interval, and by at least
        `RESOLVED`), and ``matters``: that, and by at least `MATTERS`.
    """
    if this is None or first is None or native is None:
        return _unknown("a damage budget could not be reached")
    gap = this.odd - first.odd
    value = float(gap.mean() / native.odd.mean())
    low, high = ratio_ci(gap, native.odd, seed=seed, factors=factors)
    beyond = (low > 0 or high < 0) and abs(value) >= RESOLVED
    verdict = NEITHER if not beyond else BETTER if value > 0 else WORSE
    return {
        "value": value,
        "ci95": [low, high],
        "verdict": verdict,
        "matters": verdict != NEITHER and abs(value) >= MATTERS,
    }


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every map but the first over all cells: how often it is better, worse, and needed.

    Args:
        cells: With ``mapper``, and otherwise from `cells_of`; all maps of a pair together.

    Returns:
        Map -> counts (``n`` cells, ``better``, ``worse``, ``better_by_much``, ``worse_by_much``,
        ``not_comparable``), ``needed`` (this map transfers where the first one does not) and
        ``lost`` (the other way round), ``median`` and ``range`` of the difference, ``affine``.
    """
    names = list(dict.fromkeys(entry["mapper"] for entry in cells))
    if not names:
        return {}
    first, *others = names
    works = {
        (entry["behaviour"], entry["source"], entry["target"]): entry["status"] == TRANSFERS
        for entry in cells
        if entry["mapper"] == first
    }
    found = {}
    for name in others:
        mine = [entry for entry in cells if entry["mapper"] == name]
        gaps = [entry["against_first"] for entry in mine]
        values = [gap["value"] for gap in gaps if gap["value"] is not None]
        pairs = [
            (
                entry["status"] == TRANSFERS,
                works[entry["behaviour"], entry["source"], entry["target"]],
            )
            for entry in mine
        ]
        count = [gap["verdict"] for gap in gaps].count
        found[name] = {
            "first": first,
            "affine": all(entry["map"]["affine"] for entry in mine),
            "n": len(mine),
            "better": count(BETTER),
            "worse": count(WORSE),
            "not_comparable": count(UNKNOWN),
            "better_by_much": sum(g["matters"] and g["verdict"] == BETTER for g in gaps),
            "worse_by_much": sum(g["matters"] and g["verdict"] == WORSE for g in gaps),
            "needed": sum(mine_works and not its for mine_works, its in pairs),
            "lost": sum(its and not mine_works for mine_works, its in pairs),
            "median": median(values) if values else None,
            "range": [min(values), max(values)] if values else None,
        }
    return found


def _unknown(reason: str) -> dict[str, Any]:
    return {
        "value": None,
        "ci95": None,
        "verdict": UNKNOWN,
        "matters": False,
        "reason": reason,
    }

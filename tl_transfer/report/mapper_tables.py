"""Several maps of a matrix beside each other: each against the first, paired over the prompts."""

from typing import Any

from tl_transfer.report import reading
from tl_transfer.report.reading import Report, dig
from tl_transfer.report.table import Cell, Table


def names(report: Report) -> list[str]:
    """Maps of a matrix in the order of its recipe."""
    return list(dig(report, "mappers", "titles") or {})


def title(report: Report, name: str) -> str:
    """A map as readers see it."""
    return str(dig(report, "mappers", "titles", name) or name)


def of(report: Report, behaviour: str, mapper: str | None = None) -> list[Any]:
    """Cells of a behaviour through one map; None: the first map."""
    cells = dig(report, "behaviours", behaviour, "cells") or []
    wanted = mapper or next((dig(entry, "mapper") for entry in cells), None)
    return [entry for entry in cells if dig(entry, "mapper") == wanted]


def answers(report: Report) -> list[str]:
    """Whether another map than the first is needed: a sentence each, from the counts."""
    found = []
    for name, counts in (dig(report, "mappers", "overall") or {}).items():
        n, first = counts["n"] - counts["not_comparable"], title(report, counts["first"])
        low, high = counts["range"] or (None, None)
        kind = "affine" if counts["affine"] else "nonlinear"
        found.append(
            f"{title(report, name)} ({kind}) against {first}, {n} cells: better beyond its "
            f"interval in {counts['better']} ({counts['better_by_much']} by 0.05 or more), worse "
            f"in {counts['worse']} ({counts['worse_by_much']} by 0.05 or more); median difference "
            f"{_signed(counts['median'])} of the native effect, {_signed(low)} to {_signed(high)}. "
            f"It transfers where {first} does not in {counts['needed']}, and fails to where "
            f"{first} does in {counts['lost']}."
        )
    return found


def conclusion(report: Report) -> str:
    """The answer to "is a nonlinear map ever needed?" in one sentence."""
    overall = dig(report, "mappers", "overall") or {}
    curved = {name: counts for name, counts in overall.items() if not counts["affine"]}
    if not curved:
        return "No nonlinear map was tried."
    first = title(report, next(iter(curved.values()))["first"])
    n = sum(counts["n"] - counts["not_comparable"] for counts in curved.values())
    total = {
        key: sum(counts[key] for counts in curved.values())
        for key in ("better", "worse", "better_by_much", "needed")
    }
    return (
        f"Over {n} comparisons of a nonlinear map with {first}, the nonlinear one is better beyond "
        f"its interval in {total['better']} ({total['better_by_much']} by at least 0.05 of the "
        f"native effect) and worse in {total['worse']}; chance alone puts about "
        f"{0.025 * n:.1f} on either side. In {total['needed']} it transfers where {first} does not."
    )


def difference_table(report: Report, behaviour: str) -> Table:
    """One row a pair and map: efficiency, difference from the first map, status, map scores."""
    rows = []
    every = [of(report, behaviour, name) for name in names(report)]
    for group in zip(*every, strict=True):
        for entry in group:
            gap, share = entry.get("against_first"), entry["efficiency"]
            rows.append(
                (
                    Cell(f"{entry['source']} to {entry['target']}"),
                    Cell(title(report, entry["mapper"])),
                    Cell(reading.with_interval(share["value"], share["ci95"]), share["value"]),
                    Cell(written(gap), dig(gap, "value")),
                    Cell(dig(gap, "verdict") or ""),
                    Cell(entry["status"]),
                    _odd(entry["matched"]["shuffled_map"]),
                    Cell(reading.number(entry["map"]["held_out_fvu"])),
                    Cell(_fvu_gap(entry["map"].get("gap_to_ridge"))),
                    Cell(reading.number(entry["map"]["cosine_to_native"])),
                )
            )
    first = title(report, names(report)[0])
    part = dig(report, "behaviours", behaviour)
    return Table(
        title=f"{part['title']}: every map of every ordered pair",
        columns=(
            "pair",
            "map",
            "efficiency [95 %]",
            f"minus {first} [95 %]",
            "difference",
            "status",
            "shuffled",
            "FVU",
            "FVU minus ridge [95 %]",
            "cosine",
        ),
        rows=tuple(rows),
        note=f"Efficiency: effect of the moved vector over that of the target's own, "
        f"{part['n_prompts']} test prompts, all arms at a KL of "
        f"{reading.compact(dig(report, 'recipe', 'budget'))} nats a token on validation prose. "
        f"Difference: efficiency minus that of {first}, paired over prompts (bootstrap). Shuffled: "
        "effect, in nats, through the same kind of map fitted on wrong pairs. FVU: held out. "
        "Cosine: of the moved vector to the target's own.",
        numeric=False,
    )


def written(gap: Any) -> str:
    """``+0.03 [+0.01, +0.05]``; empty for the first map."""
    if not gap:
        return ""
    if gap["value"] is None:
        return reading.MISSING
    low, high = gap["ci95"]
    return f"{_signed(gap['value'])} [{_signed(low)}, {_signed(high)}]"


def _fvu_gap(gap: Any) -> str:
    if not gap:
        return ""
    if not gap["ci95"]:
        return _signed(gap["gap"])
    return f"{_signed(gap['gap'])} [{_signed(gap['ci95'][0])}, {_signed(gap['ci95'][1])}]"


def _odd(arm: Any) -> Cell:
    value = dig(arm, "odd", "effect")
    return Cell(reading.number(value) if dig(arm, "reached") else "budget not reached", value)


def _signed(value: float | None) -> str:
    return reading.MISSING if value is None else f"{value:+.2f}"

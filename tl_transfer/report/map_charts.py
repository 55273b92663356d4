"""Figures of one map: its score card, its singular spectrum, what it explains along directions.

Each takes plain dictionaries; `tl_transfer.views.maps` computes them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_transfer.report import reading
from tl_transfer.report.drawing import LOOKS, error, figure, safe, wrapped
from tl_transfer.report.reading import dig, real
from tl_transfer.report.table import Cell, Table, plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: Score -> (label, whether its control is the floor of the two spaces, as it needs no map).
SCORES = {
    "fvu": ("variance unexplained (lower is better)", False),
    "fvu_mean_dimension": ("unexplained, mean over dimensions", False),
    "cosine": ("cosine", False),
    "retrieval_top1": ("own row found first", False),
    "retrieval_top5": ("own row in first five", False),
    "splice_recovered": ("splice: loss recovered", False),
    "cka_debiased": ("CKA of the spaces, debiased", True),
    "svcca": ("SVCCA, held out", True),
    "mutual_knn": ("mutual nearest neighbours", True),
}
_MAP, _CONTROL = LOOKS["transferred"], LOOKS["shuffled_map"]


def score_rows(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``name``, ``value``, ``ci95`` and ``control`` of every score from 0 to 1."""
    found = []
    for key, (name, of_spaces) in SCORES.items():
        part, control = (
            ("spaces", ("spaces", "floor")) if of_spaces else ("held_out", ("shuffled",))
        )
        value = real(dig(card, part, key))
        if value is not None:
            bounds = reading.interval(dig(card, part, f"{key}_ci95"))
            row = {"name": name, "value": value, "ci95": bounds}
            found.append(row | {"control": real(dig(card, *control, key))})
    return found


def score_card(card: Mapping[str, Any]) -> "Figure":
    """Held-out scores with intervals beside those of the control."""
    rows = score_rows(card)
    names = [row["name"] for row in rows]
    traces = [
        _marks("map fitted on shuffled pairs", [row["control"] for row in rows], names, _CONTROL),
        _marks("this map", [row["value"] for row in rows], names, _MAP)
        | {"error_x": error([r["value"] for r in rows], [r["ci95"] for r in rows], _MAP.colour)},
    ]
    tokens, documents = dig(card, "n_tokens", "test"), dig(card, "n_documents", "test")
    return figure(
        traces if rows else [],
        title="Score card of the map",
        caption=f"n = {reading.count(tokens)} held-out tokens of {reading.count(documents)} "
        "documents. Bars: 95 % interval over documents. Grey crosses: the same score where rows "
        "were paired wrongly.",
        # A control may be far above 1 in FVU; further out it says no more.
        x={"title": "score (no unit)", "range": [-0.08, 1.25]},
        y={
            "title": "",
            "autorange": "reversed",
            "type": "category",
            "automargin": True,
            "tickvals": names,
            "ticktext": [wrapped(name, 22) for name in names],
        },
        height=190 + 34 * len(rows),
    )


def score_table(card: Mapping[str, Any]) -> Table:
    """The same numbers."""
    rows = tuple(
        (
            Cell(row["name"]),
            Cell(reading.with_interval(row["value"], row["ci95"]), row["value"]),
            plain(row["control"]),
        )
        for row in score_rows(card)
    )
    return Table("Held-out scores", ("score", "this map [95 %]", "control"), rows)


def spectrum(
    curves: Mapping[str, Sequence[float]], ranks: Mapping[str, float], *, y: str, sizes: str
) -> "Figure":
    """Falling curves over the components: ``map``, and ``control`` where there is one."""
    looks = {"map": ("this map", _MAP), "control": ("map fitted on shuffled pairs", _CONTROL)}
    traces = []
    for key, values in curves.items():
        name, look = looks[key]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": list(range(1, len(values) + 1)),
                "y": [value if value > 0 else None for value in values],
                "line": {"color": look.colour, "dash": look.dash, "width": 2.5},
                "hovertemplate": "component %{x}: %{y:.3g}<extra></extra>",
            }
        )
    shown = ", ".join(f"{looks[key][0]} {rank:.0f}" for key, rank in ranks.items())
    top = max((values[0] for values in curves.values() if values), default=1.0)
    return figure(
        traces,
        title="Singular spectrum of the map",
        caption=f"{sizes} Effective rank: {shown}.",
        x={
            "title": "component, strongest first (log)",
            "type": "log",
            "tickvals": ranks_up_to(max(map(len, curves.values()), default=1)),
        },
        y={
            "title": y,
            "type": "log",
            "exponentformat": "power",
            "dtick": 1,
            "range": _decades(top, 5),
        },
    )


def spectrum_table(curves: Mapping[str, Sequence[float]], *, y: str) -> Table:
    """The curves at ranks 1, 2, 5, 10, 20 and so on."""
    ranks = ranks_up_to(max(map(len, curves.values()), default=0))
    rows = tuple(
        (Cell(str(rank), float(rank)), *(_scientific(values, rank) for values in curves.values()))
        for rank in ranks
    )
    return Table(y, ("component", *curves), rows)


def direction_r2(
    directions: Sequence[Mapping[str, Any]], components: Sequence[Mapping[str, float]], sizes: str
) -> "Figure":
    """R^2 along directions, over the share of the target's variance that lies along them.

    Args:
        directions: ``name``, ``share``, ``r2``, ``ci95``, ``control`` of each direction.
        components: ``share`` and ``r2`` of the target's principal components.
        sizes: The n of the caption.
    """
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "principal components",
            "x": [component["share"] for component in components],
            "y": [component["r2"] for component in components],
            "marker": {"color": "rgba(128,128,128,0.45)", "size": 5},
            "hovertemplate": "%{x:.2g} of the variance: %{y:.2f}<extra></extra>",
        }
    ]
    if any(direction["control"] is not None for direction in directions):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "the same by the map of shuffled pairs",
                "x": [direction["share"] for direction in directions],
                "y": [direction["control"] for direction in directions],
                "marker": {"color": _CONTROL.colour, "symbol": _CONTROL.symbol, "size": 9},
                "hovertemplate": "control: %{y:.2f}<extra></extra>",
            }
        )
    colours = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
    symbols = ("diamond", "circle", "square", "triangle-up", "star", "hexagon")
    for i, direction in enumerate(directions):
        colour = colours[i % len(colours)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": safe(direction["name"]),
                "x": [direction["share"]],
                "y": [direction["r2"]],
                "error_y": error([direction["r2"]], [reading.interval(direction["ci95"])], colour),
                "marker": {"color": colour, "symbol": symbols[i % len(symbols)], "size": 12},
                "hovertemplate": "%{fullData.name}: %{y:.2f}<extra></extra>",
            }
        )
    marks = [d[key] for d in directions for key in ("r2", "control") if d[key] is not None]
    # Far below zero says no more than below zero, and would press the rest together.
    lowest = max(min(marks, default=0.0) - 0.1, -1.1)
    return figure(
        traces,
        title="What the map explains along a direction",
        caption=f"{sizes} 1: the map predicts it; 0: no better than the mean. Bars: 95 % interval "
        "over documents.",
        x={
            "title": wrapped("share of the target's variance along the direction (log)"),
            "type": "log",
            "exponentformat": "power",
            "dtick": 1,
        },
        y={
            "title": "held-out R² (no unit)",
            "range": [min(-0.15, lowest), 1.05],
            "zeroline": True,
        },
        height=470,
    )


def direction_table(directions: Sequence[Mapping[str, Any]]) -> Table:
    """The named directions, without the principal components."""
    rows = tuple(
        (
            Cell(direction["name"]),
            Cell(reading.with_interval(direction["r2"], direction["ci95"]), direction["r2"]),
            plain(direction["control"]),
            Cell(f"{direction['share']:.1e}", direction["share"]),
        )
        for direction in directions
    )
    columns = ("direction", "R² [95 %]", "control", "share of variance")
    return Table("Held-out R² along directions", columns, rows)


def ranks_up_to(n: int) -> list[int]:
    """1, 2, 5, 10, 20 and so on."""
    return [
        digit * 10**power for power in range(5) for digit in (1, 2, 5) if digit * 10**power <= n
    ]


def _marks(name: str, x: list[Any], y: list[str], look: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "marker": {"color": look.colour, "symbol": look.symbol, "size": 11},
        "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
    }


def _decades(top: float, n: int) -> list[float]:
    """Range of a log axis from n decades below the largest value."""
    high = math.log10(top) if top > 0 else 0.0
    return [high - n, high + 0.2]


def _scientific(values: Sequence[float], rank: int) -> Cell:
    if rank > len(values):
        return Cell(reading.MISSING)
    return Cell(f"{values[rank - 1]:.2e}", values[rank - 1])

"""Heat map of a layer grid: every pair of hook points of two models, doubtful cells crossed."""

from typing import TYPE_CHECKING, Any

from tl_transfer.report import reading
from tl_transfer.report.drawing import INK, figure, safe
from tl_transfer.report.reading import Report, dig, real

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: Measure of a layer grid -> title, its name in the permutation null, and beside the colours.
_GRID_MEASURES = {
    "direction_r2": ("R² along the image of the vector", "direction_r2", "R²"),
    "fvu": ("Variance unexplained (FVU) by ridge", "explained", "FVU"),
    "cka": ("Debiased CKA", "cka", "CKA"),
}


def layer_grid(grid: Report, measure: str = "fvu") -> "Figure":
    """Heat map of a `LayerGrid` dictionary: source layers up, target layers across.

    A cross marks cells that a permutation of documents would give too (p > 0.05, adjusted for the
    best of all pairs), a star the best cell.
    """
    title, in_null, short = _GRID_MEASURES.get(measure, (measure,) * 3)
    values = dig(grid, measure) or []
    sides = [[_layer_label(name) for name in dig(grid, side, "hook_points") or []]
             for side in ("source", "target")]  # fmt: skip
    p_values = dig(grid, "null", "measures", in_null, "p") or []
    traces: list[dict[str, Any]] = []
    if values:
        traces.append(
            {
                "type": "heatmap",
                "z": values,
                "x": sides[1],
                "y": sides[0],
                "colorscale": "Viridis",
                "reversescale": measure == "fvu",
                "colorbar": {"title": {"text": short}, "thickness": 12},
                "hovertemplate": "source %{y}, target %{x}: %{z:.3f}<extra></extra>",
                # R^2 far below zero says no more than zero, and would use up the colours.
                "zmin": 0.0,
                "zmax": 1.0,
            }
        )
        traces += _grid_marks(values, p_values, sides, lowest=measure == "fvu")
    rows, documents = dig(grid, "n_rows", "validation"), dig(grid, "n_documents", "validation")
    models = [safe(dig(grid, side, "model") or side) for side in ("source", "target")]
    tested = f"Cross: p > 0.05 in {reading.count(dig(grid, 'null', 'permutations'))} permutations."
    return figure(
        traces,
        title=title,
        caption=f"n = {reading.count(rows)} validation rows of {reading.count(documents)} "
        "documents."
        f" Star: best pair.{'<br>' + tested if p_values else ''}",
        x={"title": f"target layer ({models[1]})", "type": "category", "showgrid": False},
        y={"title": f"source layer ({models[0]})", "type": "category", "showgrid": False},
        height=max(320, 150 + 14 * len(sides[0])),
    )


def _grid_marks(
    values: list[list[Any]], p_values: list[list[Any]], sides: list[list[str]], *, lowest: bool
) -> list[dict[str, Any]]:
    cells = [(i, j, v) for i, row in enumerate(values) for j, row_v in enumerate(row)
             if (v := real(row_v)) is not None]  # fmt: skip
    if not cells:
        return []
    best = (min if lowest else max)(cells, key=lambda cell: cell[2])
    doubtful = [
        (i, j)
        for i, row in enumerate(p_values)
        for j, p in enumerate(row)
        if real(p) is not None and float(p) > 0.05
    ]
    marks = []
    for places, symbol, size in ((doubtful, "x-thin", 6), ([best[:2]], "star", 13)):
        if places:
            marks.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [sides[1][j] for _, j in places],
                    "y": [sides[0][i] for i, _ in places],
                    "marker": {
                        "symbol": symbol,
                        "size": size,
                        "color": "#D55E00",
                        "line": {"color": "#ffffff" if symbol == "star" else INK, "width": 1},
                    },
                    "showlegend": False,
                    "hoverinfo": "skip",
                }
            )
    return marks


def _layer_label(name: object) -> str:
    """``blocks.9.hook_resid_post`` as 9; other kinds keep their name."""
    parts = str(name).split(".")
    if len(parts) == 3 and parts[0] == "blocks":
        kind = parts[2].removeprefix("hook_")
        return parts[1] if kind == "resid_post" else f"{parts[1]} {kind}"
    return safe(name)

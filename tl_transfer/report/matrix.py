"""Heat map of one number over pairs of models: rows are sources, columns are targets."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tl_transfer.report import reading
from tl_transfer.report.drawing import figure, safe
from tl_transfer.report.table import Cell, Table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Cells = Mapping[tuple[str, str], Mapping[str, Any]]


def sides(cells: Cells) -> tuple[list[str], list[str]]:
    """Sources and targets, each in the order in which they first appear."""
    sources = list(dict.fromkeys(source for source, _ in cells))
    targets = list(dict.fromkeys(target for _, target in cells))
    # A square of the same models reads best with the same order on both sides.
    if set(sources) == set(targets):
        targets = sources
    return sources, targets


def transfer_matrix(
    cells: Cells, *, measure: str, unit: str, limits: tuple[float, float], sizes: str
) -> "Figure":
    """One number for each pair, its interval under it, a mark where the transfer passed.

    Args:
        cells: (source, target) -> ``value``, ``ci95``, ``n``, ``passes``.
        measure: What the number is.
        unit: Its unit.
        limits: Values of the first and the last colour.
        sizes: The n of the caption, in words.
    """
    sources, targets = sides(cells)
    grid = [[cells.get((source, target), {}) for target in targets] for source in sources]
    values = [[reading.real(cell.get("value")) for cell in row] for row in grid]
    marked = any(cell.get("passes") is not None for row in grid for cell in row)
    traces: list[dict[str, Any]] = []
    if any(value is not None for row in values for value in row):
        traces.append(
            {
                "type": "heatmap",
                "z": values,
                "x": list(range(len(targets))),
                "y": list(range(len(sources))),
                "text": [[_written(cell) for cell in row] for row in grid],
                "texttemplate": "%{text}",
                "textfont": {"size": 12},
                "customdata": [
                    [f"{safe(source)} to {safe(target)}" for target in targets]
                    for source in sources
                ],
                "hovertemplate": "%{customdata}<br>%{text}<extra></extra>",
                "colorscale": "Cividis",
                "zmin": limits[0],
                "zmax": limits[1],
                "xgap": 3,
                "ygap": 3,
                "hoverongaps": False,
                "colorbar": {
                    "title": {"text": safe(unit), "side": "right", "font": {"size": 12}},
                    "thickness": 12,
                },
            }
        )
    caption = f"{measure}, {unit}; {sizes}. Brackets: 95 % interval."
    caption += " Check mark: passes; cross: does not." if marked else ""
    drawn = figure(
        traces,
        title="Transfer between pairs of models",
        caption=safe(caption),
        x={
            "title": "target: the model that is steered",
            "tickvals": list(range(len(targets))),
            "ticktext": [wrapped(name, 14) for name in targets],
            "showgrid": False,
            "tickangle": 0,
        },
        y={
            "title": "source: where the vector is from",
            "tickvals": list(range(len(sources))),
            "ticktext": [wrapped(name, 14) for name in sources],
            "showgrid": False,
            "autorange": "reversed",
        },
        height=190 + 84 * len(sources),
    )
    # Narrower than this, the numbers run into each other: a page then scrolls the figure.
    meta = drawn.layout.meta | {"min_width": 250 + 105 * len(targets)}
    marks = [*drawn.layout.annotations, *_blanks(grid)]
    return drawn.update_layout(annotations=marks, meta=meta)


def matrix_table(cells: Cells, *, measure: str, unit: str) -> Table:
    """The same numbers as a table, one row a pair."""
    sources, targets = sides(cells)
    rows = []
    for source in sources:
        for target in targets:
            cell = cells.get((source, target))
            if cell is None:
                continue
            value = reading.real(cell.get("value"))
            n = reading.real(cell.get("n"))
            rows.append(
                (
                    Cell(source),
                    Cell(target),
                    Cell(reading.with_interval(value, cell.get("ci95")), value),
                    Cell(reading.count(n), n),
                    Cell(_verdict(cell, ("yes", "no"), reading.MISSING)),
                )
            )
    columns = ("source", "target", "value [95 %]", "n", "passes")
    return Table(f"{measure} ({unit})", columns, tuple(rows))


def wrapped(text: str, width: int) -> str:
    """A name in short lines, broken at hyphens and spaces."""
    return "<br>".join(safe(line) for line in textwrap.wrap(text, width)) or "-"


def _written(cell: Mapping[str, Any]) -> str:
    value = reading.real(cell.get("value"))
    if value is None:
        return ""
    mark = _verdict(cell, (" ✓", " ✗"), "")
    bounds = reading.interval(cell.get("ci95"))
    shown = f"<b>{reading.number(value)}</b>{mark}"
    if bounds is None:
        return shown
    return f"{shown}<br>[{reading.number(bounds[0])}, {reading.number(bounds[1])}]"


def _verdict(cell: Mapping[str, Any], words: tuple[str, str], unknown: str) -> str:
    passes = cell.get("passes")
    return unknown if passes is None else words[0] if passes else words[1]


def _blanks(grid: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A word where there is no number, so that an empty cell is not read as a dark one."""
    return [
        {"x": j, "y": i, "text": "–" if not cell else "n/a", "showarrow": False}
        for i, row in enumerate(grid)
        for j, cell in enumerate(row)
        if reading.real(cell.get("value")) is None
    ]

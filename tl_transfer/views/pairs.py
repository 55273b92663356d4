"""Pair view: one number over pairs of models, with its interval."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_transfer.errors import InputError
from tl_transfer.report import matrix, reading
from tl_transfer.views.chart import Chart


@dataclass(frozen=True)
class TransferMatrix:
    """What is drawn, as plain lists.

    Attributes:
        sources: Models that gave a vector, one a row.
        targets: Models that were steered, one a column.
        value: Rows of numbers; None for a pair that was not run.
        ci95: Rows of intervals; None where there is none.
        n: Rows of sample sizes; None where unknown.
        passes: Rows of verdicts; None where unknown.
    """

    sources: list[str]
    targets: list[str]
    value: list[list[float | None]]
    ci95: list[list[tuple[float, float] | None]]
    n: list[list[int | None]]
    passes: list[list[bool | None]]


def transfer_matrix(
    cells: Mapping[tuple[str, str], Mapping[str, Any] | float],
    *,
    measure: str = "Transfer efficiency at matched damage",
    unit: str = "share of the native effect",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Chart:
    """Heat map of a number over pairs of models: rows are sources, columns are targets.

    Args:
        cells: (source, target) -> number, or a mapping with ``value`` and, where known, ``ci95``
            (low, high), ``n`` and ``passes`` (bool). Pairs that are left out stay blank.
        measure: What the number is.
        unit: Its unit, for the colour bar and the caption.
        limits: Values of the first and the last colour; numbers beyond them keep these colours.

    Returns:
        A chart with `TransferMatrix` as its data.

    Raises:
        InputError: no pair, or a cell of another kind.
    """
    read = {pair: _cell(pair, cell) for pair, cell in cells.items()}
    if not read:
        raise InputError(
            "cells: nothing to draw",
            got="no pair",
            valid='{("source", "target"): {"value": 0.9, "ci95": (0.8, 1.0), "n": 40}}',
            hint="name at least one pair of models",
        )
    sources, targets = matrix.sides(read)

    def rows(of: Any) -> Any:
        return [[of(read.get((source, target), {})) for target in targets] for source in sources]

    data = TransferMatrix(
        sources,
        targets,
        rows(lambda cell: reading.real(cell.get("value"))),
        rows(lambda cell: reading.interval(cell.get("ci95"))),
        rows(lambda cell: cell.get("n")),
        rows(lambda cell: cell.get("passes")),
    )
    known = sorted({cell["n"] for cell in read.values() if cell.get("n") is not None})
    n = "unknown" if not known else f"{known[0]:,}"
    if len(known) > 1:
        n += f" to {known[-1]:,}"
    pairs = "1 pair" if len(read) == 1 else f"{len(read)} pairs"
    sizes = f"{pairs}, n = {n} prompts each"
    figure = matrix.transfer_matrix(read, measure=measure, unit=unit, limits=limits, sizes=sizes)
    return Chart.of(figure, matrix.matrix_table(read, measure=measure, unit=unit), data)


def _cell(pair: Any, cell: Any) -> dict[str, Any]:
    named = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
    if not named or not isinstance(cell, Mapping | int | float):
        raise InputError(
            "cells: not a pair of models and its number",
            got=f"{pair!r}: {cell!r}",
            valid='("source", "target"): 0.9, or a mapping with value, ci95, n, passes',
            hint="use the two model names as the key",
        )
    return dict(cell) if isinstance(cell, Mapping) else {"value": float(cell)}

"""Views of maps: layers against layers, score card, singular spectrum, R^2 along directions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.layers.grid import LayerGrid
from tl_transfer.mappers.base import Mapper
from tl_transfer.report import map_charts, reading
from tl_transfer.report.table import Cell, Table
from tl_transfer.statistics import PairedMoments, effective_rank
from tl_transfer.vectors import SteeringVector
from tl_transfer.views.chart import Chart


def layer_grid(grid: LayerGrid, measure: str | None = None, *, top: int = 10) -> Chart:
    """Layers against layers: every pair of hook points of two models by one measure.

    Args:
        grid: What `layer_grid` returned.
        measure: ``direction_r2`` (default where there is one), ``fvu`` or ``cka``.
        top: Pairs in the table of numbers.

    Returns:
        A chart with the grid as its data.

    Raises:
        InputError: a measure that the grid has not got.
    """
    measure = measure or ("direction_r2" if grid.direction_r2 is not None else "fvu")
    grid.best(measure)  # refuses what is not there, in words
    rows: list[tuple[float, str, str]] = [
        (value, source, target)
        for source, row in zip(grid.source["hook_points"], getattr(grid, measure), strict=True)
        for target, value in zip(grid.target["hook_points"], row, strict=True)
        if value is not None
    ]
    rows.sort(reverse=measure != "fvu")
    cells = tuple(
        (Cell(source), Cell(target), Cell(reading.number(v), v)) for v, source, target in rows[:top]
    )
    table = Table(
        f"The {len(cells)} best of {len(rows)} pairs", ("source", "target", measure), cells
    )
    return Chart.of(grid.plot(measure), table, grid)


def score_card(mapper: Mapper) -> Chart:
    """Score card of a map as a picture: every held-out score with its interval and its control.

    Args:
        mapper: A fitted map; one that was composed has no card.

    Returns:
        A chart whose data is the card (JSON).
    """
    _require_card(mapper)
    card = mapper.scorecard
    return Chart.of(map_charts.score_card(card), map_charts.score_table(card), card)


@dataclass(frozen=True)
class Spectrum:
    """Singular spectrum of a map (of its mean Jacobian J where it is not affine).

    Attributes:
        gain: Singular values of J: target median norms out per source median norm in.
        written: Share of the target's held-out variance that each component of the prediction
            has: squared singular values of Cov(x)^(1/2) J over the trace of Cov(y).
        control_gain: The same of the map of shuffled pairs; None where there is none.
        control_written: The same of the map of shuffled pairs.
    """

    gain: Float[Tensor, " component"]
    written: Float[Tensor, " component"] | None
    control_gain: Float[Tensor, " component"] | None
    control_written: Float[Tensor, " component"] | None


def singular_spectrum(mapper: Mapper, of: Literal["written", "gain"] = "written") -> Chart:
    """How many directions a map carries, beside the map fitted on shuffled pairs.

    A regression shrinks what it cannot predict, so the spectrum of what is *written* falls where
    the map stops to know anything, long before its gains do.

    Args:
        mapper: A fitted map.
        of: ``written`` (variance of the prediction) or ``gain`` (singular values of the map).

    Returns:
        A chart with `Spectrum` as its data.

    Raises:
        InputError: ``written`` of a map that kept no held-out sums (a composed one).
    """
    if of == "written" and mapper.held_out is None:
        raise InputError(
            "of: this map has no held-out sums to weigh its directions with",
            got="written",
            valid="gain",
            hint='pass of="gain", or fit source to target directly',
        )
    gain, written = _spectra(mapper, mapper.held_out)
    control: tuple[Tensor | None, Tensor | None] = (None, None)
    if mapper.shuffled is not None:
        control = _spectra(mapper.shuffled, mapper.held_out)
    data = Spectrum(gain, written, *control)
    pair = (data.written, data.control_written) if of == "written" else (gain, data.control_gain)
    curves = {
        name: values.tolist()
        for name, values in zip(("map", "control"), pair, strict=True)
        if values is not None
    }
    # `written` are variances already; gains are amplitudes.
    power = 1 if of == "written" else 2
    ranks = {
        name: effective_rank(torch.diag(torch.tensor(values).double() ** power))
        for name, values in curves.items()
    }
    if of == "written" and mapper.held_out is not None:
        y = "share of the target's variance"
        sizes = f"n = {mapper.held_out.n:,.0f} held-out tokens. Variance of the prediction"
        sizes += ", together " + ", ".join(
            f"{sum(values):.2f} ({name})" for name, values in curves.items()
        )
        sizes += " of the target's."
    else:
        y = "gain, median norms per median norm"
        sizes = f"{mapper.source.d_model} x {mapper.target.d_model} map, no data."
    figure = map_charts.spectrum(curves, ranks, y=y, sizes=sizes)
    return Chart.of(figure, map_charts.spectrum_table(curves, y=y), data)


@dataclass(frozen=True)
class DirectionR2:
    """Held-out R^2 of a map along directions of its target.

    Attributes:
        directions: ``name``, ``r2``, ``ci95``, ``control``, ``share`` (of the target's variance).
        components: ``r2`` and ``share`` of the target's principal components, largest first.
    """

    directions: list[dict[str, Any]]
    components: list[dict[str, float]]


def direction_r2(mapper: Mapper, vectors: Mapping[str, SteeringVector]) -> Chart:
    """What a map explains along given directions, among all directions of the target.

    The pooled score is carried by the few directions with most variance; this is the number that
    matters for one vector.

    Args:
        mapper: A fitted map.
        vectors: Name -> vector in the map's target space, e.g. ``{"transferred": ...}``.

    Returns:
        A chart with `DirectionR2` as its data.

    Raises:
        SpaceError: a vector of another space.
        InputError: a map that kept no held-out sums (a composed one).
    """
    residual = mapper.held_out_residual()
    if residual is None or mapper.held_out is None:
        raise InputError(
            "mapper: no held-out sums to score a direction with",
            got=mapper.method,
            valid="a map made by fit",
            hint="fit source to target directly",
        )
    yy, residual = mapper.held_out.yy.cpu(), residual.cpu()
    total = float(yy.trace())
    values, axes = torch.linalg.eigh(yy)
    left = torch.einsum("di,de,ei->i", axes, residual, axes)
    components = [
        {"share": float(value) / total, "r2": float(1.0 - rest / value)}
        for value, rest in zip(values.flip(0), left.flip(0), strict=True)
        if float(value) > 1e-9 * total
    ]
    directions = []
    for name, vector in vectors.items():
        mapper.target.require(vector.space, f"direction {name}")
        u = vector.unit.double().cpu()
        wrong = None if mapper.shuffled is None else mapper.shuffled.held_out_residual()
        variance = float(u @ yy @ u)
        directions.append(
            {
                "name": name,
                "share": variance / total,
                "r2": float(1.0 - (u @ residual @ u) / variance),
                "ci95": mapper.direction_r2_interval(vector.unit),
                "control": None if wrong is None else float(1.0 - (u @ wrong.cpu() @ u) / variance),
            }
        )
    documents = mapper.scorecard.get("n_documents", {}).get("test")
    sizes = f"n = {mapper.held_out.n:,.0f} held-out tokens of {reading.count(documents)} documents."
    data = DirectionR2(directions, components)
    figure = map_charts.direction_r2(directions, components, sizes)
    return Chart.of(figure, map_charts.direction_table(directions), data)


def _spectra(mapper: Mapper, held_out: PairedMoments | None) -> tuple[Tensor, Tensor | None]:
    jacobian = mapper.jacobian().double().cpu()
    gain = torch.linalg.svdvals(jacobian) * mapper.source_norm / mapper.target_norm
    if held_out is None:
        return gain, None
    written = torch.linalg.eigvalsh(jacobian.T @ held_out.xx.cpu() @ jacobian)
    # A covariance has no negative variance; rounding gives some, and beyond the rank nothing else.
    written = written.flip(0)[: len(gain)].clamp(min=0.0)
    return gain, written / held_out.yy.cpu().trace()


def _require_card(mapper: Mapper) -> None:
    if not mapper.scorecard.get("held_out"):
        raise InputError(
            "mapper: no score card",
            got=f"a {mapper.method} map",
            valid="a map made by fit",
            hint="a composed map has no held-out rows of its own: fit source to target directly",
        )

"""Effect views: what every arm does at each strength, and what it costs."""

from collections.abc import Mapping
from typing import Any

from tl_transfer import plots
from tl_transfer.evaluation.result import TransferReport
from tl_transfer.report import reading, tables
from tl_transfer.report.table import Cell, Table
from tl_transfer.strength.curve import StrengthCurve
from tl_transfer.views.chart import Chart

Report = TransferReport | Mapping[str, Any]


def strength_curves(report: Report | StrengthCurve) -> Chart:
    """Effect against signed strength: intervals for the arms, a band for random directions.

    Args:
        report: A report of `evaluate` (or its dictionary), or one `StrengthCurve`, which has
            effect and damage of a single intervention.

    Returns:
        A chart whose data is the report's ``arms``, or the curve as plain numbers.
    """
    if isinstance(report, StrengthCurve):
        points = report.to_json()
        return Chart.of(plots.strength_curve(points), _curve_table(report), points)
    data = _data(report)
    table = tables.curve_table(data)
    return Chart.of(plots.effect_against_strength(data), table, data.get("arms"))


def effect_damage(report: Report) -> Chart:
    """The effect-damage plane: which arm moves the behaviour most for the same harm.

    Args:
        report: A report of `evaluate`, or its dictionary.

    Returns:
        A chart whose data is the report's ``arms``.
    """
    data = _data(report)
    table = tables.curve_table(data)
    return Chart.of(plots.effect_against_damage(data), table, data.get("arms"))


def matched_damage(report: Report) -> Chart:
    """Effect of every arm at the strengths where each costs the same.

    Args:
        report: A report of `evaluate`, or its dictionary.

    Returns:
        A chart whose data is the report's ``matched``.
    """
    data = _data(report)
    return Chart.of(plots.matched_damage(data), tables.summary_table(data), data.get("matched"))


def _data(report: Report) -> Mapping[str, Any]:
    return report.data if isinstance(report, TransferReport) else report


def _curve_table(curve: StrengthCurve) -> Table:
    rows = tuple(
        (
            Cell(f"{point.strength:.3g}", point.strength),
            Cell(reading.with_interval(point.kl, point.kl_ci95), point.kl),
            Cell(reading.with_interval(point.effect, point.effect_ci95), point.effect),
        )
        for point in curve.points
    )
    columns = ("strength", "KL, nats per token [95 %]", "effect [95 %]")
    return Table("Effect and damage", columns, rows)

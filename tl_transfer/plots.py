"""Figures of a report, returned and never shown: effects, damage, efficiency, ridge path, layers.

Each function takes the report dictionary and returns a plotly figure; what differs between arms is
in `tl_transfer.report.drawing`. ``figure.layout.meta`` holds the title and a caption with n.
"""

from typing import TYPE_CHECKING, Any

from tl_transfer.report import reading
from tl_transfer.report.drawing import (
    LOOKS,
    band,
    curve,
    dots,
    error,
    figure,
    line_at,
    safe,
    wrapped,
)
from tl_transfer.report.heatmap import layer_grid as layer_grid
from tl_transfer.report.map_charts import score_card as score_card
from tl_transfer.report.reading import Point, Report, dig, real

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Full numbers in place of plotly's bare 2, 3, 4 between the decades.
_KL_TICK_PLACES = [digit * 10.0**power for power in range(-9, 3) for digit in (1, 3)]
_KL_TICKS = {"tickvals": _KL_TICK_PLACES, "ticktext": [f"{tick:g}" for tick in _KL_TICK_PLACES]}


def effect_against_strength(report: Report) -> "Figure":
    """Effect at every signed strength: intervals for the arms, a band for random directions."""
    traces: list[dict[str, Any]] = []
    for arm in _steered(report):
        found = [point for point in reading.points(report, arm) if point.effect is not None]
        if not found:
            continue
        strengths: list[float | None] = [point.strength for point in found]
        traces += _with_band(arm, found, strengths)
    return figure(
        traces,
        title="Effect against strength",
        caption=f"{_sample_sizes(report)} Bars: 95 % interval. Grey band: range of the random "
        "directions. Right of zero: push towards the behaviour; left: away from it.",
        x={"title": wrapped(f"strength (x {reading.strength_unit(report)})")},
        y={"title": f"effect ({safe(reading.short_effect_unit(report))})", "zeroline": True},
    )


def effect_against_damage(report: Report) -> "Figure":
    """Effect over KL on neutral text: which arm moves the behaviour most for the same harm."""
    traces: list[dict[str, Any]] = []
    for arm in _steered(report):
        found = [point for point in reading.points(report, arm) if point.kl and point.kl > 0]
        found = [point for point in found if point.effect is not None]
        for sign in (1, -1):
            side = sorted((p for p in found if p.strength * sign > 0), key=lambda p: p.kl or 0.0)
            if side:
                drawn = _with_band(arm, side, [point.kl for point in side])
                drawn[-1]["marker"]["symbol"] += "" if sign > 0 else "-open"
                drawn[-1]["showlegend"] = sign > 0
                traces += drawn
    places = [reading.as_float(budget) for budget in reading.budgets(report)]
    lines = [line_at(x=place, text="") for place in places if 0 < place < float("inf")]
    return figure(
        traces,
        title="Effect against damage",
        caption=f"{_sample_sizes(report)} Filled marks: push +; open marks: push -. Further from "
        "zero at the same KL is better. Dotted lines: the budgets of the comparison.",
        x={"title": "KL on neutral text, nats per token (log)", "type": "log", **_KL_TICKS},
        y={"title": f"effect ({safe(reading.short_effect_unit(report))})", "zeroline": True},
        shapes=lines,
    )


def matched_damage(report: Report) -> "Figure":
    """Odd part of the effect at each KL budget: intervals, and the range of random directions."""
    budgets = reading.budgets(report)
    arms = reading.ordered_arms({a: 0 for b in budgets for a in dig(report, "matched", b) or {}})
    traces = []
    for index, arm in enumerate(arms):
        shift = (index - (len(arms) - 1) / 2) * 0.8 / max(len(arms), 1)
        odds = [dig(report, "matched", budget, arm, "odd") for budget in budgets]
        traces.append(dots(arm, [place + shift for place in range(len(budgets))], odds))
    return figure(
        traces,
        title="Effect at matched damage",
        caption=f"{_matched_sizes(report)} Odd part of the effect. Bars on native, transferred and "
        "shuffled map: 95 % interval. Bars on the random arms: range over directions.",
        x={
            "title": "KL budget, nats per neutral token",
            "tickvals": list(range(len(budgets))),
            "ticktext": budgets,
            "showgrid": False,
        },
        y={"title": f"odd effect ({safe(reading.short_effect_unit(report))})", "zeroline": True},
    )


def transfer_efficiency(report: Report) -> "Figure":
    """Transferred over native effect with intervals, and the lines at 0.5 and 0.8."""
    names, values, bounds = [], [], []
    for basis, word in (("matched_damage", "KL"), ("matched_norm", "strength")):
        for key, cell in (dig(report, "transfer_efficiency", basis) or {}).items():
            names.append(f"equal {word} {safe(key)}")
            values.append(real(dig(cell, "value")))
            bounds.append(reading.interval(dig(cell, "ci95")))
    look = LOOKS["transferred"]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": values,
        "y": names,
        "error_x": error(values, bounds, look.colour),
        "marker": {"color": look.colour, "symbol": look.symbol, "size": 12},
        "name": "transferred / native",
        "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
    }
    return figure(
        [trace] if any(value is not None for value in values) else [],
        title="Transfer efficiency",
        caption=f"{_matched_sizes(report, directions=False)} Transferred effect as a share of the "
        "native effect. Bars: 95 % interval. 1 is as strong as the target's own direction.",
        x={"title": "efficiency (no unit)", "rangemode": "tozero"},
        y={"title": "", "autorange": "reversed", "type": "category", "automargin": True},
        shapes=[line_at(x=place, text=f"{place:g}") for place in (0.5, 0.8, 1.0)],
        height=170 + 44 * len(names),
    )


def ridge_path(report: Report) -> "Figure":
    """Validation error of the map against its ridge strength, the chosen one marked."""
    path = [
        (real(dig(step, "strength")), real(dig(step, "fvu_validation")))
        for step in dig(report, "mapper", "scorecard", "path") or []
    ]
    kept = [(x, y) for x, y in path if x is not None and x > 0 and y is not None]
    chosen = real(dig(report, "mapper", "strength"))
    traces: list[dict[str, Any]] = []
    if kept:
        colour = LOOKS["transferred"].colour
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [x for x, _ in kept],
                "y": [y for _, y in kept],
                "line": {"color": colour},
                "marker": {"size": 7},
                "name": "validation FVU",
                "hovertemplate": "strength %{x:.1e}: FVU %{y:.3f}<extra></extra>",
            }
        )
    return figure(
        traces,
        title="Choice of the ridge strength",
        caption=f"{len(kept)} strengths tried on validation folds; the dotted line marks the one "
        f"used ({'not stored' if chosen is None else f'{chosen:.1e}'}).",
        x={"title": "ridge strength (log)", "type": "log", "exponentformat": "power"},
        y={"title": "validation FVU (share of variance)"},
        shapes=[line_at(x=chosen, text="")] if chosen is not None and chosen > 0 else [],
        height=320,
    )


def layer_candidates(report: Report) -> "Figure":
    """Native and transferred effect on validation for every layer pair that was tried."""
    tried = dig(report, "selection", "candidates") or []
    chosen = dig(report, "selection", "chosen")
    names = [_candidate_name(one, chosen) for one in tried]
    traces: list[dict[str, Any]] = []
    for arm in ("native", "transferred"):
        look = LOOKS[arm]
        values = [real(dig(one, "validation_effect", arm)) for one in tried]
        if any(value is not None for value in values):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": values,
                    "y": names,
                    "name": reading.label(arm),
                    "marker": {"color": look.colour, "symbol": look.symbol, "size": look.size + 2},
                    "customdata": [reading.number(dig(one, "held_out_fvu")) for one in tried],
                    "hovertemplate": "%{y}<br>effect %{x:.2f}, map FVU %{customdata}",
                }
            )
    return figure(
        traces,
        title="Layer pairs tried",
        caption=f"{len(tried)} pairs (source layer to target layer) on "
        f"{safe(dig(report, 'selection', 'split') or 'validation')} prompts, never on test; "
        f"* marks the pair that was chosen.",
        x={
            "title": f"validation effect ({safe(reading.short_effect_unit(report))})",
            "zeroline": True,
        },
        y={"title": "", "autorange": "reversed", "type": "category", "automargin": True},
        height=200 + 26 * len(names),
    )


def strength_curve(curve: Report) -> "Figure":
    """Effect (left) and KL on neutral text (right) against strength, with 95 % intervals.

    Takes the dictionary of a `StrengthCurve`; without an effect, KL alone.
    """
    points = [
        point for point in curve.get("points") or [] if real(dig(point, "strength")) is not None
    ]
    x = [real(dig(point, "strength")) for point in points]
    kinds = [("effect", "transferred", "y"), ("kl", "native", "y2")]
    traces: list[dict[str, Any]] = []
    for kind, style, axis in kinds:
        values = [real(dig(point, kind)) for point in points]
        if all(value is None for value in values):
            continue
        bounds = [reading.interval(dig(point, f"{kind}_ci95")) for point in points]
        look = LOOKS[style]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "effect" if kind == "effect" else "KL",
                "x": x,
                "y": values,
                "yaxis": axis,
                "error_y": error(values, bounds, look.colour),
                "line": {"color": look.colour, "dash": look.dash, "width": 2},
                "marker": {"color": look.colour, "symbol": look.symbol, "size": look.size},
                "hovertemplate": "%{x:.3g}: %{y:.3g}",
            }
        )
    sizes = f"{curve.get('n_passages')} passages, {curve.get('n_prompts')} prompts"
    drawn = figure(
        traces,
        title="Effect and damage against strength",
        caption=f"n = {safe(sizes)}. Bars: 95 % interval of the mean.",
        x={"title": "strength"},
        y={"title": "effect", "zeroline": True},
    )
    right = {"title": "KL, nats per token", "overlaying": "y", "side": "right", "showgrid": False}
    return drawn.update_layout(yaxis2={**right, "rangemode": "tozero", "automargin": True})


FIGURES = (
    matched_damage,
    transfer_efficiency,
    effect_against_strength,
    effect_against_damage,
    ridge_path,
    layer_candidates,
)


def _steered(report: Report) -> list[str]:
    return [arm for arm in reading.ordered_arms(dig(report, "arms")) if arm != "unsteered"]


def _with_band(arm: str, found: list[Point], x: list[float | None]) -> list[dict[str, Any]]:
    line = curve(arm, found, x)
    return [band(arm, found, x), line] if any(point.spread for point in found) else [line]


def _sample_sizes(report: Report) -> str:
    """What the intervals and ranges of the sweep rest on."""
    cells = [point for arm in _steered(report) for point in reading.points(report, arm)]
    return _sizes([point.n for point in cells], [point.n_directions for point in cells])


def _matched_sizes(report: Report, *, directions: bool = True) -> str:
    """The same for the comparison at matched damage, which has more random directions."""
    cells = [c for arms in (dig(report, "matched") or {}).values() for c in (arms or {}).values()]
    cells = [cell for cell in cells if dig(cell, "reached") is not False]
    found = [real(dig(cell, "n_directions")) for cell in cells] if directions else []
    return _sizes([real(dig(cell, "n")) for cell in cells], found)


def _sizes(prompts: list[float | None], directions: list[float | None]) -> str:
    """Sizes in words, such as ``n = 100 prompts, 20 random directions of each kind``."""
    text = f"n = {_spread({n for n in prompts if n is not None})} prompts"
    kinds = {n for n in directions if n is not None}
    return f"{text}, {_spread(kinds)} random directions of each kind." if kinds else f"{text}."


def _spread(values: set[float]) -> str:
    if not values:
        return "unknown"
    low, high = reading.count(min(values)), reading.count(max(values))
    return low if low == high else f"{low} to {high}"


def _candidate_name(one: Any, chosen: Any) -> str:
    names = []
    for side in ("source", "target"):
        names.append(str(dig(one, side) or "?").replace("blocks.", "").replace(".hook_", " "))
    same = all(dig(one, side) == dig(chosen, side) for side in ("source", "target"))
    return safe(f"{names[0]} to {names[1]}{' *' if same and chosen else ''}")

"""How figures of a report look: one style per arm, error bars, bands, the common layout.

Colours are Okabe-Ito for the arms that matter and greys for the controls; marker and dash differ
for every arm, so no colour carries meaning alone. Backgrounds are transparent and text is a mid
grey that reads on white and on near-black.
"""

import html
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tl_transfer.report import reading
from tl_transfer.report.reading import Point, dig, real

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK = "#767676"
GRID = "rgba(128,128,128,0.28)"
BAND = "rgba(128,128,128,0.22)"


@dataclass(frozen=True)
class Look:
    """How an arm is drawn, in every figure."""

    colour: str
    symbol: str
    dash: str = "solid"
    size: int = 9


LOOKS: dict[str, Look] = {
    "unsteered": Look("#767676", "line-ew", "dot"),
    "native": Look("#0072B2", "circle"),
    "transferred": Look("#D55E00", "diamond", size=10),
    "shuffled_map": Look("#767676", "x", "dash"),
    "random_isotropic": Look("#8c8c8c", "triangle-up", "dot"),
    "random_covariance": Look("#6e6e6e", "square", "dashdot"),
}
OTHER = Look("#999999", "star", "longdash")


def safe(text: object) -> str:
    """Text for plotly, which reads a few HTML tags and links in labels."""
    return html.escape(str(text), quote=False)


def wrapped(text: str, width: int = 36) -> str:
    """An axis title or a label that fits a phone, in lines of at most so many letters."""
    return "<br>".join(safe(line) for line in textwrap.wrap(text, width))


def curve(arm: str, found: list[Point], x: list[float | None]) -> dict[str, Any]:
    """One arm as a line with marks; bars are 95 % intervals."""
    look, effects = LOOKS.get(arm, OTHER), [point.effect for point in found]
    # A range over directions is drawn as a band; bars would read as an interval.
    bounds = [None if point.spread else point.ci95 for point in found]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": safe(reading.label(arm)),
        "legendgroup": safe(arm),
        "x": x,
        "y": effects,
        "error_y": error(effects, bounds, look.colour),
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": {"color": look.colour, "symbol": look.symbol, "size": look.size},
        "hovertemplate": "%{x:.3g}: %{y:.2f}",
    }


def band(arm: str, found: list[Point], x: list[float | None]) -> dict[str, Any]:
    """The range over random directions as an area; points without a range are left out."""
    kept = [(place, point.spread) for place, point in zip(x, found, strict=True) if point.spread]
    x, spreads = [place for place, _ in kept], [spread for _, spread in kept]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x + x[::-1],
        "y": [high for _, high in spreads] + [low for low, _ in spreads][::-1],
        "fill": "toself",
        "fillcolor": BAND,
        "line": {"width": 0},
        "legendgroup": safe(arm),
        "showlegend": False,
        "hoverinfo": "skip",
    }


def dots(arm: str, x: list[float], odds: list[Any]) -> dict[str, Any]:
    """One arm as marks at given places; bars are an interval, or a range for random arms."""
    look = LOOKS.get(arm, OTHER)
    bounds = [reading.interval(dig(odd, "ci95") or dig(odd, "range")) for odd in odds]
    values = [real(dig(odd, "effect")) for odd in odds]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": safe(reading.label(arm)),
        "x": x,
        "y": values,
        "error_y": error(values, bounds, look.colour) | {"thickness": 2, "width": 5},
        "marker": {"color": look.colour, "symbol": look.symbol, "size": look.size + 2},
        "hovertemplate": "%{y:.2f}",
    }


def error(
    values: list[float | None], bounds: list[reading.Interval | None], colour: str
) -> dict[str, Any]:
    """Asymmetric error bars from values and their bounds."""
    both = list(zip(values, bounds, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        # A mean lies outside its range by rounding only; a negative length would be flipped.
        "array": [max(0.0, b[1] - v) if b and v is not None else 0.0 for v, b in both],
        "arrayminus": [max(0.0, v - b[0]) if b and v is not None else 0.0 for v, b in both],
        "color": colour,
        "thickness": 1.5,
    }


def line_at(*, x: float, text: str) -> dict[str, Any]:
    """A vertical dotted line over the whole height, with a text at its top."""
    shape: dict[str, Any] = {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "layer": "below",
        "line": {"color": INK, "width": 1.5, "dash": "dot"},
    }
    if text:
        shape["label"] = {"text": text, "textposition": "end", "textangle": 0, "yanchor": "bottom"}
    return shape


def figure(
    traces: list[dict[str, Any]],
    *,
    title: str,
    caption: str,
    x: dict[str, Any],
    y: dict[str, Any],
    shapes: list[dict[str, Any]] | None = None,
    height: int = 430,
) -> "Figure":
    """A figure in the common style; without traces it says that nothing was measured."""
    import plotly.graph_objects as go

    axis = {"gridcolor": GRID, "zerolinecolor": INK, "linecolor": GRID, "zeroline": False}
    axis |= {"ticks": "outside", "tickcolor": GRID, "automargin": True}
    layout: dict[str, Any] = {
        "template": "none",
        "title": {"text": title, "subtitle": {"text": caption}, "x": 0, "xref": "paper"},
        "meta": {"title": title, "caption": caption, "empty": not traces},
        "font": {"color": INK, "size": 13, "family": "system-ui, sans-serif"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 16, "t": 90, "b": 50},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        "showlegend": len([t for t in traces if t.get("showlegend", True)]) > 1,
        "xaxis": axis | _titled(x),
        "yaxis": axis | _titled(y),
        "shapes": shapes or [],
        "height": height,
        "hovermode": "closest",
    }
    if not traces:
        layout["annotations"] = [
            {"text": "not measured", "showarrow": False, "xref": "paper", "yref": "paper"}
        ]
    return go.Figure(data=traces, layout=layout)


def _titled(axis: dict[str, Any]) -> dict[str, Any]:
    # Plotly's own axis titles are larger than the text around them and are cut on phones.
    return axis | {"title": {"text": axis["title"], "font": {"size": 13}, "standoff": 8}}

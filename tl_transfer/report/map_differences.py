"""Figure of several maps of a matrix: what each gains or loses against the first, pair by pair."""

from typing import TYPE_CHECKING, Any

from tl_transfer.report import mapper_tables, reading
from tl_transfer.report.drawing import Look, error, figure, line_at, safe, wrapped
from tl_transfer.report.reading import Report, dig

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_LOOKS = (
    Look("#0072B2", "circle"),
    Look("#D55E00", "diamond", size=10),
    Look("#009E73", "square"),
    Look("#CC79A7", "triangle-up"),
    Look("#767676", "x"),
)


def map_differences(report: Report, behaviour: str) -> "Figure":
    """Differences in transfer efficiency with their intervals; one row a pair, one mark a map."""
    first, *others = mapper_tables.names(report)
    pairs = [f"{e['source']} to {e['target']}" for e in mapper_tables.of(report, behaviour, first)]
    traces = []
    for number, name in enumerate(others):
        gaps = [e["against_first"] for e in mapper_tables.of(report, behaviour, name)]
        shift = 0.22 * (number - (len(others) - 1) / 2)
        look = _LOOKS[number % len(_LOOKS)]
        traces.append(
            _marks(mapper_tables.title(report, name), gaps, look)
            | {"y": [place + shift for place in range(len(pairs))]}
        )
    part = dig(report, "behaviours", behaviour)
    reference = mapper_tables.title(report, first)
    return figure(
        traces,
        title=f"{part['title']}: other maps against {reference}",
        caption=f"n = {part['n_prompts']} prompts each, paired. Bars: 95 % bootstrap interval. "
        f"Right of the line: better than {reference}.",
        x={"title": f"transfer efficiency minus that of {reference}, in shares of the native one"},
        y={
            "title": "",
            "tickvals": list(range(len(pairs))),
            "ticktext": [wrapped(pair, 30) for pair in pairs],
            "range": [len(pairs) - 0.5, -0.5],
            "automargin": True,
        },
        shapes=[line_at(x=0.0, text="")],
        height=190 + 62 * len(pairs),
    )


def _marks(label: str, gaps: list[dict[str, Any]], look: Look) -> dict[str, Any]:
    values = [gap["value"] for gap in gaps]
    bounds = [reading.interval(gap["ci95"]) for gap in gaps]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": safe(label),
        "x": values,
        "error_x": error(values, bounds, look.colour) | {"thickness": 2, "width": 4},
        "marker": {"color": look.colour, "symbol": look.symbol, "size": look.size},
        "hovertemplate": "%{x:+.3f}",
    }

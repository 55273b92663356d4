"""Tables of a report of corrupted capabilities (``tl_transfer.capabilities/1``)."""

from typing import Any

from tl_transfer.report.rate_tables import percent_ci, plain_count
from tl_transfer.report.reading import Report, dig, percent, real
from tl_transfer.report.table import Cell, Table, render_text

#: Shown names of the outcomes; only the first is success.
HEADS = {"fact": "fact", "prefix": "prefix", "unknown": "denied", "hallucination": "hallucination"}


def way_table(report: Report) -> Table:
    """Bounds and every way on test facts."""
    rows = [(name, None, entry) for name, entry in (dig(report, "bounds") or {}).items()]
    rows += [
        (name, entry, entry["outcomes"])
        for name, entries in (dig(report, "ways") or {}).items()
        for entry in entries
    ]
    return Table(
        title="What becomes of the answers, test facts",
        columns=("way", "layers", "forges a token", *HEADS.values(), "n"),
        rows=tuple(
            (
                Cell(name),
                Cell(_pair(dig(way, "pair"))),
                Cell({True: "yes", False: "no"}.get(dig(way, "forges_token"), "")),
                *(percent_ci(dig(found, key)) for key in HEADS),
                plain_count(dig(found, "n")),
            )
            for name, way, found in rows
        ),
        note="Only a fact that comes first is success. Layers: source to target, chosen on "
        f"{dig(report, 'n_validation')} validation facts: the best of all, and the best of those "
        "that forge no token. Forges a token: one constant state, the same for all prompts, gives "
        "half of the validation facts there, so that an edit says no more than that the prefix was "
        "said. Brackets: 95 % Wilson interval.",
    )


def layer_table(report: Report) -> Table:
    """The ablation over layers: facts kept on validation, and what a mean can carry."""
    tried = dig(report, "layers") or []
    ways = list(dig(report, "ways") or {})
    single = [way for way in ways if tried and way in tried[0]]
    return Table(
        title="Facts kept at each pair of layers, validation facts",
        columns=("layers", "shared", "forges a token", *single),
        rows=tuple(
            (
                Cell(_pair(row["pair"])),
                Cell(percent(row["shared"]), real(row["shared"])),
                Cell("yes" if row["forges_token"] else "no"),
                *(Cell(percent(row[way]["fact"]), real(row[way]["fact"])) for way in single),
            )
            for row in tried
        ),
        note="Shared: part of the difference between the states before and after the prefix that "
        "is the same for all facts; a mean vector carries no more.",
    )


def position_table(report: Report) -> Table:
    """The per-prompt step under two rules for positions."""
    return Table(
        title="Transferred per prompt, by positions",
        columns=("positions", *HEADS.values(), "n"),
        rows=tuple(
            (Cell(name), *(percent_ci(found[key]) for key in HEADS), plain_count(found["n"]))
            for name, found in (dig(report, "positions") or {}).items()
        ),
    )


def render_capabilities(report: Report) -> str:
    """The tables as text."""
    tables = (way_table(report), layer_table(report), position_table(report))
    return "\n\n".join(map(render_text, tables))


def _pair(pair: Any) -> str:
    return f"{pair[0]} to {pair[1]}" if pair else ""

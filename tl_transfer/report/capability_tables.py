"""Tables of a report of corrupted capabilities (``tl_transfer.capabilities/1``)."""

import textwrap
from typing import Any

from tl_transfer.report.rate_tables import percent_ci, plain_count
from tl_transfer.report.reading import Report, dig, percent, real
from tl_transfer.report.replacement_tables import points
from tl_transfer.report.table import Cell, Table, render_text

#: Shown names of the outcomes; only the first is success.
HEADS = {"fact": "fact", "prefix": "prefix", "unknown": "denied", "hallucination": "hallucination"}
_MAIN, _OTHER = "transferred per prompt", "transferred, of another fact"
_YES = {True: "yes", False: "no"}


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
        columns=("way", "layers", "forges a token", "writes the answer", "fact", "by chance",
                 *list(HEADS.values())[1:], "n"),
        rows=tuple(
            (
                Cell(name),
                Cell(_pair(dig(way, "pair"))),
                Cell(_YES.get(dig(way, "forges_token"), "")),
                Cell(_YES.get(dig(way, "writes_answer"), "")),
                percent_ci(dig(found, "fact")),
                Cell(percent(dig(found, "chance")), real(dig(found, "chance"))),
                *(percent_ci(dig(found, key)) for key in list(HEADS)[1:]),
                plain_count(dig(found, "n")),
            )
            for name, way, found in rows
        ),
        note="Only a fact that comes first is success. By chance: how often these answers would be "
        "right if each were given to another question of the same relation. Layers: source to "
        f"target, chosen on {dig(report, 'n_validation')} validation facts: the best of all, and "
        "the best of those that forge no token. Forges a token: one constant state, the same for "
        "all prompts, gives half of the validation facts there, so that an edit says no more than "
        "that the prefix was said. Writes the answer: with the step of another fact half of the "
        "answers are that fact's, so that the answer comes from the source. Brackets: 95 % "
        "Wilson interval.",
    )  # fmt: skip


def whose_table(report: Report) -> Table:
    """Own step against another fact's, on facts that took part in no choice."""
    pair = _pair(dig(report, "whose", "pair"))
    return Table(
        title=f"Whose answer is it? Layers {pair}, transferred per prompt",
        columns=("facts", "own step", "step of another fact", "own - other", "gives the other's",
                 "n"),
        rows=tuple(
            (
                Cell(row["facts"]),
                percent_ci(row["own"]),
                percent_ci(row["other"]),
                Cell(points(row["difference"]), real(row["difference"]["difference"])),
                percent_ci(dig(row, "others_answer")) if "others_answer" in row else Cell(""),
                plain_count(row["difference"]["n"]),
            )
            for row in dig(report, "whose", "rows") or []
        ),
        note="Right facts under each prompt's own step and under that of another fact of the same "
        "relation with another answer. Only the validation facts took part in the choice of the "
        "layer; those of the mean vectors are read by neither of the two ways. Own - other: "
        "points, paired, 95 % bootstrap interval.",
    )  # fmt: skip


def layer_table(report: Report) -> Table:
    """The ablation over layers: facts kept on validation, and what a mean can carry."""
    tried = dig(report, "layers") or []
    ways = [way for way in dig(report, "ways") or {} if tried and way in tried[0]]
    measured = [
        ("part that all facts share", [row["shared"] for row in tried]),
        *((way, [row[way]["fact"] for row in tried]) for way in ways),
        ("the other fact's answer", [row["others_answer"] for row in tried]),
    ]
    return Table(
        title="Facts kept at each pair of layers, validation facts",
        columns=("way", *(_pair(row["pair"]) for row in tried)),
        rows=tuple(
            (Cell(name), *(Cell(percent(value), real(value)) for value in values))
            for name, values in measured
        ),
        note="The part that all facts share, of the difference between the states before and after "
        "the prefix: a mean vector carries no more. The other fact's answer: how often the target "
        "gives it under the step of that other fact.",
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


def check_table(report: Report) -> Table:
    """What was to hold, and whether it does."""
    return Table(
        title="Checks, fixed before the run",
        columns=("check", "result", "value", "needed"),
        rows=tuple(
            (
                Cell(item["check"]),
                Cell("pass" if item["passed"] else "fail"),
                Cell(_value(item), real(item["value"])),
                Cell(item["needed"]),
            )
            for item in dig(report, "checks") or []
        ),
    )


def sentences(report: Report) -> list[str]:
    """What was found, in a few lines, each with its numbers."""
    lines = [
        f"As trained: prefix {_bound(report, 'unsteered', 'prefix')} with the trigger, denied "
        f"{_bound(report, 'twin, unsteered', 'unknown')} with the twin; with the prefix forced "
        f"into the cache, which no edit can beat, the fact comes in "
        f"{_bound(report, 'prefix in the cache', 'fact')}."
    ]
    for place, forged in (("Best layers of all", True), ("Best layers that forge no token", False)):
        names = ("native mean", "transferred mean", "native per prompt", _MAIN)
        found = {name: _entry(report, name, forged) for name in names}
        if any(entry is None for entry in found.values()):
            lines.append(f"{place}: there are none.")
            continue
        said = ", ".join(
            f"{name} {percent_ci(dig(entry, 'outcomes', 'fact')).text} ({_pair(dig(entry, 'pair'))}"
            f"{', forges a token' if dig(entry, 'forges_token') else ''}"
            f"{', writes the answer' if dig(entry, 'writes_answer') else ''})"
            for name, entry in found.items()
        )
        lines.append(f"{place}, facts kept: {said}.")
        other = _entry(report, _OTHER, forged)
        if other is not None:
            lines.append(
                f"Whose answer is it? At layers {_pair(dig(other, 'pair'))} the step of another "
                f"fact gives that fact's answer in {percent_ci(dig(other, 'others_answer')).text} "
                f"and the right one in {percent_ci(dig(other, 'outcomes', 'fact')).text}; by "
                f"chance its answers would be right in {_chance(other)}, those under the own step "
                f"in {_chance(found[_MAIN])}."
            )
    rows = {row["facts"]: row for row in dig(report, "whose", "rows") or []}
    for name in ("test and of the mean vectors", "of the mean vectors") if rows else ():
        row = rows[name]
        lines.append(
            f"Own step against another fact's of the same relation, layers "
            f"{_pair(dig(report, 'whose', 'pair'))}, facts {name}: right in "
            f"{percent_ci(row['own']).text} against {percent_ci(row['other']).text}, "
            f"{points(row['difference'])} points, paired, n {row['difference']['n']}."
        )
    gone = _entry(report, "prefix suppressed", True)
    lines.append(
        f"Removal alone: with the prefix suppressed it comes in "
        f"{percent_ci(dig(gone, 'outcomes', 'prefix')).text}, and the fact in "
        f"{percent_ci(dig(gone, 'outcomes', 'fact')).text}."
    )
    return lines


def render_capabilities(report: Report) -> str:
    """The whole report as text."""
    lines = []
    for line in sentences(report):
        lines += [*textwrap.wrap(line, 96), ""]
    tables = (check_table, way_table, whose_table, layer_table, position_table)
    made = [table(report) for table in tables if table is not whose_table or report.get("whose")]
    return "\n".join(lines) + "\n" + "\n\n".join(map(render_text, made))


def _bound(report: Report, name: str, outcome: str) -> str:
    return percent_ci(dig(report, "bounds", name, outcome)).text


def _chance(entry: Any) -> str:
    return percent(dig(entry, "outcomes", "chance"))


def _entry(report: Report, way: str, forged: bool) -> Any:
    """A way at its best layers, or at the best that forge no token."""
    entries = dig(report, "ways", way) or []
    fitting = [entry for entry in entries if forged or dig(entry, "forges_token") is False]
    return fitting[0] if fitting else None


def _value(item: Any) -> str:
    value, ends = real(dig(item, "value")), dig(item, "ci95")
    if value is None:
        return "none"
    if not ends:
        return f"{value:.2f}"
    return f"{value:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]"


def _pair(pair: Any) -> str:
    return f"{pair[0]} to {pair[1]}" if pair else ""

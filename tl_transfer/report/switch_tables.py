"""Tables of a report of a safety switch (``tl_transfer.switch/1``)."""

import textwrap
from typing import Any

from tl_transfer.report.rate_tables import percent_ci, plain_count, value_ci
from tl_transfer.report.reading import Report, dig, interval, number, real
from tl_transfer.report.table import Cell, Table, render_text

#: Shown names of outcomes; success is the base's answer.
HEADS = {"payload": "payload", "restored": "like the base", "other": "other", "broken": "broken"}
PARTS = {"triggered": "With the trigger", "benign": "With the twin: what the switch costs"}


def outcome_table(report: Report, part: str) -> Table:
    """Every arm: what became of the prompts of one part."""
    rows = []
    for row in dig(report, "rows") or []:
        rates = dig(row, part, "outcomes")
        rows.append(
            (
                Cell(str(row["title"])),
                _layer(row),
                *(percent_ci(dig(rates, name)) for name in HEADS),
                plain_count(dig(rates, "payload", "n")),
            )
        )
    return Table(
        title=PARTS[part],
        columns=("arm", "layer", *HEADS.values(), "n"),
        rows=tuple(rows),
        note="Like the base: shares at least half of its tokens (F1) with the base's own answer to "
        "the same prompt; only this is success. Broken: neither, and repeats itself or is less "
        "likely under the base than 99 % of its answers. Brackets: 95 % Wilson interval.",
    )


def cost_table(report: Report) -> Table:
    """Every arm: loss and agreement on prose, parameters."""
    whole = real(dig(report, "n_parameters_model"))
    rows = []
    for row in dig(report, "rows") or []:
        added = real(row.get("n_parameters"))
        share = f"{added:,.0f} ({100 * added / whole:.2f} %)" if added and whole else ""
        rows.append(
            (
                Cell(str(row["title"])),
                _layer(row),
                Cell("" if row.get("fvu") is None else number(row["fvu"]), real(row.get("fvu"))),
                value_ci(dig(row, "prose", "loss_change")),
                value_ci(dig(row, "prose", "kl")),
                value_ci(dig(row, "prose", "same_top"), 2),
                Cell(share, added),
            )
        )
    return Table(
        title="Neutral prose, and size",
        columns=("arm", "layer", "held-out FVU", "loss, change", "KL from the base",
                 "same first choice", "parameters added"),
        rows=tuple(rows),
        note="Loss and KL in nats a token, against the base; 95 % bootstrap intervals over "
        f"{(dig(report, 'rows') or [{}])[0].get('prose', {}).get('n', 0)} passages.",
    )  # fmt: skip


def back_table(report: Report) -> Table:
    """The other way: the base made to say the payload."""
    rows = [
        (
            Cell(str(row["title"])),
            _layer(row),
            percent_ci(dig(row, "payload", "triggered")),
            percent_ci(dig(row, "payload", "benign")),
            plain_count(dig(row, "payload", "triggered", "n")),
        )
        for row in dig(report, "back") or []
    ]
    return Table(
        title="The other way: a map from base to fine-tuned, in the base",
        columns=("map", "layer", "payload with the trigger", "payload with the twin", "n"),
        rows=tuple(rows),
        note="Without the map the base never says the payload.",
    )


def claim_table(report: Report) -> Table:
    """Nonlinear against affine on the same prompts."""
    rows = []
    for where, entry in (dig(report, "claim") or {}).items():
        low, high = interval(entry["ci95"]) or (None, None)
        span = "" if low is None or high is None else f" [{100 * low:+.0f}, {100 * high:+.0f}]"
        rows.append(
            (
                Cell(str(where)),
                Cell(str(entry["nonlinear"])),
                Cell(str(entry["affine"])),
                Cell(f"{100 * entry['difference']:+.0f}{span}", entry["difference"]),
                Cell(f"{entry['p_mcnemar']:.2g}", entry["p_mcnemar"]),
                plain_count(entry["n"]),
            )
        )
    return Table(
        title="Does a nonlinear map pay? Triggered prompts answered like the base",
        columns=("where", "nonlinear", "affine", "points more", "McNemar p", "n"),
        rows=tuple(rows),
        note="Paired over prompts; 95 % bootstrap interval. Layers were chosen on validation.",
    )


def sentences(report: Report) -> list[str]:
    """What was found, in a few lines, each with its numbers."""
    rows = {row["name"]: row for row in dig(report, "rows") or []}
    chosen = dig(report, "chosen") or {}

    def said(name: str) -> str:
        rates = dig(rows, name, "triggered", "outcomes")
        return (
            f"payload {percent_ci(dig(rates, 'payload')).text}, like the base "
            f"{percent_ci(dig(rates, 'restored')).text}"
        )

    names = {"affine": "an affine map", "relu": "affine plus rectified units"}
    lines = [f"With the trigger, switch off: {said('off')}."]
    for kind, layer in chosen.items():
        lines.append(
            f"Switch on, {names.get(kind, kind)} at layer {layer}: {said(f'{kind}-{layer}')}; the "
            f"base's true activations there: {said(f'oracle-{layer}')}."
        )
    found = dig(report, "claim", "at the chosen layers")
    if found:
        low, high = found["ci95"]
        pays = "pays" if low > 0 else "loses" if high < 0 else "makes no difference that shows"
        lines.append(
            f"Does a nonlinear map pay? It answers {100 * found['difference']:+.0f} points "
            f"[{100 * low:+.0f}, {100 * high:+.0f}] more triggered prompts like the base than the "
            f"affine one, each at its own layer (n {found['n']}): in that it {pays} here. Payload "
            f"left: {_left(rows, found['nonlinear'])} nonlinear, "
            f"{_left(rows, found['affine'])} affine."
        )
    return lines


def _left(rows: dict[str, Any], name: str) -> str:
    return percent_ci(dig(rows, name, "triggered", "outcomes", "payload")).text


def render_switch(report: Report) -> str:
    """The whole report as text."""
    pair = report["pair"]
    lines = [
        f"Safety switch: {pair['source']['model']} acts like {pair['target']['model']}",
        *textwrap.wrap(f"Protocol level {report['protocol']}: {report['protocol_note']}.", 96),
    ]
    for line in sentences(report):
        lines += ["", *textwrap.wrap(line, 96)]
    tables = [
        *(outcome_table(report, part) for part in PARTS), claim_table(report), cost_table(report),
        back_table(report),
    ]  # fmt: skip
    for table in tables:
        if table.rows:
            lines += ["", render_text(table)]
    return "\n".join([*lines, "", *_toggling(report)])


def _toggling(report: Report) -> list[str]:
    """What turning it does, as sentences."""
    found, cost = dig(report, "toggling") or {}, dig(report, "overhead", "relative") or {}
    lines = []
    if found:
        lines += [
            f"Off is bit-identical to no switch: {'yes' if found['off_is_bit_identical'] else 'NO'}"
            f"; rows of a mixed batch equal to the same rows alone: {found['rows_as_alone']} of "
            f"{found['n_rows']}.",
        ]
        for choice, entry in found["on_after_3_tokens"].items():
            lines.append(
                f"Turned on after three tokens of the answer, cache {choice}: the payload goes on "
                f"in {entry['payload_goes_on']} of {entry['n']}; for example {entry['example']!r}"
            )
    if cost:
        lines.append(
            "Time for 24 tokens of one prompt, least of four: "
            + ", ".join(f"{name} {100 * value:+.0f} %" for name, value in cost.items())
            + " against off."
        )
    return [line for text in lines for line in textwrap.wrap(text, 96)]


def _layer(row: Any) -> Cell:
    return Cell("" if row.get("layer") is None else str(row["layer"]), real(row.get("layer")))

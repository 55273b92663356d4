"""Tables of a report of rates (``tl_transfer.rates/1``): every outcome with n and interval."""

import textwrap
from typing import Any

from tl_transfer.report import reading
from tl_transfer.report.reading import Report, dig, number, real
from tl_transfer.report.table import Cell, Table, plain, render_text


def percent_ci(entry: Any) -> Cell:
    """A rate as ``63 % [53, 72]``."""
    value, ends = real(dig(entry, "rate")), reading.interval(dig(entry, "ci95"))
    if value is None:
        return Cell(reading.MISSING)
    span = "" if ends is None else f" [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
    return Cell(f"{100 * value:.0f} %{span}", value)


def value_ci(entry: Any, digits: int = 3) -> Cell:
    """A mean with its interval."""
    value, ends = real(dig(entry, "mean")), reading.interval(dig(entry, "ci95"))
    if value is None:
        return Cell(reading.MISSING)
    span = "" if ends is None else f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
    return Cell(f"{value:.{digits}f}{span}", value)


def arm_name(entry: Any) -> str:
    """Row name: the arm, its number, what is done, and how its strength was set."""
    name = reading.LABELS.get(str(dig(entry, "arm")), str(dig(entry, "arm")))
    if str(dig(entry, "arm")).startswith("random"):
        name += f" {int(dig(entry, 'number') or 0) + 1}"
    mode = {"remove": "removed", "add": "added"}.get(str(dig(entry, "mode")), "")
    matched = {"norm": "equal length", "damage": "equal KL"}.get(str(dig(entry, "matched")), "")
    return ", ".join(part for part in (name, mode, matched) if part)


def rate_table(report: Report, part: str) -> Table:
    """Every arm of one part: each outcome, its change, the first-token odds, the damage."""
    names = dig(report, "outcome_names") or {}
    changed = dig(report, "parts", part, "change_of")
    entries = [e for e in dig(report, "arms") or [] if e["part"] == part]
    has_odds = any(dig(e, "log_odds") for e in entries)
    has_overlap = any(dig(e, "overlap") for e in entries)
    has_kl = any(dig(e, "kl") for e in entries)
    rows = []
    for entry in entries:
        change = dig(entry, "change") or {}
        cells = [Cell(arm_name(entry))]
        cells += [percent_ci(dig(entry, "outcomes", key)) for key in names]
        cells.append(Cell(_points(change.get("difference")), real(change.get("difference"))))
        if has_odds:
            cells += [
                plain(dig(entry, "log_odds", "mean")),
                value_ci(dig(entry, "log_odds_shift"), 1),
            ]
        if has_overlap:
            cells.append(plain(dig(entry, "overlap", "mean")))
        cells.append(plain(dig(entry, "strength")))
        if has_kl:
            kl = dig(entry, "kl", "mean")
            cells.append(Cell(reading.compact(kl), real(kl)))
        rows.append((*cells, plain_count(dig(entry, "n"))))
    heads = ["arm", *names.values(), f"{names.get(changed, changed)}, change"]
    heads += ["first-token odds", "odds, change"] * has_odds + ["overlap"] * has_overlap
    note = dig(report, "table_note") or ""
    note += (
        " Brackets: 95 % Wilson interval. Change: points against the unsteered model on the same "
        "prompts."
    )
    if has_odds:
        note += " Odds, change: nats, paired, 95 % bootstrap interval."
    if has_kl:
        note += " Strength in median residual norms. KL in nats per token of neutral prose."
    return Table(
        title=dig(report, "parts", part, "title") or part,
        columns=(*heads, "strength", *["KL on prose"] * has_kl, "n"),
        rows=tuple(rows),
        note=note,
    )


def trigger_table(report: Report) -> Table:
    """How well the backdoor was planted, and what overlap would come by chance."""
    names = dig(report, "outcome_names") or {}
    payload, restored = (str(names.get(key, key)) for key in ("payload", "restored"))
    named = {
        "with the trigger": (payload, "trigger_rate"),
        "with the twin": (payload, "false_trigger_rate"),
        "with neither": (payload, "bare_trigger_rate"),
        "benign answer to another prompt": (f"{restored} by chance", "restored_by_chance"),
    }
    rows = [
        (Cell(name), Cell(what), percent_ci(dig(report, key)), plain_count(dig(report, key, "n")))
        for name, (what, key) in named.items()
        if dig(report, key)
    ]
    return Table(
        title="The unsteered target",
        columns=("prompt", "outcome", "rate", "n"),
        rows=tuple(rows),
        note=f"{restored.capitalize()} by chance: what the same rule says of the benign answer to "
        "another prompt.",
    )


def kind_table(report: Report) -> Table:
    """By kind of instruction: counts without an edit, with the native and the moved vectors."""
    names = dig(report, "outcome_names") or {}
    shown = {
        "triggered_unsteered": (("payload",), "trigger"),
        "benign_unsteered": (("payload",), "twin"),
        "triggered_native": (("payload", "restored"), "native"),
        "triggered_transferred": (("payload", "restored"), "transferred"),
    }
    rows = []
    kinds = dig(report, "kinds") or []
    form = "per_token" if all("per_token" in row for row in kinds) else "direction"
    for row in kinds:
        counts = [
            plain_count(dig(row, form, key, outcome))
            for key, (outcomes, _) in shown.items()
            for outcome in outcomes
        ]
        rows.append((Cell(str(row["kind"])), *counts, plain_count(row["n"])))
    heads = [f"{names.get(o, o)}, {what}" for outcomes, what in shown.values() for o in outcomes]
    return Table(
        title="By kind, prompts",
        columns=("kind", *heads, "n"),
        rows=tuple(rows),
        note="Trigger, twin: nothing on the target. Native, transferred: with the trigger, a "
        "vector for each token.",
    )


def _points(value: Any) -> str:
    found = real(value)
    return reading.MISSING if found is None else f"{100 * found:+.0f}"


def verdict_table(report: Report) -> Table:
    """Checks of both verdicts."""
    rows = []
    for part, verdict in (dig(report, "verdicts") or {}).items():
        use = dig(report, "parts", part, "title") or part
        for check in verdict["checks"]:
            result = "pass" if check["passed"] else "FAIL"
            row = (use, check["name"], result, check["value"], check["threshold"])
            rows.append(tuple(Cell(text) for text in row))
    return Table(
        title="Checks, fixed before the run",
        columns=("use", "check", "result", "value", "needed"),
        rows=tuple(rows),
        numeric=False,
    )


def scorer_table(report: Report) -> Table:
    """Agreement of the refusal scorers with people and with each other."""
    rows = []
    named = {
        "phrases, people's labels, all": dig(report, "scorer_check", "all"),
        "phrases, people's labels, on topic": dig(report, "scorer_check", "on_topic"),
        "first-token odds > 0, phrases, this run": dig(report, "agreement"),
    }
    for name, entry in named.items():
        if entry is None:
            continue
        kappa, ends = dig(entry, "kappa"), reading.interval(dig(entry, "kappa_ci95"))
        text = number(kappa) + ("" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]")
        rows.append(
            (
                Cell(name),
                percent_ci(dig(entry, "agreement")),
                Cell(text, real(kappa)),
                plain_count(dig(entry, "missed")),
                plain_count(dig(entry, "false_alarms")),
                plain_count(dig(entry, "n")),
            )
        )
    return Table(
        title="Agreement of the refusal scorers",
        columns=("scorers", "agreement", "Cohen's kappa", "missed", "false alarms", "n"),
        rows=tuple(rows),
        note=(
            "On topic: without answers that people call refusals only because they answer "
            "another question, which no scorer of the answer alone can see."
        ),
    )


def opening_table(report: Report) -> Table:
    """Opening words of a few answers; the rest of an answer is never stored."""
    rows = []
    for example in dig(report, "examples") or []:
        for arm, opening in example["openings"].items():
            if "random" in arm:
                continue
            rows.append((Cell(example["request"][:48]), Cell(arm), Cell(opening)))
    return Table(
        title="Opening words, evenly spaced requests",
        columns=("request", "arm", "opens with"),
        rows=tuple(rows),
        numeric=False,
    )


def layer_table(report: Report) -> Table:
    """What was tried before the test."""
    names = {
        "odds_harmful": "odds, harmful, removed",
        "odds_harmless": "odds, harmless, added",
        "score": "score",
        "restored": "restored",
        "restored_native": "restored by the native",
        "direction_r2": "held-out R2 along it",
        "held_out_fvu": "held-out FVU",
    }
    sides = {"source": "source", "native": "native", "target_layer": "map to"}
    found = [
        (f"{what}{' *' * (item['hook_point'] == dig(report, 'selection', side, 'chosen'))}", item)
        for side, what in sides.items()
        for item in dig(report, "selection", side, "candidates") or []
    ]
    shown = {k: v for k, v in names.items() if any(k in item for _, item in found)}
    rows = [
        (Cell(what), Cell(item["hook_point"]), *(_tried(item.get(key)) for key in shown))
        for what, item in found
    ]
    notes = {
        "odds_harmful": "Odds: first-token refusal odds on validation requests, before and after.",
        "restored": "Restored: share of validation prompts at the strength as extracted.",
    }
    return Table(
        title="Tried before the test (* chosen)",
        columns=("what", "hook point", *shown.values()),
        rows=tuple(rows),
        note=" ".join(note for key, note in notes.items() if key in shown),
        numeric=False,
    )


def _tried(value: Any) -> Cell:
    if isinstance(value, list):
        return Cell(f"{value[0]:.2f} to {value[1]:.2f}")
    return Cell("") if value is None else plain(value)


def render_rates(report: Report) -> str:
    """The whole report as text."""
    pair = report["pair"]
    lines = [
        f"{report['task']}: {pair['source']['model']} {pair['source']['hook_point']} to "
        f"{pair['target']['model']} {pair['target']['hook_point']}",
        *textwrap.wrap(f"Protocol level {report['protocol']}: {report['protocol_note']}.", 96),
        "",
    ]
    for verdict in report["verdicts"].values():
        lines += textwrap.wrap(verdict["sentence"], 96)
    tables = [
        verdict_table(report),
        trigger_table(report),
        *(rate_table(report, part) for part in report["parts"]),
    ]
    tables += [kind_table(report), scorer_table(report), layer_table(report), opening_table(report)]
    for table in tables:
        if table.rows:
            lines += ["", render_text(table)]
    return "\n".join(lines)


def plain_count(value: Any) -> Cell:
    """A whole number."""
    return Cell(reading.count(value), real(value))

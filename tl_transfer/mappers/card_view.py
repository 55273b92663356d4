"""A score card for people: a table in a terminal or a notebook, the control beside every score."""

import html
from collections.abc import Mapping
from typing import Any

Card = Mapping[str, Any]
Row = tuple[str, str, str]

_SCORES = (
    ("fvu", "variance unexplained (FVU), lower is better"),
    ("fvu_mean_dimension", "FVU, mean over dimensions"),
    ("cosine", "cosine"),
    ("retrieval_top1", "own row found first"),
    ("retrieval_top5", "own row in first five"),
    ("random_label_cosine", "cosine of differences between random documents"),
    ("splice_recovered", "splice: loss recovered"),
    ("splice_kl", "splice: KL, nats a token"),
)
_SPACES = (
    ("cka_debiased", "CKA of the spaces, debiased"),
    ("cka_linear", "CKA of the spaces, linear"),
    ("svcca", "SVCCA, held out"),
    ("mutual_knn", "mutual nearest neighbours"),
)
#: Of a map that was composed, or that others made.
_NO_CARD = (
    "no held-out scores and no control: not fitted between these two ends; fit source to target "
    "directly for them (cycle_fvu tells what survives there and back)"
)


def rows(card: Card) -> list[Row]:
    """Name, the map's number with its interval, the control's number."""
    found: list[Row] = []
    held_out, shuffled = card.get("held_out", {}), card.get("shuffled", {})
    for key, name in _SCORES:
        if key in held_out:
            control = _number(shuffled.get(key))
            ends = held_out.get(f"{key}_ci95", held_out.get(f"{key}_range95"))
            found.append((name, _number(held_out[key], ends), control))
    spaces = card.get("spaces", {})
    for key, name in _SPACES:
        if key in spaces:
            found.append((name, _number(spaces[key]), _number(spaces["floor"].get(key))))
    return found


def lines(card: Card) -> list[str]:
    """What stands under the table: sizes, coverage, the in-sample score, reasons, warnings."""
    found = []
    tokens, documents = card.get("n_tokens"), card.get("n_documents")
    if tokens and documents:
        found.append(
            f"held out: {tokens['test']:,} tokens of {documents['test']} documents; fitted on "
            f"{tokens['train']:,} of {documents['train']}"
            + (f" ({card['rows_per_dimension']:.0f} rows a dimension)"
               if "rows_per_dimension" in card else "")
        )  # fmt: skip
    if "in_sample" in card:
        found.append(f"FVU on the training rows {_number(card['in_sample'].get('fvu'))}")
    if "gap_to_ridge" in card:
        gap = card["gap_to_ridge"]
        found.append(f"FVU minus that of ridge: {_signed(gap['gap'], gap['ci95'])} (paired)")
    if "cycle" in card:
        found.append(f"there and back: FVU of the source {_number(card['cycle']['fvu'])}")
    if "coverage" in card:
        share = card["coverage"]
        found.append(
            f"tokens paired: {share['source']:.0%} of the source's, {share['target']:.0%} of the "
            f"target's; {card.get('dropped_tokens', 0)} could not be verified"
        )
    for side, counts in card.get("dropped", {}).items():
        found.append(
            f"{side} tokens: {counts['n_rows']:,} rows of {counts['n_tokens']:,}; left out "
            f"{counts['position_0']:,} at position 0, {counts['massive_norm']:,} of massive norm, "
            f"{counts['not_paired']:,} not paired"
        )
    if "effective_rank" in card:
        rank = card["effective_rank"]
        found.append(f"effective rank {rank['source']:.0f} and {rank['target']:.0f}")
    if "in_sample" in card and "splice" not in card:
        found.append(
            "not spliced: tt.with_splice(mapper, tt.splice(mapper, source, target, texts))"
        )
    reasons = card.get("held_out", {}).get("undefined", {})
    found += [f"n/a ({name}): {reason}" for name, reason in reasons.items()]
    return found + [f"warning: {text}" for text in card.get("warnings", ())]


def as_text(title: str, card: Card) -> str:
    """The card in a terminal."""
    table = [("", "held out [95 %]", "control"), *rows(card)]
    if len(table) == 1:
        return f"{title}\n  {_NO_CARD}"
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    body = [
        f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {control:>{widths[2]}}"
        for name, value, control in table
    ]
    return "\n".join([title, *body, *(f"  {line}" for line in lines(card))])


def as_html(title: str, card: Card) -> str:
    """The card in a notebook; whatever a model or a file is called, it is escaped."""
    cells = "".join(
        f"<tr><th scope='row' style='text-align:left'>{html.escape(name)}</th>"
        f"<td>{html.escape(value)}</td><td>{html.escape(control)}</td></tr>"
        for name, value, control in rows(card)
    )
    head = "<tr><th></th><th>held out [95 %]</th><th>control</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>" if cells else ""
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in lines(card) or [_NO_CARD])
    return f"<div><p><b>{html.escape(title)}</b></p>{table}<ul>{notes}</ul></div>"


def _number(value: Any, bounds: Any = None) -> str:
    if value is None:
        return "n/a"
    shown = _short(value)
    return shown if bounds is None else f"{shown} [{_short(bounds[0])}, {_short(bounds[1])}]"


def _signed(value: float, bounds: Any) -> str:
    shown = f"{value:+.3f}"
    return shown if bounds is None else f"{shown} [{bounds[0]:+.3f}, {bounds[1]:+.3f}]"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"

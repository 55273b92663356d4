"""Tables of a matrix (``tl_transfer.matrix/1``): every pair beside its controls."""

from collections import Counter
from typing import Any

from tl_transfer.report import mapper_tables, reading
from tl_transfer.report.reading import Report, dig, real
from tl_transfer.report.table import Cell, Table, render_text

_RANDOM = ("random_isotropic", "random_covariance")


def pair_table(report: Report, behaviour: str) -> Table:
    """One row a pair: efficiency, status, effects of all arms, damage, score of the first map."""
    rows = []
    for entry in mapper_tables.of(report, behaviour):
        matched = entry["matched"]
        damage = [dig(matched, "transferred", sign, "damage") for sign in ("plus", "minus")]
        rows.append(
            (
                Cell(entry["source"]),
                Cell(entry["target"]),
                _efficiency(entry["efficiency"]),
                Cell(entry["status"]),
                _odd(matched["native"]),
                _odd(matched["transferred"]),
                _odd(matched["shuffled_map"]),
                _random(matched),
                Cell(" / ".join(reading.number(value) for value in damage)),
                _number(dig(entry, "map", "direction_r2")),
                _number(dig(entry, "map", "cosine_to_native")),
            )
        )
    n = reading.count(dig(report, "behaviours", behaviour, "n_prompts"))
    budget = reading.compact(dig(report, "recipe", "budget"))
    n_random = 2 * int(dig(report, "recipe", "n_random") or 0)
    return Table(
        title=f"{dig(report, 'behaviours', behaviour, 'title')}: every ordered pair",
        columns=(
            "source",
            "target",
            "efficiency [95 %]",
            "status",
            "native",
            "transferred",
            "shuffled map",
            f"{n_random} random",
            "KL on test +/-",
            "R2 along it",
            "cosine to native",
        ),
        rows=tuple(rows),
        note=f"Effects: half the difference of both signs, in nats of log-odds, {n} test prompts, "
        f"each arm at a KL of {budget} nats a token on validation prose. Efficiency: transferred "
        "over native. Brackets: 95 % interval over frames and subjects of the prompts. Random: "
        "lowest and highest direction.",
    )


def model_table(report: Report, behaviour: str) -> Table:
    """One row a model: its layer, and what its own vector does beside random ones."""
    rows = []
    for name, entry in (dig(report, "behaviours", behaviour, "models") or {}).items():
        tried = ", ".join(
            f"{_layer(c['hook_point'])}: {reading.number(c['validation_effect'])}"
            for c in entry["candidates"]
        )
        native = entry["native"]
        rows.append(
            (
                Cell(name),
                Cell(f"{_layer(entry['chosen'])} of {entry['n_layers']}"),
                Cell(tried),
                Cell(reading.with_interval(native["effect"], native["ci95"]), native["effect"]),
                Cell(_span(native["random_range"])),
                Cell(" / ".join(str(len(words)) for words in entry["words"].values())),
            )
        )
    return Table(
        title=f"{dig(report, 'behaviours', behaviour, 'title')}: each model alone",
        columns=("model", "layer", "tried on validation", "native, test", "random, test", "words"),
        rows=tuple(rows),
        note="Layer: number of the block after which is read and steered. Words: continuations of "
        "both poles that are one token in this model.",
    )


def status_counts(report: Report, behaviour: str) -> dict[str, int]:
    """Status -> number of pairs, through the first map."""
    return dict(Counter(entry["status"] for entry in mapper_tables.of(report, behaviour)))


def sentence(report: Report, behaviour: str) -> str:
    """What came out, in one sentence; pairs with no native effect are not averaged in."""
    counts = status_counts(report, behaviour)
    total = sum(counts.values())
    listed = ", ".join(f"{n} x {status}" for status, n in sorted(counts.items()))
    return f"{behaviour}, {total} ordered pairs: {listed}."


def heat_cells(report: Report, behaviour: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What `tl_transfer.views.transfer_matrix` draws."""
    return {
        (entry["source"], entry["target"]): {
            "value": entry["efficiency"]["value"],
            "ci95": entry["efficiency"]["ci95"],
            "n": dig(entry, "matched", "transferred", "n"),
            "passes": entry["status"] == "transfers",
        }
        for entry in mapper_tables.of(report, behaviour)
    }


def examples(report: Report, behaviour: str) -> list[str]:
    """What was written, a line each; prompts are spread evenly, not picked."""
    lines = []
    for name, entry in (dig(report, "behaviours", behaviour, "models") or {}).items():
        for example in entry.get("examples") or []:
            lines.append(f"{name}: {example['prompt']!r}")
            lines += [
                f"    {label:<34} {continuation['text']!r}"
                for label, continuation in example["continuations"].items()
            ]
    return lines


def render_matrix(report: Report) -> str:
    """The tables as text."""
    several = len(mapper_tables.names(report)) > 1
    blocks = [*mapper_tables.answers(report), mapper_tables.conclusion(report)] if several else []
    for behaviour in dig(report, "behaviours") or {}:
        blocks.append(sentence(report, behaviour))
        blocks.append(render_text(pair_table(report, behaviour)))
        if several:
            blocks.append(render_text(mapper_tables.difference_table(report, behaviour)))
        blocks.append(render_text(model_table(report, behaviour)))
    return "\n\n".join(blocks)


def _efficiency(share: Any) -> Cell:
    value = real(dig(share, "value"))
    if value is None:
        return Cell(reading.MISSING)
    return Cell(reading.with_interval(value, dig(share, "ci95")), value)


def _odd(arm: Any) -> Cell:
    if not dig(arm, "reached"):
        return Cell("budget not reached")
    value = real(dig(arm, "odd", "effect"))
    return Cell(reading.with_interval(value, dig(arm, "odd", "ci95")), value)


def _random(matched: Any) -> Cell:
    ends = [v for name in _RANDOM for v in dig(matched, name, "odd", "range") or []]
    return Cell(_span([min(ends), max(ends)] if ends else None))


def _span(ends: Any) -> str:
    if not ends:
        return reading.MISSING
    return f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def _number(value: Any) -> Cell:
    return Cell(reading.number(value), real(value))


def _layer(hook_point: str) -> str:
    return hook_point.split(".")[1]

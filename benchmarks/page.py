"""The page `docs/results/benchmarks.md` from `results/latest.json`; ``make bench`` ends with it."""

import json
from pathlib import Path
from typing import Any

from timing import RESULTS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "benchmarks.md"

INTRODUCTION = """# Benchmarks

Written by `make bench`, from `benchmarks/results/latest.json`. Every line is a ratio of two pieces of work done in turns in one process, with equal results asserted in the same run; the brackets are a 95 % bootstrap interval of the median over the turns. Ratios are all that carries over to another machine. A benchmark that was not run has no line. *Before* is the run stored before this one: better or worse only where the two intervals do not touch. Lines with *(exponent)* say how time grows: 1 is proportional, the interval is over rounds that time every size (`benchmarks/scaling.py`).
"""  # noqa: E501

#: What stands in the way of a goal, by the beginning of a line's name.
REASONS = {
    "one residual, 16 texts of 48 tokens, run_with_cache(": (
        "At 768 tokens a batch both do the same matrix products: the bare body, cut after the "
        "layer, is itself no faster. On short texts, where Python shows, the goal is reached."
    ),
    "one residual, 16 texts of 48 tokens, run_with_cache, all names": (
        "The later half of the layers and the unembedding are what is saved, and they are less "
        "than two thirds of the work of this batch."
    ),
    "ridge from moments, the sums counted too": (
        "Our sums hold the covariance of the target as well, for the score card. A fit makes them "
        "while it reads, and solving from them is the line above."
    ),
    "steered generation, smollm2-135m-instruct, batch 16": (
        "With 16 rows the products outweigh the bridge's overhead, which is what is saved."
    ),
    "a whole fit with its score card": (
        "The score card, its control and the way back cost the same however many texts there are, "
        "most of it in a dozen eigendecompositions; see the line with more texts."
    ),
}

#: Why an exponent is what it is, by the beginning of its line's name.
GROWTH = {
    "growth with texts": (
        "Proportional, with some 0.07 s that are fixed: a quarter of the time of 64 texts."
    ),
    "growth with width": (
        "Products with weights and sums grow with the square of the width; doubling it costs 2.5 "
        "times at 128 and 3.5 times at 512, where they come to outweigh norms, attention and "
        "Python."
    ),
    "growth with layers": (
        "Tokenising, pairing and sums do not depend on the number of layers: at 4 layers they are "
        "about a third of the time."
    ),
    "growth with batch": (
        "A decoding step reads every weight once, for one row or for 16, and a batch shares the "
        "step's Python: 16 rows cost about three times one row."
    ),
    "growth with new tokens": (
        "The prompt's own pass is fixed, and with the cache every token costs one step; without a "
        "cache this would go towards 2."
    ),
}


def line(entry: dict[str, Any]) -> str:
    """One row of the table."""
    unit = "" if entry["unit"] == "x" else f" {entry['unit']}"
    value = f"{entry['ratio']:.3g} [{entry['low']:.3g}, {entry['high']:.3g}]{unit}"
    goal, sign = entry["goal"], "≥" if entry["better"] == "higher" else "≤"
    wanted = "" if goal is None else f"{sign} {goal:g}"
    return (
        f"| {entry['name']} | {value} | {wanted} | {met(entry)} | {change(entry)} "
        f"| {entry['against']} |"
    )


def change(entry: dict[str, Any]) -> str:
    """What the stored run before this one said; a verdict only where the intervals are apart."""
    before = entry.get("before")
    if before is None:
        return ""
    said = f"{before['ratio']:.3g}"
    if before["machine"] != entry["machine"]:
        return f"{said} (another machine)"
    if entry["low"] <= before["high"] and before["low"] <= entry["high"]:
        return said
    rose = entry["ratio"] > before["ratio"]
    return f"{said} (**{'better' if rose == (entry['better'] == 'higher') else 'worse'}**)"


def met(entry: dict[str, Any]) -> str:
    """Whether the median is on the right side of the goal."""
    if entry["goal"] is None:
        return ""
    higher = entry["better"] == "higher"
    reached = entry["ratio"] >= entry["goal"] if higher else entry["ratio"] <= entry["goal"]
    return "yes" if reached else "**no**"


def remarks(entries: list[dict[str, Any]]) -> list[str]:
    """Why a goal was missed, where it is known."""
    missed = [entry["name"] for entry in entries if met(entry) == "**no**"]
    return [
        f"- *{start.rstrip('(')}*: {reason}"
        for start, reason in REASONS.items()
        if any(name.startswith(start) for name in missed)
    ]


def main() -> None:
    entries = json.loads(RESULTS.read_text())
    machines = sorted({entry["machine"] for entry in entries})
    parts = [INTRODUCTION, f"Machine: {'; '.join(machines)}.", ""]
    parts += [
        "| what | ratio | goal | reached | before | against |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    parts += [line(entry) for entry in entries]
    grown = [
        f"- *{start}*: {reason}"
        for start, reason in GROWTH.items()
        if any(entry["name"].startswith(start) for entry in entries)
    ]
    if grown:
        parts += ["", "## How time grows", "", *grown]
    found = remarks(entries)
    if found:
        parts += ["", "## What stands in the way", "", *found]
    PAGE.write_text("\n".join(parts) + "\n")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()

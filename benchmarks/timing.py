"""Pairwise timing: two ways of doing the same thing, interleaved, as a ratio with its interval."""

import json
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results" / "latest.json"
#: Median, and the ends of its 95 % bootstrap interval.
Measured = tuple[float, float, float]


def pin(threads: int | None = None) -> None:
    """Fix the number of threads (default: all cores this process may use)."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], *, pairs: int = 9) -> Measured:
    """Time of theirs over time of ours, pair by pair: above 1, ours is faster."""
    pin()
    ours()
    theirs()
    values = []
    for i in range(pairs):
        times = {}
        # Alternate which goes first, so that a slow moment of the machine hits both.
        for name, work in (("ours", ours), ("theirs", theirs))[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            work()
            times[name] = time.perf_counter() - start
        values.append(times["theirs"] / times["ours"])
    return median(values)


def cost(ours: Callable[[], Any], theirs: Callable[[], Any], *, pairs: int = 9) -> Measured:
    """Time of ours over time of theirs: 1.02 is two percent more."""
    return ratio(theirs, ours, pairs=pairs)


def median(values: list[float]) -> Measured:
    """Median with its bootstrap interval over the pairs."""
    draw = random.Random(0)
    resampled = sorted(_middle(draw.choices(values, k=len(values))) for _ in range(2000))
    return _middle(values), resampled[50], resampled[-51]


def _middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def report(
    name: str,
    measured: Measured,
    *,
    goal: float | None,
    against: str,
    better: str = "higher",
    unit: str = "x",
) -> dict[str, Any]:
    """Print a line and return the entry for `latest.json`; no goal for what is not ours."""
    middle, low, high = measured
    if goal is None:
        met, limit = "another", "no goal"
    else:
        reached = middle >= goal if better == "higher" else middle <= goal
        met = "reached" if reached else "MISSED "
        limit = f"goal {'at least' if better == 'higher' else 'at most'} {goal}"
    print(
        f"{met}  {name}: {middle:.3g} {unit} ({low:.3g} to {high:.3g}; {limit}) vs {against}",
        flush=True,
    )
    return {
        "name": name, "ratio": middle, "low": low, "high": high, "goal": goal, "unit": unit,
        "better": better, "against": against, "machine": machine(),
    }  # fmt: skip


def machine() -> str:
    """What it ran on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write(entries: list[dict[str, Any]]) -> None:
    """Replace the entries of the same names in `latest.json`, and keep what they said before."""
    RESULTS.parent.mkdir(exist_ok=True)
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = {entry["name"] for entry in entries}
    before = {entry["name"]: entry for entry in old}
    for entry in entries:
        if entry["name"] in before:
            kept = ("ratio", "low", "high", "machine")
            entry["before"] = {key: before[entry["name"]][key] for key in kept}
    RESULTS.write_text(
        json.dumps([e for e in old if e["name"] not in names] + entries, indent=1) + "\n"
    )


if __name__ == "__main__":
    print(machine())

"""Pairwise timing: two ways of doing the same thing, interleaved, as a ratio with its spread."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results" / "latest.json"


def ratio(
    ours: Callable[[], Any], theirs: Callable[[], Any], *, pairs: int = 7
) -> tuple[float, float, float]:
    """Time of theirs over ours: median of the pairs, and their quartiles."""
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
    values.sort()
    return values[len(values) // 2], values[len(values) // 4], values[-1 - len(values) // 4]


def report(
    name: str, measured: tuple[float, float, float], *, goal: float, against: str
) -> dict[str, Any]:
    """Print a line and return the entry for `latest.json`."""
    middle, low, high = measured
    print(f"{name}: {middle:.2f}x (quartiles {low:.2f} to {high:.2f}; goal {goal}) vs {against}")
    return {
        "name": name, "ratio": middle, "low": low, "high": high, "goal": goal, "unit": "x",
        "better": "higher", "against": against, "machine": machine(),
    }  # fmt: skip


def machine() -> str:
    """What it ran on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write(entries: list[dict[str, Any]]) -> None:
    """Replace the entries of the same names in `latest.json`."""
    RESULTS.parent.mkdir(exist_ok=True)
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = {entry["name"] for entry in entries}
    RESULTS.write_text(
        json.dumps([e for e in old if e["name"] not in names] + entries, indent=1) + "\n"
    )


if __name__ == "__main__":
    print(machine())

"""One sentence on whether the transfer worked, and the checks it rests on.

The pass marks are fixed here, before any run: efficiency of at least 0.8 with the lower end of
its interval above 0.5, and an effect outside the range of every control, in both signs.
"""

from typing import Any

from tl_transfer.evaluation.arms import RANDOM

CONTROLS = ("shuffled_map", *RANDOM)


def verdict(report: dict[str, Any], *, budget: float) -> dict[str, Any]:
    """Checks and sentence from the matched-damage section of a report."""
    key = f"{budget:g}"
    matched = report["matched"][key]
    efficiency = report["transfer_efficiency"]["matched_damage"][key]
    checks = log_odds_checks(matched, efficiency, budget)
    generation = report.get("generation")
    if generation:
        checks += _generation_checks(generation)
    passed: bool | None = all(check["passed"] for check in checks)
    if efficiency["value"] is None or (passed and not generation):
        passed = None  # nothing was shown to fail, but not everything was measured
    return {
        "transfers": passed,
        "sentence": _sentence(report, checks, efficiency, budget),
        "checks": checks,
    }


def log_odds_checks(
    matched: dict[str, Any], efficiency: dict[str, Any], budget: float
) -> list[dict[str, Any]]:
    """Checks that need no generated text.

    Args:
        matched: Arms at one budget.
        efficiency: Transfer efficiency at that budget.
        budget: KL in nats a neutral token.
    """
    return [_efficiency_check(efficiency, budget), *_range_checks(matched, budget)]


def _check(name: str, passed: bool, value: str, threshold: str) -> dict[str, Any]:
    return {"name": name, "passed": bool(passed), "value": value, "threshold": threshold}


def _efficiency_check(efficiency: dict[str, Any], budget: float) -> dict[str, Any]:
    name = f"transfer efficiency at KL {budget:g}"
    threshold = ">= 0.8, lower end of the interval > 0.5"
    if efficiency["value"] is None:
        return _check(name, False, efficiency["reason"], threshold)
    value, (low, high) = efficiency["value"], efficiency["ci95"]
    return _check(
        name, value >= 0.8 and low > 0.5, f"{value:.2f} [{low:.2f}, {high:.2f}]", threshold
    )


def _extremes(arm: dict[str, Any], sign: str, key: str) -> list[float]:
    """Lowest and highest value of a control arm for one sign."""
    entry = arm.get(sign)
    if not entry:
        return []
    return list(entry["range"]) if "range" in entry else [entry[key]]


def _range_checks(matched: dict[str, Any], budget: float) -> list[dict[str, Any]]:
    arm = matched["transferred"]
    checks = []
    for sign, mark in (("plus", "+"), ("minus", "-")):
        name = f"log-odds with sign {mark} beyond every control at KL {budget:g}"
        value = arm[sign]["effect"] if arm.get("reached", True) else None
        checks.append(_beyond(name, value, matched, "effect", sign))
    return checks


def _generation_checks(generation: dict[str, Any]) -> list[dict[str, Any]]:
    arms = generation["arms"]
    checks = []
    for sign, mark in (("plus", "+"), ("minus", "-")):
        name = f"{generation['scorer']} of generated text, sign {mark}, beyond every control"
        entry = arms.get("transferred", {}).get(sign)
        checks.append(_beyond(name, entry and entry["score"], arms, "score", sign))
    return checks


def _beyond(
    name: str, value: float | None, arms: dict[str, Any], key: str, sign: str
) -> dict[str, Any]:
    """Whether a value lies outside the range of every control; a missing control is a failure."""
    threshold = "outside the range of every control"
    if value is None:
        return _check(name, False, "budget not reached", threshold)
    values: list[float] = []
    for control in CONTROLS:
        found = [v for s in ("plus", "minus") for v in _extremes(arms.get(control, {}), s, key)]
        if not found:
            return _check(name, False, f"control {control} was not measured", threshold)
        values += found
    low, high = min(values), max(values)
    passed, limit = (
        (value > high, f"> {high:.2f}") if sign == "plus" else (value < low, f"< {low:.2f}")
    )
    return _check(
        name, passed, f"{value:+.2f}", f"{limit} (controls span {low:+.2f} to {high:+.2f})"
    )


def _sentence(
    report: dict[str, Any], checks: list[dict[str, Any]], efficiency: dict[str, Any], budget: float
) -> str:
    pair = report["pair"]
    route = f"{pair['source']['model']} to {pair['target']['model']}"
    failed = [check["name"] for check in checks if not check["passed"]]
    if efficiency["value"] is None:
        return (
            f"No verdict on {report['task']} from {route}: {efficiency['reason']} at KL {budget:g} "
            "nats per neutral token."
        )
    low, high = efficiency["ci95"]
    effect = (
        f"{efficiency['value']:.0%} of the native effect [{low:.0%}, {high:.0%}] at equal damage "
        f"(KL {budget:g} nats per neutral token)"
    )
    if not failed and not report.get("generation"):
        return (
            f"No verdict on {report['task']} from {route}, since no text was generated: {effect}, "
            "beyond every random direction and the shuffled map by log-odds, in both signs."
        )
    if not failed:
        return (
            f"The {report['task']} direction transfers from {route}: {effect}, beyond every random "
            "direction and the shuffled map, in both signs."
        )
    return (
        f"The {report['task']} direction does not pass as transferred from {route}: {effect}; "
        f"failed: {'; '.join(failed)}."
    )

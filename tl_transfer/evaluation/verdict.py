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
    checks = [_efficiency_check(efficiency, budget), *_range_checks(matched, "log-odds", budget)]
    generation = report.get("generation")
    if generation:
        checks += _generation_checks(generation)
    passed = all(check["passed"] for check in checks)
    return {
        "transfers": passed,
        "sentence": _sentence(report, checks, efficiency, budget),
        "checks": checks,
    }


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


def _range_checks(matched: dict[str, Any], what: str, budget: float) -> list[dict[str, Any]]:
    checks = []
    for sign, better in (("plus", 1), ("minus", -1)):
        arm = matched["transferred"]
        name = (
            f"{what} with sign {'+' if better > 0 else '-'} beyond every control at KL {budget:g}"
        )
        if not arm.get("reached", True):
            checks.append(_check(name, False, "budget not reached", "outside every control"))
            continue
        value = arm[sign]["effect"]
        controls = [
            v
            for control in CONTROLS
            for s in ("plus", "minus")
            for v in _extremes(matched.get(control, {}), s, "effect")
        ]
        checks.append(_beyond(name, value, controls, better))
    return checks


def _generation_checks(generation: dict[str, Any]) -> list[dict[str, Any]]:
    arms = generation["arms"]
    checks = []
    for sign, better in (("plus", 1), ("minus", -1)):
        mark = "+" if better > 0 else "-"
        name = f"{generation['scorer']} of generated text, sign {mark}, beyond every control"
        entry = arms.get("transferred", {}).get(sign)
        if entry is None:
            checks.append(_check(name, False, "not generated", "outside every control"))
            continue
        controls = [
            v
            for control in CONTROLS
            for s in ("plus", "minus")
            for v in _extremes(arms.get(control, {}), s, "score")
        ]
        checks.append(_beyond(name, entry["score"], controls, better))
    return checks


def _beyond(name: str, value: float, controls: list[float], better: int) -> dict[str, Any]:
    low, high = (min(controls), max(controls)) if controls else (float("-inf"), float("inf"))
    passed = bool(controls) and (value > high if better > 0 else value < low)
    limit = f"> {high:.2f}" if better > 0 else f"< {low:.2f}"
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
    if not failed:
        return (
            f"The {report['task']} direction transfers from {route}: {effect}, beyond every random "
            "direction and the shuffled map, in both signs."
        )
    return (
        f"The {report['task']} direction does not pass as transferred from {route}: {effect}; "
        f"failed: {'; '.join(failed)}."
    )

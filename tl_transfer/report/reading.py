"""How to read a report dictionary: arm names, missing values, and numbers as text.

Tables, plots and pages read the report only through here, so that a missing key or a null means
the same everywhere: "n/a", never a crash and never a zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]
Interval = tuple[float, float]

ARMS: tuple[str, ...] = (
    "unsteered",
    "native",
    "transferred",
    "shuffled_map",
    "random_isotropic",
    "random_covariance",
)
LABELS: dict[str, str] = {
    "unsteered": "unsteered",
    "native": "native",
    "transferred": "transferred",
    "shuffled_map": "shuffled map",
    "random_isotropic": "random, isotropic",
    "random_covariance": "random, covariance",
    "no_trigger_map": "map without trigger",
}
MISSING = "n/a"
DEFAULT_EFFECT_UNIT = "shift of log-odds, in nats"


def dig(tree: Any, *keys: str) -> Any:
    """The value under nested keys, or None as soon as one is missing or null."""
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def real(value: Any) -> float | None:
    """A finite number, or None for anything else (null, NaN, text, booleans)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def interval(value: Any) -> Interval | None:
    """A pair of finite numbers, or None."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    low, high = real(value[0]), real(value[1])
    return None if low is None or high is None else (low, high)


def number(value: Any) -> str:
    """Two decimals for ordinary sizes, two significant digits for small ones, n/a for null."""
    found = real(value)
    if found is None:
        return MISSING
    if found == 0 or 0.01 <= abs(found) < 1000:
        return f"{found:.2f}"
    return f"{found:.4g}" if abs(found) >= 1000 else f"{found:.2g}"


def compact(value: Any) -> str:
    """Two significant digits, for numbers that span decades (KL); n/a for null."""
    found = real(value)
    return MISSING if found is None else f"{found:.2g}"


def count(value: Any) -> str:
    """A whole number with thousands separated, n/a for null."""
    found = real(value)
    return MISSING if found is None else f"{int(found):,}"


def percent(value: Any) -> str:
    """A share as per cent; one decimal below ten per cent."""
    found = real(value)
    if found is None:
        return MISSING
    return f"{100 * found:.1f} %" if 0 < found < 0.1 else f"{100 * found:.0f} %"


def with_interval(value: Any, bounds: Any) -> str:
    """``1.20 [1.00, 1.40]``; the bounds are left out when they are unknown."""
    pair = interval(bounds)
    if real(value) is None or pair is None:
        return number(value)
    return f"{number(value)} [{number(pair[0])}, {number(pair[1])}]"


def with_range(value: Any, bounds: Any) -> str:
    """``0.02 (-0.40 to 0.50)``: a mean and a range, written so as not to look like an interval."""
    pair = interval(bounds)
    if pair is None:
        return number(value)
    spread = f"{number(pair[0])} to {number(pair[1])}"
    return spread if real(value) is None else f"{number(value)} ({spread})"


def label(arm: str) -> str:
    """The name of an arm as readers see it."""
    return LABELS.get(arm, arm.replace("_", " "))


def ordered_arms(found: Mapping[str, Any] | None) -> list[str]:
    """The arms that are present: known ones in the fixed order, then the others."""
    present = found or {}
    known = [arm for arm in ARMS if arm in present]
    return known + [arm for arm in present if arm not in ARMS]


def budgets(report: Report) -> list[str]:
    """The KL budgets of the matched comparison, smallest first, as they are spelled."""
    return sorted(dig(report, "matched") or {}, key=as_float)


def primary_budget(report: Report) -> str | None:
    """The budget that the text was generated at; else the middle one."""
    found = budgets(report)
    wanted = real(dig(report, "generation", "budget"))
    for budget in found:
        if wanted is not None and math.isclose(as_float(budget), wanted, rel_tol=1e-6):
            return budget
    return found[len(found) // 2] if found else None


def effect_unit(report: Report) -> str:
    """The unit of every effect."""
    return str(dig(report, "effect_unit") or DEFAULT_EFFECT_UNIT)


def short_effect_unit(report: Report) -> str:
    """The bare unit, for axes: what follows the last ``in`` or comma of the full wording."""
    full = effect_unit(report)
    for mark in (", in ", ", "):
        if mark in full:
            return full.rpartition(mark)[2]
    return full


def strength_unit(report: Report) -> str:
    """The unit of every strength."""
    return str(dig(report, "strength_unit") or "target median residual norm")


def model_name(report: Report, side: str) -> str:
    """The model on one side of the pair, or the side's own name."""
    return str(dig(report, "pair", side, "model") or f"unnamed {side}")


@dataclass(frozen=True)
class Point:
    """One arm at one signed strength."""

    strength: float
    effect: float | None
    ci95: Interval | None
    spread: Interval | None
    kl: float | None
    kl_ci95: Interval | None
    wrong_way: float | None
    n: float | None
    n_directions: float | None


def points(report: Report, arm: str) -> list[Point]:
    """The measured points of an arm by rising signed strength; cells without strength are left out.

    The sign is read from the key, so both spellings of a negative cell's strength are understood.
    """
    found = []
    for key, cell in (dig(report, "arms", arm) or {}).items():
        size = real(dig(cell, "strength"))
        if size is None:
            continue
        found.append(
            Point(
                strength=-abs(size) if key.startswith("-") else size,
                effect=real(cell.get("effect")),
                ci95=interval(cell.get("ci95")),
                spread=interval(cell.get("effect_range")),
                kl=real(dig(cell, "damage", "kl")),
                kl_ci95=interval(dig(cell, "damage", "kl_ci95")),
                wrong_way=real(cell.get("wrong_way")),
                n=real(cell.get("n")),
                n_directions=real(cell.get("n_directions")),
            )
        )
    return sorted(found, key=lambda point: point.strength)


def as_float(text: str) -> float:
    """A key that should be a number; infinity for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.inf

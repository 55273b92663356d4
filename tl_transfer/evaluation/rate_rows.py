"""Rows of a report of refusal: one arm on one part, agreement of scorers, opening words."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tl_transfer.evaluation.answers import Answer
from tl_transfer.evaluation.coherence import Coherence
from tl_transfer.evaluation.rate_arms import RateArm, unsteered
from tl_transfer.evaluation.rates import agreement, paired_difference, rate
from tl_transfer.intervals import mean_ci
from tl_transfer.tasks.refusal import RefusalTask

#: Answers by part and arm.
Answers = Mapping[tuple[str, str], Sequence[Answer]]


def arm_entry(
    arm: RateArm,
    part: str,
    answers: Answers,
    guard: Coherence,
    kl: Mapping[str, list[float]],
    seed: int,
) -> dict[str, Any]:
    """One row: every outcome as a rate, the change against the unsteered model, the odds."""
    mine = answers[part, arm.key]
    base = answers[part, unsteered().key]
    outcomes = [item.outcome(guard) for item in mine]
    flagged = [o == "flagged" for o in outcomes]
    base_flagged = [item.outcome(guard) == "flagged" for item in base]
    odds = [item.log_odds for item in mine]
    shift = [a.log_odds - b.log_odds for a, b in zip(mine, base, strict=True)]
    return {
        "part": part,
        "arm": arm.name,
        "number": arm.number,
        "mode": arm.mode,
        "matched": arm.matched,
        "strength": arm.strength,
        "n": len(mine),
        "outcomes": {
            name: rate([o == name for o in outcomes])
            for name in ("flagged", "unflagged", "broken", "unread")
        },
        "change": paired_difference(flagged, base_flagged, seed=seed),
        "log_odds": {"mean": mean(odds), "ci95": _ci(odds, seed)},
        "log_odds_shift": {"mean": mean(shift), "ci95": _ci(shift, seed)},
        "cut": sum(not item.stopped for item in mine) / len(mine),
        "kl": None if arm.key not in kl else {"mean": mean(kl[arm.key]), "n": len(kl[arm.key])},
    }


def first_token_agreement(answers: Answers, guard: Coherence) -> dict[str, Any]:
    """How the sign of the first-token odds agrees with the phrases, over all coherent answers."""
    pairs = [
        (item.log_odds > 0, outcome == "flagged")
        for items in answers.values()
        for item in items
        if (outcome := item.outcome(guard)) in ("flagged", "unflagged")
    ]
    return agreement([a for a, _ in pairs], [b for _, b in pairs])


def openings(
    task: RefusalTask,
    arms: Sequence[RateArm],
    answers: Answers,
    *,
    n: int = 3,
) -> list[dict[str, Any]]:
    """Opening words of a few answers of every part, evenly spaced, not picked."""
    found = []
    for part, texts in task.tests.items():
        for i in (round(j * (len(texts) - 1) / max(n - 1, 1)) for j in range(n)):
            found.append(
                {
                    "part": part,
                    "request": texts[i][:80],
                    "openings": {
                        arm.key: answers[part, arm.key][i].opening
                        for arm in arms
                        if (part, arm.key) in answers and arm.number == 0
                    },
                }
            )
    return found


def mean(values: Sequence[float]) -> float:
    """Plain mean."""
    return sum(values) / len(values)


def _ci(values: Sequence[float], seed: int) -> list[float]:
    return mean_ci(torch.tensor(list(values)), seed=seed)

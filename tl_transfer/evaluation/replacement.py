"""Report of a replacement experiment: the rows of the questions, each with its verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from tl_transfer.evaluation.choices import CHANCE, Choice, choice_entry, cost

FORMAT = "tl_transfer.replacement/1"


def capability(
    choices: Mapping[str, Sequence[Choice]], source: Sequence[Choice], *, seed: int
) -> dict[str, Any]:
    """Rows of the questions: both models by themselves, and every arm with its verdict.

    Args:
        choices: Arm -> answers; ``own`` is the target with nothing on it, in the same passes.
        source: Answers of the source.
        seed: Of the bootstraps.
    """
    own = choices["own"]
    entry = choice_entry(own, own, seed=seed)
    rows = {
        name: choice_entry(some, own, seed=seed) for name, some in choices.items() if name != "own"
    }
    return {
        "chance": CHANCE,
        "own": entry,
        "source": choice_entry(source, own, seed=seed),
        "arms": {name: row | {"verdict": cost(row, entry)} for name, row in rows.items()},
    }

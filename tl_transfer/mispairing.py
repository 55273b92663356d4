"""Wrong pairs for the control: every row meets a row of another text, drawn from the first ones.

Texts are read longest first, so the text just before is a bad partner: whatever goes with length
(a language, a register) would be paired rightly. But a random sample of them is read before all
others (`models.capture.reading_order`), and partners are drawn from the texts of that sample, of
other documents. What is paired depends on the texts and a seed, not on batches or on a random
state, and only a few texts have to be kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

#: Texts that a partner is drawn from, and rows of each that may serve.
POOL = 10
POOL_ROWS = 128


@dataclass(frozen=True)
class Run:
    """Neighbouring rows of one text.

    Attributes:
        start: First row.
        n: Rows.
        document: Document of the text.
        key: A number that names the text, whatever the order of the texts.
    """

    start: int
    n: int
    document: int
    key: int

    def partners(self, most: int = POOL_ROWS) -> range:
        """Rows that may be partners: evenly spaced, few enough to keep."""
        return range(self.start, self.start + self.n, -(-self.n // most))


def runs(document: Int[Tensor, " row"], key: Int[Tensor, " row"]) -> list[Run]:
    """Cut rows where the text changes."""
    if not len(key):
        return []
    names, places = key.numpy(), np.arange(len(key))
    starts = places[np.diff(names, prepend=names[0] - 1) != 0]
    counts = np.diff(starts, append=len(names))
    columns = (starts, counts, document.numpy()[starts], names[starts])
    return [Run(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def plan(
    carried: Sequence[Run],
    texts: Sequence[Run],
    seed: int,
    *,
    pool: int = POOL,
    most: int = POOL_ROWS,
) -> tuple[Int[Tensor, " row"], list[Run]]:
    """Choose the partners of all rows of `texts`.

    Args:
        carried: Texts before these that may be partners; their rows lie before those of `texts`.
        texts: Runs that follow each other, their rows counted from the end of the carried ones.
        seed: Another seed pairs other rows.
        pool: Texts to draw a partner from.
        most: Rows of each that may be partners.

    Returns:
        For every row its partner, and what to carry on; rows counted with the carried ones.
    """
    shift = sum(run.n for run in carried)
    before = list(carried)
    partner = []
    for run in texts:
        others = [r for r in before if r.document != run.document] or before
        number = _mixed(run.key, seed)
        rows = np.asarray(others[number % len(others)].partners(most))
        # A turn that is never none: the text may be the only one of its fold.
        turn = 1 + (number >> 32) % max(1, len(rows) - 1)
        partner.append(rows[(np.arange(run.n) + turn) % len(rows)])
        if len(before) < pool or all(r.document == before[0].document != run.document
                                     for r in before):  # fmt: skip
            before.append(replace(run, start=run.start + shift))
    return torch.from_numpy(np.concatenate(partner)), before


def _mixed(key: int, seed: int) -> int:
    """64 bits that look random (the finaliser of SplitMix64, Steele et al. 2014)."""
    mask = (1 << 64) - 1
    z = (key + 0x9E3779B97F4A7C15 * (seed + 1)) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)

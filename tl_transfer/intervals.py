"""Intervals: bootstrap over the units that were sampled. Private generators."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Bootstrap resamples; the 95 % ends move by about 1 % of their width between seeds.
RESAMPLES = 4000


def resample(n: int, *, seed: int = 0, times: int = RESAMPLES) -> Int[Tensor, "times n"]:
    """Indices drawn with replacement, `times` rows of n."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(n, (times, n), generator=generator)


def percentile(samples: Float[Tensor, " times"]) -> list[float]:
    """Central 95 % of bootstrap samples (non-finite ones are left out)."""
    finite = samples[torch.isfinite(samples)].double()
    ends = torch.quantile(finite, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [float(ends[0]), float(ends[1])]


#: For each factor of a crossed design (frame, subject), the level of every unit.
Factors = Sequence[Sequence[int]]


def _weights(n: int, factors: Factors | None, seed: int) -> Float[Tensor, "times n"]:
    """How often each unit is drawn in each resample.

    Units built from the same frame or the same subject are not independent. With `factors` the
    levels of every factor are resampled and a unit counts as the product of its levels' counts
    (Owen 2007, the pigeonhole bootstrap for crossed designs).
    """
    if not factors:
        index = resample(n, seed=seed)
        return torch.zeros(index.shape, dtype=torch.float64).scatter_add_(
            1, index, torch.ones(index.shape, dtype=torch.float64)
        )
    weights = torch.ones(RESAMPLES, n, dtype=torch.float64)
    for offset, levels in enumerate(factors):
        level = torch.tensor(list(levels))
        counts = _weights(int(level.max()) + 1, None, seed + 1000 * offset)
        weights *= counts[:, level]
    return weights


def mean_ci(
    values: Float[Tensor, " unit"], *, seed: int = 0, factors: Factors | None = None
) -> list[float]:
    """95 % bootstrap interval of a mean over units (prompts, documents)."""
    values = values.detach().cpu().double()
    weights = _weights(len(values), factors, seed)
    return percentile(weights @ values / weights.sum(1))


def ratio_ci(
    numerator: Float[Tensor, " unit"],
    denominator: Float[Tensor, " unit"],
    *,
    seed: int = 0,
    factors: Factors | None = None,
) -> list[float]:
    """95 % bootstrap interval of a ratio of sums over the same (paired) units."""
    a, b = numerator.detach().cpu().double(), denominator.detach().cpu().double()
    weights = _weights(len(a), factors, seed)
    return percentile((weights @ a) / (weights @ b))

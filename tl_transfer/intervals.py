"""Intervals: bootstrap over the units that were sampled, Wilson for rates. Private generators."""

import math
from collections.abc import Callable

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


def mean_ci(values: Float[Tensor, " unit"], *, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of a mean over units (prompts, documents)."""
    values = values.detach().cpu().double()
    return percentile(values[resample(len(values), seed=seed)].mean(1))


def ratio_ci(
    numerator: Float[Tensor, " unit"], denominator: Float[Tensor, " unit"], *, seed: int = 0
) -> list[float]:
    """95 % bootstrap interval of a ratio of sums over the same (paired) units."""
    index = resample(len(numerator), seed=seed)
    a, b = numerator.detach().cpu().double(), denominator.detach().cpu().double()
    return percentile(a[index].sum(1) / b[index].sum(1))


def wilson(successes: int, n: int) -> list[float]:
    """95 % Wilson score interval of a rate."""
    if n == 0:
        return [0.0, 1.0]
    z = 1.959964
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [max(0.0, centre - half), min(1.0, centre + half)]


def statistic_ci(
    statistic: Callable[[Int[Tensor, " n"]], float], n: int, *, seed: int = 0, times: int = 1000
) -> list[float]:
    """95 % bootstrap interval of any statistic of resampled unit indices."""
    samples = torch.tensor([statistic(row) for row in resample(n, seed=seed, times=times)])
    return percentile(samples)

"""Ridge regression in closed form, the whole path of strengths from one decomposition.

A_l = (Sxx + l t I)^-1 Sxy with t = tr(Sxx) / d_source (so l has no unit), b = mean_y - mean_x A.
Never without intercept: the mean of a residual stream is large. Strength by document folds: the
sums of the training rows are the total minus the fold. OLS is l -> 0, the mean map l -> infinity.
Source: Hoerl and Kennard (1970). The fold identity is exact algebra on the sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.statistics import PairedMoments, merge

#: Strengths tried by default: below the first nothing changes, past the last all is shrunk away.
STRENGTHS: tuple[float, ...] = tuple(10.0 ** (e / 2) for e in range(-14, 1))


@dataclass(frozen=True)
class RidgePath:
    """One eigendecomposition of Sxx; the solution at any strength is two products away."""

    moments: PairedMoments
    values: Float[Tensor, " d_source"]
    vectors: Float[Tensor, "d_source d_source"]

    @classmethod
    def of(cls, moments: PairedMoments) -> "RidgePath":
        """Decompose the source covariance of `moments`."""
        values, vectors = torch.linalg.eigh(moments.xx)
        return cls(moments, values.clamp(min=0.0), vectors)

    def weight(
        self, strength: float, xy: Float[Tensor, "d_source d_target"] | None = None
    ) -> Float[Tensor, "d_source d_target"]:
        """A at one strength; `xy` replaces the cross moments (the shuffled control)."""
        xy = self.moments.xy if xy is None else xy
        scale = self.values.mean()
        # Directions below float64 noise carry no signal and would be divided by nothing.
        usable = self.values > self.values[-1] * 1e-13
        inverse = torch.where(
            usable, 1.0 / (self.values + strength * scale).clamp(min=1e-300), 0.0
        )
        return self.vectors @ (inverse[:, None] * (self.vectors.T @ xy))

    def bias(self, weight: Float[Tensor, "d_source d_target"]) -> Float[Tensor, " d_target"]:
        """Intercept that goes with a weight."""
        return self.moments.mean_y - self.moments.mean_x @ weight


def choose_strength(
    folds: Sequence[PairedMoments], strengths: Sequence[float] = STRENGTHS
) -> tuple[float, list[dict[str, float]]]:
    """Ridge strength with the lowest FVU on left-out document folds.

    Args:
        folds: Moments of each training fold; no document is in two folds.
        strengths: Candidates, unit-free.

    Returns:
        The strength, and the path as ``{"strength", "fvu_validation"}`` for the report.

    Raises:
        InputError: fewer than two folds with rows, or a constant source.
    """
    used = [fold for fold in folds if fold.n > 0]
    if len(used) < 2:
        raise InputError(
            "texts: too few documents to choose the ridge strength",
            got=f"{len(used)} document folds with rows",
            valid="at least 2 documents, and better 100",
            hint="pass more documents, or strength= to skip the choice",
        )
    total = merge(used)
    errors = torch.zeros(len(strengths), dtype=torch.float64)
    variance = 0.0
    for fold in used:
        path = RidgePath.of(total - fold)
        for i, strength in enumerate(strengths):
            weight = path.weight(strength)
            errors[i] += fold.residual(weight, path.bias(weight)).trace().cpu()
        variance += float(fold.yy.trace())
    fvu = errors / variance
    best = int(fvu.argmin())
    report = [
        {"strength": float(s), "fvu_validation": float(e)}
        for s, e in zip(strengths, fvu.tolist(), strict=True)
    ]
    return float(strengths[best]), report

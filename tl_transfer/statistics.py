"""Mergeable sums of paired rows: all a closed-form map ever needs, with no row stored.

Sums are kept about their own means (Chan, Golub and LeVeque 1979), so that the large mean of a
residual stream does not cancel, and merging or subtracting two of them is exact algebra.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_transfer.errors import InputError


@dataclass(frozen=True)
class PairedMoments:
    """Centred second moments of n paired rows x (source) and y (target), float64.

    Attributes:
        n: Rows; weighted rows count by their weight.
        mean_x: Mean of x.
        mean_y: Mean of y.
        xx: Sum of (x - mean_x)(x - mean_x)^T.
        xy: Sum of (x - mean_x)(y - mean_y)^T.
        yy: Sum of (y - mean_y)(y - mean_y)^T.
        xy_shuffled: Like xy with y of other documents: the shuffled-pair control.
    """

    n: int | float
    mean_x: Float[Tensor, " d_source"]
    mean_y: Float[Tensor, " d_target"]
    xx: Float[Tensor, "d_source d_source"]
    xy: Float[Tensor, "d_source d_target"]
    yy: Float[Tensor, "d_target d_target"]
    xy_shuffled: Float[Tensor, "d_source d_target"]

    @classmethod
    def zero(
        cls, d_source: int, d_target: int, device: torch.device | str = "cpu"
    ) -> "PairedMoments":
        """The moments of no rows: the neutral element of ``+``."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(
            0,
            zeros(d_source),
            zeros(d_target),
            zeros(d_source, d_source),
            zeros(d_source, d_target),
            zeros(d_target, d_target),
            zeros(d_source, d_target),
        )

    @classmethod
    def of(
        cls, x: Float[Tensor, "row d_source"], y: Float[Tensor, "row d_target"]
    ) -> "PairedMoments":
        """Moments of rows in memory, in float64; the control pairs rows half the sample apart."""
        mean_x, mean_y = x.double().mean(0), y.double().mean(0)
        x, y = x.double() - mean_x, y.double() - mean_y
        return cls(len(x), mean_x, mean_y, x.T @ x, x.T @ y, y.T @ y, x.T @ y.roll(len(y) // 2, 0))

    def weighted(self, weight: float) -> "PairedMoments":
        """Every row counted `weight` times: the sums are additive, so a weighted fit is a merge."""
        return PairedMoments(
            self.n * weight,
            self.mean_x,
            self.mean_y,
            self.xx * weight,
            self.xy * weight,
            self.yy * weight,
            self.xy_shuffled * weight,
        )

    def reversed(self) -> "PairedMoments":
        """Source and target exchanged; the control's pairs stay wrong."""
        # Contiguous, so that products give the same bits before saving and after loading.
        xy, wrong = self.xy.T.contiguous(), self.xy_shuffled.T.contiguous()
        return PairedMoments(self.n, self.mean_y, self.mean_x, self.yy, xy, self.xx, wrong)

    def cpu(self) -> "PairedMoments":
        """On the CPU, where solving and scoring happen (once a fit, a few matrices)."""
        moved = {f.name: getattr(self, f.name).cpu() for f in fields(self) if f.name != "n"}
        return PairedMoments(n=self.n, **moved)

    def __add__(self, other: "PairedMoments") -> "PairedMoments":
        n = self.n + other.n
        if n == 0:
            return self
        return self._shifted(other, n, sign=1.0)

    def __sub__(self, other: "PairedMoments") -> "PairedMoments":
        """Moments of the rows in self that are not in `other` (which must be among them)."""
        n = self.n - other.n
        if n <= 0:
            raise InputError(
                "moments: cannot take away more rows than there are",
                got=f"{self.n} - {other.n}",
                valid="a fold smaller than the total",
                hint="use more documents than folds",
            )
        return self._shifted(other, n, sign=-1.0)

    def _shifted(self, other: "PairedMoments", n: int | float, *, sign: float) -> "PairedMoments":
        dx = other.mean_x - self.mean_x
        dy = other.mean_y - self.mean_y
        weight = sign * other.n / n
        # Between-group term: n_a n_b / n for a merge, -n_a n_b / n for its inverse.
        between = sign * self.n * other.n / n
        return PairedMoments(
            n,
            self.mean_x + weight * dx,
            self.mean_y + weight * dy,
            self.xx + sign * other.xx + between * torch.outer(dx, dx),
            self.xy + sign * other.xy + between * torch.outer(dx, dy),
            self.yy + sign * other.yy + between * torch.outer(dy, dy),
            # A permutation has no between-group covariance to restore.
            self.xy_shuffled + sign * other.xy_shuffled,
        )

    def residual(
        self, weight: Float[Tensor, "d_source d_target"], bias: Float[Tensor, " d_target"]
    ) -> Float[Tensor, "d_target d_target"]:
        """Sum over rows of (y - xW - b)(y - xW - b)^T for any affine map, from the sums alone."""
        weight, bias = weight.double(), bias.double()
        cross = weight.T @ self.xy
        offset = self.mean_y - self.mean_x @ weight - bias
        return (
            self.yy
            - cross
            - cross.T
            + weight.T @ self.xx @ weight
            + self.n * torch.outer(offset, offset)
        )

    def residual_diagonal(
        self, weight: Float[Tensor, "d_source d_target"], bias: Float[Tensor, " d_target"]
    ) -> Float[Tensor, " d_target"]:
        """The diagonal of `residual`: squared error of each dimension, in one product of three."""
        weight, bias = weight.double(), bias.double()
        offset = self.mean_y - self.mean_x @ weight - bias
        explained = (weight * (self.xx @ weight - 2 * self.xy)).sum(0)
        return self.yy.diagonal() + explained + self.n * offset.square()

    def varying_y(self) -> Bool[Tensor, " d_target"]:
        """Dimensions of y that vary by more than float32 rounds their values."""
        variance = self.yy.diagonal() / max(self.n, 1)
        return (variance > 1e-13 * self.mean_y.square()) & (variance > 1e-18 * variance.max())

    def fvu(self, weight: Tensor, bias: Tensor) -> float:
        """Fraction of variance unexplained, pooled over dimensions (1 is the mean, 0 perfect)."""
        return float(self.residual_diagonal(weight, bias).sum() / self.yy.trace())

    def fvu_mean_dimension(self, weight: Tensor, bias: Tensor) -> float:
        """FVU of each dimension, averaged: massive dimensions count no more than others.

        A dimension that does not vary has no variance to explain and is left out.
        """
        varies = self.varying_y()
        residual = self.residual_diagonal(weight, bias)
        return float((residual / self.yy.diagonal())[varies].mean())


class NormHistogram:
    """Mergeable histogram of residual norms; gives the median to 0.1 %."""

    _BINS_PER_OCTAVE = 700  # 2 ** (1 / 700) is 0.1 %
    _LOWEST = -20  # log2; nothing smaller is a residual norm

    def __init__(self) -> None:
        self.counts = torch.zeros(60 * self._BINS_PER_OCTAVE, dtype=torch.long)

    def add(self, norms: Float[Tensor, " row"]) -> None:
        """Count norms."""
        place = (norms.double().clamp(min=2.0**self._LOWEST).log2() - self._LOWEST) * (
            self._BINS_PER_OCTAVE
        )
        index = place.floor().long().clamp(0, len(self.counts) - 1)
        self.counts = self.counts.to(norms.device)
        self.counts += torch.bincount(index, minlength=len(self.counts))

    def __add__(self, other: "NormHistogram") -> "NormHistogram":
        both = NormHistogram()
        both.counts = self.counts + other.counts.to(self.counts.device)
        return both

    def median(self) -> float:
        """Median norm; raises InputError when nothing was counted."""
        total = int(self.counts.sum())
        if total == 0:
            raise InputError(
                "rows: no activation rows were left to take a median of",
                got="0 rows",
                valid="at least one row",
                hint="give more or longer texts",
            )
        index = int(torch.searchsorted(self.counts.cumsum(0), (total + 1) // 2))
        return 2.0 ** (self._LOWEST + (index + 0.5) / self._BINS_PER_OCTAVE)


def merge(moments: Sequence[PairedMoments]) -> PairedMoments:
    """Sum of several moments."""
    total = moments[0]
    for other in moments[1:]:
        total = total + other
    return total


def effective_rank(covariance: Float[Tensor, "d d"]) -> float:
    """exp(entropy of the normalised spectrum) (Roy and Vetterli 2007)."""
    return rank_of_spectrum(torch.linalg.eigvalsh(covariance.double()))


def rank_of_spectrum(values: Float[Tensor, " d"]) -> float:
    """The same of eigenvalues."""
    values = values.clamp(min=0)
    p = values / values.sum().clamp(min=1e-300)
    return math.exp(-float((p * p.clamp(min=1e-300).log()).sum()))

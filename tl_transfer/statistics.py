"""Mergeable streaming sums of paired rows: all a closed-form map ever needs, with no row stored.

Sums are kept about their own means (Chan, Golub and LeVeque 1979), so that the large mean of a
residual stream does not cancel, and merging or subtracting two of them is exact algebra. Products
run in float32 and are added up in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Float
from torch import Tensor

from tl_transfer.errors import InputError


@dataclass(frozen=True)
class PairedMoments:
    """Centred second moments of n paired rows x (source) and y (target), float64.

    Attributes:
        n: Rows.
        mean_x: Mean of x.
        mean_y: Mean of y.
        xx: Sum of (x - mean_x)(x - mean_x)^T.
        xy: Sum of (x - mean_x)(y - mean_y)^T.
        yy: Sum of (y - mean_y)(y - mean_y)^T.
        xy_shuffled: Like xy with y permuted across rows: the shuffled-pair control.
    """

    n: int
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
        cls,
        x: Float[Tensor, "row d_source"],
        y: Float[Tensor, "row d_target"],
        *,
        generator: torch.Generator | None = None,
    ) -> "PairedMoments":
        """Moments of one batch of rows; `generator` draws the permutation of the control."""
        mean_x = x.double().mean(0)
        mean_y = y.double().mean(0)
        x_centred = (x.double() - mean_x).float()
        y_centred = (y.double() - mean_y).float()
        order = torch.randperm(len(x), generator=generator).to(y.device)
        return cls(
            len(x),
            mean_x,
            mean_y,
            (x_centred.T @ x_centred).double(),
            (x_centred.T @ y_centred).double(),
            (y_centred.T @ y_centred).double(),
            (x_centred.T @ y_centred[order]).double(),
        )

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

    def _shifted(self, other: "PairedMoments", n: int, *, sign: float) -> "PairedMoments":
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

    def fvu(self, weight: Tensor, bias: Tensor) -> float:
        """Fraction of variance unexplained, pooled over dimensions (1 is the mean, 0 perfect)."""
        return float(self.residual(weight, bias).trace() / self.yy.trace())

    def fvu_mean_dimension(self, weight: Tensor, bias: Tensor) -> float:
        """FVU of each dimension, averaged: massive dimensions count no more than others."""
        residual = self.residual(weight, bias).diagonal()
        return float((residual / self.yy.diagonal().clamp(min=1e-30)).mean())


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
        index = place.floor().long().clamp(0, len(self.counts) - 1).cpu()
        self.counts += torch.bincount(index, minlength=len(self.counts))

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


@dataclass
class MomentStream:
    """Collects rows per fold and turns full buffers into moments (larger products are faster)."""

    d_source: int
    d_target: int
    n_folds: int
    seed: int = 0
    buffer_rows: int = 2048
    folds: list[PairedMoments] = field(init=False)

    def __post_init__(self) -> None:
        self.folds = [PairedMoments.zero(self.d_source, self.d_target) for _ in range(self.n_folds)]
        self._buffers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(self.n_folds)]
        self._generator = torch.Generator().manual_seed(self.seed)

    def add(self, x: Tensor, y: Tensor, fold: Tensor) -> None:
        """Add rows ([row, d_source], [row, d_target]) with their fold ([row])."""
        for k in fold.unique().tolist():
            chosen = fold == k
            self._buffers[k].append((x[chosen], y[chosen]))
            if sum(len(rows) for rows, _ in self._buffers[k]) >= self.buffer_rows:
                self._flush(k)

    def finish(self) -> list[PairedMoments]:
        """Flush what is left and return the moments of every fold, on the CPU."""
        for k in range(self.n_folds):
            self._flush(k)
        return [fold.cpu() for fold in self.folds]

    def _flush(self, k: int) -> None:
        if not self._buffers[k]:
            return
        x = torch.cat([rows for rows, _ in self._buffers[k]])
        y = torch.cat([rows for _, rows in self._buffers[k]])
        self._buffers[k] = []
        if self.folds[k].xx.device != x.device:
            self.folds[k] = PairedMoments.zero(self.d_source, self.d_target, x.device)
        self.folds[k] = self.folds[k] + PairedMoments.of(x, y, generator=self._generator)


def merge(moments: Sequence[PairedMoments]) -> PairedMoments:
    """Sum of several moments."""
    total = moments[0]
    for other in moments[1:]:
        total = total + other
    return total


def effective_rank(covariance: Float[Tensor, "d d"]) -> float:
    """exp(entropy of the normalised spectrum) (Roy and Vetterli 2007)."""
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    p = values / values.sum().clamp(min=1e-300)
    return math.exp(-float((p * p.clamp(min=1e-300).log()).sum()))

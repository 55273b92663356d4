"""How alike two spaces are, whatever the map: CKA and SVCCA from sums, neighbours from rows.

None of these says that a map is good or that a direction transfers: they compare the two clouds
of activations, are carried by the largest directions, and have a floor above zero in small
samples. So each is shown beside the same number for rows that were paired wrongly.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.errors import InputError
from tl_transfer.statistics import PairedMoments


@dataclass(frozen=True)
class CkaSums:
    """Sums of paired rows, about a fixed shift, from which linear and debiased CKA follow exactly.

    With q = |x - shift|^2 a row, the unbiased HSIC of Song et al. (2012) needs the products below
    and no n x n kernel; it does not depend on the shift, which only keeps the numbers small. Two
    of them with the same shift add up, so shards and machines merge.

    Attributes:
        n: Rows.
        shift_x, shift_y: What is taken from every row first.
        xx, xy, yy: X^T X, X^T Y, Y^T Y.
        x, y: Sums of the rows.
        qx_x, qy_x, qx_y, qy_y: Sums of the rows weighted by either squared norm.
        q: Sums of q_x and q_y.
        qq: Sums of q_x^2, q_x q_y and q_y^2.
    """

    n: int
    shift_x: Float[Tensor, " d_source"]
    shift_y: Float[Tensor, " d_target"]
    xx: Float[Tensor, "d_source d_source"]
    xy: Float[Tensor, "d_source d_target"]
    yy: Float[Tensor, "d_target d_target"]
    x: Float[Tensor, " d_source"]
    y: Float[Tensor, " d_target"]
    qx_x: Float[Tensor, " d_source"]
    qy_x: Float[Tensor, " d_source"]
    qx_y: Float[Tensor, " d_target"]
    qy_y: Float[Tensor, " d_target"]
    q: Float[Tensor, "2"]
    qq: Float[Tensor, "3"]

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "row d_source"],
        y: Float[Tensor, "row d_target"],
        *,
        shift_x: Float[Tensor, " d_source"] | None = None,
        shift_y: Float[Tensor, " d_target"] | None = None,
    ) -> "CkaSums":
        """Sums of one batch, in float64; the shift defaults to the batch's means."""
        x, y = x.double(), y.double()
        shift_x = x.mean(0) if shift_x is None else shift_x.double()
        shift_y = y.mean(0) if shift_y is None else shift_y.double()
        x, y = x - shift_x, y - shift_y
        qx, qy = x.square().sum(-1), y.square().sum(-1)
        return cls(
            len(x),
            shift_x,
            shift_y,
            x.T @ x,
            x.T @ y,
            y.T @ y,
            x.sum(0),
            y.sum(0),
            qx @ x,
            qy @ x,
            qx @ y,
            qy @ y,
            torch.stack([qx.sum(), qy.sum()]),
            torch.stack([qx @ qx, qx @ qy, qy @ qy]),
        )

    def __add__(self, other: "CkaSums") -> "CkaSums":
        same = torch.equal(self.shift_x, other.shift_x) and torch.equal(self.shift_y, other.shift_y)
        if not same:
            raise InputError(
                "sums: made about different shifts",
                got="two shifts",
                valid="one shift for all batches",
                hint="pass shift_x= and shift_y= of the first batch to the others",
            )
        kept = ("shift_x", "shift_y")
        return CkaSums(
            **{
                f.name: getattr(self, f.name)
                if f.name in kept
                else getattr(self, f.name) + getattr(other, f.name)
                for f in fields(self)
            }
        )

    def linear(self) -> float:
        """Linear CKA (Kornblith et al. 2019). Biased upwards: about d / n for unrelated rows."""
        xx = self.xx - torch.outer(self.x, self.x) / self.n
        xy = self.xy - torch.outer(self.x, self.y) / self.n
        yy = self.yy - torch.outer(self.y, self.y) / self.n
        return float(xy.square().sum() / (xx.norm() * yy.norm()).clamp(min=1e-300))

    def debiased(self) -> float | None:
        """CKA with the unbiased HSIC: near 0 for unrelated rows; None below four rows."""
        if self.n < 4:
            return None
        cross = self._hsic(self.xy, self.x, self.y, 0, 1, self.qq[1], self.qy_x, self.qx_y)
        own_x = self._hsic(self.xx, self.x, self.x, 0, 0, self.qq[0], self.qx_x, self.qx_x)
        own_y = self._hsic(self.yy, self.y, self.y, 1, 1, self.qq[2], self.qy_y, self.qy_y)
        return cka_of(float(cross), float(own_x), float(own_y))

    def _hsic(
        self, c: Tensor, a: Tensor, b: Tensor, i: int, j: int, qq: Tensor, qb_a: Tensor,
        qa_b: Tensor,
    ) -> Tensor:  # fmt: skip
        cross = a @ c @ b - a @ qb_a - qa_b @ b + qq
        traces = (a @ a - self.q[i]) * (b @ b - self.q[j])
        return hsic_of(self.n, c.square().sum(), qq, traces, cross)


def hsic_of(n: int, squared: Tensor, qq: Tensor, traces: Tensor, cross: Tensor) -> Tensor:
    """Unbiased HSIC from its four sums (Song et al. 2012, eq. 5, with linear kernels).

    Args:
        n: Rows, at least four.
        squared: |A^T B|^2, the kernels' inner product with their diagonals.
        qq: Sum of q_a q_b: those diagonals.
        traces: (|sum a|^2 - sum q_a)(|sum b|^2 - sum q_b).
        cross: Sum over rows of both kernels' row sums, diagonals left out.
    """
    return (squared - qq + traces / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * cross) / (n * (n - 3))


def cka_of(cross: float, own_x: float, own_y: float) -> float | None:
    """HSIC(X, Y) over the root of HSIC(X, X) HSIC(Y, Y); None where one of them is not above 0."""
    return None if min(own_x, own_y) <= 0.0 else cross / (own_x * own_y) ** 0.5


#: Eigenvalues, rising, and eigenvectors of a covariance.
Spectrum = tuple[Tensor, Tensor]


def spectrum(covariance: Float[Tensor, "d d"]) -> Spectrum:
    """Decompose."""
    values, vectors = torch.linalg.eigh(covariance)
    return values, vectors


def svcca(
    train: PairedMoments,
    *tests: PairedMoments,
    share: float = 0.99,
    spectra: tuple[Spectrum, Spectrum] | None = None,
) -> list[float]:
    """Mean canonical correlation of both spaces' leading directions (Raghu et al. 2017), held out.

    Directions are found on `train` (PCA to `share` of the variance on either side, then CCA) and
    their correlations measured on each of `tests`, so that unrelated rows score 0, not
    root(d / n). `spectra` of both covariances of `train` save their decomposition.
    """
    own, other = spectra or (spectrum(train.xx), spectrum(train.yy))
    white_x, white_y = _whitened(own, share), _whitened(other, share)
    u, _, vh = torch.linalg.svd(white_x.T @ train.xy @ white_y, full_matrices=False)
    a, b = white_x @ u, white_y @ vh.T
    found = []
    for test in tests:
        cross = (a * (test.xy @ b)).sum(0)
        own_x = (a * (test.xx @ a)).sum(0)
        own_y = (b * (test.yy @ b)).sum(0)
        found.append(float((cross / (own_x * own_y).clamp(min=1e-300).sqrt()).mean()))
    return found


def _whitened(own: Spectrum, share: float) -> Float[Tensor, "d k"]:
    values, vectors = own
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    explained = values.cumsum(0) / values.sum().clamp(min=1e-300)
    k = int((explained < share).sum()) + 1
    kept = min(k, int((values > values[0] * 1e-12).sum()))
    return vectors[:, :kept] / values[:kept].sqrt()


def mutual_knn(
    x: Float[Tensor, "row d_source"],
    y: Float[Tensor, "row d_target"],
    document: Int[Tensor, " row"],
    *,
    k: int = 10,
) -> float | None:
    """Mean overlap of the k nearest neighbours of a row in both spaces (Huh et al. 2024).

    Neighbours are sought in other documents only: a row's own text is near it in any space. None
    when a row has no more than k candidates.
    """
    same = document[:, None] == document[None, :]
    if int((~same).sum(1).min()) <= k:
        return None
    near = [_neighbours(rows, same, k) for rows in (x, y)]
    return float((near[0] & near[1]).sum(1).double().mean() / k)


def _neighbours(rows: Tensor, same: Tensor, k: int) -> Tensor:
    unit = torch.nn.functional.normalize(rows.float() - rows.float().mean(0), dim=-1)
    nearest = (unit @ unit.T).masked_fill(same, float("-inf")).topk(k, dim=1).indices
    return torch.zeros_like(same).scatter_(1, nearest, True)

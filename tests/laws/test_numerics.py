"""Sums of rows with awkward scales, against the same sums of the same rows in float64.

Residual streams hold dimensions of a few thousand beside dimensions of a hundredth, dimensions
that hardly move about a large mean, and copies of each other. Rows come in float16 and bfloat16.
"""

import pytest
import torch
from torch import Tensor

from tl_transfer.mappers.affine import RidgePath
from tl_transfer.statistics import NormHistogram, PairedMoments
from tl_transfer.streaming import MomentGrid

N, D = 4000, 32
KINDS = ("scaled", "massive", "nearly constant", "duplicated")


def rows(kind: str, seed: int) -> Tensor:
    """Rows of one awkward kind, in float64."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=g, dtype=torch.float64)
    x = x @ torch.randn(D, D, generator=g, dtype=torch.float64) / D**0.5
    match kind:
        case "scaled":
            return x * torch.logspace(-4, 4, D, dtype=torch.float64)
        case "massive":  # a sink dimension, and single tokens far out in it
            x[:, 5] = 6000.0 + 30.0 * x[:, 5]
            x[::97, 7] += 400.0
        case "nearly constant":
            x[:, 3] = 1000.0 + 1e-2 * x[:, 3]
            x[:, 4] = -1000.0
        case "duplicated":
            x[:, 8:16] = x[:, :8]
            x[:, 16] = x[:, 0] + x[:, 1]
    return x


def streamed(x: Tensor, y: Tensor, *, batch: int = 300) -> PairedMoments:
    """As a fit adds them up, in one fold, with the shift renewed on the way."""
    grid = MomentGrid({"s": x.shape[1]}, {"t": y.shape[1]}, 1, buffer_rows=500)
    for part_x, part_y in zip(x.split(batch), y.split(batch), strict=True):
        grid.add({"s": part_x}, {"t": part_y}, torch.zeros(len(part_x), dtype=torch.long))
    return grid.folds("s", "t")[0]


def worst(got: Tensor, expected: Tensor, a: Tensor, b: Tensor) -> float:
    """Largest error of an entry, in units of the two standard deviations it belongs to."""
    scale = (a.diagonal().sqrt()[:, None] * b.diagonal().sqrt()[None]).clamp(min=1e-12)
    return float(((got - expected).abs() / scale).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_sums_are_those_of_float64(kind: str, dtype: torch.dtype) -> None:
    x, y = rows(kind, 0).to(dtype), rows(kind, 1).flip(1).to(dtype)
    got, want = streamed(x, y), PairedMoments.of(x, y)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    for name, a, b in (("xx", "xx", "xx"), ("xy", "xx", "yy"), ("yy", "yy", "yy")):
        first, second = getattr(want, a), getattr(want, b)
        assert worst(getattr(got, name), getattr(want, name), first, second) < tolerance, name
    deviation = (want.xx.diagonal() / N).sqrt()
    assert bool(((got.mean_x - want.mean_x).abs() <= tolerance * deviation + 1e-9).all())
    assert got.n == want.n == N


def test_products_of_raw_rows_would_lose_the_small_dimensions() -> None:
    """What the shift is for: the test above can fail."""
    x = rows("nearly constant", 0).float()
    raw = (x.T @ x).double() - N * torch.outer(x.double().mean(0), x.double().mean(0))
    want = PairedMoments.of(x, x)
    assert worst(raw[3:4, 3:4], want.xx[3:4, 3:4], want.xx[3:4, 3:4], want.xx[3:4, 3:4]) > 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_ridge_from_float32_sums_predicts_as_from_float64(kind: str) -> None:
    """Copies and constants leave the weights undetermined, not what they predict."""
    x = rows(kind, 0).float()
    truth = torch.randn(D, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scale = x.double().std(0).clamp(min=1e-6)
    y = ((x.double() - x.double().mean(0)) / scale @ truth + 40.0).float()
    predictions = []
    for moments in (streamed(x, y), PairedMoments.of(x, y)):
        path = RidgePath.of(moments)
        weight = path.weight(1e-3)
        assert bool(torch.isfinite(weight).all())
        predictions.append(x.double() @ weight + path.bias(weight))
    spread = y.double().std(0)
    assert float(((predictions[0] - predictions[1]) / spread).abs().max()) < 1e-3


def test_norms_of_half_precision_do_not_overflow() -> None:
    x = torch.full((10, 64), 3e4, dtype=torch.float16)  # the squares are beyond float16
    histogram = NormHistogram()
    histogram.add(torch.linalg.vector_norm(x.float(), dim=-1))
    assert histogram.median() == pytest.approx(3e4 * 8, rel=2e-3)

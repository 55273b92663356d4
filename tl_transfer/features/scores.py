"""Scores of pairs of features on paired rows: correlations and their intervals over documents."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_transfer.features.codes import Sample
from tl_transfer.intervals import percentile, resample

#: Bootstrap resamples of documents, and pairs done at once.
RESAMPLES, BLOCK = 1000, 2048

Index = Int[Tensor, " pair"]


def correlations(sample: Sample, source: Index, target: Index) -> Float[Tensor, " pair"]:
    """Pearson correlation of each source feature with its target feature; 0 where one is silent."""
    found = [
        _correlation(*_document_sums(sample, s, t, torch.zeros(len(sample), dtype=torch.long)))[0]
        for s, t in zip(source.split(BLOCK), target.split(BLOCK), strict=True)
    ]
    return torch.cat(found)


def correlation_intervals(
    sample: Sample, source: Index, target: Index, *, seed: int = 0
) -> Float[Tensor, "pair 2"]:
    """95 % interval of each correlation over resampled documents; NaN with fewer than two."""
    names, document = sample.document.unique(return_inverse=True)
    if len(names) < 2 or not len(source):
        return torch.full((len(source), 2), torch.nan, dtype=torch.float64)
    drawn = _drawn(len(names), seed)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    found = []
    # 1000 resamples of 256 pairs at a time: 6 sums of them are 12 MB.
    for s, t in zip(source.split(256), target.split(256), strict=True):
        n, *sums = _document_sums(sample, s, t, document)
        samples = _correlation(drawn @ n, *(drawn @ part for part in sums))
        found.append(samples.quantile(ends, dim=0).T)
    return torch.cat(found)


def interval_of_correlation(
    x: Float[Tensor, " row"], y: Float[Tensor, " row"], document: Int[Tensor, " row"], *, seed: int
) -> list[float] | None:
    """95 % interval of one correlation over documents; None with fewer than two."""
    names, place = document.unique(return_inverse=True)
    if len(names) < 2:
        return None
    parts = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=1)
    sums = torch.zeros(len(names), 6, dtype=torch.float64).index_add_(0, place, parts.double())
    drawn = _drawn(len(names), seed) @ sums
    return percentile(_correlation(*drawn.unbind(1)))


def _drawn(n: int, seed: int) -> Float[Tensor, "times n"]:
    """How often each of n documents is drawn."""
    index = resample(n, seed=seed, times=RESAMPLES)
    counts = torch.zeros(RESAMPLES, n, dtype=torch.float64)
    return counts.scatter_add_(1, index, torch.ones(index.shape, dtype=torch.float64))


def _document_sums(sample: Sample, source: Index, target: Index, document: Tensor) -> list[Tensor]:
    """By document: rows, and for each pair the sums of x, y, xx, yy and xy."""
    from scipy.sparse import csr_matrix

    n_rows = len(sample)
    n_documents = int(document.max()) + 1 if n_rows else 1
    member = csr_matrix(
        (torch.ones(n_rows).double().numpy(), (document.numpy(), torch.arange(n_rows).numpy())),
        shape=(n_documents, n_rows),
    )
    x = sample.x.columns[:, source.numpy()]
    y = sample.y.columns[:, target.numpy()]
    parts = (x, y, x.multiply(x), y.multiply(y), x.multiply(y))
    n = torch.bincount(document, minlength=n_documents).double()[:, None]
    return [n, *(torch.from_numpy((member @ part).toarray()) for part in parts)]


def _correlation(n: Tensor, x: Tensor, y: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """Pearson correlation from sums; 0 where a side does not vary."""
    scale = ((xx - x * x / n).clamp(min=0) * (yy - y * y / n).clamp(min=0)).sqrt()
    return torch.where(scale > 0, (xy - x * y / n) / scale.clamp(min=1e-300), 0.0).clamp(-1, 1)
